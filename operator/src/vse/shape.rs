//! The machine's shape in numbers, and the checks only the merged spec can have, pure.

use crate::reason::Reason;
use crate::vse::refusal::{Problem, Refusal};
use vse_crds::{Cpu, Machine, PageSize, quantity};

/// Least guest memory, in bytes (the CRD says why).
const MIN_MEMORY: u64 = 96 << 20;

/// The machine's shape in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// sockets × cores × threads.
    pub vcpus: u32,
    /// CPUs of the host.
    pub cpus: Cpus,
    /// RAM of the guest in bytes.
    pub memory: u64,
    /// Huge pages the RAM is made of.
    pub huge_pages: Option<PageSize>,
    /// The guest is shown the host's NUMA cells.
    pub mirror_cells: bool,
}

/// What a guest needs of its host's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// Whole CPUs of its own: one for each vCPU, and one for the emulator when isolated.
    Dedicated(u32),
    /// A share as large as its vCPUs, and no more.
    Shared,
    /// At least so many thousandths of a CPU, without upper limit.
    Overcommitted(u64),
}

/// The shape of a machine whose defaults are filled in.
pub fn shape(machine: &Machine) -> Result<Shape, Refusal> {
    let mut problems = contradictions(machine);
    if machine.memory.guest.is_none() {
        problems.push(Problem::new("spec.machine.memory.guest", "neither the VSE nor its profile gives it"));
    }
    if !problems.is_empty() {
        return Err(Refusal::new(Reason::InvalidSpec, problems));
    }
    let vcpus = vcpus(machine) as u32;
    let cpu = &machine.cpu;
    let cpus = if cpu.dedicated_cpu_placement == Some(true) {
        Cpus::Dedicated(vcpus + u32::from(cpu.isolate_emulator_thread == Some(true)))
    } else if let Some(millis) = cpu.request.as_ref().and_then(|q| quantity::millis(q).ok()) {
        Cpus::Overcommitted(millis)
    } else {
        Cpus::Shared
    };
    Ok(Shape {
        vcpus,
        cpus,
        memory: guest_bytes(machine).unwrap_or_default(),
        huge_pages: machine.memory.hugepages.as_ref().map(|h| h.page_size),
        mirror_cells: mirrors_cells(cpu),
    })
}

/// What contradicts itself among the fields that are given; of a profile, too.
pub fn contradictions(machine: &Machine) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut problem = |path: &str, message: String| {
        problems.push(Problem::new(format!("spec.machine.{path}"), message));
    };
    let cpu = &machine.cpu;
    let vcpus = vcpus(machine);
    if vcpus == 0 || vcpus > u64::from(vse_crds::MAX_VCPUS) {
        problem("cpu", format!("sockets × cores × threads is {vcpus}; it must be 1 to {}", vse_crds::MAX_VCPUS));
    }
    if cpu.isolate_emulator_thread == Some(true) && cpu.dedicated_cpu_placement == Some(false) {
        problem("cpu.isolateEmulatorThread", "needs dedicatedCPUPlacement: true".into());
    }
    if mirrors_cells(cpu) && cpu.dedicated_cpu_placement == Some(false) {
        problem("cpu.numa.guestMappingPassthrough", "needs dedicatedCPUPlacement: true".into());
    }
    if let Some(request) = &cpu.request {
        if cpu.dedicated_cpu_placement == Some(true) {
            problem("cpu.request", "is for shared CPUs; remove it or dedicatedCPUPlacement".into());
        }
        match quantity::millis(request) {
            Ok(0) => problem("cpu.request", "must be more than 0".into()),
            Ok(_) => {}
            Err(error) => problem("cpu.request", error.to_string()),
        }
    }
    let devices = machine.devices.host_devices.len();
    if devices > vse_crds::MAX_HOST_DEVICES {
        let most = vse_crds::MAX_HOST_DEVICES;
        problem("devices.hostDevices", format!("{devices} with those of the profile; at most {most} are possible"));
    }
    match machine.memory.guest.as_ref().map(quantity::bytes) {
        None => {}
        Some(Err(error)) => problem("memory.guest", error.to_string()),
        Some(Ok(bytes)) if bytes < MIN_MEMORY => {
            problem("memory.guest", "must be at least 96Mi: no distribution kernel boots with less".into())
        }
        Some(Ok(bytes)) => {
            if let Some(pages) = &machine.memory.hugepages
                && bytes % pages.page_size.bytes() != 0
            {
                let size = pages.page_size.as_str();
                let whole = bytes.next_multiple_of(pages.page_size.bytes());
                problem(
                    "memory.guest",
                    format!("is not a whole number of huge pages of {size}; {} is", quantity::from_bytes(whole).0),
                );
            }
        }
    }
    problems
}

fn mirrors_cells(cpu: &Cpu) -> bool {
    cpu.numa.as_ref().is_some_and(|numa| numa.guest_mapping_passthrough.is_some())
}

fn vcpus(machine: &Machine) -> u64 {
    let cpu = &machine.cpu;
    [cpu.sockets, cpu.cores, cpu.threads].iter().map(|n| u64::from(n.unwrap_or(1))).fold(1, u64::saturating_mul)
}

fn guest_bytes(machine: &Machine) -> Option<u64> {
    quantity::bytes(machine.memory.guest.as_ref()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use vse_crds::{GuestMappingPassthrough, HugePages, Memory, Numa};

    fn machine(guest: &str, cores: u32) -> Machine {
        Machine {
            cpu: Cpu { cores: Some(cores), ..Cpu::default() },
            memory: Memory { guest: Some(Quantity(guest.into())), hugepages: None },
            ..Machine::default()
        }
    }

    #[test]
    fn counts_the_emulators_cpu() {
        let mut dedicated = machine("1Gi", 4);
        dedicated.cpu.dedicated_cpu_placement = Some(true);
        dedicated.cpu.isolate_emulator_thread = Some(true);
        assert_eq!(shape(&dedicated).unwrap().cpus, Cpus::Dedicated(5));
    }

    #[test]
    fn refuses_broken_huge_pages_and_says_what_fits() {
        let mut machine = machine("1025Mi", 1);
        machine.memory.hugepages = Some(HugePages { page_size: PageSize::TwoMi });
        let refusal = shape(&machine).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "spec.machine.memory.guest: is not a whole number of huge pages of 2Mi; 1026Mi is"
        );
    }

    #[test]
    fn reports_every_contradiction() {
        let mut machine = machine("1Mi", 600);
        machine.cpu.isolate_emulator_thread = Some(true);
        machine.cpu.dedicated_cpu_placement = Some(false);
        machine.cpu.numa = Some(Numa { guest_mapping_passthrough: Some(GuestMappingPassthrough {}) });
        assert_eq!(shape(&machine).unwrap_err().problems.len(), 4);
    }

    #[test]
    fn a_product_beyond_any_integer_is_refused() {
        let mut machine = machine("1Gi", u32::MAX);
        machine.cpu.sockets = Some(u32::MAX);
        machine.cpu.threads = Some(u32::MAX);
        assert!(shape(&machine).is_err());
    }
}
