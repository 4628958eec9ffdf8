//! NUMA cells and their huge page pools, from /sys/devices/system/node (Documentation/admin-guide/mm/numaperf.rst,
//! hugetlbpage.rst); the whole machine as one cell where the kernel has no NUMA.

use crate::cpu_list::CpuList;
use crate::sysfs::{Error, Root};
use vse_crds::{Cell, HugePagePool, LogicalCpu, PageSize, quantity};

const NODES: &str = "sys/devices/system/node";
/// Huge page directories of sysfs name the size in kB.
const SIZES: [(&str, PageSize); 2] = [("hugepages-2048kB", PageSize::TwoMi), ("hugepages-1048576kB", PageSize::OneGi)];

/// The host's cells, by number.
pub(super) fn observe(root: &Root, cpus: &[LogicalCpu]) -> Result<Vec<Cell>, Error> {
    let mut ids: Vec<u32> =
        root.names(NODES).iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
    ids.sort_unstable();
    if ids.is_empty() {
        return Ok(vec![whole_machine(root, cpus)?]);
    }
    ids.into_iter()
        .map(|id| {
            let directory = format!("{NODES}/node{id}");
            let info = root.text(&format!("{directory}/meminfo"))?;
            Ok(Cell {
                id,
                cpus: root.text(&format!("{directory}/cpulist"))?,
                memory: quantity::from_bytes(total(&info, &format!("{directory}/meminfo"))?),
                huge_pages: pools(root, &format!("{directory}/hugepages")),
                distances: root
                    .optional(&format!("{directory}/distance"))
                    .map(|text| text.split_ascii_whitespace().filter_map(|d| d.parse().ok()).collect())
                    .unwrap_or_default(),
            })
        })
        .collect()
}

fn whole_machine(root: &Root, cpus: &[LogicalCpu]) -> Result<Cell, Error> {
    Ok(Cell {
        id: 0,
        cpus: cpus.iter().map(|c| c.cpu).collect::<CpuList>().to_string(),
        memory: quantity::from_bytes(total(&root.text("proc/meminfo")?, "proc/meminfo")?),
        huge_pages: pools(root, "sys/kernel/mm/hugepages"),
        distances: Vec::new(),
    })
}

/// `MemTotal` in bytes; lines are `[Node N ]MemTotal: N kB`.
fn total(info: &str, file: &str) -> Result<u64, Error> {
    info.lines()
        .find_map(|line| {
            let (_, rest) = line.split_once("MemTotal:")?;
            rest.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
        })
        .ok_or_else(|| Error::Unexpected {
            path: file.into(),
            text: info.chars().take(80).collect(),
            expected: "a MemTotal line",
        })
}

fn pools(root: &Root, directory: &str) -> Vec<HugePagePool> {
    SIZES
        .into_iter()
        .filter_map(|(name, page_size)| {
            let total = root.parse(&format!("{directory}/{name}/nr_hugepages"), "a number of pages").ok()?;
            Some(HugePagePool { page_size, total })
        })
        .collect()
}
