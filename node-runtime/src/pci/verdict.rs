//! Whether a guest can have a PCI function, and which functions go together. Pure.
//!
//! The IOMMU keeps groups apart, not functions: a group goes to one guest as a whole or not at all.

use super::address::Address;
use super::class::Members;
use super::function::{Function, Group, Machine};
use std::collections::BTreeMap;
use vse_crds::{DeviceVerdict, VerdictReason};

/// Why a guest can't have a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind.
    pub reason: VerdictReason,
    /// What is in the way, and what would help.
    pub message: String,
    /// It may be over at the next look: the host uses the function, or another of its group.
    pub passes: bool,
}

impl Problem {
    fn new(reason: VerdictReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), passes: reason == VerdictReason::InUse }
    }
}

/// What of a class is given to one guest: its functions in one IOMMU group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its class.
    pub class: String,
    /// The functions, by address; never none. The first names the unit, because it stays the same over reboots.
    pub functions: Vec<Address>,
    /// The group.
    pub group: Option<Group>,
    /// NUMA cell, when the platform says.
    pub cell: Option<u32>,
    /// Why it can't be given.
    pub problem: Option<Problem>,
}

impl Unit {
    /// Its name.
    pub fn id(&self) -> Option<Address> {
        self.functions.first().copied()
    }
}

/// Everything that guests may have, by class and group.
pub fn units(machine: &Machine, members: &Members<'_>) -> Vec<Unit> {
    let mut units = BTreeMap::<_, Vec<Address>>::new();
    for (address, class) in members {
        let group = machine.functions.get(address).and_then(|f| f.group).map(|group| group.number);
        // Without a group each is on its own.
        let key = (*class, group, group.is_none().then_some(*address));
        units.entry(key).or_default().push(*address);
    }
    let unit = |((class, ..), functions): ((&str, _, _), Vec<Address>)| {
        let of = |address: &Address| machine.functions.get(address);
        Unit {
            class: class.to_owned(),
            group: functions.first().and_then(of).and_then(|f| f.group),
            cell: functions.iter().filter_map(of).find_map(|f| f.cell),
            problem: functions.iter().find_map(|address| problem(machine, members, *address)),
            functions,
        }
    };
    units.into_iter().map(unit).collect()
}

/// What is said of a function in the Host.
pub fn verdict(machine: &Machine, members: &Members<'_>, address: Address) -> DeviceVerdict {
    match problem(machine, members, address) {
        None => DeviceVerdict { usable: true, reason: VerdictReason::Usable, message: String::new() },
        Some(Problem { reason, message, .. }) => DeviceVerdict { usable: false, reason, message },
    }
}

/// Why a guest can't have a function, judged with the rest of its group. A function in no class is judged as if there
/// were one for all of its group that is in none.
pub fn problem(machine: &Machine, members: &Members<'_>, address: Address) -> Option<Problem> {
    let f = machine.functions.get(&address)?;
    own_problem(machine, f).or_else(|| group_problem(machine, members, address, f.group?))
}

/// What is wrong with a function by itself.
fn own_problem(machine: &Machine, f: &Function) -> Option<Problem> {
    use VerdictReason as R;
    if f.is_bridge() {
        return Some(Problem::new(R::Bridge, "it is a part of the bus itself"));
    }
    match f.group {
        None => {
            let help =
                "it is in no IOMMU group; turn the IOMMU on in firmware and kernel (intel_iommu=on, amd_iommu=on)";
            return Some(Problem::new(R::NoIommu, help));
        }
        Some(Group { no_iommu: true, .. }) => {
            let help = "its IOMMU group is made up by VFIO's no-IOMMU mode: it could reach all of the host's memory";
            return Some(Problem::new(R::NoIommu, help));
        }
        Some(_) => {}
    }
    if machine.vfio.unsafe_interrupts {
        let help = "vfio_iommu_type1's allow_unsafe_interrupts is on: a guest could raise any interrupt of the host; turn it off";
        return Some(Problem::new(R::UnsafeInterrupts, help));
    }
    if !machine.vfio.loaded {
        return Some(Problem::new(R::NoVfio, "the module vfio-pci is not loaded; modprobe vfio-pci"));
    }
    if let Some(use_) = &f.host_use {
        return Some(Problem::new(R::InUse, format!("the host uses it: {use_}")));
    }
    if f.sriov.is_some_and(|sriov| sriov.made > 0) {
        return Some(Problem::new(R::HasVirtualFunctions, "it has virtual functions, which may be given instead"));
    }
    None
}

/// What is wrong with the others of its group.
fn group_problem(machine: &Machine, members: &Members<'_>, address: Address, group: Group) -> Option<Problem> {
    let mut others = machine.group(group.number).filter(|(other, _)| **other != address);
    others.find_map(|(other, f)| {
        let (why, passes) = match own_problem(machine, f) {
            Some(problem) => (problem.message, problem.passes),
            None if members.get(other) != members.get(&address) => ("it is not of the same device class".into(), false),
            None => return None,
        };
        let message = format!("its IOMMU group {} also has {other}: {why}", group.number);
        Some(Problem { passes, ..Problem::new(VerdictReason::SharedGroup, message) })
    })
}
