//! A guest that spans both cells of its host: each of its cells is on one of the host's.

use std::collections::BTreeMap;
use vse_crds::vse_conditions::READY;
use vse_e2e::lab::{self, bare_metal, lab_scenario};
use vse_e2e::{Conditions, Context, Result, Shell, World, cluster, ensure, hosts, json, patched};

/// Pages of 2 MiB of 1 GiB: more than a cell has (docs/lab.md).
const PAGES: u64 = 512;

#[test]
fn guest_cells_lie_on_host_cells() {
    lab_scenario("two-cells", async |world| {
        let nodes = cluster::nodes().await?;
        let node = nodes.first().context("no hosts")?;
        // `single-numa-node`, the hosts' own, admits no such pod.
        lab::set_topology_policy(node, "restricted").await?;
        let seen = spanning(world, node).await;
        lab::set_topology_policy(node, "single-numa-node").await?;
        seen
    });
}

/// Never panics: the node's policy is reset after.
async fn spanning(world: &World, node: &str) -> Result<()> {
    let shell = Shell::new(world).await?;
    let wide = json!({
        "machine": {
            "cpu": {
                "cores": 4, "isolateEmulatorThread": false, "numa": {"guestMappingPassthrough": {}},
            },
            "memory": {"guest": "1Gi"},
        },
        "nodeSelector": {"kubernetes.io/hostname": node},
    });
    world.apply(&bare_metal("wide", patched(shell.debian(), wide))).await?;
    // The first pod may come before kubelet has forgotten whose the CPUs were before.
    let ready = world.until_vse("wide", "is ready", |vse| vse.is(READY)).await?;
    let microvm = world.microvm("wide", ready.told().incarnation).await?;
    let engine = hosts::engine(&microvm).await?;

    // Two cells, with as much memory as CPUs; all of it where these are.
    let placed = microvm.status.and_then(|status| status.cpus).context("no CPUs in the status")?.pinned;
    let cell_of = async |cpu: u32| -> Result<u32> {
        let said = cluster::node_exec(node, &format!("ls -d /sys/devices/system/cpu/cpu{cpu}/node*")).await?;
        said.trim().rsplit("node").next().and_then(|cell| cell.parse().ok()).context(said)
    };
    let mut vcpus = BTreeMap::<u32, Vec<usize>>::new();
    for (vcpu, cpu) in placed.iter().enumerate() {
        vcpus.entry(cell_of(*cpu).await?).or_default().push(vcpu);
    }
    let pages = lab::huge_pages(&engine).await?;
    ensure!(pages.len() == 2 && pages.values().sum::<u64>() == PAGES, "{pages:?}");
    let pages = |cell: &u32| pages.get(cell).copied().with_context(|| format!("nothing on cell {cell}: {pages:?}"));
    for (cell, vcpus) in &vcpus {
        let (has, share) = (pages(cell)?, PAGES * vcpus.len() as u64 / placed.len() as u64);
        ensure!(has.abs_diff(share) <= 1, "cell {cell} of {vcpus:?} has {has} pages, {share} are its share");
    }

    // The guest sees them so: CPUs, memory within what its kernel keeps for itself, distances.
    let look = "cd /sys/devices/system/node; for n in node*; do
            echo $(cat $n/cpulist) $(awk '/MemTotal/ {print $4}' $n/meminfo) $(cat $n/distance); done";
    let seen = shell.first("wide", look).await?;
    let distances = lab::pci(node, "cat /sys/devices/system/node/node*/distance").await?;
    for ((line, distances), (cell, vcpus)) in seen.lines().zip(distances.lines()).zip(&vcpus) {
        let (cpus, rest) = line.split_once(' ').context(line.to_owned())?;
        let (kib, told) = rest.split_once(' ').context(line.to_owned())?;
        ensure!(list(cpus)? == *vcpus, "CPUs of {line}: {vcpus:?}");
        let (kib, all) = (kib.parse::<u64>()?, pages(cell)? * 2048);
        ensure!(kib < all && kib > all * 8 / 10, "{kib} KiB of {all}");
        ensure!(told == distances, "distances of {line}: {distances}");
    }
    ensure!(seen.lines().count() == 2, "{seen}");

    world.delete("wide").await
}

/// CPUs of a list like `0,2-3`.
fn list(text: &str) -> Result<Vec<usize>> {
    let range = |part: &str| -> Result<_> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Ok(first.parse::<usize>()?..=last.parse()?)
    };
    let ranges = text.split(',').map(range).collect::<Result<Vec<_>>>()?;
    Ok(ranges.into_iter().flatten().collect())
}
