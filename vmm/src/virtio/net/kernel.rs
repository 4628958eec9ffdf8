//! Packets moved by the kernel's vhost-net; this process only says where from and where to.
#![allow(unsafe_code, reason = "vhost-net gets its tap by an ioctl that the vhost crate has for paths only")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vhost::VhostBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::tap::Tap;
use crate::virtio::queue::DeviceQueue;
use crate::virtio::vhost::{KernelVhost, Relay, failed, give, set_memory, take};
use crate::virtio::worker::Poll;

/// Features of vhost's that are the guest's business; the others are the tap's or ours.
pub const VHOST_FEATURES: u64 =
    crate::virtio::queue::RING_FEATURES | 1 << virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

/// A pair of queues that vhost-net works on while the device runs.
pub struct KernelPair {
    receive: DeviceQueue,
    transmit: DeviceQueue,
    vhost: KernelVhost,
    features: u64,
    is_given: bool,
}

impl KernelPair {
    /// `vhost` is an open `/dev/vhost-net` that this process owns.
    pub fn new(vhost: Arc<File>, receive: DeviceQueue, transmit: DeviceQueue, features: u64) -> Self {
        let vhost = KernelVhost::new(vhost, receive.memory().clone());
        Self { receive, transmit, vhost, features: features & VHOST_FEATURES, is_given: false }
    }

    /// Its queues: for packets to the guest, and from it.
    pub fn queues(&self) -> [&DeviceQueue; 2] {
        [&self.receive, &self.transmit]
    }

    /// Gives the queues to the kernel.
    ///
    /// # Errors
    /// When the kernel refuses; the queues are here then.
    pub fn start(&mut self, tap: &Tap, poll: &Poll, relay: &mut Relay, token: u64) -> io::Result<()> {
        self.vhost.set_features(self.features).map_err(failed)?;
        set_memory(&self.vhost, self.receive.memory())?;
        let queues = [&self.receive, &self.transmit];
        (0..).zip(queues).try_for_each(|(ring, queue)| give(&self.vhost, ring, queue, poll, relay, token))?;
        self.is_given = true;
        (0..2).try_for_each(|ring| self.set_backend(ring, Some(tap))).inspect_err(|_| self.stop_quietly())
    }

    fn stop_quietly(&self) {
        for ring in 0..2 {
            let _ = self.set_backend(ring, None);
        }
    }

    /// Takes the queues back.
    pub fn stop(&mut self) {
        if !std::mem::take(&mut self.is_given) {
            return;
        }
        self.stop_quietly();
        for (ring, queue) in [&mut self.receive, &mut self.transmit].into_iter().enumerate() {
            // The kernel always says it; if not, the queue would be as it was given away.
            let _ = take(&self.vhost, ring, queue);
        }
    }

    fn set_backend(&self, index: u32, tap: Option<&Tap>) -> io::Result<()> {
        let file = vhost_vring_file { index, fd: tap.map_or(-1, AsRawFd::as_raw_fd) };
        // SAFETY: VHOST_NET_SET_BACKEND reads a `vhost_vring_file`.
        match unsafe { ioctl_with_ref(&self.vhost, VHOST_NET_SET_BACKEND(), &file) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
