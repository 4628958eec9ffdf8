//! MicroVMs whose VSE was removed by force: their guests are shut down, then they go; those of others stay.

use crate::actors::Actors;
use crate::process::Process;
use crate::server::Server;
use crate::{create, demo, merge, start, vses, wait, wait_phase};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use std::time::{Duration, Instant};
use vse_crds::{MicroVM, MicroVMPhase, VSEPhase};

#[tokio::test]
#[ignore = "needs etcd and kube-apiserver"]
async fn go_once_their_host_has_let_go() {
    let server = start().await;
    let _actors = Actors::start(&server);
    let first = Process::start(&server, "first");
    for name in ["collected", "over", "again", "kept"] {
        create(&server, demo(name)).await;
        wait_phase(&server, name, VSEPhase::Running).await;
    }
    merge(&server, "kept", json!({"spec": {"runStrategy": "Once"}})).await;
    release(&server, "kept-1").await;
    wait_phase(&server, "kept", VSEPhase::Succeeded).await;

    // Nobody is there to see the VSEs go.
    drop(first);
    for name in ["collected", "over", "again"] {
        merge(&server, name, json!({"metadata": {"finalizers": null}})).await;
        vses(&server).delete(name, &DeleteParams::default()).await.unwrap();
    }
    // Another VSE of a name that was used does not answer for the first one's guest.
    create(&server, demo("again")).await;
    let _second = Process::start(&server, "second");
    // The garbage collector's part, which does not run here.
    for name in ["collected-1", "again-1"] {
        microvms(&server).delete(name, &DeleteParams::default()).await.unwrap();
    }
    release(&server, "over-1").await;

    for name in ["collected-1", "over-1"] {
        gone(&server, name).await;
    }
    wait(&server, "again", "claimed", |status| status.incarnation > 0).await;
    let start = Instant::now();
    while microvms(&server).get_opt("again-1").await.unwrap().is_some_and(|vm| vm.metadata.deletion_timestamp.is_some())
    {
        assert!(start.elapsed() < Duration::from_secs(30), "the first VSE's guest is kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let kept = microvms(&server).get("kept-1").await.unwrap();
    assert!(kept.metadata.deletion_timestamp.is_none() && !kept.finalizers().is_empty());
}

fn microvms(server: &Server) -> Api<MicroVM> {
    Api::namespaced(server.client(), "default")
}

/// The guest ended by itself, and its host holds nothing of it.
async fn release(server: &Server, name: &str) {
    let status = json!({"status": {
        "phase": MicroVMPhase::Released,
        "exit": {"incarnation": 1, "reason": "GuestShutdown", "at": jiff::Timestamp::now()},
    }});
    microvms(server).patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn gone(server: &Server, name: &str) {
    let start = Instant::now();
    while let Some(vm) = microvms(server).get_opt(name).await.unwrap() {
        assert!(start.elapsed() < Duration::from_secs(30), "{name} is kept: {:?}", vm.metadata);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
