//! Host PCI functions out of their configuration.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Weak};

use kvm_ioctls::VmFd;
use vse_vmm_api::DeviceConfig;

use super::descriptors;
use super::virtio_devices::AnyError;
use crate::hypervisor::Slots;
use crate::interrupts::Interrupts;
use crate::memory::GuestMemory;
use crate::pci::PciFunction;
use crate::vfio::{self, Container, Device, Group, VfioPci};

/// What host functions share: one container, and a group for all functions that belong together.
pub(super) struct Passthrough {
    vm: Arc<VmFd>,
    slots: Slots,
    container_fd: Option<RawFd>,
    container: Option<Arc<Container>>,
    /// By the number that the configuration gives, for as long as a function of the group is there.
    groups: BTreeMap<RawFd, Weak<Group>>,
}

impl Passthrough {
    pub fn new(vm: Arc<VmFd>, slots: Slots, container_fd: Option<RawFd>) -> Self {
        Self { vm, slots, container_fd, container: None, groups: BTreeMap::new() }
    }

    /// Takes the function that `config` names.
    pub fn function(
        &mut self,
        config: &DeviceConfig,
        slot: u8,
        interrupts: &Arc<Interrupts>,
        memory: &GuestMemory,
    ) -> Result<Arc<dyn PciFunction>, AnyError> {
        let (group, address) = match (config.vfio_group_fd, &config.host_address) {
            (Some(number), Some(address)) => (self.group(number, memory)?, address.clone()),
            _ => {
                let (group, address) = vfio::open_by_path(&config.path)?;
                (Group::new(self.container(memory)?, group)?, address)
            }
        };
        let device = Device::new(group, &address)?;
        let ports = vfio::Ports { interrupts: Arc::clone(interrupts), memory_slots: self.slots.clone(), slot };
        Ok(Arc::new(VfioPci::new(Box::new(device), &address, ports)?))
    }

    fn container(&mut self, memory: &GuestMemory) -> Result<Arc<Container>, AnyError> {
        if let Some(container) = &self.container {
            return Ok(Arc::clone(container));
        }
        let descriptor: OwnedFd = match self.container_fd {
            Some(number) => descriptors::take(number)?,
            None => File::options().read(true).write(true).open("/dev/vfio/vfio")?.into(),
        };
        let container = Container::new(descriptor, memory.clone(), &self.vm)?;
        self.container = Some(Arc::clone(&container));
        Ok(container)
    }

    fn group(&mut self, number: RawFd, memory: &GuestMemory) -> Result<Arc<Group>, AnyError> {
        if let Some(group) = self.groups.get(&number).and_then(Weak::upgrade) {
            return Ok(group);
        }
        let group = Group::new(self.container(memory)?, descriptors::take(number)?)?;
        self.groups.insert(number, Arc::downgrade(&group));
        Ok(group)
    }
}
