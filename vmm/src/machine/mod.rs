//! A machine: everything of one guest, put together out of its configuration.
//!
//! ```text
//!   VmConfig ──► Plan (pure) ──► Machine ── new ──► boot ──► runs ◄──► paused ──► save
//!                                       └─ restore ─────────────────────► paused
//! ```
//! It decides nothing by itself: what its guest asks for it tells its owner ([`Events`]), who then calls it.

mod chips;
mod console;
pub mod descriptors;
mod devices;
mod error;
mod events;
mod parts;
mod passthrough;
mod plan;
mod pmem_area;
mod state;
#[cfg(test)]
mod tests;
mod virtio_devices;

use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags};
use vse_vmm_api::{NewDevice, VmConfig, VmCounters};

pub use console::Console;
pub use error::MachineError;
pub use events::{Event, Events};
pub use plan::{HostFacts, Impossible, Plan};
pub use state::SavedMachine;

use crate::boot::{self, Entry, Payload};
use crate::cpu::{Vcpus, state as vcpu_state};
use crate::hypervisor::{Hypervisor, Slot};
use crate::legacy::platform::event;
use crate::memory::GuestMemory;
use crate::seccomp::Filters;
use devices::{Arrival, Attached, Workshop};
use error::host;
use parts::{Parts, Platform};

/// What comes from outside beside the configuration.
pub struct Host {
    /// `/dev/kvm`, open.
    pub kvm: OwnedFd,
    /// The system calls that each role of thread needs.
    pub filters: Arc<Filters>,
    /// Whether somebody could ever ask for devices to be plugged in: if so, the guest has slots for them.
    pub hot_plug: bool,
}

/// A guest's machine. Dropping it ends the guest and gives everything back.
// Fields are dropped in this order: who runs the guest's code and works on its memory before the memory.
pub struct Machine {
    vcpus: Vcpus,
    platform: Platform,
    workshop: Workshop,
    attached: Vec<Attached>,
    payload: Option<Payload>,
    entry: Option<Entry>,
    _ram: Vec<Slot>,
    hypervisor: Hypervisor,
    cpuid: crate::cpu::cpuid::Cpuid,
    memory: GuestMemory,
}

/// It calls nothing deep, and holds nothing large.
const LOADER_STACK: usize = 64 << 10;

impl Machine {
    /// Makes a machine that can boot: all that can be refused is refused here.
    ///
    /// # Errors
    /// What can't be, or what the host does not have.
    pub fn new(config: &VmConfig, host: Host, events: Arc<Events>) -> Result<Self, MachineError> {
        let payload = parts::payload(&config.payload)?;
        let parts = Parts::new(config, host.kvm, host.hot_plug)?;
        let memory = parts.memory().clone();
        // Reading a kernel takes as long as all that is left to do, and needs nothing of it.
        let mut machine = thread::scope(|scope| {
            let loader = thread::Builder::new().name("loader".to_owned()).stack_size(LOADER_STACK);
            let loading = loader.spawn_scoped(scope, || boot::load(&memory, &payload, crate::acpi::TABLES.start));
            let loading = loading.map_err(error::host("a thread can't be made"))?;
            let mut machine = parts.assemble(config, host.filters, events)?;
            for wanted in devices::wanted(config) {
                machine.attached.push(machine.workshop.attach(&wanted, Arrival::Cold)?);
            }
            machine.platform.write_tables(&machine.memory)?;
            machine.entry = Some(loading.join().unwrap_or_else(|panic| resume_unwind(panic))?);
            Ok::<_, MachineError>(machine)
        })?;
        machine.payload = Some(payload);
        Ok(machine)
    }

    /// Lets the guest run from its beginning.
    ///
    /// # Errors
    /// What KVM said.
    pub fn boot(&mut self) -> Result<(), MachineError> {
        self.begin()?;
        self.vcpus.run();
        Ok(())
    }

    /// Brings the first vCPU, which does not run, to the kernel's entry.
    fn begin(&self) -> Result<(), MachineError> {
        if let (Some(entry), Some(first)) = (self.entry, self.vcpus.lock().next()) {
            vcpu_state::enter(&first, entry)?;
        }
        Ok(())
    }

    /// Stops vCPUs, then brings devices to rest.
    ///
    /// # Errors
    /// Never so far.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        self.vcpus.park();
        for (_, function) in self.workshop.pci.functions() {
            function.pause();
        }
        self.platform.flush();
        self.excuse_pause();
        Ok(())
    }

    /// Tells the guest's watchdogs that it is stopped, while it is; only guests with kvmclock hear it.
    fn excuse_pause(&self) {
        for vcpu in self.vcpus.lock() {
            let _ = vcpu.kvmclock_ctrl();
        }
    }

    /// Lets devices, then vCPUs go on.
    ///
    /// # Errors
    /// When a device can't; the guest stays paused.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        let functions = self.workshop.pci.functions();
        if let Err(error) = functions.iter().try_for_each(|(_, function)| function.resume()) {
            functions.iter().for_each(|(_, function)| function.pause());
            return Err(host("a device can't go on")(error));
        }
        self.vcpus.run();
        Ok(())
    }

    /// Tells the guest that its power button was pressed.
    pub fn power_button(&self) {
        self.platform.notify(event::POWER_BUTTON);
    }

    /// Starts over in place, in the same memory: what a reset button does. The guest stays stopped until
    /// [`Machine::resume`].
    ///
    /// # Errors
    /// What KVM said, or that the kernel's file has changed.
    pub fn reset(&mut self) -> Result<(), MachineError> {
        self.vcpus.park();
        self.workshop.pci.reset();
        self.platform.reset();
        state::power_on(&self.hypervisor, &self.cpuid, &self.vcpus)?;
        self.platform.write_tables(&self.memory)?;
        let payload = self.payload.as_ref().ok_or(MachineError::NoKernel)?;
        self.entry = Some(boot::load(&self.memory, payload, crate::acpi::TABLES.start)?);
        self.begin()
    }

    /// RAM.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Plugs a device in while the guest runs, and tells it; the result is its PCI address.
    ///
    /// # Errors
    /// When it can't be made, or has no place.
    pub fn add(&mut self, device: &NewDevice) -> Result<String, MachineError> {
        let attached = self.workshop.attach(&devices::new(device), Arrival::Hot)?;
        let address = format!("0000:00:{:02x}.0", attached.slot);
        self.attached.push(attached);
        self.platform.notify(event::PCI_HOT_PLUG);
        Ok(address)
    }

    /// Asks the guest to let go of a device; when it has, [`Event::Request`] says [`Eject`](crate::bus::Request::Eject).
    ///
    /// # Errors
    /// When there is no such device, or it has to stay.
    pub fn remove(&mut self, id: &str) -> Result<(), MachineError> {
        let found = self.attached.iter().find(|attached| attached.id == id);
        let attached = found.ok_or_else(|| MachineError::NoSuchDevice(id.to_owned()))?;
        if !attached.is_removable || !self.workshop.pci.unplug(attached.slot) {
            return Err(MachineError::NotHotPluggable { id: id.to_owned(), what: "removed" });
        }
        self.platform.notify(event::PCI_HOT_PLUG);
        Ok(())
    }

    /// Takes out what the guest has let go of, if it may go; the result is its ID.
    pub fn eject(&mut self, slot: u8) -> Option<String> {
        let index = self.attached.iter().position(|attached| attached.slot == slot && attached.is_removable)?;
        // A vCPU that is just using the device would otherwise be the last to let go of it, and may not clean up after it.
        self.vcpus.hold(|| drop(self.workshop.pci.eject(slot)));
        Some(self.attached.remove(index).id)
    }

    /// Counters of devices by their IDs, of vCPUs as `vcpu0` and so on, and of the serial port as `serial`.
    #[must_use]
    pub fn counters(&self) -> VmCounters {
        let vcpus = (0..).zip(self.vcpus.exits()).map(|(number, exits)| (format!("vcpu{number}"), exits));
        let devices = self.attached.iter().filter_map(|attached| {
            let function = self.workshop.pci.function(attached.slot)?;
            Some((attached.id.clone(), function.counters()))
        });
        let serial = self.platform.serial().map(|serial| ("serial".to_owned(), serial.counters()));
        let counting = vcpus.chain(devices).chain(serial).filter(|(_, counts)| !counts.is_empty());
        counting
            .map(|(name, counts)| (name, counts.into_iter().map(|(what, count)| (what.to_owned(), count)).collect()))
            .collect()
    }

    /// The vCPU threads' IDs, by vCPU.
    #[must_use]
    pub fn vcpu_threads(&self) -> Vec<i32> {
        self.vcpus.ids()
    }

    /// Appends what the owner has to poll for the machine.
    pub fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        if let Some(console) = self.platform.console() {
            fds.extend(console.input().map(|input| PollFd::from_borrowed_fd(input, PollFlags::IN)));
            fds.extend(console.output().map(|output| PollFd::from_borrowed_fd(output, PollFlags::OUT)));
            fds.push(PollFd::from_borrowed_fd(console.wake(), PollFlags::IN));
        }
    }

    /// To be called when any of that was ready.
    pub fn ready(&mut self) {
        if let Some(console) = self.platform.console_mut() {
            console.ready();
        }
    }
}
