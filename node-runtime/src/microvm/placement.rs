//! Which host CPU runs which thread of a guest. Pure.
//!
//! What CPUs the pod got is kubelet's decision (static CPU manager, topology manager); here they are only dealt out.

use crate::cpu_list::CpuList;
use vse_crds::{CpuPlacement, LogicalCpu};

/// What a guest's CPU section asks for, resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Each vCPU has a CPU of its own.
    pub dedicated: bool,
    /// The engine's other threads have one more.
    pub isolate_emulator: bool,
}

/// The pod's CPUs are not what dedicated placement needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "spec.machine.cpu.dedicatedCPUPlacement needs {needed} exclusive CPUs, but kubelet gave the pod CPUs {got}; is its \
     cpuManagerPolicy `static`?"
)]
pub struct NotExclusive {
    needed: u32,
    got: String,
}

/// Deals the pod's CPUs out. vCPUs take them cell by cell and core by core (`topology` tells), so that vCPUs that are
/// threads of one guest core are siblings on the host. The emulator's CPU, when that is isolated, is the last one of the
/// cell that has most.
pub fn place(request: Request, allowed: &CpuList, topology: &[LogicalCpu]) -> Result<CpuPlacement, NotExclusive> {
    if !request.dedicated {
        return Ok(CpuPlacement {
            summary: format!("shared {allowed}"),
            pinned: Vec::new(),
            emulator: allowed.to_string(),
            cells: Vec::new(),
        });
    }
    let needed = request.vcpus + u32::from(request.isolate_emulator);
    // With full-pcpus-only kubelet may round up to whole cores; fewer means the pool is shared.
    if (allowed.len() as u32) < needed || allowed.len() >= topology.len() && allowed.len() as u32 > needed {
        return Err(NotExclusive { needed, got: allowed.to_string() });
    }
    let place = |cpu: u32| topology.iter().find(|c| c.cpu == cpu).map(|c| (c.cell, c.socket, c.core));
    let mut cpus: Vec<u32> = allowed.iter().collect();
    cpus.sort_by_key(|cpu| (place(*cpu), *cpu));
    if request.isolate_emulator {
        // What is not a vCPU's stands last.
        let in_cell = |cell| cpus.iter().filter(|cpu| place(**cpu).map(|place| place.0) == cell).count();
        let cells = cpus.iter().map(|cpu| place(*cpu).map(|place| place.0));
        let spare = cells.enumerate().max_by_key(|(index, cell)| (in_cell(*cell), *index)).map(|(index, _)| index);
        if let Some(spare) = spare {
            let cpu = cpus.remove(spare);
            cpus.push(cpu);
        }
    }
    let (vcpus, spare) = cpus.split_at(request.vcpus as usize);
    let emulator: CpuList = if request.isolate_emulator { spare.iter().copied().collect() } else { allowed.clone() };
    let pins: Vec<String> = vcpus.iter().enumerate().map(|(vcpu, cpu)| format!("{vcpu}→{cpu}")).collect();
    Ok(CpuPlacement {
        summary: format!("{}, emulator {emulator}", pins.join(" ")),
        pinned: vcpus.to_vec(),
        emulator: emulator.to_string(),
        cells: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `sockets` × `cores` × 2 threads, numbered as Linux does: all first threads, then all second ones.
    fn smt(sockets: u32, cores: u32) -> Vec<LogicalCpu> {
        let total = sockets * cores;
        (0..2 * total)
            .map(|cpu| LogicalCpu { cpu, core: cpu % cores, socket: cpu % total / cores, cell: cpu % total / cores })
            .collect()
    }

    fn list(text: &str) -> CpuList {
        CpuList::parse(text).unwrap()
    }

    #[test]
    fn siblings_go_to_neighbouring_vcpus() {
        let request = Request { vcpus: 4, dedicated: true, isolate_emulator: true };
        let placement = place(request, &list("1-2,9-11"), &smt(2, 4)).unwrap();
        assert_eq!(placement.pinned, [1, 9, 2, 10]);
        assert_eq!(placement.emulator, "11");
        assert_eq!(placement.summary, "0→1 1→9 2→2 3→10, emulator 11");
    }

    #[test]
    fn the_emulator_leaves_cells_alike() {
        let request = Request { vcpus: 4, dedicated: true, isolate_emulator: true };
        let placement = place(request, &list("0-2,4-5"), &smt(2, 4)).unwrap();
        assert_eq!((placement.pinned, placement.emulator.as_str()), (vec![0, 1, 4, 5], "2"));
    }

    #[test]
    fn shared_cpus_are_no_dedicated_ones() {
        let request = Request { vcpus: 1, dedicated: true, isolate_emulator: false };
        let error = place(request, &list("0-15"), &smt(2, 4)).unwrap_err();
        assert!(error.to_string().contains("0-15"));
        let two = Request { vcpus: 2, ..request };
        assert!(place(two, &list("3"), &smt(2, 4)).is_err());
    }

    #[test]
    fn shared_guests_float() {
        let request = Request { vcpus: 8, dedicated: false, isolate_emulator: false };
        let placement = place(request, &list("0-1"), &smt(1, 1)).unwrap();
        assert_eq!((placement.pinned.len(), placement.emulator.as_str()), (0, "0-1"));
    }

    proptest! {
        #[test]
        fn dedicated_cpus_are_the_pods_own_and_never_shared(
            cpus in proptest::collection::btree_set(0u32..16, 2..8), isolate: bool,
        ) {
            let allowed: CpuList = cpus.iter().copied().collect();
            let vcpus = cpus.len() as u32 - u32::from(isolate);
            let placement =
                place(Request { vcpus, dedicated: true, isolate_emulator: isolate }, &allowed, &smt(2, 4)).unwrap();
            let distinct: std::collections::BTreeSet<_> = placement.pinned.iter().copied().collect();
            prop_assert_eq!(distinct.len() as u32, vcpus);
            prop_assert!(distinct.is_subset(&cpus));
            if isolate {
                let emulator = list(&placement.emulator);
                prop_assert!(emulator.iter().all(|cpu| cpus.contains(&cpu) && !distinct.contains(&cpu)));
            }
        }
    }
}
