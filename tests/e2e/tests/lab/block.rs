//! A whole disk of a host for a guest: a claim of a local block volume.

use kube::Api;
use vse_crds::{DeviceVerdict, Host, VerdictReason};
use vse_e2e::console::Console;
use vse_e2e::lab::{bare_metal, lab_scenario};
use vse_e2e::{Context, Error, cluster, json};

/// The hosts' NVMe disk (docs/lab.md).
const DISK: &str = "/dev/nvme0n1";

#[test]
fn a_block_volume_is_the_guests_disk() {
    lab_scenario("block", async |world| {
        let nodes = cluster::nodes().await?;
        let node = nodes.first().context("no hosts")?;
        let there = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]);
        let size = cluster::node_exec(node, &format!("blockdev --getsize64 {DISK}")).await?;
        let common = json!({
            "apiVersion": "v1",
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": ""},
        });
        let volume = json!({
            "kind": "PersistentVolume", "metadata": {"name": world.namespace},
            "spec": {
                "capacity": {"storage": size.trim()}, "local": {"path": DISK},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": there}]}},
            },
        });
        let claim = json!({
            "kind": "PersistentVolumeClaim", "metadata": {"name": "disk"},
            "spec": {"volumeName": world.namespace, "resources": {"requests": {"storage": size.trim()}}},
        });
        // Requests that Linux AIO may have under way, on the whole host.
        let asynchronous =
            async || Ok::<u64, Error>(cluster::node_exec(node, "cat /proc/sys/fs/aio-nr").await?.trim().parse()?);
        let before = asynchronous().await?;
        world.apply(&vse_e2e::patched(common.clone(), volume)).await?;
        world.apply(&vse_e2e::patched(common, claim)).await?;
        let volumes = json!([{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]);
        world.apply(&bare_metal("guest", json!({"volumes": volumes, "disks": [{"name": "disk"}]}))).await?;
        world.ready("guest", 1).await?;

        // No guest can have its controller meanwhile, whatever a class selects.
        let hosts = Api::<Host>::all(world.client.clone());
        let is_it = |verdict: DeviceVerdict| {
            verdict.reason == VerdictReason::InUse && verdict.message.contains("its disk nvme0n1 is")
        };
        world
            .until("the disk is in use", async || {
                let devices = hosts.get(node).await?.status.unwrap_or_default().devices;
                Ok(devices.into_iter().filter_map(|device| device.verdict).any(is_it).then_some(()))
            })
            .await?;

        // The tiny guest's root is the other disk.
        let mut console = Console::login(world, "guest", 1).await?;
        let disk = console.run("grep -l disk /sys/block/vd*/serial | cut -d/ -f4").await?;
        let sectors: u64 = console.run(&format!("cat /sys/block/{disk}/size")).await?.parse()?;
        assert_eq!((sectors * 512).to_string(), size.trim());
        console.run(&format!("echo written by the guest >/dev/{disk}; sync")).await?;
        let read = cluster::node_exec(node, &format!("head -n 1 {DISK}")).await?;
        assert_eq!(read, "written by the guest\n");
        // Not one after the other, though the pod may not use io_uring.
        assert!(asynchronous().await? > before, "the guest's disk is not served asynchronously");
        Ok(())
    });
}
