//! Guests that are machines.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFd;
use vse_vmm_api::{Fd, NewDevice, VmConfig, VmCounters};

use super::Vmm;
use super::guest::{Builder, Guest, Outcome};
use super::run::Signals;
use crate::machine::{Event, Events, Host, Machine, descriptors};
use crate::memory::GuestMemory;
use crate::seccomp::Filters;
use crate::snapshot::{Snapshot, Unit};

/// Makes machines on KVM.
pub struct Machines {
    kvm_fd: Option<Fd>,
    filters: Arc<Filters>,
    events: Arc<Events>,
    hot_plug: bool,
}

impl Machines {
    /// Machines that tell what happens through `events`. `kvm_fd` is `/dev/kvm`, or the configuration names it, or it is
    /// opened by its path. `hot_plug` says whether there are callers who could plug in devices.
    #[must_use]
    pub fn new(kvm_fd: Option<Fd>, filters: Arc<Filters>, events: Arc<Events>, hot_plug: bool) -> Self {
        Self { kvm_fd, filters, events, hot_plug }
    }

    fn host(&self, config: &VmConfig) -> Outcome<Host> {
        let kvm: OwnedFd = match self.kvm_fd.or(config.kvm_fd) {
            Some(number) => descriptors::copy(number)?,
            None => {
                let opened = File::options().read(true).write(true).open("/dev/kvm");
                opened
                    .map_err(|error| io::Error::new(error.kind(), format!("/dev/kvm can't be opened: {error}")))?
                    .into()
            }
        };
        // What the machine before may have told is not about the next.
        drop(self.events.take());
        Ok(Host { kvm, filters: Arc::clone(&self.filters), hot_plug: self.hot_plug })
    }
}

impl Builder for Machines {
    fn create(&mut self, config: &VmConfig) -> Outcome<Box<dyn Guest>> {
        Ok(Box::new(Machine::new(config, self.host(config)?, Arc::clone(&self.events))?))
    }

    fn restore(&mut self, config: &VmConfig, snapshot: &Snapshot, keep_clock: bool) -> Outcome<Box<dyn Guest>> {
        let host = self.host(config)?;
        let mut fill = |memory: &GuestMemory| snapshot.fill(memory).map_err(io::Error::other);
        let events = Arc::clone(&self.events);
        Ok(Box::new(Machine::restore(config, host, events, &snapshot.units, keep_clock, &mut fill)?))
    }
}

/// What machines tell, for the owner's loop.
pub struct MachineSignals(pub Arc<Events>);

impl AsFd for MachineSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Signals for MachineSignals {
    fn deliver(&mut self, vmm: &mut Vmm) {
        for event in self.0.take() {
            match event {
                Event::Request(request) => vmm.request(request),
                Event::VcpuFailed(reason) => vmm.failed(&reason),
                Event::Agent { connected } => vmm.agent(connected),
            }
        }
    }
}

impl Guest for Machine {
    fn boot(&mut self) -> Outcome<()> {
        Ok(Machine::boot(self)?)
    }

    fn pause(&mut self) -> Outcome<()> {
        Ok(Machine::pause(self)?)
    }

    fn resume(&mut self) -> Outcome<()> {
        Ok(Machine::resume(self)?)
    }

    fn reset(&mut self) -> Outcome<()> {
        Ok(Machine::reset(self)?)
    }

    fn power_button(&self) {
        Machine::power_button(self);
    }

    fn save(&self) -> Outcome<BTreeMap<String, Unit>> {
        Ok(Machine::save(self)?)
    }

    fn memory(&self) -> &GuestMemory {
        Machine::memory(self)
    }

    fn add(&mut self, device: &NewDevice) -> Outcome<String> {
        Ok(Machine::add(self, device)?)
    }

    fn remove(&mut self, id: &str) -> Outcome<()> {
        Ok(Machine::remove(self, id)?)
    }

    fn eject(&mut self, slot: u8) -> Option<String> {
        Machine::eject(self, slot)
    }

    fn counters(&self) -> VmCounters {
        Machine::counters(self)
    }

    fn vcpu_threads(&self) -> Vec<i32> {
        Machine::vcpu_threads(self)
    }

    fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        Machine::watch(self, fds);
    }

    fn ready(&mut self) {
        Machine::ready(self);
    }
}
