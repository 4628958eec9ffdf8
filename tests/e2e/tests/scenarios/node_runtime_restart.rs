//! The node runtime is killed: guests go on, and launches are neither lost nor done twice.

use futures::future::try_join_all;
use vse_crds::{VSEPhase, vse_conditions::PAUSED};
use vse_e2e::cluster::{node_exec, nodes};
use vse_e2e::{Conditions, Result, World, ensure, hosts, json, scenario, tiny};

const KILL: &str = "pkill -9 -x vse-node-runtim";

#[test]
fn guests_go_on() {
    scenario("adoption", async |world| {
        world.apply(&tiny("guest", json!({}))).await?;
        world.ready("guest", 1).await?;
        world.until_booted("guest", 1).await?;
        let microvm = world.microvm("guest", 1).await?;
        let engine = hosts::engine(&microvm).await?;
        let uptime = world.uptime("guest", 1).await?;

        let node = &microvm.spec.node_name;
        let killed = runtime_pid(node).await?;
        node_exec(node, KILL).await?;
        until_another_runtime(world, node, &killed).await?;

        // It takes orders for the guest it found.
        world.patch("guest", json!({"spec": {"paused": true}})).await?;
        world.until_vse("guest", "is paused", |vse| vse.is(PAUSED)).await?;
        world.patch("guest", json!({"spec": {"paused": false}})).await?;
        world.until_vse("guest", "runs again", |vse| vse.phase() == Some(VSEPhase::Running)).await?;
        assert_eq!(hosts::engine(&microvm).await?, engine, "another engine");
        ensure!(world.uptime("guest", 1).await? > uptime, "the guest was booted again");
        assert_eq!(world.vse("guest").await?.told().incarnation, 1);
        Ok(())
    });
}

#[test]
fn launches_are_neither_lost_nor_doubled() {
    scenario("killed-launching", async |world| {
        let names = ["a", "b", "c", "d"];
        for name in names {
            world.apply(&tiny(name, json!({}))).await?;
        }
        // As often as kubelet starts it again within the launches, at whatever step they are.
        let nodes = nodes().await?;
        for round in 1..=2 {
            let before = try_join_all(nodes.iter().map(|node| runtime_pid(node))).await?;
            for node in &nodes {
                node_exec(node, KILL).await?;
            }
            for (node, killed) in nodes.iter().zip(&before) {
                until_another_runtime(world, node, killed).await?;
            }
            eprintln!("    round {round}: {:?}", phases(world).await?);
        }
        for name in names {
            world.ready(name, 1).await?;
            hosts::engine(&world.microvm(name, 1).await?).await?;
        }
        Ok(())
    });
}

async fn runtime_pid(node: &str) -> Result<String> {
    node_exec(node, "pgrep -x vse-node-runtim || true").await
}

async fn until_another_runtime(world: &World, node: &str, killed: &str) -> Result<()> {
    let what = format!("another node runtime on {node}");
    world
        .until(&what, async || {
            let pid = runtime_pid(node).await?;
            Ok((!pid.is_empty() && pid != killed).then_some(()))
        })
        .await
}

async fn phases(world: &World) -> Result<Vec<Option<VSEPhase>>> {
    Ok(world.all::<vse_crds::VSE>().await?.iter().map(Conditions::phase).collect())
}
