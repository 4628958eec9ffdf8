//! Scenarios that need a bare-metal host, and looking at one: threads, memory, huge pages. The hosts are virtual, by
//! `hack/cluster` with `PROVIDER=lab`, which can also cut their power.

use crate::cluster::{self, checkout, node_exec};
use crate::hosts::Engine;
use crate::{World, scenario};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Runs a scenario on virtual bare-metal hosts.
///
/// # Panics
/// When it fails, and when the cluster that is up has no such hosts.
pub fn lab_scenario(name: &str, story: impl AsyncFnOnce(&World) -> Result<()>) {
    let provider = std::fs::read_to_string(checkout().join(".cluster/provider")).unwrap_or_default();
    assert_eq!(provider.trim(), "lab", "{name} needs virtual bare-metal hosts; run it by `make lab-test`");
    scenario(name, story);
}

/// A guest of its own CPUs and of 2 MiB pages, on an engine with KVM, with changes to its spec (a JSON merge patch).
pub fn bare_metal(name: &str, spec: Value) -> Value {
    let base = json!({
        // What a kernel prints is slow where the serial console is emulated twice over.
        "system": {"kernelArguments": ["quiet"]},
        "machine": {
            "cpu": {"request": null, "cores": 2, "dedicatedCPUPlacement": true, "isolateEmulatorThread": true},
            "memory": {"guest": "256Mi", "hugepages": {"pageSize": "2Mi"}},
        },
    });
    crate::tiny(name, crate::patched(base, spec))
}

/// Power cut: nothing of the node runs any more.
pub async fn kill_node(node: &str) -> Result<()> {
    cluster::hack(&["kill-node", node]).await.map(drop)
}

/// Powers a node on again, with the disk as it was, and waits until it is Ready.
pub async fn start_node(node: &str) -> Result<()> {
    cluster::hack(&["start-node", node]).await.map(drop)
}

/// Gives a node's kubelet another `topologyManagerPolicy`, for the pods that it admits from now on.
pub async fn set_topology_policy(node: &str, policy: &str) -> Result<()> {
    let set =
        format!("sed -i 's/^topologyManagerPolicy:.*/topologyManagerPolicy: {policy}/' /etc/kubernetes/kubelet.yaml");
    node_exec(node, &set).await?;
    cluster::restart_kubelet(node).await
}

/// What a script prints in a node's directory of PCI functions, without the last line's end.
pub async fn pci(node: &str, script: &str) -> Result<String> {
    Ok(node_exec(node, &format!("cd /sys/bus/pci/devices && {script}")).await?.trim_end().to_owned())
}

/// The driver of a node's PCI function; nothing without one.
pub async fn driver(node: &str, address: &str) -> Result<String> {
    pci(node, &format!("[ ! -e {address}/driver ] || basename $(readlink {address}/driver)")).await
}

/// What KVM counted for an engine's guest since it was made.
#[derive(Clone, Copy, Debug)]
pub struct KvmCounters {
    /// Times the guest left to the host's kernel.
    pub exits: u64,
    /// Of these, to the VMM: ports and emulated registers.
    pub emulated: u64,
}

/// Reads KVM's counters (Documentation/virt/kvm/api.rst, the debugfs files).
pub async fn kvm_counters(engine: &Engine) -> Result<KvmCounters> {
    let script = format!("cd /sys/kernel/debug/kvm/{}-* && cat exits io_exits mmio_exits", engine.pid);
    let said = node_exec(&engine.node, &script).await?;
    let numbers: Vec<u64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    let [exits, ports, registers] = numbers[..] else { anyhow::bail!("three counters expected: {said}") };
    Ok(KvmCounters { exits, emulated: ports + registers })
}

/// A thread of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its name; of a vCPU's, `CPU n/KVM`.
    pub name: String,
    /// CPUs it may run on, as a list.
    pub allowed: String,
    /// The CPU it ran on last.
    pub last: u32,
    /// Page faults it had, with and without reading from a disk.
    pub faults: u64,
}

/// The threads of an engine, oldest first.
pub async fn threads(engine: &Engine) -> Result<Vec<Thread>> {
    let script = format!(
        r#"cd /proc/{}/task && for t in *; do
            echo "$(cat $t/comm);$(sed -n 's/^Cpus_allowed_list:\t//p' $t/status);$(sed 's/.*) //' $t/stat)"
        done"#,
        engine.pid
    );
    node_exec(&engine.node, &script).await?.lines().map(|line| thread(line).context(line.to_owned())).collect()
}

/// From `name;allowed;` and the fields of proc(5)'s stat from the third on.
fn thread(line: &str) -> Option<Thread> {
    let (name, rest) = line.split_once(';')?;
    let (allowed, stat) = rest.split_once(';')?;
    let field = |number: usize| stat.split(' ').nth(number - 3)?.parse::<u64>().ok();
    let faults = field(10)? + field(12)?;
    Some(Thread { name: name.into(), allowed: allowed.into(), last: field(39)?.try_into().ok()?, faults })
}

/// Free 2 MiB pages of each cell of a node.
pub async fn free_huge_pages(node: &str) -> Result<BTreeMap<u32, u64>> {
    let script = "cd /sys/devices/system/node && for n in node*; do
        echo ${n#node} $(cat $n/hugepages/hugepages-2048kB/free_hugepages); done";
    let said = node_exec(node, script).await?;
    let cell = |line: &str| {
        let (cell, free) = line.split_once(' ')?;
        Some((cell.parse().ok()?, free.parse().ok()?))
    };
    let cells: BTreeMap<u32, u64> = said.lines().filter_map(cell).collect();
    ensure!(cells.len() == 2, "two cells expected: {said}");
    Ok(cells)
}

/// How many 2 MiB pages of an engine lie on each cell.
pub async fn huge_pages(engine: &Engine) -> Result<BTreeMap<u32, u64>> {
    Ok(pages_by_cell(&engine.proc("numa_maps").await?))
}

/// From the huge mappings of numa(7)'s numa_maps, their `N<cell>=<pages>`.
fn pages_by_cell(numa_maps: &str) -> BTreeMap<u32, u64> {
    let huge = numa_maps.lines().filter(|line| line.contains("kernelpagesize_kB=2048"));
    let mut cells = BTreeMap::new();
    for word in huge.flat_map(|line| line.split(' ')) {
        let cell = word.strip_prefix('N').and_then(|word| word.split_once('='));
        if let Some((Ok(cell), Ok(pages))) = cell.map(|(cell, pages)| (cell.parse(), pages.parse::<u64>())) {
            *cells.entry(cell).or_default() += pages;
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_read_from_its_stat() {
        let stat: Vec<String> = (3..=52).map(|field: u32| field.to_string()).collect();
        let thread = thread(&format!("CPU 0/KVM;1-2;{}", stat.join(" "))).unwrap();
        assert_eq!(thread, Thread { name: "CPU 0/KVM".into(), allowed: "1-2".into(), last: 39, faults: 10 + 12 });
    }

    #[test]
    fn pages_are_counted_in_huge_mappings_only() {
        let maps = "7f00 default file=/memfd:ram huge dirty=3 N0=1 N1=2 kernelpagesize_kB=2048\n\
                    7f01 default anon=9 dirty=9 N0=9 kernelpagesize_kB=4\n\
                    7f02 default huge N1=4 kernelpagesize_kB=2048\n";
        assert_eq!(pages_by_cell(maps), BTreeMap::from([(0, 1), (1, 6)]));
    }
}
