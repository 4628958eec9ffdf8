//! A virtual function with real I/O: one that the administrator made of the host's NVMe controller, which goes on to serve
//! the host.

use vse_e2e::console::Console;
use vse_e2e::lab::{self, driver, lab_scenario, pci};
use vse_e2e::{Context, Result, cluster, ensure, hosts, json};

use crate::cards::{with_devices, withdraw};

/// The hosts' NVMe controller (docs/lab.md), and its namespace, which its virtual functions share.
const CONTROLLER: &str = "0000:00:0b.0";
const DISK: &str = "/dev/nvme0n1";
/// Reads by the guest. Were the function's registers not mapped into it, doorbells alone would be an exit or two for each.
const READS: u64 = 4000;

/// Gives half of the controller's flexible resources, an interrupt and two queues, to a virtual function, as QEMU's
/// `docs/system/devices/nvme.rst` has it; the policy's `virtualFunctions` says what the administrator made.
const MAKE: &str = "set -e
    lend() { nvme virt-mgmt /dev/nvme0 --cntlid=$1 --act=$2 --rt=$3 --nr=$4; }
    cd /sys/class/nvme/nvme0/device
    echo 0 >sriov_numvfs
    lend 0 1 1 0; lend 0 1 0 0
    echo 1 >reset
    echo 0 >sriov_drivers_autoprobe; echo 1 >sriov_numvfs
    lend 1 8 1 1; lend 1 8 0 2; lend 1 9 0 0
    basename $(readlink virtfn0)";

#[test]
fn a_virtual_function_of_nvme_serves_its_guest() {
    lab_scenario("nvme", async |world| {
        let nodes = cluster::nodes().await?;
        let node = nodes.first().context("no hosts")?;
        let made = cluster::node_exec(node, MAKE).await?;
        let vf = made.lines().last().context("no virtual function")?;
        let class = json!({"name": "nvme", "selector": {"addresses": [CONTROLLER]}, "virtualFunctions": 1});
        world
            .apply(&json!({
                "apiVersion": "vse.hpc.io/v1alpha1", "kind": "HostPolicy", "metadata": {"name": "nvme"},
                "spec": {
                    "priority": 1000, "deviceClasses": [class],
                    "nodeSelector": {"kubernetes.io/hostname": node},
                },
            }))
            .await?;
        world.apply(&with_devices("guest", &["nvme"])).await?;
        world.ready("guest", 1).await?;
        assert_eq!(driver(node, vf).await?, "vfio-pci");

        // What either of them writes the other reads; `direct`, for each has a page cache.
        let write = |text: &str| format!("printf %-512s '{text}' | dd of={DISK} bs=512 oflag=direct 2>/dev/null");
        let read = format!("dd if={DISK} bs=512 count=1 iflag=direct 2>/dev/null");
        cluster::node_exec(node, &write("written by the host")).await?;
        let mut guest = Console::login(world, "guest", 1).await?;
        guest.run(&format!("until [ -b {DISK} ]; do sleep 0.1; done")).await?;
        assert_eq!(guest.run(&read).await?, "written by the host");
        guest.run(&write("written by the guest")).await?;
        assert_eq!(cluster::node_exec(node, &read).await?.trim_end(), "written by the guest");

        // Reads take an interrupt each, and neither the host nor the engine's work.
        let engine = hosts::engine(&world.microvm("guest", 1).await?).await?;
        let (before, counted) = (interrupts(&mut guest).await?, lab::kvm_counters(&engine).await?);
        guest.run(&format!("dd if={DISK} of=/dev/null bs=4k count={READS} iflag=direct 2>/dev/null")).await?;
        let (after, now) = (interrupts(&mut guest).await?, lab::kvm_counters(&engine).await?);
        let (taken, emulated) = (after - before, now.emulated - counted.emulated);
        eprintln!("    {READS} reads: {taken} interrupts, {emulated} exits to the VMM, the console's among them");
        ensure!(taken >= READS, "{taken} interrupts for {READS} reads");
        ensure!(emulated < READS / 2, "{emulated} exits to the VMM for {READS} reads");

        world.delete("guest").await?;
        assert_eq!(driver(node, vf).await?, "", "it had no driver before");
        assert_eq!(pci(node, &format!("cat {CONTROLLER}/sriov_numvfs")).await?, "1", "it was not ours to unmake");
        withdraw(world, "nvme").await?;
        pci(node, &format!("cd {CONTROLLER} && echo 0 >sriov_numvfs && echo 1 >sriov_drivers_autoprobe")).await?;
        Ok(())
    });
}

/// How many interrupts the guest has taken from its disk.
async fn interrupts(guest: &mut Console) -> Result<u64> {
    let lines = guest.run("grep nvme /proc/interrupts").await?;
    ensure!(lines.lines().all(|line| line.contains("MSIX")), "not all are MSI-X: {lines}");
    let count = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    Ok(lines.lines().filter_map(count).sum())
}
