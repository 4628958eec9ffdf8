//! The operator, run in the test, with a hook between it and the API server that counts its writes and can have it die
//! right after one: the server has done it, the operator never learns.

use crate::server::Server;
use kube::Client;
use kube::client::Body;
use kube::runtime::events::{Recorder, Reporter};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use vse_operator::metrics::Metrics;
use vse_operator::vse;
use vse_operator::vse::pod::Images;

/// When to die.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    /// After so many writes.
    Writes(usize),
}

/// A running operator; it dies when dropped.
pub(crate) struct Operator {
    task: JoinHandle<()>,
    hook: Arc<Hook>,
}

struct Hook {
    limit: Option<Count>,
    killed: Notify,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    writes: Vec<String>,
    dead: bool,
    last: Option<Instant>,
}

impl Operator {
    /// Starts an operator, to be killed when the count is reached.
    pub(crate) fn start(server: &Server, limit: Option<Count>) -> Operator {
        let hook = Arc::new(Hook { limit, killed: Notify::new(), calls: Mutex::default() });
        let client = hooked(server.client(), hook.clone());
        let (cache, watches) = vse::watches(&client);
        let context = vse::Context {
            recorder: Recorder::new(client.clone(), Reporter::from("test".to_owned())),
            client,
            cache,
            images: Images {
                launcher: "example.org/vse/launcher:1".into(),
                engines: vse_crds::EngineName::ALL
                    .map(|engine| (engine, format!("example.org/vse/engine-{}:1", engine.as_str())))
                    .into(),
                pull_policy: None,
            },
            metrics: Metrics::default(),
        };
        let run = vse::run(Arc::new(context), watches, std::future::pending());
        Operator { task: tokio::spawn(run), hook }
    }

    /// Writes so far, Events apart.
    pub(crate) fn writes(&self) -> usize {
        self.hook.calls.lock().unwrap().writes.len()
    }

    /// What they were.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.hook.calls.lock().unwrap().writes.clone()
    }

    /// Waits until the operator was killed by its count.
    pub(crate) async fn wait_killed(&self) {
        let killed = self.hook.killed.notified();
        tokio::time::timeout(Duration::from_secs(30), killed)
            .await
            .unwrap_or_else(|_| panic!("not killed after {:?}", self.calls()));
        self.task.abort();
    }

    /// Waits until the operator has not called for a while.
    pub(crate) async fn wait_idle(&self) {
        const QUIET: Duration = Duration::from_millis(700);
        let start = Instant::now();
        loop {
            let last = self.hook.calls.lock().unwrap().last.unwrap_or(start).max(start);
            if last.elapsed() >= QUIET {
                return;
            }
            tokio::time::sleep(QUIET - last.elapsed()).await;
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client whose calls pass the hook.
fn hooked(inner: Client, hook: Arc<Hook>) -> Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (inner, hook) = (inner.clone(), hook.clone());
        async move {
            if hook.calls.lock().unwrap().dead {
                return std::future::pending().await;
            }
            let call = format!("{} {}", request.method(), request.uri().path());
            let writes = request.method() != http::Method::GET && !call.contains("/events");
            let response = inner.send(request).await?;
            if hook.answered(call, writes && response.status().is_success()) {
                return std::future::pending().await;
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, "default")
}

impl Hook {
    /// Counts a call that the server answered; whether the operator is dead now.
    fn answered(&self, call: String, wrote: bool) -> bool {
        let mut calls = self.calls.lock().unwrap();
        calls.last = Some(Instant::now());
        if wrote {
            calls.writes.push(call);
        }
        if let Some(Count::Writes(limit)) = self.limit
            && calls.writes.len() >= limit
            && !calls.dead
        {
            calls.dead = true;
            self.killed.notify_one();
        }
        calls.dead
    }
}
