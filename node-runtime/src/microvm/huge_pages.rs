//! Whether each cell has the huge pages a guest needs of it, asked before anything of the guest starts.
//!
//! kubelet counts huge pages of all cells together, so a guest may be admitted where one cell is short. What engines that
//! are just starting will take is counted too, until they have it. Guests with shared CPUs may have pages of any cell: for
//! them kubelet's count is enough.

use crate::sysfs::Root;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use vse_crds::PageSize;

/// Pages of one size, by cell.
pub type Pages = BTreeMap<u32, u64>;

/// A cell without enough free pages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "spec.machine.memory.hugepages: cell {cell} has {free} free huge pages of {size}, {needed} are needed there; more can \
     be set aside in nr_hugepages of that cell, before kubelet starts"
)]
pub struct Short {
    cell: u32,
    size: &'static str,
    needed: u64,
    free: u64,
    /// It is short only until guests that are just starting have theirs, so it may look worse than it is.
    pub for_now: bool,
}

/// The huge pages of a host, and what is promised of them.
pub struct HugePages {
    root: Root,
    promised: Mutex<BTreeMap<String, (PageSize, Pages)>>,
}

impl HugePages {
    /// Of the host whose `/sys` is below `root`.
    pub fn new(root: Root) -> Self {
        Self { root, promised: Mutex::default() }
    }

    /// Promises pages to the pod of that UID, until [`HugePages::settle`], or says which cell is short.
    pub fn promise(&self, pod_uid: &str, size: PageSize, needed: Pages) -> Result<(), Short> {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        promised.remove(pod_uid);
        let free: Pages = needed.keys().map(|cell| (*cell, self.free(*cell, size))).collect();
        let mut others = Pages::new();
        for (_, pages) in promised.values().filter(|(other, _)| *other == size) {
            pages.iter().for_each(|(cell, pages)| *others.entry(*cell).or_default() += pages);
        }
        check(size, &needed, &free, &others)?;
        promised.insert(pod_uid.to_owned(), (size, needed));
        Ok(())
    }

    /// The pod's engine has its pages, or will take none.
    pub fn settle(&self, pod_uid: &str) {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).remove(pod_uid);
    }

    /// Free pages of a cell; a kernel without NUMA has them in one place.
    fn free(&self, cell: u32, size: PageSize) -> u64 {
        let directory = format!("hugepages/hugepages-{}kB/free_hugepages", size.bytes() >> 10);
        let of_cell = format!("sys/devices/system/node/node{cell}/{directory}");
        let of_host = format!("sys/kernel/mm/{directory}");
        let found = self.root.optional(&of_cell).or_else(|| self.root.optional(&of_host));
        found.and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// The first cell that is short.
fn check(size: PageSize, needed: &Pages, free: &Pages, promised: &Pages) -> Result<(), Short> {
    for (&cell, &needed) in needed {
        let free = free.get(&cell).copied().unwrap_or(0);
        let left = free.saturating_sub(promised.get(&cell).copied().unwrap_or(0));
        if left < needed {
            return Err(Short { cell, size: size.as_str(), needed, free: left, for_now: free >= needed });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn host(free: &[(u32, u64)]) -> (tempfile::TempDir, HugePages) {
        let root = tempfile::tempdir().unwrap();
        for (cell, pages) in free {
            let directory = root.path().join(format!("sys/devices/system/node/node{cell}/hugepages/hugepages-2048kB"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("free_hugepages"), format!("{pages}\n")).unwrap();
        }
        let pages = HugePages::new(Root::new(root.path()));
        (root, pages)
    }

    const SIZE: PageSize = PageSize::TwoMi;

    #[test]
    fn the_cell_that_is_short_is_named() {
        let (_root, pages) = host(&[(0, 512), (1, 100)]);
        let short = pages.promise("a", SIZE, [(0, 256), (1, 256)].into()).unwrap_err();
        assert!(short.to_string().contains("cell 1 has 100 free huge pages of 2Mi, 256 are needed"), "{short}");
        assert!(!short.for_now);
        assert!(pages.promise("a", SIZE, [(7, 1)].into()).is_err(), "a cell that is not there has pages");
        assert!(pages.promise("a", PageSize::OneGi, [(0, 1)].into()).is_err());
    }

    #[test]
    fn pages_are_promised_once() {
        let (_root, pages) = host(&[(0, 512)]);
        pages.promise("a", SIZE, [(0, 500)].into()).unwrap();
        pages.promise("a", SIZE, [(0, 500)].into()).unwrap();
        assert!(pages.promise("b", SIZE, [(0, 100)].into()).unwrap_err().for_now);
        pages.settle("a");
        pages.promise("b", SIZE, [(0, 100)].into()).unwrap();
    }

    proptest! {
        #[test]
        fn what_is_promised_is_never_more_than_there_is(
            free in proptest::collection::vec(0u64..1000, 1..4),
            asked in proptest::collection::vec((0u32..4, 1u64..600), 1..20),
        ) {
            let free: Pages = (0..).zip(free).collect();
            let mut promised = Pages::new();
            for (cell, pages) in asked {
                if check(SIZE, &[(cell, pages)].into(), &free, &promised).is_ok() {
                    *promised.entry(cell).or_default() += pages;
                }
            }
            for (cell, pages) in promised {
                prop_assert!(pages <= free[&cell]);
            }
        }
    }
}
