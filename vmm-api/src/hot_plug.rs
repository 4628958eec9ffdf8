//! Devices that come and go.

use crate::config::VmConfig;
use crate::devices::{DeviceConfig, DiskConfig, FsConfig, NetConfig, PmemConfig, VsockConfig};

/// A device to add to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewDevice {
    /// `vm.add-disk`.
    Disk(DiskConfig),
    /// `vm.add-net`.
    Net(NetConfig),
    /// `vm.add-fs`.
    Fs(FsConfig),
    /// `vm.add-pmem`.
    Pmem(PmemConfig),
    /// `vm.add-vsock`.
    Vsock(VsockConfig),
    /// `vm.add-device`.
    Vfio(DeviceConfig),
}

/// The guest has one already, and there can't be two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("vsock: the guest has one already")]
pub struct OnlyOne;

impl VmConfig {
    /// The configuration with one device more; not validated yet.
    ///
    /// # Errors
    /// When there can be only one of its kind.
    pub fn with(&self, device: NewDevice) -> Result<Self, OnlyOne> {
        let mut config = self.clone();
        match device {
            NewDevice::Disk(disk) => config.disks.push(disk),
            NewDevice::Net(net) => config.net.push(net),
            NewDevice::Fs(fs) => config.fs.push(fs),
            NewDevice::Pmem(pmem) => config.pmem.push(pmem),
            NewDevice::Vfio(function) => config.devices.push(function),
            NewDevice::Vsock(_) if config.vsock.is_some() => return Err(OnlyOne),
            NewDevice::Vsock(vsock) => config.vsock = Some(vsock),
        }
        Ok(config)
    }

    /// What [`VmConfig::with`] added, as it is now that validation has given it a name.
    #[must_use]
    pub fn newest_like(&self, device: &NewDevice) -> Option<NewDevice> {
        match device {
            NewDevice::Disk(_) => self.disks.last().cloned().map(NewDevice::Disk),
            NewDevice::Net(_) => self.net.last().cloned().map(NewDevice::Net),
            NewDevice::Fs(_) => self.fs.last().cloned().map(NewDevice::Fs),
            NewDevice::Pmem(_) => self.pmem.last().cloned().map(NewDevice::Pmem),
            NewDevice::Vfio(_) => self.devices.last().cloned().map(NewDevice::Vfio),
            NewDevice::Vsock(_) => self.vsock.clone().map(NewDevice::Vsock),
        }
    }

    /// Takes a device out, by name. The ones that are always there (random numbers, console) can't be.
    pub fn remove(&mut self, id: &str) -> bool {
        let before = self.removable();
        let other = |found: &Option<String>| found.as_deref() != Some(id);
        self.disks.retain(|device| other(&device.id));
        self.net.retain(|device| other(&device.id));
        self.fs.retain(|device| other(&device.id));
        self.pmem.retain(|device| other(&device.id));
        self.devices.retain(|device| other(&device.id));
        self.vsock.take_if(|device| !other(&device.id));
        self.removable() < before
    }

    /// Whether there is a device of that name that can be taken out.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.clone().remove(id)
    }

    fn removable(&self) -> usize {
        let lists = [self.disks.len(), self.net.len(), self.fs.len(), self.pmem.len(), self.devices.len()];
        lists.iter().sum::<usize>() + usize::from(self.vsock.is_some())
    }
}

impl NewDevice {
    /// Its name; after validation it has one.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Disk(device) => device.id.as_deref(),
            Self::Net(device) => device.id.as_deref(),
            Self::Fs(device) => device.id.as_deref(),
            Self::Pmem(device) => device.id.as_deref(),
            Self::Vsock(device) => device.id.as_deref(),
            Self::Vfio(device) => device.id.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_come_and_go() {
        let config = VmConfig::default();
        let disk = NewDevice::Disk(DiskConfig { id: Some("d".into()), ..DiskConfig::default() });
        let mut config = config.with(disk.clone()).unwrap();
        assert_eq!(config.newest_like(&disk), Some(disk));
        assert!(config.has("d"));
        assert!(config.remove("d"));
        assert!(!config.remove("d"));
        assert!(!config.remove("_rng0"));
    }

    #[test]
    fn there_is_one_vsock() {
        let vsock = || NewDevice::Vsock(VsockConfig::default());
        assert_eq!(VmConfig::default().with(vsock()).unwrap().with(vsock()), Err(OnlyOne));
    }
}
