//! PCI functions as sysfs shows them (Documentation/ABI/testing/sysfs-bus-pci), with what the host does with each.

use super::address::Address;
use super::host_use::{self, HostUse};
use crate::sysfs::{Error, Root};
use std::collections::BTreeMap;

/// Where sysfs has the functions.
pub(super) const DEVICES: &str = "sys/bus/pci/devices";
/// Directory of the driver that gives functions to user space.
const VFIO_DRIVER: &str = "sys/bus/pci/drivers/vfio-pci";
/// Name of that driver.
pub const VFIO: &str = "vfio-pci";

/// What matters for passing functions of this host through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// All functions.
    pub functions: BTreeMap<Address, Function>,
    /// What VFIO is set to.
    pub vfio: Vfio,
}

/// What VFIO is set to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vfio {
    /// vfio-pci is loaded.
    pub loaded: bool,
    /// The kernel does not insist on interrupt remapping (vfio_iommu_type1's allow_unsafe_interrupts): without it a
    /// guest's device can raise any interrupt of the host.
    pub unsafe_interrupts: bool,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Vendor, four hexadecimal digits.
    pub vendor: String,
    /// Device, four hexadecimal digits.
    pub device: String,
    /// Class code, six hexadecimal digits.
    pub class: String,
    /// Driver bound to it.
    pub driver: Option<String>,
    /// The only driver that may bind to it.
    pub driver_override: Option<String>,
    /// IOMMU group.
    pub group: Option<Group>,
    /// NUMA cell, when the platform says.
    pub cell: Option<u32>,
    /// The function it is a virtual function of.
    pub physical_function: Option<Address>,
    /// What virtual functions it can make.
    pub sriov: Option<Sriov>,
    /// Network interfaces the host sees of it.
    pub interfaces: Vec<String>,
    /// Disks the host sees of it, without their partitions.
    pub disks: Vec<String>,
    /// What the host does with it.
    pub host_use: Option<HostUse>,
}

/// An IOMMU group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub number: u32,
    /// VFIO made it up where there is no IOMMU (enable_unsafe_noiommu_mode).
    pub no_iommu: bool,
}

/// Virtual functions of a physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sriov {
    /// Most there can be.
    pub total: u32,
    /// How many there are.
    pub made: u32,
    /// Whether drivers bind to new ones by themselves.
    pub autoprobe: bool,
}

impl Function {
    /// A bridge between buses; the kernel's own business, and no obstacle in an IOMMU group (class codes 06xxxx, PCI
    /// Code and ID Assignment Specification).
    pub fn is_bridge(&self) -> bool {
        self.class.starts_with("06")
    }

    /// Whether user space may have it now.
    pub fn is_on_vfio(&self) -> bool {
        self.driver.as_deref() == Some(VFIO)
    }
}

impl Machine {
    /// What there is. A function that vanishes while it is read is left out.
    ///
    /// # Errors
    /// When what the host does with its disks can't be seen: then nothing may be given away.
    pub fn observe(root: &Root) -> Result<Self, Error> {
        let uses = host_use::observe(root)?;
        let functions = root
            .names(DEVICES)
            .into_iter()
            .filter_map(|name| {
                let address: Address = name.parse().ok()?;
                Some((address, function(root, &name, uses.of(address))?))
            })
            .collect();
        let parameter = |file: &str| root.optional(file).as_deref() == Some("Y");
        let vfio = Vfio {
            loaded: root.exists(VFIO_DRIVER),
            unsafe_interrupts: parameter("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
        };
        Ok(Self { functions, vfio })
    }

    /// Asks the kernel whether the disks of these functions are free: a mount may be one that process 1 does not see. Not
    /// for any function, because for that moment nobody else can mount the disk.
    pub fn probe_disks(&mut self, root: &Root, of: &[Address]) {
        for address in of {
            if let Some(f) = self.functions.get_mut(address)
                && f.host_use.is_none()
            {
                f.host_use = f.disks.iter().find_map(|disk| host_use::claimed(root, disk));
            }
        }
    }

    /// The functions of an IOMMU group, bridges apart.
    pub fn group(&self, number: u32) -> impl Iterator<Item = (&Address, &Function)> {
        self.functions.iter().filter(move |(_, f)| f.group.is_some_and(|g| g.number == number) && !f.is_bridge())
    }

    /// The functions that go to one guest with this one, itself among them: those of its group.
    pub fn together(&self, with: Address) -> Vec<Address> {
        let group = self.functions.get(&with).and_then(|f| f.group);
        group.map_or_else(|| vec![with], |group| self.group(group.number).map(|(address, _)| *address).collect())
    }

    /// The virtual functions of a function.
    pub fn virtual_functions(&self, of: Address) -> impl Iterator<Item = (&Address, &Function)> {
        self.functions.iter().filter(move |(_, f)| f.physical_function == Some(of))
    }
}

fn function(root: &Root, address: &str, seen: host_use::Seen) -> Option<Function> {
    let file = |name: &str| format!("{DEVICES}/{address}/{name}");
    let id = |name: &str| Some(root.optional(&file(name))?.strip_prefix("0x")?.to_owned());
    let number = |name: &str| root.optional(&file(name)).and_then(|text| text.parse::<u32>().ok());
    let group = root.link_name(&file("iommu_group")).and_then(|group| group.parse().ok()).map(|number| Group {
        number,
        no_iommu: root.optional(&file("iommu_group/name")).is_some_and(|name| name.contains("noiommu")),
    });
    Some(Function {
        vendor: id("vendor")?,
        device: id("device")?,
        class: id("class")?,
        driver: root.link_name(&file("driver")),
        driver_override: root.optional(&file("driver_override")).filter(|name| name != "(null)"),
        group,
        // -1 where the platform does not say
        cell: number("numa_node"),
        physical_function: root.link_name(&file("physfn")).and_then(|name| name.parse().ok()),
        sriov: number("sriov_totalvfs").filter(|total| *total > 0).map(|total| Sriov {
            total,
            made: number("sriov_numvfs").unwrap_or(0),
            autoprobe: number("sriov_drivers_autoprobe") != Some(0),
        }),
        interfaces: seen.interfaces,
        disks: seen.disks,
        host_use: seen.host_use,
    })
}
