//! What the Host says of PCI functions and device classes. Pure.

use super::class::{self, Members};
use super::function::Machine;
use super::plan::Wait;
use super::verdict::{Unit, verdict};
use std::collections::BTreeMap;
use vse_crds::{DeviceClass, HostDeviceClass, PciDevice};

/// Longest message of a class, in bytes: a host may have hundreds of functions in the way of one.
const MAX_MESSAGE: usize = 512;

/// What there is for guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Every function.
    pub devices: Vec<PciDevice>,
    /// Every class in force.
    pub classes: Vec<HostDeviceClass>,
    /// Every device of a class, whether or not a guest has it.
    pub units: Vec<Unit>,
}

/// Puts together what is seen, judged and waited for.
pub fn report(
    machine: &Machine,
    classes: &[DeviceClass],
    members: &Members<'_>,
    units: Vec<Unit>,
    waits: &[Wait],
) -> Report {
    let makers = class::makers(machine, classes);
    Report {
        devices: devices(machine, members),
        classes: classes
            .iter()
            .map(|class| {
                let own = || units.iter().filter(|unit| unit.class == class.name);
                let problems = own().filter_map(|unit| Some((unit.id()?, unit.problem.as_ref()?.message.clone())));
                // What keeps a function from making virtual ones concerns the class that asks for them.
                let concerns = |address| {
                    members.get(address) == Some(&class.name.as_str())
                        || class.virtual_functions.is_some_and(|count| makers.get(address) == Some(&count))
                };
                let waits = waits.iter().filter(|wait| concerns(&wait.address));
                let mut why = BTreeMap::from_iter(waits.map(|wait| (wait.address, wait.why.clone())));
                why.extend(problems);
                let mut message = why.iter().map(|(a, why)| format!("{a}: {why}")).collect::<Vec<_>>().join("; ");
                if message.is_empty() && own().next().is_none() {
                    message = "selects no PCI function of this host".into();
                }
                HostDeviceClass {
                    name: class.name.clone(),
                    devices: own().filter(|unit| unit.problem.is_none()).count() as u32,
                    migration: class.migration,
                    message: shorten(message),
                }
            })
            .collect(),
        units,
    }
}

fn devices(machine: &Machine, members: &Members<'_>) -> Vec<PciDevice> {
    let device = |(&address, f): (&super::Address, &super::function::Function)| PciDevice {
        address: address.to_string(),
        vendor: f.vendor.clone(),
        device: f.device.clone(),
        class: f.class.clone(),
        driver: f.driver.clone(),
        iommu_group: f.group.map(|group| group.number),
        cell: f.cell,
        max_virtual_functions: f.sriov.map(|sriov| sriov.total),
        physical_function: f.physical_function.map(|physical| physical.to_string()),
        device_class: members.get(&address).map(|class| (*class).to_owned()),
        verdict: Some(verdict(machine, members, address)),
    };
    machine.functions.iter().map(device).collect()
}

fn shorten(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let cut = (0..=MAX_MESSAGE).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    message
}
