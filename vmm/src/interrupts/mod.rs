//! How devices interrupt the guest.

use vmm_sys_util::eventfd::EventFd;

/// A virtio device's way to interrupt the guest, whatever transport it is behind.
pub trait Interrupt: Send + Sync {
    /// Buffers of queue `index` were used. The device has decided that the driver wants to know (EVENT_IDX).
    fn queue(&self, index: u16);

    /// The device's configuration changed.
    fn config(&self);

    /// An event that interrupts for queue `index` when written to, for those who work without this process
    /// (vhost in the kernel, vhost-user back-ends). `None` while the driver has given the queue no vector.
    fn event(&self, index: u16) -> Option<EventFd>;
}
