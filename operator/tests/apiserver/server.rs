//! etcd and kube-apiserver, started for one test and gone with it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Who knocks: the test itself, then operators that run as programs of their own. Each one's token is its name.
const USERS: [&str; 5] = ["test", "first", "second", "third", "fourth"];
/// Every write is logged once, when it is done.
const AUDIT_POLICY: &str = r#"{
    "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {"level": "Metadata"}
    ]
}"#;

/// A running API server.
pub(crate) struct Server {
    client: Client,
    url: String,
    processes: Vec<Child>,
    dir: TempDir,
}

/// A write that was done.
pub(crate) struct Write {
    /// Whose.
    pub user: String,
    /// `patch vses/status name`
    pub what: String,
}

impl Server {
    /// Starts both, waits until they answer, and installs the CRDs.
    pub(crate) async fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let [etcd, peer, api] = free_ports();
        let (etcd_url, peer_url) = (url("http", etcd), url("http", peer));
        let mut processes = vec![spawn(
            path,
            "etcd",
            &[
                ("data-dir", &text(&path.join("etcd"))),
                ("listen-client-urls", &etcd_url),
                ("advertise-client-urls", &etcd_url),
                ("listen-peer-urls", &peer_url),
                ("initial-advertise-peer-urls", &peer_url),
                ("initial-cluster", &format!("default={peer_url}")),
                ("unsafe-no-fsync", "true"),
            ],
        )];
        let key = service_account_key(path);
        let tokens = path.join("tokens.csv");
        std::fs::write(&tokens, USERS.map(|user| format!("{user},{user},{user},system:masters\n")).concat()).unwrap();
        let policy = path.join("audit-policy.json");
        std::fs::write(&policy, AUDIT_POLICY).unwrap();
        processes.push(spawn(
            path,
            "kube-apiserver",
            &[
                ("etcd-servers", &etcd_url),
                ("bind-address", "127.0.0.1"),
                ("secure-port", &api.to_string()),
                ("cert-dir", &text(&path.join("certificates"))),
                ("authorization-mode", "AlwaysAllow"),
                ("token-auth-file", &text(&tokens)),
                ("audit-policy-file", &text(&policy)),
                ("audit-log-path", &text(&path.join("audit.log"))),
                ("service-account-issuer", "https://test"),
                ("service-account-key-file", &key),
                ("service-account-signing-key-file", &key),
                ("disable-admission-plugins", "ServiceAccount"),
            ],
        ));
        let url = url("https", api);
        let mut config = Config::new(url.parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(USERS[0].to_owned().into());
        let client = Client::try_from(config).unwrap();
        let server = Server { client, url, processes, dir };
        server.wait_ready().await;
        server.install().await;
        server
    }

    /// A client with all rights.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// A kubeconfig with all rights, for a program that is known by that name.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "insecure-skip-tls-verify": true}}],
            "users": [{"name": user, "user": {"token": user}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        });
        let path = self.dir.path().join(format!("{user}.kubeconfig"));
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// What operators with a name of their own have written, in order; leases and Events apart.
    pub(crate) fn writes(&self) -> Vec<Write> {
        let log = std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap();
        log.lines().filter_map(|line| write(&serde_json::from_str(line).unwrap())).collect()
    }

    async fn wait_ready(&self) {
        let start = Instant::now();
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            let answer = self.client.request_text(request).await;
            if answer.as_deref().is_ok_and(|text| text == "ok") {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the API server does not get ready: {answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn install(&self) {
        let crds: Api<CustomResourceDefinition> = Api::all(self.client());
        for crd in vse_crds::all() {
            crds.create(&PostParams::default(), &crd).await.unwrap();
            let name = crd.name_any();
            let established = await_condition(crds.clone(), &name, conditions::is_crd_established());
            tokio::time::timeout(Duration::from_secs(10), established).await.unwrap().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The API server first: without etcd it takes its time.
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn write(entry: &Value) -> Option<Write> {
    let user = entry["user"]["username"].as_str().filter(|user| USERS[1..].contains(user))?;
    let object = &entry["objectRef"];
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let done = entry["responseStatus"]["code"].as_u64()? < 300;
    let what = format!("{} {}/{} {}", entry["verb"], text("resource"), text("subresource"), text("name"));
    (done && !["events", "leases"].contains(&text("resource"))).then(|| Write { user: user.to_owned(), what })
}

fn spawn(dir: &Path, program: &str, flags: &[(&str, &str)]) -> Child {
    let log = std::fs::File::create(dir.join(format!("{program}.log"))).unwrap();
    Command::new(program)
        .args(flags.iter().map(|(flag, value)| format!("--{flag}={value}")))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{program} (hack/tools builds it) is not on the PATH: {error}"))
}

fn service_account_key(dir: &Path) -> String {
    let path = text(&dir.join("service-account.key"));
    let made = Command::new("openssl")
        .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &path])
        .status()
        .unwrap();
    assert!(made.success());
    path
}

/// Ports nobody listens on now.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn url(scheme: &str, port: u16) -> String {
    format!("{scheme}://127.0.0.1:{port}")
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
