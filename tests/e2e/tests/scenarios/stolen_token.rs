//! A token stolen from one host is of no use against another, nor against anything else.

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Config, ResourceExt};
use vse_crds::{Host, MicroVM, VSE};
use vse_e2e::{Context, Result, World, bail, cluster, ensure, json, scenario, tiny};

const SYSTEM: &str = "vse-system";
const ACCOUNT: &str = "vse-node-runtime";

#[test]
fn of_one_host_is_of_no_use_elsewhere() {
    scenario("stolen-token", async |world| {
        world.apply(&tiny("guest", json!({}))).await?;
        world.ready("guest", 1).await?;
        let own = world.microvm("guest", 1).await?.spec.node_name;
        let other = cluster::nodes().await?.into_iter().find(|node| *node != own).context("only one node")?;

        let thief = runtime_of(world, &other).await?;
        refused("Host of another", write_host(&thief, &own).await)?;
        refused("MicroVM of another", write_microvm(world, &thief).await)?;
        let microvms: Api<MicroVM> = Api::namespaced(thief.clone(), &world.namespace);
        refused("delete MicroVM", microvms.delete("guest-1", &DeleteParams::default()).await)?;
        let vses: Api<VSE> = Api::namespaced(thief.clone(), &world.namespace);
        refused("delete VSE", vses.delete("guest", &DeleteParams::default()).await)?;
        let vse: VSE = serde_json::from_value(tiny("thiefs", json!({})))?;
        refused("create VSE", vses.create(&PostParams::default(), &vse).await)?;
        let pods: Api<Pod> = Api::namespaced(thief.clone(), &world.namespace);
        refused("delete pod", pods.delete("guest-1", &DeleteParams::default()).await)?;
        let secrets: Api<Secret> = Api::all(thief.clone());
        refused("read Secrets", secrets.list(&ListParams::default()).await)?;

        // Its own it may write; without a host in the token nothing.
        write_host(&thief, &other).await?;
        let runtime = runtime_of(world, &own).await?;
        write_microvm(world, &runtime).await?;
        let unbound = with_token(token(world, json!({})).await?).await?;
        refused("Host without a host in the token", write_host(&unbound, &own).await)?;
        world.ready("guest", 1).await.map(drop)
    });
}

/// A client with a token of the node runtime of that host.
async fn runtime_of(world: &World, node: &str) -> Result<Client> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM);
    let of_runtime = ListParams::default()
        .labels("app.kubernetes.io/component=node-runtime")
        .fields(&format!("spec.nodeName={node},status.phase=Running"));
    let pod = pods.list(&of_runtime).await?.items.into_iter().next().context("no node runtime")?;
    let bound =
        json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod.name_any(), "uid": pod.uid()}});
    with_token(token(world, bound).await?).await
}

async fn token(world: &World, spec: vse_e2e::Value) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), SYSTEM);
    let spec = vse_e2e::patched(json!({"audiences": [], "expirationSeconds": 600}), spec);
    let request: TokenRequest = serde_json::from_value(json!({"metadata": {}, "spec": spec}))?;
    let made = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?;
    made.status.and_then(|status| status.token).context("no token")
}

async fn with_token(token: String) -> Result<Client> {
    let mut config = Config::infer().await?;
    config.auth_info = kube::config::AuthInfo { token: Some(token.into()), ..Default::default() };
    Ok(Client::try_from(config)?)
}

/// A status write that changes nothing, as far as it is allowed.
async fn write_host(client: &Client, node: &str) -> kube::Result<Host> {
    let hosts: Api<Host> = Api::all(client.clone());
    hosts.patch_status(node, &PatchParams::default(), &Patch::Merge(json!({"status": {}}))).await
}

async fn write_microvm(world: &World, client: &Client) -> kube::Result<MicroVM> {
    let microvms: Api<MicroVM> = Api::namespaced(client.clone(), &world.namespace);
    microvms.patch_status("guest-1", &PatchParams::default(), &Patch::Merge(json!({"status": {}}))).await
}

fn refused<T>(what: &str, result: kube::Result<T>) -> Result<()> {
    match result {
        Ok(_) => bail!("{what}: allowed"),
        Err(kube::Error::Api(status)) => {
            ensure!(status.code == 403, "{what}: {} {}", status.code, status.message);
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
