//! What the owner of a guest needs of it. [`crate::machine::Machine`] is one; tests have another.

use std::collections::BTreeMap;
use std::error::Error;

use rustix::event::PollFd;
use vse_vmm_api::{NewDevice, VmConfig, VmCounters};

use crate::memory::GuestMemory;
use crate::snapshot::{Snapshot, Unit};

/// Something failed in the machine; the owner only passes it on.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A guest that exists. Dropping it stops it, and gives back all that it has.
pub trait Guest {
    /// Loads the kernel and lets the vCPUs run.
    ///
    /// # Errors
    /// When that fails.
    fn boot(&mut self) -> Outcome<()>;

    /// Stops vCPUs and brings devices to rest.
    ///
    /// # Errors
    /// When that fails.
    fn pause(&mut self) -> Outcome<()>;

    /// Lets both go on.
    ///
    /// # Errors
    /// When that fails.
    fn resume(&mut self) -> Outcome<()>;

    /// Starts over in place; runs once it is resumed.
    ///
    /// # Errors
    /// When that fails.
    fn reset(&mut self) -> Outcome<()>;

    /// Presses the power button.
    fn power_button(&self);

    /// State by place, while paused.
    ///
    /// # Errors
    /// When a part of it can't be saved.
    fn save(&self) -> Outcome<BTreeMap<String, Unit>>;

    /// RAM.
    fn memory(&self) -> &GuestMemory;

    /// Plugs a device in; the result is its PCI address.
    ///
    /// # Errors
    /// When it can't be made.
    fn add(&mut self, device: &NewDevice) -> Outcome<String>;

    /// Asks the guest to let go of a device.
    ///
    /// # Errors
    /// When it can't be.
    fn remove(&mut self, id: &str) -> Outcome<()>;

    /// Takes out the device that the guest has let go of; the result is its name.
    fn eject(&mut self, slot: u8) -> Option<String>;

    /// Counters by device.
    fn counters(&self) -> VmCounters;

    /// Thread IDs by vCPU.
    fn vcpu_threads(&self) -> Vec<i32>;

    /// Appends what the guest wants polled: its serial port's input, and output that waits.
    fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>);

    /// Something of it is ready.
    fn ready(&mut self);
}

/// Who makes guests.
pub trait Builder {
    /// Makes a guest out of a validated configuration, up to where it can boot.
    ///
    /// # Errors
    /// When the host can't have it.
    fn create(&mut self, config: &VmConfig) -> Outcome<Box<dyn Guest>>;

    /// Makes a paused guest out of a snapshot. `keep_clock`: its time goes on from where it stopped.
    ///
    /// # Errors
    /// When the host can't have it, or the snapshot doesn't fit.
    fn restore(&mut self, config: &VmConfig, snapshot: &Snapshot, keep_clock: bool) -> Outcome<Box<dyn Guest>>;
}
