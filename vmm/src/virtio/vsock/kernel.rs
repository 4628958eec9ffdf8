//! Packets moved by the kernel's vhost-vsock; programs of the host's use `AF_VSOCK` sockets then.
#![allow(unsafe_code, reason = "vhost-vsock's own ioctls, which the vhost crate has for paths only")]

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::VhostBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_VSOCK_SET_GUEST_CID, VHOST_VSOCK_SET_RUNNING};
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::virtio::queue::{DeviceQueue, RING_FEATURES};
use crate::virtio::vhost::{KernelVhost, Relay, claim, failed, give, set_memory, take};
use crate::virtio::worker::Poll;

/// Queues that vhost-vsock works on while the device runs.
pub struct KernelVsock {
    file: Arc<File>,
    receive: DeviceQueue,
    transmit: DeviceQueue,
    vhost: KernelVhost,
    relay: Relay,
    features: u64,
    cid: u64,
    is_running: bool,
}

impl KernelVsock {
    /// `file` is an open `/dev/vhost-vsock` that this process owns.
    pub fn new(file: Arc<File>, cid: u64, receive: DeviceQueue, transmit: DeviceQueue, features: u64) -> Self {
        let vhost = KernelVhost::new(file.clone(), receive.memory().clone());
        let features = features & RING_FEATURES;
        Self { file, receive, transmit, vhost, relay: Relay::default(), features, cid, is_running: false }
    }

    /// What outlives the driver.
    pub fn into_file(self) -> Arc<File> {
        self.file
    }

    /// Its queues: for packets to the guest, and from it.
    pub fn queues(&self) -> [&DeviceQueue; 2] {
        [&self.receive, &self.transmit]
    }

    /// Gives the queues to the kernel.
    ///
    /// # Errors
    /// When the kernel refuses, for example because another guest has this context ID.
    pub fn start(&mut self, poll: &Poll, token: u64) -> io::Result<()> {
        self.vhost.set_features(self.features).map_err(failed)?;
        set_memory(&self.vhost, self.receive.memory())?;
        // SAFETY: VHOST_VSOCK_SET_GUEST_CID reads a u64.
        check(unsafe { ioctl_with_ref(&self.vhost, VHOST_VSOCK_SET_GUEST_CID(), &self.cid) })?;
        let queues = [&self.receive, &self.transmit];
        (0..).zip(queues).try_for_each(|(ring, queue)| give(&self.vhost, ring, queue, poll, &mut self.relay, token))?;
        self.is_running = true;
        self.set_running(true)?;
        // Stopped between two packets, it asks for no notification of the next one, and starting does not make it look.
        self.transmit.notify_self();
        Ok(())
    }

    /// Interrupts for a queue that has no vector.
    pub fn relay(&self, index: u64) {
        if let Some(queue) = self.queues().into_iter().find(|queue| u64::from(queue.index()) == index) {
            self.relay.relay(index, queue);
        }
    }

    /// Takes the queues back.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.is_running) {
            // The kernel always can, and always says where it was.
            let _ = self.set_running(false);
            for (ring, queue) in [&mut self.receive, &mut self.transmit].into_iter().enumerate() {
                let _ = take(&self.vhost, ring, queue);
            }
        }
        self.queues().into_iter().for_each(|queue| self.relay.relay(queue.index().into(), queue));
        self.relay.clear();
    }

    fn set_running(&self, is_running: bool) -> io::Result<()> {
        let is_running = libc::c_int::from(is_running);
        // SAFETY: VHOST_VSOCK_SET_RUNNING reads an int.
        check(unsafe { ioctl_with_ref(&self.vhost, VHOST_VSOCK_SET_RUNNING(), &is_running) })
    }
}

/// What vhost-vsock can do, once this process owns it.
///
/// # Errors
/// When the kernel refuses.
pub fn own(file: &Arc<File>) -> io::Result<u64> {
    let vhost = KernelVhost::new(file.clone(), crate::memory::GuestMemory::new().into());
    claim(&vhost)?;
    vhost.get_features().map_err(failed)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
