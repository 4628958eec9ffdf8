//! Host PCI functions out of their configuration.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
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
    /// For as long as a function of the group is there.
    groups: BTreeMap<Source, Weak<Group>>,
}

/// Where a group comes from; it can be opened once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// The number that the configuration gives.
    Descriptor(RawFd),
    /// Its device node.
    Node(PathBuf),
}

impl Source {
    fn open(&self) -> Result<OwnedFd, AnyError> {
        Ok(match self {
            Self::Descriptor(number) => descriptors::copy(*number)?,
            Self::Node(path) => vfio::open_group(path)?,
        })
    }
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
        let (source, address) = match (config.vfio_group_fd, &config.host_address) {
            (Some(number), Some(address)) => (Source::Descriptor(number), address.clone()),
            _ => {
                let (node, address) = vfio::locate(&config.path)?;
                (Source::Node(node), address)
            }
        };
        let group = self.group(source, memory)?;
        let device = Device::new(group, &address)?;
        let ports = vfio::Ports { interrupts: Arc::clone(interrupts), memory_slots: self.slots.clone(), slot };
        Ok(Arc::new(VfioPci::new(Box::new(device), &address, ports)?))
    }

    fn container(&mut self, memory: &GuestMemory) -> Result<Arc<Container>, AnyError> {
        if let Some(container) = &self.container {
            return Ok(Arc::clone(container));
        }
        let descriptor: OwnedFd = match self.container_fd {
            Some(number) => descriptors::copy(number)?,
            None => File::options().read(true).write(true).open("/dev/vfio/vfio")?.into(),
        };
        let container = Container::new(descriptor, memory.clone(), &self.vm)?;
        self.container = Some(Arc::clone(&container));
        Ok(container)
    }

    fn group(&mut self, source: Source, memory: &GuestMemory) -> Result<Arc<Group>, AnyError> {
        if let Some(group) = self.groups.get(&source).and_then(Weak::upgrade) {
            return Ok(group);
        }
        let group = Group::new(self.container(memory)?, source.open()?)?;
        self.groups.insert(source, Arc::downgrade(&group));
        Ok(group)
    }
}
