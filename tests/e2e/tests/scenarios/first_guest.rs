//! The first thing anybody does: apply, look, pause, resume, delete.

use futures::AsyncReadExt;
use futures::future::join;
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use vse_crds::{VSEPhase, vse_conditions::PAUSED};
use vse_e2e::{Conditions, ensure, hosts, json, scenario, tiny};

#[test]
fn a_guest_from_apply_to_delete() {
    scenario("first-guest", async |world| {
        let manifest = tiny("guest", json!({}));
        world.apply(&manifest).await?;
        let status = world.ready("guest", 1).await?;
        assert_eq!(status.phase, Some(VSEPhase::Running));
        assert_eq!(status.engine.as_deref(), Some("qemu"));
        let pod = world.pod("guest", 1).await?;
        let pod_ip = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
        ensure!(status.addresses.iter().any(|address| address.ip == pod_ip), "{:?}", status.addresses);
        let microvm = world.microvm("guest", 1).await?;
        assert_eq!(status.node_name.as_ref(), Some(&microvm.spec.node_name));
        let placed = microvm.status.clone().unwrap_or_default();
        ensure!(placed.cpus.is_some_and(|cpus| cpus.summary.starts_with("shared ")), "no CPUs in the status");
        ensure!(placed.engine_version.is_some_and(|version| version.starts_with("QEMU")), "no engine version");
        world.until_booted("guest", 1).await?;

        // The pod has no privilege, and only the engine in it.
        let engine = hosts::engine(&microvm).await?;
        let process = engine.proc("status").await?;
        for line in ["Uid:\t107\t107\t107\t107", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
            ensure!(process.contains(line), "the engine has not {line:?}:\n{process}");
        }
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
            ensure!(process.contains(line), "the engine has not {line:?}:\n{process}");
        }
        let mounts = engine.proc("mounts").await?;
        let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap_or_default();
        ensure!(root.split(' ').nth(3).is_some_and(|options| options.starts_with("ro")), "writable root: {root}");

        // Applied again, nothing changes.
        let before = world.vse("guest").await?.metadata;
        world.apply(&manifest).await?;
        assert_eq!(world.vse("guest").await?.metadata.resource_version, before.resource_version);

        // Paused, the guest's clock stands still.
        world.patch("guest", json!({"spec": {"paused": true}})).await?;
        let paused = world.until_vse("guest", "is paused", |vse| vse.is(PAUSED)).await?;
        assert_eq!(paused.phase(), Some(VSEPhase::Paused));
        let ticks = cpu_ticks(&engine.proc("stat").await?);
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let later = cpu_ticks(&engine.proc("stat").await?);
        ensure!(later - ticks <= 10, "the engine of a paused guest used {} ticks in 2 s", later - ticks);
        world.patch("guest", json!({"spec": {"paused": false}})).await?;
        world.until_vse("guest", "runs again", |vse| vse.phase() == Some(VSEPhase::Running)).await?;
        world.uptime("guest", 1).await?;
        assert_eq!(hosts::engine(&microvm).await?, engine, "another engine after the pause");

        // Deleted, it is asked by its power button, and goes by itself.
        let pods = world.api::<Pod>();
        let following = pods.log_stream("guest-1", &LogParams { follow: true, ..LogParams::default() }).await?;
        let mut last_words = String::new();
        let mut following = std::pin::pin!(following);
        let (deleted, read) = join(world.delete("guest"), following.read_to_string(&mut last_words)).await;
        read?;
        ensure!(last_words.contains("tiny: power button"), "no power button: {last_words:?}");
        deleted
    });
}

/// User and system time of a process, from its stat: fields 14 and 15, counted after the name in parentheses.
fn cpu_ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    after_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}
