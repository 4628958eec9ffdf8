//! Machines for tests.

use super::address::Address;
use super::function::{Function, Group, Machine, Sriov, Vfio};

/// An address on bus 1.
pub fn at(slot: u8) -> Address {
    format!("0000:01:{slot:02x}.0").parse().unwrap()
}

/// A network card with a driver, alone in its group.
pub fn card(group: u32) -> Function {
    Function {
        vendor: "8086".into(),
        device: "10d3".into(),
        class: "020000".into(),
        driver: Some("e1000e".into()),
        driver_override: None,
        group: Some(Group { number: group, no_iommu: false }),
        cell: Some(0),
        physical_function: None,
        sriov: None,
        interfaces: Vec::new(),
        disks: Vec::new(),
        host_use: None,
    }
}

/// A function that can make virtual functions.
pub fn maker(group: u32, total: u32) -> Function {
    Function {
        device: "10c9".into(),
        driver: Some("igb".into()),
        sriov: Some(Sriov { total, made: 0, autoprobe: true }),
        interfaces: vec!["ens1".into()],
        ..card(group)
    }
}

/// A host where VFIO is in order.
pub fn machine(functions: impl IntoIterator<Item = (Address, Function)>) -> Machine {
    Machine { functions: functions.into_iter().collect(), vfio: Vfio { loaded: true, unsafe_interrupts: false } }
}
