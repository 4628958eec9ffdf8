//! The operator against a real API server: etcd and kube-apiserver are started for each test; scheduler, kubelet and
//! node runtime are played by the test.
//!
//! Needs `etcd` and `kube-apiserver` on the PATH (`hack/tools` builds them), so it runs only when asked for:
//! `cargo test -p vse-operator --test apiserver -- --ignored`.

// A test's set-up that fails is a failed test.
#![allow(clippy::unwrap_used)]

mod actors;
mod failover;
mod operator;
mod orphans;
mod process;
mod server;

use actors::Actors;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use operator::{Count, Operator};
use serde_json::json;
use server::Server;
use std::time::{Duration, Instant};
use vse_crds::{Host, MicroVM, VSE, VSEPhase, VSEStatus, condition};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(30);

fn demo(name: &str) -> VSE {
    serde_json::from_value(json!({
        "apiVersion": "vse.hpc.io/v1alpha1",
        "kind": "VSE",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "system": {"image": "example.org/debian-hpc:13"},
            "machine": {"memory": {"guest": "512Mi"}},
            "networks": [{"name": "default", "pod": {}}],
        },
    }))
    .unwrap()
}

/// A cluster with one host that emulates.
async fn start() -> Server {
    let server = Server::start().await;
    let hosts: Api<Host> = Api::all(server.client());
    let host: Host = serde_json::from_value(json!({
        "apiVersion": "vse.hpc.io/v1alpha1",
        "kind": "Host",
        "metadata": {"name": "host-1"},
        "spec": {},
    }))
    .unwrap();
    hosts.create(&PostParams::default(), &host).await.unwrap();
    let status = json!({"status": {
        "cpu": {"count": 8},
        "memory": "32Gi",
        "emulation": "Allow",
        "engines": [{"name": "qemu", "accelerators": ["TCG"]}],
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Ready", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    }});
    let params = PatchParams::default();
    hosts.patch_status("host-1", &params, &Patch::Merge(status)).await.unwrap();
    server
}

fn vses(server: &Server) -> Api<VSE> {
    Api::namespaced(server.client(), "default")
}

async fn create(server: &Server, vse: VSE) {
    vses(server).create(&PostParams::default(), &vse).await.unwrap();
}

async fn merge(server: &Server, name: &str, patch: serde_json::Value) {
    let params = PatchParams::default();
    vses(server).patch(name, &params, &Patch::Merge(patch)).await.unwrap();
}

/// Waits until a VSE's status is as wanted.
async fn wait(server: &Server, name: &str, what: &str, wanted: impl Fn(&VSEStatus) -> bool) -> VSE {
    let start = Instant::now();
    loop {
        let vse = vses(server).get(name).await.unwrap();
        if vse.status.as_ref().is_some_and(&wanted) {
            return vse;
        }
        assert!(start.elapsed() < PATIENCE, "never {what}: {vse:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn wait_phase(server: &Server, name: &str, phase: VSEPhase) -> VSE {
    wait(server, name, &format!("{phase:?}"), |s| s.phase == Some(phase)).await
}

/// Waits until nothing of a VSE is left.
async fn wait_gone(server: &Server) {
    let pods: Api<Pod> = Api::namespaced(server.client(), "default");
    let vms: Api<MicroVM> = Api::namespaced(server.client(), "default");
    let start = Instant::now();
    let all = ListParams::default();
    loop {
        let left = vses(server).list_metadata(&all).await.unwrap().items.len()
            + pods.list_metadata(&all).await.unwrap().items.len()
            + vms.list_metadata(&all).await.unwrap().items.len();
        if left == 0 {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{left} objects are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn delete(server: &Server, name: &str) {
    let params = DeleteParams::default();
    vses(server).delete(name, &params).await.unwrap();
    wait_gone(server).await;
}

#[tokio::test]
#[ignore = "needs etcd and kube-apiserver"]
async fn a_life_takes_five_writes_and_then_none() {
    let server = start().await;
    let _actors = Actors::start(&server);
    let operator = Operator::start(&server, None);
    create(&server, demo("demo")).await;
    let vse = wait_phase(&server, "demo", VSEPhase::Running).await;
    let status = vse.status.clone().unwrap();
    assert_eq!(status.incarnation, 1);
    assert_eq!(status.node_name.as_deref(), Some("host-1"));
    assert!(condition::is_true(&status.conditions, "Ready"));
    // The last write is seen by others before it is counted.
    operator.wait_idle().await;
    assert_eq!(operator.writes(), 5, "{:?}", operator.calls());
    // Every touch of the VSE has it reconciled; none may write.
    for round in 0..5 {
        let touch = json!({"metadata": {"labels": {"touched": round.to_string()}}});
        merge(&server, "demo", touch).await;
        operator.wait_idle().await;
    }
    assert_eq!(operator.writes(), 5, "{:?}", operator.calls());
    delete(&server, "demo").await;
}

#[tokio::test]
#[ignore = "needs etcd and kube-apiserver"]
async fn halt_start_restart_and_change() {
    let server = start().await;
    let _actors = Actors::start(&server);
    let _operator = Operator::start(&server, None);
    create(&server, demo("demo")).await;
    wait_phase(&server, "demo", VSEPhase::Running).await;

    merge(&server, "demo", json!({"spec": {"paused": true}})).await;
    wait_phase(&server, "demo", VSEPhase::Paused).await;
    merge(&server, "demo", json!({"spec": {"paused": false}})).await;
    wait_phase(&server, "demo", VSEPhase::Running).await;

    let cores = json!({"spec": {"machine": {"cpu": {"cores": 2}}}});
    merge(&server, "demo", cores).await;
    wait(&server, "demo", "in need of a restart", |status| {
        condition::find(&status.conditions, "RestartRequired")
            .is_some_and(|c| c.status == "True" && c.message.contains("spec.machine.cpu.cores"))
    })
    .await;
    let restart = json!({"metadata": {"annotations": {
        "vse.hpc.io/restarted-at": "2026-01-01T00:00:00Z",
    }}});
    merge(&server, "demo", restart).await;
    wait(&server, "demo", "running its second life", |status| {
        status.incarnation == 2 && status.phase == Some(VSEPhase::Running)
    })
    .await;
    let vms: Api<MicroVM> = Api::namespaced(server.client(), "default");
    let vm = vms.get("demo-2").await.unwrap();
    assert_eq!(vm.spec.machine.cpu.cores, Some(2));

    merge(&server, "demo", json!({"spec": {"runStrategy": "Halted"}})).await;
    let halted = wait_phase(&server, "demo", VSEPhase::Halted).await;
    let conditions = halted.status.unwrap().conditions;
    assert!(condition::find(&conditions, "Ready").is_none());
    merge(&server, "demo", json!({"spec": {"runStrategy": "Always"}})).await;
    wait(&server, "demo", "running its third life", |status| {
        status.incarnation == 3 && status.phase == Some(VSEPhase::Running)
    })
    .await;
    delete(&server, "demo").await;
}

#[tokio::test]
#[ignore = "needs etcd and kube-apiserver"]
async fn what_is_missing_is_named_and_waited_for() {
    let server = start().await;
    let _actors = Actors::start(&server);
    let operator = Operator::start(&server, None);
    let mut vse = demo("demo");
    vse.spec.profile_name = Some("tiny".into());
    create(&server, vse).await;
    wait(&server, "demo", "refused", |status| {
        condition::find(&status.conditions, "Stalled")
            .is_some_and(|c| c.status == "True" && c.reason == "ProfileNotFound")
    })
    .await;
    operator.wait_idle().await;
    let profiles: Api<vse_crds::VSEProfile> = Api::all(server.client());
    let profile = serde_json::from_value(json!({
        "apiVersion": "vse.hpc.io/v1alpha1",
        "kind": "VSEProfile",
        "metadata": {"name": "tiny"},
        "spec": {"machine": {"cpu": {"cores": 2}}},
    }))
    .unwrap();
    profiles.create(&PostParams::default(), &profile).await.unwrap();
    wait_phase(&server, "demo", VSEPhase::Running).await;
    delete(&server, "demo").await;
}

#[tokio::test]
#[ignore = "needs etcd and kube-apiserver"]
async fn a_foreign_object_in_the_way_is_named() {
    let server = start().await;
    let _actors = Actors::start(&server);
    let _operator = Operator::start(&server, None);
    let pods: Api<Pod> = Api::namespaced(server.client(), "default");
    let foreign: Pod = serde_json::from_value(json!({
        "metadata": {"name": "demo-1"},
        "spec": {"containers": [{"name": "other", "image": "other"}]},
    }))
    .unwrap();
    pods.create(&PostParams::default(), &foreign).await.unwrap();
    create(&server, demo("demo")).await;
    let vse = wait(&server, "demo", "stalled", |status| {
        condition::find(&status.conditions, "Stalled").is_some_and(|c| c.reason == "NameTaken")
    })
    .await;
    let message = &vse.status.unwrap().conditions[0].message;
    assert!(message.contains("Pod demo-1"), "{message}");
    let now = DeleteParams::default().grace_period(0);
    pods.delete("demo-1", &now).await.unwrap();
    delete(&server, "demo").await;
}

/// What two runs must have in common.
async fn essence(server: &Server) -> serde_json::Value {
    let pods: Api<Pod> = Api::namespaced(server.client(), "default");
    let vms: Api<MicroVM> = Api::namespaced(server.client(), "default");
    let all = ListParams::default();
    let mut vses = vses(server).list(&all).await.unwrap().items;
    for vse in &mut vses {
        let status = vse.status.as_mut().unwrap();
        status.started_at = None;
        for condition in &mut status.conditions {
            condition.last_transition_time.0 = jiff::Timestamp::UNIX_EPOCH;
        }
    }
    let mut vms = vms.list(&all).await.unwrap().items;
    for vm in &mut vms {
        vm.spec.pod_uid.clear();
        vm.spec.vse_uid.clear();
        vm.status = None;
    }
    let pods = pods.list(&all).await.unwrap().items;
    json!({
        "vses": vses.iter().map(|v| (&v.spec, &v.status, v.finalizers())).collect::<Vec<_>>(),
        "vms": vms.iter().map(|v| (v.name_any(), &v.spec, v.finalizers())).collect::<Vec<_>>(),
        "pods": pods.iter().map(|p| (p.name_any(), &p.spec, p.labels())).collect::<Vec<_>>(),
    })
}

#[tokio::test]
#[ignore = "needs etcd and kube-apiserver"]
async fn killed_after_each_of_its_writes() {
    let server = start().await;
    let _actors = Actors::start(&server);
    let mut undisturbed = None;
    // From create to Ready there are five writes; the sixth kill never comes.
    for kill_after in [None, Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)] {
        let operator = Operator::start(&server, kill_after.map(Count::Writes));
        create(&server, demo("demo")).await;
        if kill_after.is_some_and(|writes| writes <= 5) {
            operator.wait_killed().await;
        }
        let second = Operator::start(&server, None);
        wait_phase(&server, "demo", VSEPhase::Running).await;
        second.wait_idle().await;
        let is = essence(&server).await;
        let should_be = undisturbed.get_or_insert_with(|| is.clone());
        assert_eq!(&is, should_be, "killed after {kill_after:?} writes");
        drop(operator);
        delete(&server, "demo").await;
    }
}

#[tokio::test]
#[ignore = "needs etcd and kube-apiserver"]
async fn killed_after_each_write_of_a_deletion() {
    let server = start().await;
    let _actors = Actors::start(&server);
    for kill_after in 1..=5 {
        let first = Operator::start(&server, None);
        create(&server, demo("demo")).await;
        wait_phase(&server, "demo", VSEPhase::Running).await;
        first.wait_idle().await;
        drop(first);
        let operator = Operator::start(&server, Some(Count::Writes(kill_after)));
        let params = DeleteParams::default();
        vses(&server).delete("demo", &params).await.unwrap();
        operator.wait_killed().await;
        drop(operator);
        let _second = Operator::start(&server, None);
        wait_gone(&server).await;
    }
}
