//! Host devices: what a HostPolicy declares kubelet counts; a guest has its card, and the host has it back after; what the
//! host can't spare nobody gets; and between two guests on two hosts there are only their cards.

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use vse_crds::{Host, device_resource};
use vse_e2e::lab::{self, bare_metal, driver, lab_scenario};
use vse_e2e::{Context, Result, Shell, World, cluster, ensure, hosts, json, patched, refusal};

use crate::cards::{CARD, host_devices, policy, with_devices, withdraw};

async fn refused(world: &World, name: &str, reason: &str, words: &str) -> Result<()> {
    let is = |vse: &_| refusal(vse).is_some_and(|(why, message)| why == reason && message.contains(words));
    world.until_vse(name, &format!("is refused: {reason}, {words}"), is).await.map(drop)
}

#[test]
fn a_class_is_waited_for_given_and_taken_back() {
    lab_scenario("devices", async |world| {
        world.apply(&with_devices("early", &["card"])).await?;
        refused(world, "early", "DeviceClassNotFound", "hostDevices[card].deviceName").await?;

        // The class comes, and the guest with its card. The virtual functions are counted by kubelet.
        world.apply(&policy("devices")).await?;
        let node = world.ready("early", 1).await?.node_name.context("no host")?;
        let devices = world.microvm("early", 1).await?.status.map(|status| status.devices).unwrap_or_default();
        assert_eq!(devices.first().map(|device| device.addresses.clone()), Some(vec![CARD.to_owned()]));
        assert_eq!(driver(&node, CARD).await?, "vfio-pci");
        until_counted(world, &node, "vf", 2).await?;

        // What shares a group with the host's own is offered to nobody, and the Host says why.
        world.apply(&with_devices("greedy", &["shared"])).await?;
        refused(world, "greedy", "InsufficientDevices", "no host has 1 of vse.hpc.io/shared").await?;
        let host = Api::<Host>::all(world.client.clone()).get(&node).await?.status.context("the Host says nothing")?;
        let shared = host.device_classes.iter().find(|class| class.name == "shared").context("no class `shared`")?;
        ensure!(shared.devices == 0 && shared.message.contains("also has"), "{shared:?}");

        // The guest goes, once it hears its power button, and its card is the host's again; the policy goes, and its virtual functions with it.
        world.until_booted("early", 1).await?;
        world.delete("early").await?;
        assert_eq!(driver(&node, CARD).await?, "e1000e");
        withdraw(world, "devices").await?;
        until_counted(world, &node, "vf", 0).await?;
        until_counted(world, &node, "card", 0).await
    });
}

/// Waits until kubelet has so many devices of a class to give.
async fn until_counted(world: &World, node: &str, class: &str, count: u32) -> Result<()> {
    let nodes = Api::<Node>::all(world.client.clone());
    let resource = device_resource(class);
    world
        .until(&format!("kubelet counts {count} of {resource}"), async || {
            let allocatable = nodes.get(node).await?.status.and_then(|status| status.allocatable).unwrap_or_default();
            Ok(allocatable.get(&resource).is_some_and(|counted| counted.0 == count.to_string()).then_some(()))
        })
        .await
}

/// Pings from one guest to the other.
const PINGS: u64 = 500;

#[test]
fn two_guests_on_two_hosts_talk_over_their_cards() {
    lab_scenario("passthrough", async |world| {
        let nodes = cluster::nodes().await?;
        let [left, right] = &nodes[..] else { vse_e2e::bail!("two hosts are needed; there are {nodes:?}") };
        world.apply(&policy("passthrough")).await?;
        let shell = Shell::new(world).await?;
        let guest = |name: &str, node: &str, classes: &[&str]| {
            let machine = json!({
                "cpu": {"cores": 1, "isolateEmulatorThread": false},
                "devices": {"hostDevices": host_devices(classes)},
            });
            let placed = json!({"machine": machine, "nodeSelector": {"kubernetes.io/hostname": node}});
            bare_metal(name, patched(shell.debian(), placed))
        };
        // One of them has a virtual function too.
        world.apply(&guest("left", left, &["card", "vf"])).await?;
        world.apply(&guest("right", right, &["card"])).await?;
        for name in ["left", "right"] {
            world.ready(name, 1).await?;
        }

        // Each guest's driver has its card, and a link.
        let up = |address: u32| {
            format!(
                "set -e; modprobe -a e1000e igbvf; udevadm settle
                 card=$(basename /sys/bus/pci/drivers/e1000e/0000:*/net/*)
                 ip address add 192.0.2.{address}/24 dev $card; ip link set $card up
                 timeout 60 sh -c \"until grep -q 1 /sys/class/net/$card/carrier; do :; done\"; echo $card"
            )
        };
        let card = shell.first("left", &up(1)).await?;
        shell.first("right", &up(2)).await?;
        let vf = shell.run("left", "ls -d /sys/bus/pci/drivers/igbvf/0000:* | wc -l").await?;
        assert_eq!(vf, "1", "the virtual function's driver");

        // Packets take interrupts, and neither the host nor the engine's work.
        let interrupts = async || {
            let sum = format!("awk '/{card}/ {{sum += $2}} END {{print sum}}' /proc/interrupts");
            shell.run("left", &sum).await?.parse::<u64>().context("interrupts of the card")
        };
        let engine = hosts::engine(&world.microvm("left", 1).await?).await?;
        let ping = format!("ping -q -f -c {PINGS} 192.0.2.2 | grep -o '[0-9]* received'");
        shell.run("left", "ping -q -c 1 192.0.2.2").await?;
        let kinds = shell.run("left", &format!("grep {card} /proc/interrupts")).await?;
        ensure!(kinds.lines().all(|line| line.contains("MSIX")), "not all are MSI-X: {kinds}");
        let (before, counted) = (interrupts().await?, lab::kvm_counters(&engine).await?);
        assert_eq!(shell.run("left", &ping).await?, format!("{PINGS} received"));
        let (after, now) = (interrupts().await?, lab::kvm_counters(&engine).await?);
        let of_packet = |count: u64| count as f64 / (2 * PINGS) as f64;
        let (exits, emulated) = (of_packet(now.exits - counted.exits), of_packet(now.emulated - counted.emulated));
        eprintln!("    a packet: {exits:.2} exits, {emulated:.3} to the VMM; {} interrupts in all", after - before);
        ensure!(after - before >= PINGS / 4, "{before} interrupts before, {after} after");
        ensure!(emulated < 0.5, "{emulated} exits to the VMM for a packet");

        // Deleted, the functions are the hosts' again.
        let vf = world.microvm("left", 1).await?.status.unwrap_or_default().devices;
        let vf = vf.iter().find(|device| device.name == "vf").and_then(|device| device.addresses.first().cloned());
        let vf = vf.context("the virtual function is not in the status")?;
        assert_eq!(driver(left, &vf).await?, "vfio-pci");
        for name in ["left", "right"] {
            world.delete(name).await?;
        }
        for node in [left, right] {
            assert_eq!(driver(node, CARD).await?, "e1000e");
        }
        ensure!(driver(left, &vf).await? != "vfio-pci", "the virtual function is still bound");
        withdraw(world, "passthrough").await
    });
}
