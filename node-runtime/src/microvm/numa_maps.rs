//! Where a running engine's huge pages really lie, from `/proc/PID/numa_maps` (numa(7)). Pure.

use std::collections::BTreeMap;

/// Most lines that are read; an engine has some hundred mappings.
const MAX_LINES: usize = 100_000;

/// What a cell should hold, in bytes; any amount where it is one of several for the same memory.
pub type Wanted = BTreeMap<u32, Option<u64>>;

/// Memory in huge pages that lies elsewhere than it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "spec.machine.memory.hugepages: cell {cell} holds {found} bytes of the guest's memory instead of {wanted}: a cell ran \
     short while the engine started"
)]
pub struct Misplaced {
    cell: u32,
    wanted: u64,
    found: u64,
}

/// Bytes in huge pages by cell.
fn huge(text: &str) -> BTreeMap<u32, u64> {
    let mut bytes = BTreeMap::new();
    for line in text.lines().take(MAX_LINES) {
        let fields = || line.split_ascii_whitespace();
        if !fields().any(|field| field == "huge") {
            continue;
        }
        let page =
            fields().find_map(|field| field.strip_prefix("kernelpagesize_kB=")?.parse::<u64>().ok()).unwrap_or(0);
        for field in fields() {
            let node = field.strip_prefix('N').and_then(|field| field.split_once('='));
            if let Some((Ok(cell), Ok(pages))) = node.map(|(cell, pages)| (cell.parse::<u32>(), pages.parse::<u64>())) {
                let more = pages.saturating_mul(page).saturating_mul(1024);
                let sum = bytes.entry(cell).or_insert(0_u64);
                *sum = sum.saturating_add(more);
            }
        }
    }
    bytes
}

/// Whether the cells hold what they should, and no others anything, but for so many bytes.
pub fn check(text: &str, wanted: &Wanted, tolerated: u64) -> Result<(), Misplaced> {
    let found = huge(text);
    for cell in wanted.keys().chain(found.keys()) {
        let found = found.get(cell).copied().unwrap_or(0);
        let wanted = wanted.get(cell).copied().unwrap_or(Some(0)).unwrap_or(found);
        if found.abs_diff(wanted) > tolerated {
            return Err(Misplaced { cell: *cell, wanted, found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0 default file=/vse-vmm mapped=12 N0=12 kernelpagesize_kB=4
7f00 default file=/memfd:ram\\040(deleted) huge dirty=512 N0=512 kernelpagesize_kB=2048
7f40 default file=/memfd:ram\\040(deleted) huge dirty=514 N0=2 N1=512 kernelpagesize_kB=2048
7fff default stack anon=3 dirty=3 N1=3 kernelpagesize_kB=4
";

    #[test]
    fn huge_pages_are_counted_by_cell() {
        assert_eq!(huge(MAPS), [(0, 514 << 21), (1, 512 << 21)].into());
        assert!(huge("N0=99999999999999999999 huge\n7f huge N0=18446744073709551615 kernelpagesize_kB=2048\n")[&0] > 0);
    }

    #[test]
    fn a_little_is_tolerated() {
        let wanted = [(0, Some(513 << 21)), (1, Some(513 << 21))].into();
        assert!(check(MAPS, &wanted, 0).is_err());
        assert_eq!(check(MAPS, &wanted, 1 << 21), Ok(()));
    }

    #[test]
    fn pages_on_other_cells_are_told() {
        let check = |text: &str, wanted: &Wanted| check(text, wanted, 0);
        let exactly = |cells: &[(u32, u64)]| cells.iter().map(|(cell, pages)| (*cell, Some(pages << 21))).collect();
        assert_eq!(check(MAPS, &exactly(&[(0, 514), (1, 512)])), Ok(()));
        let misplaced = check(MAPS, &exactly(&[(0, 512), (1, 514)])).unwrap_err();
        assert_eq!(misplaced, Misplaced { cell: 0, wanted: 512 << 21, found: 514 << 21 });
        assert!(check(MAPS, &exactly(&[(0, 514)])).is_err());
        assert!(check("", &exactly(&[(0, 1)])).is_err());
        assert_eq!(check(MAPS, &[(0, None), (1, None)].into()), Ok(()));
        assert!(check(MAPS, &[(0, None), (2, None)].into()).is_err());
    }
}
