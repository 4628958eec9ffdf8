//! Host devices in a guest's hands, by VFIO (Documentation/driver-api/vfio.rst).

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use crate::config::ConfigError;

/// Most devices of one guest.
const MAX_DEVICES: usize = 32;

/// The devices and the IOMMU context they share. The container has no group and no IOMMU type yet: the engine, whose
/// memory is mapped, sets both.
#[derive(Debug)]
pub struct Passthrough {
    /// Open `/dev/vfio/vfio`.
    pub container: OwnedFd,
    /// The devices.
    pub devices: Vec<HostDevice>,
}

/// One PCI function, bound to vfio-pci.
#[derive(Debug)]
pub struct HostDevice {
    /// Name in the guest's description, for hot removal and messages: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Address on the host, for example `0000:65:00.1`.
    pub address: String,
    /// Open `/dev/vfio/GROUP` of its IOMMU group. Functions of one group have duplicates of one descriptor: a group
    /// can be opened only once.
    pub group: OwnedFd,
}

/// Whether names and addresses are such and nothing is given twice.
pub(crate) fn check(devices: &[HostDevice]) -> Result<(), ConfigError> {
    if devices.len() > MAX_DEVICES {
        return Err(ConfigError::TooMany { field: "devices", count: devices.len(), max: MAX_DEVICES });
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for device in devices {
        crate::config::text("devices.name", &device.name, 63, "-._")?;
        if !is_address(&device.address) {
            return Err(ConfigError::Device { name: device.name.clone(), why: "its address is not one of PCI" });
        }
        if !names.insert(&device.name) || !addresses.insert(&device.address) {
            return Err(ConfigError::Device { name: device.name.clone(), why: "it is given twice" });
        }
    }
    Ok(())
}

/// `dddd:bb:ss.f` in lower-case hexadecimal, as sysfs has it.
fn is_address(text: &str) -> bool {
    let shape = b"xxxx:xx:xx.7";
    text.len() == shape.len()
        && text.bytes().zip(shape).all(|(byte, shape)| match shape {
            b'x' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            b'7' => matches!(byte, b'0'..=b'7'),
            other => byte == *other,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::null;

    fn device(name: &str, address: &str) -> HostDevice {
        HostDevice { name: name.into(), address: address.into(), group: null() }
    }

    #[test]
    fn only_devices_that_can_be_told_apart_are_taken() {
        let good = || device("nic", "0000:65:00.1");
        assert_eq!(check(&[good(), device("nvme", "0000:65:00.2")]), Ok(()));
        for bad in [device("a/b", "0000:65:00.1"), device("a", "65:00.1"), device("a", "0000:65:00.8")] {
            assert!(check(&[bad]).is_err());
        }
        assert!(check(&[good(), device("nic", "0000:65:00.2")]).is_err());
        assert!(check(&[good(), device("nic2", "0000:65:00.1")]).is_err());
    }
}
