//! What happens underneath a guest: kubelet and API server restarted, its pod deleted.

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use vse_crds::ExitReason;
use vse_e2e::{Conditions, audit, cluster, ensure, hosts, json, scenario, tiny};

#[test]
fn restarts_pass_and_a_deleted_pod_is_followed_by_another() {
    scenario("underneath", async |world| {
        world.apply(&tiny("guest", json!({}))).await?;
        world.ready("guest", 1).await?;
        world.until_booted("guest", 1).await?;
        let microvm = world.microvm("guest", 1).await?;
        let engine = hosts::engine(&microvm).await?;
        let uptime = world.uptime("guest", 1).await?;

        let mark = audit::mark().await?;
        cluster::restart_kubelet(&engine.node).await?;
        cluster::restart_apiserver().await?;
        ensure!(world.uptime("guest", 1).await? > uptime, "the guest was booted again");
        assert_eq!(hosts::engine(&microvm).await?, engine);
        world.ready("guest", 1).await?;
        // The operator and the node runtimes are back when they follow a change.
        world.patch("guest", json!({"spec": {"paused": true}})).await?;
        world.until_vse("guest", "is paused", |vse| vse.is("Paused")).await?;
        let writes = audit::writes_since(&mark).await?;
        let first = writes.iter().find(|write| write.contains(&world.namespace)).cloned().unwrap_or_default();
        let order = format!("vse-operator patch microvms {}/guest-1", world.namespace);
        assert_eq!(first, order, "the first write after the restarts is not the pause's: {writes:#?}");
        world.patch("guest", json!({"spec": {"paused": false}})).await?;
        world.ready("guest", 1).await?;

        world.api::<Pod>().delete("guest-1", &DeleteParams::default()).await?;
        let status = world.ready("guest", 2).await?;
        assert_eq!(status.last_exit.map(|exit| exit.reason), Some(ExitReason::PodGone));
        let left = hosts::engine(&microvm).await;
        ensure!(left.is_err(), "the first incarnation's engine still runs: {left:?}");
        Ok(())
    });
}
