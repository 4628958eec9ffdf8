//! Devices out of their configuration, onto the bus.

use std::path::Path;
use std::sync::Arc;

use vse_vmm_api::{DiskConfig, NewDevice, VmConfig};

use super::descriptors;
use super::error::MachineError;
use crate::interrupts::Interrupts;
use crate::memory::GuestMemory;
use crate::pci::{PciFunction, PciRoot, PlugError};
use crate::snapshot::Unit;
use crate::virtio::VirtioDevice;
use crate::virtio::block::{Block, BlockOptions};
use crate::virtio::rng::Rng;
use crate::virtio::transport::{Doorbells, VirtioPci, Wiring};
use crate::virtio::worker::Filter;

/// What devices are made with.
pub(super) struct Workshop {
    pub memory: GuestMemory,
    pub interrupts: Arc<Interrupts>,
    pub doorbells: Arc<dyn Doorbells>,
    pub pci: Arc<PciRoot>,
}

/// A device to be made.
pub(super) enum Wanted<'a> {
    Disk(&'a DiskConfig),
    Rng(&'a vse_vmm_api::RngConfig),
}

/// A device on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attached {
    pub id: String,
    pub slot: u8,
    /// Whether it may leave while the guest runs.
    pub is_removable: bool,
}

/// How a device comes to be there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arrival<'a> {
    /// Before the guest runs.
    Cold,
    /// While it runs; it is told.
    Hot,
    /// From a snapshot: at this slot, in this state.
    Restored(u8, &'a Unit),
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// All devices of a configuration, in the order in which they get their slots.
pub(super) fn wanted(config: &VmConfig) -> Vec<Wanted<'_>> {
    let mut all: Vec<Wanted<'_>> = config.disks.iter().map(Wanted::Disk).collect();
    if config.rng.src != Path::new("") {
        all.push(Wanted::Rng(&config.rng));
    }
    all
}

/// A device to be added, as one to be made.
pub(super) fn new(device: &NewDevice) -> Result<Wanted<'_>, MachineError> {
    match device {
        NewDevice::Disk(config) => Ok(Wanted::Disk(config)),
        NewDevice::Net(config) => Err(not_yet(config.id.as_ref())),
        NewDevice::Fs(config) => Err(not_yet(config.id.as_ref())),
        NewDevice::Pmem(config) => Err(not_yet(config.id.as_ref())),
        NewDevice::Vsock(config) => Err(not_yet(config.id.as_ref())),
        NewDevice::Vfio(config) => Err(not_yet(config.id.as_ref())),
    }
}

fn not_yet(id: Option<&String>) -> MachineError {
    MachineError::NotHotPluggable { id: id.cloned().unwrap_or_default(), what: "added" }
}

impl Wanted<'_> {
    /// Its name, which validation has filled in.
    pub fn id(&self) -> String {
        let id = match self {
            Self::Disk(config) => &config.id,
            Self::Rng(config) => &config.id,
        };
        id.clone().unwrap_or_default()
    }

    fn slot(&self) -> Option<u8> {
        match self {
            Self::Disk(config) => config.pci_device_id,
            Self::Rng(config) => config.pci_device_id,
        }
    }

    fn is_removable(&self) -> bool {
        match self {
            Self::Disk(_) => true,
            Self::Rng(_) => false,
        }
    }

    fn make(&self) -> Result<Box<dyn VirtioDevice>, AnyError> {
        match self {
            Self::Disk(config) => disk(config),
            Self::Rng(_) => Ok(Box::new(Rng::new(filter()))),
        }
    }
}

fn filter() -> Filter {
    None
}

fn disk(config: &DiskConfig) -> Result<Box<dyn VirtioDevice>, AnyError> {
    let file = descriptors::file(config.fd, config.path.as_deref(), !config.readonly)?;
    let options = BlockOptions {
        read_only: config.readonly,
        direct: config.direct,
        discard: config.may_discard(),
        io_uring: !config.disable_io_uring,
        serial: config.serial.clone().unwrap_or_default(),
        queues: config.num_queues,
        queue_size: config.queue_size,
    };
    Ok(Box::new(Block::new(file, &options, filter())?))
}

impl Workshop {
    /// Makes a device and puts it on the bus.
    pub fn attach(&self, wanted: &Wanted<'_>, arrival: Arrival<'_>) -> Result<Attached, MachineError> {
        let id = wanted.id();
        let failed = |source: AnyError| MachineError::Device { id: id.clone(), source };
        let misplaced = |source: PlugError| MachineError::Plug { id: id.clone(), source };
        let slot = match arrival {
            Arrival::Restored(slot, _) => slot,
            Arrival::Cold | Arrival::Hot => self.pci.free_slot(wanted.slot()).map_err(misplaced)?,
        };
        let wiring = Wiring {
            memory: self.memory.clone(),
            interrupts: Arc::clone(&self.interrupts),
            doorbells: Arc::clone(&self.doorbells),
            slot,
        };
        let device = wanted.make().map_err(failed)?;
        match arrival {
            Arrival::Cold | Arrival::Hot => {
                let function = VirtioPci::new(device, wiring).map_err(|error| failed(error.into()))?;
                let function: Arc<dyn PciFunction> = Arc::new(function);
                let plug = if matches!(arrival, Arrival::Hot) { PciRoot::plug } else { PciRoot::add };
                plug(&self.pci, slot, function).map_err(misplaced)?;
            }
            Arrival::Restored(_, unit) => {
                let function = VirtioPci::restore(device, wiring, unit).map_err(|error| failed(error.into()))?;
                self.pci.add_restored(slot, Arc::new(function)).map_err(misplaced)?;
            }
        }
        Ok(Attached { id, slot, is_removable: wanted.is_removable() })
    }
}
