//! How a driver's notifications reach a device: by events that KVM writes itself, without an exit to this process.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::layout::{NOTIFY, NOTIFY_STEP};

/// Events that guest writes to an address trigger. KVM has them; tests have others.
pub trait Doorbells: Send + Sync {
    /// Whatever the guest writes to `address` triggers `event`.
    ///
    /// # Errors
    /// When the kernel refuses; writes arrive as accesses to the BAR then, which is slower.
    fn connect(&self, event: &EventFd, address: u64) -> io::Result<()>;

    /// Ends that.
    fn disconnect(&self, event: &EventFd, address: u64);
}

impl Doorbells for VmFd {
    fn connect(&self, event: &EventFd, address: u64) -> io::Result<()> {
        Ok(self.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }

    fn disconnect(&self, event: &EventFd, address: u64) {
        // Fails only if it is not connected.
        let _ = self.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch);
    }
}

/// The bells of a device's queues, hung up where its BAR is now.
pub(super) struct Bells {
    doorbells: Arc<dyn Doorbells>,
    bar: Option<u64>,
    bells: Vec<Bell>,
}

struct Bell {
    queue: u16,
    event: EventFd,
    is_connected: bool,
}

impl Bells {
    pub(super) fn new(doorbells: Arc<dyn Doorbells>) -> Self {
        Self { doorbells, bar: None, bells: Vec::new() }
    }

    /// The BAR is somewhere else, or nowhere.
    pub(super) fn moved(&mut self, bar: Option<u64>) {
        self.take_down();
        self.bar = bar;
        self.hang_up();
    }

    /// Adds a queue's, and returns what it triggers.
    pub(super) fn add(&mut self, queue: u16) -> io::Result<EventFd> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let notified = event.try_clone()?;
        self.bells.push(Bell { queue, event, is_connected: false });
        Ok(notified)
    }

    /// Connects those that are not, if the BAR is somewhere.
    pub(super) fn hang_up(&mut self) {
        let Some(bar) = self.bar else { return };
        for bell in self.bells.iter_mut().filter(|bell| !bell.is_connected) {
            bell.is_connected = self.doorbells.connect(&bell.event, address(bar, bell.queue)).is_ok();
        }
    }

    fn take_down(&mut self) {
        let Some(bar) = self.bar else { return };
        for bell in self.bells.iter_mut().filter(|bell| bell.is_connected) {
            self.doorbells.disconnect(&bell.event, address(bar, bell.queue));
            bell.is_connected = false;
        }
    }

    /// Rings one that could not be connected.
    pub(super) fn ring(&self, queue: u16) {
        if let Some(bell) = self.bells.iter().find(|bell| bell.queue == queue) {
            // Fails when the counter is full: it rings already.
            let _ = bell.event.write(1);
        }
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        self.take_down();
        self.bells.clear();
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        self.clear();
    }
}

fn address(bar: u64, queue: u16) -> u64 {
    bar + NOTIFY + u64::from(queue) * NOTIFY_STEP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_takes_doorbells() {
        let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        vm.connect(&event, 0xC000_3004).unwrap();
        assert!(vm.connect(&event, 0xC000_3004).is_err(), "taken");
        vm.disconnect(&event, 0xC000_3004);
        vm.connect(&event, 0xC000_3004).unwrap();
    }
}
