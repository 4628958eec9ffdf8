//! What every virtio device is to its transport.
//!
//! ```text
//!            activate              pause
//!  Inactive ──────────► Running ◄────────► Paused
//!     ▲                    │      resume      │
//!     └────── reset ───────┴──────────────────┘
//! ```

use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use crate::counters::Counts;
use crate::interrupts::Interrupt;
use crate::memory::GuestMemory;
use crate::snapshot::{InvalidState, Saved, Unit};

/// A virtio device, behind whatever transport.
///
/// The transport calls it under a lock, from vCPU threads; what takes time belongs into the device's own worker
/// thread, which runs from `activate` (or `resume`) until `pause` or `reset` and owns the queues meanwhile.
pub trait VirtioDevice: Send {
    /// Device ID (section 5), for example 2 for a block device.
    fn id(&self) -> u16;

    /// Largest size of each queue, a power of two. Their number never changes.
    fn queue_sizes(&self) -> &[u16];

    /// Features offered, `VIRTIO_F_VERSION_1` among them. Never changes.
    fn features(&self) -> u64;

    /// Reads device configuration; what is beyond it stays as it is in `data` (all ones).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration; most devices have nothing to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready (`DRIVER_OK`): begin. The queues' configuration is frozen and was checked: rings lie in RAM.
    ///
    /// # Errors
    /// The transport then sets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the worker, and returns when nothing is in flight any more. Nothing on an inactive or paused device.
    fn pause(&mut self);

    /// Goes on after `pause`, looking at every queue first: what was added meanwhile has been notified already.
    ///
    /// # Errors
    /// The device stays paused.
    fn resume(&mut self) -> Result<(), ActivateError>;

    /// Back to before `activate`: stops, and lets go of queues and memory.
    fn reset(&mut self);

    /// Where the queues are, by index, while paused; `None` for one that is not in use, empty when inactive.
    fn queue_states(&self) -> Vec<Option<QueueState>>;

    /// What it has moved since it was made. Nothing where others move it: the kernel's vhost, other processes.
    fn counters(&self) -> Counts;

    /// The device's own state, while paused; the transport saves queues, features and configuration writes.
    fn save(&self) -> Saved;

    /// Takes over saved state, before it is activated.
    ///
    /// # Errors
    /// When the unit is not one that [`VirtioDevice::save`] of this kind of device made.
    fn restore(&mut self, unit: &Unit) -> Result<(), InvalidState>;
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The way to interrupt the guest.
    pub interrupt: Arc<dyn Interrupt>,
    /// The queues by index; `None` for one that the driver did not enable.
    pub queues: Vec<Option<ReadyQueue>>,
    /// Features that both sides agreed on.
    pub features: u64,
}

/// A queue in use, with the event that the driver's notifications arrive by (an ioeventfd).
pub struct ReadyQueue {
    /// Its rings. `event_idx` is set as negotiated.
    pub queue: Queue,
    /// Readable when the driver has notified.
    pub notified: EventFd,
}

/// Why a device could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// A queue that the device can't do without.
    #[error("the driver did not enable queue {0}")]
    QueueMissing(u16),
    /// Something of the host's failed.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}
