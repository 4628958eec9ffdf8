//! Which device class a PCI function belongs to: the first that selects it. Pure.

use super::address::Address;
use super::function::{Function, Machine};
use std::collections::BTreeMap;
use vse_crds::{DeviceClass, PciSelector};

/// Class of each function that is in one.
pub type Members<'a> = BTreeMap<Address, &'a str>;

/// The functions of each class. Where a class asks for virtual functions, these are its functions and not the one that
/// makes them.
pub fn members<'a>(machine: &Machine, classes: &'a [DeviceClass]) -> Members<'a> {
    let mut members = Members::new();
    for class in classes {
        let selected = machine.functions.iter().filter(|(address, f)| selects(&class.selector, **address, f));
        for (&address, _) in selected {
            if class.virtual_functions.is_some() {
                for (&function, _) in machine.virtual_functions(address) {
                    members.entry(function).or_insert(&class.name);
                }
            } else {
                members.entry(address).or_insert(&class.name);
            }
        }
    }
    members
}

/// The functions that are to make virtual ones, with how many. The first class that selects one decides.
pub fn makers(machine: &Machine, classes: &[DeviceClass]) -> BTreeMap<Address, u32> {
    let mut makers = BTreeMap::new();
    for class in classes {
        let Some(count) = class.virtual_functions else { continue };
        for (&address, f) in &machine.functions {
            if f.physical_function.is_none() && selects(&class.selector, address, f) {
                makers.entry(address).or_insert(count);
            }
        }
    }
    makers
}

fn selects(selector: &PciSelector, address: Address, f: &Function) -> bool {
    let PciSelector { vendor_device, class, addresses, interfaces } = selector;
    let is_address = |text: &String| text.parse() == Ok(address);
    // An empty selector would take the whole host; the schema does not let one through.
    let any = vendor_device.is_some() || class.is_some() || !addresses.is_empty() || !interfaces.is_empty();
    any && !f.is_bridge()
        && vendor_device.as_ref().is_none_or(|id| *id == format!("{}:{}", f.vendor, f.device))
        && class.as_ref().is_none_or(|prefix| f.class.starts_with(prefix))
        && (addresses.is_empty() || addresses.iter().any(is_address))
        && (interfaces.is_empty() || interfaces.iter().any(|name| f.interfaces.contains(name)))
}
