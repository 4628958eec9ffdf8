//! The guest's RAM in QEMU's words. Pure.
//!
//! Usual pages stay anonymous, so that the host makes them huge by itself (shared memory is left out of that by
//! default); reserved huge pages come as a memfd, which needs no hugetlbfs mount in the pod.
//!
//! Memory that must lie on host cells is placed by first use: it is touched by a thread that runs on the CPUs of its
//! vCPUs. The other way, `host-nodes`, is not open to a pod: `mbind` needs CAP_SYS_NICE under the default seccomp
//! profiles of container runtimes.

use serde_json::{Value, json};

use super::args::Line;
use crate::{GuestCell, GuestConfig, PageSize};

/// Most threads that touch memory (MAX_MEM_PREALLOC_THREAD_COUNT, util/oslib-posix.c).
const MAX_TOUCHING: usize = 16;

/// Name of the backend that is the whole RAM; the machine is told of it.
pub(super) const BACKEND: &str = "ram";

/// Size, backends, and the cells where there are several.
pub(super) fn memory(line: &mut Line<'_>, guest: &GuestConfig) {
    line.option("m", format!("{}k", guest.memory.bytes >> 10));
    match guest.cells.as_slice() {
        [] => backend(line, guest, BACKEND, guest.memory.bytes, None),
        [cell] => backend(line, guest, BACKEND, cell.bytes, Some(cell)),
        cells => {
            for (index, cell) in cells.iter().enumerate() {
                let id = format!("{BACKEND}{index}");
                backend(line, guest, &id, cell.bytes, Some(cell));
                let cpus: String = ranges(&cell.vcpus).iter().map(|range| format!(",cpus={range}")).collect();
                line.option("numa", format!("node,nodeid={index}{cpus},memdev={id}"));
            }
            for (from, cell) in cells.iter().enumerate() {
                for (to, distance) in cell.distances.iter().enumerate() {
                    line.option("numa", format!("dist,src={from},dst={to},val={distance}"));
                }
            }
        }
    }
}

/// Whether the machine's RAM is one backend.
pub(super) fn is_whole(guest: &GuestConfig) -> bool {
    guest.cells.len() <= 1
}

fn backend(line: &mut Line<'_>, guest: &GuestConfig, id: &str, bytes: u64, cell: Option<&GuestCell>) {
    let pages = guest.memory.pages;
    let mut backend = match pages {
        PageSize::Default => json!({"qom-type": "memory-backend-ram", "id": id, "size": bytes}),
        PageSize::Huge2M | PageSize::Huge1G => json!({
            "qom-type": "memory-backend-memfd", "id": id, "size": bytes, "share": true, "prealloc": true,
            "hugetlb": true, "hugetlbsize": pages.bytes(),
        }),
    };
    if let Some(cell) = cell.filter(|cell| !cell.host_cells.is_empty()) {
        let context = format!("{id}-touch");
        let cpus = guest.placement.cpus_of(&cell.vcpus);
        backend["prealloc"] = Value::from(true);
        backend["prealloc-threads"] = Value::from(cpus.len().clamp(1, MAX_TOUCHING));
        backend["prealloc-context"] = Value::from(context.as_str());
        line.json("object", &json!({"qom-type": "thread-context", "id": context, "cpu-affinity": cpus}));
    }
    line.json("object", &backend);
}

/// `0-3`, `5`: ascending numbers as ranges.
fn ranges(numbers: &[u32]) -> Vec<String> {
    let consecutive = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    consecutive
        .filter_map(|run| match run {
            [] => None,
            [one] => Some(one.to_string()),
            [first, .., last] => Some(format!("{first}-{last}")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_row_are_one_range() {
        assert_eq!(ranges(&[0, 1, 2, 5, 8, 9]), ["0-2", "5", "8-9"]);
        assert!(ranges(&[]).is_empty());
    }
}
