//! How devices interrupt the guest.
//!
//! ```text
//!  device ──write──► event ──irqfd──► GSI ──route──► message (address, data) ──► a vCPU's LAPIC
//!                       └── while its vector is masked, the event just stays readable: that is the pending bit
//! ```
//!
//! [`Interrupts`] owns the table of GSIs and is the only one who sets it; [`Vectors`] are the MSI or MSI-X vectors of one
//! PCI function; a [`Line`] is a function's INTA.

mod chip;
mod line;
mod routes;
mod vectors;

pub use chip::{IrqChip, Message};
pub use line::{Line, ResampledLine};
pub use routes::Interrupts;
pub use vectors::Vectors;

#[cfg(test)]
pub(crate) use chip::recorder::Recorder;

use vmm_sys_util::eventfd::EventFd;

/// A virtio device's way to interrupt the guest, whatever transport it is behind.
pub trait Interrupt: Send + Sync {
    /// Buffers of queue `index` were used. The device has decided that the driver wants to know (EVENT_IDX).
    fn queue(&self, index: u16);

    /// The device's configuration changed.
    fn config(&self);

    /// The device can't go on, for example because a ring makes no sense. The driver is told so (`DEVICE_NEEDS_RESET`).
    fn needs_reset(&self);

    /// An event that interrupts for queue `index` when written to, for those who work without this process
    /// (vhost in the kernel, vhost-user back-ends). `None` while the driver has given the queue no vector, or does not
    /// use MSI-X: then somebody has to call [`Interrupt::queue`].
    fn event(&self, index: u16) -> Option<EventFd>;
}
