//! Which host cells a guest's memory comes from, and which cells it is shown. Pure.
//!
//! Memory of dedicated CPUs always comes from the cells on which the vCPUs run. With `guestMappingPassthrough` the guest
//! is shown these cells as its own.

use crate::cpu_list::CpuList;
use std::collections::BTreeMap;
use vse_crds::{Cell, LogicalCpu};
use vse_engine::GuestCell;

/// Distance of other cells where the host tells none (ACPI 6.5, 5.2.17: what Linux assumes, REMOTE_DISTANCE).
const REMOTE: u8 = 20;
/// Distance of a cell to itself.
const LOCAL: u8 = 10;

/// What a guest asks for, resolved.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Host CPU of each vCPU; empty when CPUs are shared.
    pub pinned: &'a [u32],
    /// Memory in bytes.
    pub bytes: u64,
    /// Size of its pages in bytes.
    pub page: u64,
    /// The guest is shown the cells.
    pub mirror: bool,
}

/// A guest that does not fit its cells.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Kubelet gave memory of other cells than CPUs.
    #[error(
        "the pod's CPUs lie on cell {cell}, but it may use memory of cells {allowed} only; kubelet's topologyManagerPolicy \
         `single-numa-node` keeps them together"
    )]
    NotAllowed {
        /// The cell.
        cell: u32,
        /// Cells the pod may use.
        allowed: String,
    },
    /// Less than a page for a cell.
    #[error("spec.machine.memory.guest: {bytes} bytes are less than one page of {page} for each of {cells} cells")]
    TooSmall {
        /// Memory of the guest.
        bytes: u64,
        /// One page.
        page: u64,
        /// Cells it is to be dealt out to.
        cells: usize,
    },
}

/// The guest's cells; none when its memory may lie anywhere. `allowed`: cells the pod may use memory of.
pub fn cells(
    request: Request<'_>,
    topology: &[LogicalCpu],
    host: &[Cell],
    allowed: &CpuList,
) -> Result<Vec<GuestCell>, Error> {
    // With one cell everything is local.
    if request.pinned.is_empty() || host.len() < 2 {
        return Ok(Vec::new());
    }
    let mut vcpus: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (vcpu, cpu) in (0..).zip(request.pinned) {
        let cell = topology.iter().find(|place| place.cpu == *cpu).map_or(0, |place| place.cell);
        vcpus.entry(cell).or_default().push(vcpu);
    }
    if let Some(cell) = vcpus.keys().find(|cell| !allowed.contains(**cell)) {
        return Err(Error::NotAllowed { cell: *cell, allowed: allowed.to_string() });
    }
    if !request.mirror {
        return Ok(vec![GuestCell {
            vcpus: (0..request.pinned.len() as u32).collect(),
            bytes: request.bytes,
            distances: Vec::new(),
            host_cells: vcpus.into_keys().collect(),
        }]);
    }
    let weights: Vec<u64> = vcpus.values().map(|vcpus| vcpus.len() as u64).collect();
    let too_small = || Error::TooSmall { bytes: request.bytes, page: request.page, cells: weights.len() };
    let shares = shares(request.bytes / request.page, &weights).ok_or_else(too_small)?;
    let ids: Vec<u32> = vcpus.keys().copied().collect();
    let cells = vcpus.into_iter().zip(shares).map(|((id, vcpus), pages)| GuestCell {
        vcpus,
        bytes: pages * request.page,
        distances: distances(host, id, &ids),
        host_cells: vec![id],
    });
    Ok(cells.collect())
}

/// Pages in proportion to weights, all of them dealt out, at least one for each; none when there are too few.
fn shares(pages: u64, weights: &[u64]) -> Option<Vec<u64>> {
    let total: u64 = weights.iter().sum();
    let spare = pages.checked_sub(weights.len() as u64)?;
    let mut dealt = 0;
    let mut before = 0;
    let share = |weight: &u64| {
        before += weight;
        // What is due to all cells up to this one, in whole pages: the rests never add up to more than one.
        let due = (u128::from(spare) * u128::from(before) / u128::from(total)) as u64;
        let share = due - dealt;
        dealt = due;
        share + 1
    };
    Some(weights.iter().map(share).collect())
}

/// Distances of a cell to these; the host tells them in the order of its cells.
fn distances(host: &[Cell], from: u32, to: &[u32]) -> Vec<u8> {
    let told = host.iter().find(|cell| cell.id == from).map_or(&[][..], |cell| &cell.distances);
    let distance = |to: &u32| {
        let index = host.iter().position(|cell| cell.id == *to);
        let told = index.and_then(|index| told.get(index)).and_then(|distance| u8::try_from(*distance).ok());
        told.filter(|distance| *distance > LOCAL).unwrap_or(REMOTE)
    };
    to.iter().map(|to| if *to == from { LOCAL } else { distance(to) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vse_crds::quantity;

    /// Cells of four CPUs each: 0-3, 4-7, …
    fn host(cells: u32) -> (Vec<LogicalCpu>, Vec<Cell>) {
        let topology = (0..4 * cells).map(|cpu| LogicalCpu { cpu, core: cpu % 4, socket: cpu / 4, cell: cpu / 4 });
        let cell = |id| Cell {
            id,
            cpus: format!("{}-{}", 4 * id, 4 * id + 3),
            memory: quantity::from_bytes(1 << 30),
            huge_pages: Vec::new(),
            distances: (0..cells).map(|to| if to == id { 10 } else { 20 + to + id }).collect(),
        };
        (topology.collect(), (0..cells).map(cell).collect())
    }

    fn of(cells_of_host: u32, pinned: &[u32], pages: u64, mirror: bool) -> Result<Vec<GuestCell>, Error> {
        let (topology, host) = host(cells_of_host);
        let request = Request { pinned, bytes: pages << 21, page: 2 << 20, mirror };
        cells(request, &topology, &host, &(0..cells_of_host).collect())
    }

    #[test]
    fn memory_comes_from_the_cells_of_the_cpus() {
        let one = of(2, &[4, 5], 8, false).unwrap();
        assert_eq!((one[0].host_cells.as_slice(), one[0].bytes), (&[1][..], 16 << 20));
        let both = of(2, &[3, 4], 8, false).unwrap();
        assert_eq!((both.len(), both[0].host_cells.as_slice()), (1, &[0, 1][..]));
    }

    #[test]
    fn mirrored_cells_have_their_vcpus_a_share_and_the_hosts_distances() {
        let mirrored = of(3, &[0, 1, 2, 8], 9, true).unwrap();
        let told: Vec<_> =
            mirrored.iter().map(|c| (&c.vcpus[..], c.bytes >> 21, &c.distances[..], c.host_cells[0])).collect();
        assert_eq!(told, [(&[0, 1, 2][..], 6, &[10, 22][..], 0), (&[3][..], 3, &[22, 10][..], 2)]);
    }

    #[test]
    fn shared_cpus_and_single_cells_lie_anywhere() {
        assert!(of(2, &[], 8, true).unwrap().is_empty());
        assert!(of(1, &[1, 2], 8, true).unwrap().is_empty());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let small = of(2, &[0, 4], 1, true).unwrap_err().to_string();
        assert!(small.contains("for each of 2 cells"), "{small}");
        let (topology, host) = host(2);
        let request = Request { pinned: &[4], bytes: 2 << 20, page: 2 << 20, mirror: false };
        let error = cells(request, &topology, &host, &CpuList::parse("0").unwrap()).unwrap_err();
        assert!(error.to_string().contains("lie on cell 1, but it may use memory of cells 0 only"), "{error}");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_dealt_twice(
            cpus in proptest::collection::btree_set(0u32..16, 1..16), pages in 1u64..5000, mirror: bool,
        ) {
            let pinned: Vec<u32> = cpus.iter().copied().collect();
            let Ok(cells) = of(4, &pinned, pages, mirror) else {
                prop_assert!(pages < 4);
                return Ok(());
            };
            prop_assert_eq!(cells.iter().map(|cell| cell.bytes).sum::<u64>(), pages << 21);
            prop_assert!(cells.iter().all(|cell| cell.bytes > 0 && cell.bytes % (2 << 20) == 0));
            let mut vcpus: Vec<u32> = cells.iter().flat_map(|cell| cell.vcpus.clone()).collect();
            vcpus.sort_unstable();
            prop_assert!(vcpus.into_iter().eq(0..pinned.len() as u32));
            for cell in &cells {
                for vcpu in &cell.vcpus {
                    prop_assert!(cell.host_cells.contains(&(pinned[*vcpu as usize] / 4)));
                }
            }
        }

        #[test]
        fn shares_are_in_proportion(pages in 1u64..1 << 40, weights in proptest::collection::vec(1u64..64, 1..8)) {
            let total: u64 = weights.iter().sum();
            match shares(pages, &weights) {
                None => prop_assert!(pages < weights.len() as u64),
                Some(shares) => {
                    prop_assert_eq!(shares.iter().sum::<u64>(), pages);
                    for (share, weight) in shares.iter().zip(&weights) {
                        let due = u128::from(pages) * u128::from(*weight) / u128::from(total);
                        prop_assert!(u128::from(*share).abs_diff(due) <= weights.len() as u128);
                    }
                }
            }
        }
    }
}
