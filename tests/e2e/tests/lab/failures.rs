//! An engine or a node runtime dies while a guest has a card and virtual functions: nothing stays bound, nothing is lost.

use vse_crds::VSEPhase;
use vse_e2e::lab::{self, driver, lab_scenario};
use vse_e2e::{Conditions, Context, Result, World, cluster, ensure, hosts, json, patched};

use crate::cards::{CARD, policy, with_devices, withdraw};

/// Functions of a guest, as its status tells.
async fn functions(world: &World, vse: &str, incarnation: i64) -> Result<Vec<String>> {
    let status = world.microvm(vse, incarnation).await?.status.context("nothing in the MicroVM's status")?;
    Ok(status.devices.into_iter().flat_map(|device| device.addresses).collect())
}

#[test]
fn an_engine_dies_with_its_devices() {
    lab_scenario("engine-killed", async |world| {
        world.apply(&policy("engine-killed")).await?;
        let once = json!({"spec": {"runStrategy": "Once"}});
        world.apply(&patched(with_devices("guest", &["card", "vf"]), once)).await?;
        let node = world.ready("guest", 1).await?.node_name.context("no host")?;
        let functions = functions(world, "guest", 1).await?;
        ensure!(functions.len() == 2 && functions.contains(&CARD.to_owned()), "{functions:?}");
        for function in &functions {
            assert_eq!(driver(&node, function).await?, "vfio-pci");
        }
        world.until_booted("guest", 1).await?;
        let used = lab::free_huge_pages(&node).await?.values().sum::<u64>();

        hosts::engine(&world.microvm("guest", 1).await?).await?.kill().await?;
        world.until_vse("guest", "has failed", |vse| vse.phase() == Some(VSEPhase::Failed)).await?;
        for function in &functions {
            ensure!(driver(&node, function).await? != "vfio-pci", "{function} is still bound");
        }
        assert_eq!(driver(&node, CARD).await?, "e1000e");
        assert_eq!(lab::free_huge_pages(&node).await?.values().sum::<u64>(), used + 64);

        // kubelet has them back, too: another guest gets them.
        let there = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}});
        world.apply(&patched(with_devices("next", &["card", "vf"]), there)).await?;
        world.ready("next", 1).await?;
        assert_eq!(driver(&node, CARD).await?, "vfio-pci");
        world.until_booted("next", 1).await?;
        world.delete("next").await?;
        world.delete("guest").await?;
        withdraw(world, "engine-killed").await
    });
}

#[test]
fn a_node_runtime_dies_while_a_guest_has_devices() {
    lab_scenario("runtime-killed", async |world| {
        world.apply(&policy("runtime-killed")).await?;
        world.apply(&with_devices("guest", &["card", "vf"])).await?;
        let node = world.ready("guest", 1).await?.node_name.context("no host")?;
        world.until_booted("guest", 1).await?;
        let microvm = world.microvm("guest", 1).await?;
        let engine = hosts::engine(&microvm).await?;
        let functions = functions(world, "guest", 1).await?;

        cluster::node_exec(&node, "pkill -9 -x vse-node-runtim").await?;
        world
            .until("another node runtime", async || {
                Ok(cluster::node_exec(&node, "pgrep -x vse-node-runtim").await.ok())
            })
            .await?;
        // The guest keeps its devices, and the new node runtime knows whose they are.
        world.patch("guest", json!({"spec": {"paused": true}})).await?;
        world.until_vse("guest", "is paused", |vse| vse.is(vse_crds::vse_conditions::PAUSED)).await?;
        world.patch("guest", json!({"spec": {"paused": false}})).await?;
        world.until_vse("guest", "runs again", |vse| vse.phase() == Some(VSEPhase::Running)).await?;
        assert_eq!(hosts::engine(&microvm).await?, engine, "another engine");
        for function in &functions {
            assert_eq!(driver(&node, function).await?, "vfio-pci");
        }
        world.delete("guest").await?;
        for function in &functions {
            ensure!(driver(&node, function).await? != "vfio-pci", "{function} is still bound");
        }
        withdraw(world, "runtime-killed").await
    });
}
