//! NUMA: the cells a guest is shown, and where its vCPUs and its memory lie on the host.
//!
//! What the guest sees (cells, distances) and where it lies (host CPUs and cells) are told apart: only the former is
//! part of the machine.

use std::collections::BTreeSet;

use crate::config::ConfigError;

/// Distance of a cell to itself (ACPI 6.5, 5.2.17); others are larger.
const LOCAL: u8 = 10;

/// Most cells of one guest.
const MAX_CELLS: usize = 64;

/// One NUMA cell of a guest. A guest with one cell is not told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestCell {
    /// Its vCPUs, ascending; each vCPU is in one cell.
    pub vcpus: Vec<u32>,
    /// Its memory in bytes, whole pages.
    pub bytes: u64,
    /// Distances to all cells by index, 10 to itself. Empty with one cell.
    pub distances: Vec<u8>,
    /// Host cells that all of its memory must come from, ascending; anywhere when empty. Needs pinned vCPUs: memory is
    /// placed by first use, from the CPUs these run on.
    pub host_cells: Vec<u32>,
}

impl GuestCell {
    /// Its memory by host cell: equal parts in whole pages of so many bytes; the first have the pages left over. None
    /// when it may lie anywhere.
    #[must_use]
    pub fn parts(&self, page: u64) -> Vec<(u32, u64)> {
        let pages = self.bytes / page.max(1);
        let parts = self.host_cells.len() as u64;
        let part = |(index, cell): (u64, &u32)| (*cell, (pages / parts + u64::from(index < pages % parts)) * page);
        (0..).zip(&self.host_cells).map(part).collect()
    }
}

/// Where vCPUs run on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// Host CPU of each vCPU, by index, nobody else's; empty when they float over shared CPUs.
    pub pinned: Vec<u32>,
}

impl Placement {
    /// Whether each vCPU has a host CPU of its own.
    #[must_use]
    pub fn is_dedicated(&self) -> bool {
        !self.pinned.is_empty()
    }

    /// Host CPUs of these vCPUs.
    pub(crate) fn cpus_of(&self, vcpus: &[u32]) -> Vec<u32> {
        vcpus.iter().filter_map(|vcpu| self.pinned.get(*vcpu as usize).copied()).collect()
    }
}

/// Whether cells and placement fit a machine of so many vCPUs and so much memory, in pages of so many bytes.
pub(crate) fn check(
    cells: &[GuestCell],
    placement: &Placement,
    vcpus: u32,
    bytes: u64,
    page: u64,
) -> Result<(), ConfigError> {
    let wrong = |what: String| Err(ConfigError::Cells(what));
    let pinned: BTreeSet<_> = placement.pinned.iter().collect();
    if placement.is_dedicated() && (placement.pinned.len() != vcpus as usize || pinned.len() != vcpus as usize) {
        return wrong(format!("{} distinct host CPUs for {vcpus} vCPUs", pinned.len()));
    }
    if cells.is_empty() {
        return Ok(());
    }
    if cells.len() > MAX_CELLS {
        return Err(ConfigError::TooMany { field: "cells", count: cells.len(), max: MAX_CELLS });
    }
    let mut all: Vec<u32> = cells.iter().flat_map(|cell| cell.vcpus.iter().copied()).collect();
    all.sort_unstable();
    if !all.into_iter().eq(0..vcpus) {
        return wrong(format!("each of the {vcpus} vCPUs must be in one cell"));
    }
    if cells.iter().try_fold(0_u64, |sum, cell| sum.checked_add(cell.bytes)) != Some(bytes) {
        return wrong(format!("the cells' memory is not the guest's {bytes} bytes"));
    }
    for (index, cell) in cells.iter().enumerate() {
        if cell.bytes == 0 || cell.bytes % page != 0 {
            return wrong(format!("cell {index}: {} bytes are not a positive multiple of {page}", cell.bytes));
        }
        let others = cell.distances.iter().enumerate();
        let local = |(to, distance): (usize, &u8)| (to == index) == (*distance == LOCAL) && *distance >= LOCAL;
        if cells.len() > 1 && (cell.distances.len() != cells.len() || !others.into_iter().all(local)) {
            return wrong(format!("cell {index}: {:?} are no distances to {} cells", cell.distances, cells.len()));
        }
        if !cell.host_cells.is_empty() && !placement.is_dedicated() {
            return wrong(format!("cell {index}: memory on host cells needs pinned vCPUs"));
        }
        if !cell.host_cells.is_empty() && cell.vcpus.is_empty() {
            return wrong(format!("cell {index}: memory on host cells needs vCPUs there"));
        }
        if !cell.host_cells.is_sorted_by(|a, b| a < b) {
            return wrong(format!("cell {index}: host cells {:?} are not ascending", cell.host_cells));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Vec<GuestCell> {
        let cell = |vcpus: &[u32], distances: &[u8], host| GuestCell {
            vcpus: vcpus.into(),
            bytes: 4096,
            distances: distances.into(),
            host_cells: vec![host],
        };
        vec![cell(&[0, 1], &[10, 20], 0), cell(&[2, 3], &[20, 10], 1)]
    }

    fn checked(change: impl FnOnce(&mut Vec<GuestCell>, &mut Placement)) -> Result<(), ConfigError> {
        let (mut cells, mut placement) = (two(), Placement { pinned: vec![4, 5, 8, 9] });
        change(&mut cells, &mut placement);
        check(&cells, &placement, 4, 8192, 4096)
    }

    #[test]
    fn every_limit_is_held() {
        assert_eq!(checked(|_, _| {}), Ok(()));
        assert_eq!(checked(|cells, _| cells.clear()), Ok(()));
        let wrong: [fn(&mut Vec<GuestCell>, &mut Placement); 10] = [
            |_, placement| placement.pinned.truncate(3),
            |_, placement| placement.pinned[0] = 9,
            |_, placement| placement.pinned.clear(),
            |cells, _| cells[0].vcpus.push(2),
            |cells, _| cells[0].vcpus.truncate(1),
            |cells, _| cells[0].bytes = u64::MAX,
            |cells, _| (cells[0].bytes, cells[1].bytes) = (4095, 4097),
            |cells, _| cells[0].distances = vec![20, 10],
            |cells, _| cells[1].distances.truncate(1),
            |cells, _| cells[0].host_cells = vec![1, 1],
        ];
        for (index, wrong) in wrong.into_iter().enumerate() {
            assert!(matches!(checked(wrong), Err(ConfigError::Cells(_))), "{index}");
        }
    }
}
