//! Devices out of their configuration, onto the bus.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use vse_vmm_api::{ConsoleMode, NewDevice, VmConfig};

use super::error::MachineError;
use super::passthrough::Passthrough;
use super::plan::SPARE_SLOTS;
use super::pmem_area::PmemArea;
use super::virtio_devices::{self, AnyError, Socket};
use super::{Event, Events};
use crate::hypervisor::Slots;
use crate::interrupts::Interrupts;
use crate::made_socket::MadeSocket;
use crate::memory::GuestMemory;
use crate::pci::{PciFunction, PciRoot, PlugError, SLOTS};
use crate::seccomp::Filters;
use crate::snapshot::Unit;
use crate::virtio::VirtioDevice;
use crate::virtio::transport::{Doorbells, VirtioPci, Wiring};

/// What devices are made with.
pub(super) struct Workshop {
    pub memory: GuestMemory,
    pub interrupts: Arc<Interrupts>,
    pub doorbells: Arc<dyn Doorbells>,
    pub pci: Arc<PciRoot>,
    pub passthrough: Passthrough,
    pub memory_slots: Slots,
    pub pmem: PmemArea,
    pub filters: Arc<Filters>,
    pub events: Arc<Events>,
}

/// A device to be made.
pub(super) enum Wanted<'a> {
    Disk(&'a vse_vmm_api::DiskConfig),
    Net(&'a vse_vmm_api::NetConfig),
    Rng(&'a vse_vmm_api::RngConfig),
    /// virtio console, with a terminal, the guest agent's port, or both.
    Console(&'a VmConfig),
    Fs(&'a vse_vmm_api::FsConfig),
    Pmem(&'a vse_vmm_api::PmemConfig),
    Vsock(&'a vse_vmm_api::VsockConfig),
    Vfio(&'a vse_vmm_api::DeviceConfig),
}

/// A device on the bus.
#[derive(Debug)]
pub(super) struct Attached {
    pub id: String,
    pub slot: u8,
    /// Whether it may leave while the guest runs.
    pub is_removable: bool,
    /// Where it listens, if that was made for it; gone with the device, so that the next can listen there.
    _socket: Option<MadeSocket>,
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

/// All devices of a configuration, in the order in which they get their slots.
pub(super) fn wanted(config: &VmConfig) -> Vec<Wanted<'_>> {
    let mut all: Vec<Wanted<'_>> = config.disks.iter().map(Wanted::Disk).collect();
    all.extend(config.net.iter().map(Wanted::Net));
    if config.rng.src != Path::new("") {
        all.push(Wanted::Rng(&config.rng));
    }
    if config.agent.is_some() || config.console.mode != ConsoleMode::Off {
        all.push(Wanted::Console(config));
    }
    all.extend(config.fs.iter().map(Wanted::Fs));
    all.extend(config.pmem.iter().map(Wanted::Pmem));
    all.extend(config.vsock.iter().map(Wanted::Vsock));
    all.extend(config.devices.iter().map(Wanted::Vfio));
    all
}

/// A device to be added, as one to be made.
pub(super) fn new(device: &NewDevice) -> Wanted<'_> {
    match device {
        NewDevice::Disk(config) => Wanted::Disk(config),
        NewDevice::Net(config) => Wanted::Net(config),
        NewDevice::Fs(config) => Wanted::Fs(config),
        NewDevice::Pmem(config) => Wanted::Pmem(config),
        NewDevice::Vsock(config) => Wanted::Vsock(config),
        NewDevice::Vfio(config) => Wanted::Vfio(config),
    }
}

impl Wanted<'_> {
    /// Its name, which validation has filled in.
    pub fn id(&self) -> String {
        let id = match self {
            Self::Disk(config) => config.id.as_ref(),
            Self::Net(config) => config.id.as_ref(),
            Self::Rng(config) => config.id.as_ref(),
            Self::Console(config) => config.console.id.as_ref(),
            Self::Fs(config) => config.id.as_ref(),
            Self::Pmem(config) => config.id.as_ref(),
            Self::Vsock(config) => config.id.as_ref(),
            Self::Vfio(config) => config.id.as_ref(),
        };
        id.cloned().unwrap_or_else(|| "console".to_owned())
    }

    fn slot(&self) -> Option<u8> {
        match self {
            Self::Disk(config) => config.pci_device_id,
            Self::Net(config) => config.pci_device_id,
            Self::Rng(config) => config.pci_device_id,
            Self::Console(config) => config.console.pci_device_id,
            Self::Fs(config) => config.pci_device_id,
            Self::Pmem(config) => config.pci_device_id,
            Self::Vsock(config) => config.pci_device_id,
            Self::Vfio(config) => config.pci_device_id,
        }
    }

    /// The unix socket that the device listens at.
    fn socket(&self) -> Option<Socket<'_>> {
        let (field, number, path) = match self {
            Self::Console(config) => {
                let agent = config.agent.as_ref()?;
                ("agent.socket_fd", agent.socket_fd, &agent.socket)
            }
            Self::Vsock(config) if config.vhost_fd.is_none() => ("vsock.socket_fd", config.socket_fd, &config.socket),
            _ => return None,
        };
        Some(number.map_or(Socket::Made(path), |number| Socket::Given(field, number)))
    }

    /// Only what API callers may add they may remove; a file in guest memory stays, as its pages may be in use.
    fn is_removable(&self) -> bool {
        !matches!(self, Self::Rng(_) | Self::Console(_) | Self::Pmem(_))
    }
}

impl Workshop {
    /// Makes a device and puts it on the bus.
    pub fn attach(&mut self, wanted: &Wanted<'_>, arrival: Arrival<'_>) -> Result<Attached, MachineError> {
        let id = wanted.id();
        let failed = |source: AnyError| MachineError::Device { id: id.clone(), source };
        let misplaced = |source: PlugError| MachineError::Plug { id: id.clone(), source };
        let slot = match arrival {
            Arrival::Restored(slot, _) => slot,
            Arrival::Cold => self.pci.free_slot(wanted.slot(), 0..SLOTS).map_err(misplaced)?,
            Arrival::Hot => self.pci.free_slot(wanted.slot(), SPARE_SLOTS).map_err(misplaced)?,
        };
        let (listener, socket) = wanted.socket().map(Socket::listen).transpose().map_err(failed)?.unzip();
        let function = self.function(wanted, arrival, slot, listener).map_err(failed)?;
        match arrival {
            Arrival::Cold => self.pci.add(slot, function),
            Arrival::Hot => self.pci.plug(slot, function),
            Arrival::Restored(..) => self.pci.add_restored(slot, function),
        }
        .map_err(misplaced)?;
        let is_removable = wanted.is_removable() && SPARE_SLOTS.contains(&slot);
        Ok(Attached { id, slot, is_removable, _socket: socket.flatten() })
    }

    fn function(
        &mut self,
        wanted: &Wanted<'_>,
        arrival: Arrival<'_>,
        slot: u8,
        listener: Option<UnixListener>,
    ) -> Result<Arc<dyn PciFunction>, AnyError> {
        let (filters, id) = (self.filters.as_ref(), wanted.id());
        let device: Box<dyn VirtioDevice> = match wanted {
            Wanted::Disk(config) => virtio_devices::disk(config, filters)?,
            Wanted::Net(config) => virtio_devices::net(config, filters)?,
            Wanted::Rng(_) => virtio_devices::rng(filters)?,
            Wanted::Console(config) => {
                let events = Arc::clone(&self.events);
                let watcher = Arc::new(move |connected| events.send(Event::Agent { connected }));
                virtio_devices::console(config, listener, watcher, filters)?
            }
            Wanted::Vfio(config) => {
                return self.passthrough.function(config, slot, &self.interrupts, &self.memory);
            }
            Wanted::Fs(config) => virtio_devices::fs(config, &self.memory, filters)?,
            Wanted::Pmem(config) => {
                let pmem = virtio_devices::pmem(config, filters)?;
                Box::new(self.pmem.place(pmem, &id, &self.memory_slots)?)
            }
            Wanted::Vsock(config) => virtio_devices::vsock(config, listener, filters)?,
        };
        let wiring = Wiring {
            memory: self.memory.clone(),
            interrupts: Arc::clone(&self.interrupts),
            doorbells: Arc::clone(&self.doorbells),
            slot,
        };
        Ok(match arrival {
            Arrival::Cold | Arrival::Hot => Arc::new(VirtioPci::new(device, wiring)?),
            Arrival::Restored(_, unit) => Arc::new(VirtioPci::restore(device, wiring, unit)?),
        })
    }
}
