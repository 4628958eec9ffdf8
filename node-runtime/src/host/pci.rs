//! PCI functions and their IOMMU groups, from /sys/bus/pci (Documentation/ABI/testing/sysfs-bus-pci).

use crate::sysfs::Root;
use vse_crds::PciDevice;

const DEVICES: &str = "sys/bus/pci/devices";

/// Every PCI function, by address. A function that vanishes while it is read is left out.
pub(super) fn observe(root: &Root) -> Vec<PciDevice> {
    root.names(DEVICES).into_iter().filter_map(|address| function(root, address)).collect()
}

fn function(root: &Root, address: String) -> Option<PciDevice> {
    let file = |name: &str| format!("{DEVICES}/{address}/{name}");
    let id = |name: &str| Some(root.optional(&file(name))?.strip_prefix("0x")?.to_owned());
    Some(PciDevice {
        vendor: id("vendor")?,
        device: id("device")?,
        class: id("class")?,
        driver: root.link_name(&file("driver")),
        iommu_group: root.link_name(&file("iommu_group")).and_then(|group| group.parse().ok()),
        // -1 where the platform does not say
        cell: root.optional(&file("numa_node")).and_then(|cell| cell.parse().ok()),
        max_virtual_functions: root.optional(&file("sriov_totalvfs")).and_then(|n| n.parse().ok()).filter(|n| *n > 0),
        address,
    })
}
