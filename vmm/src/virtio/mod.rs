//! virtio: devices, and the PCI transport that carries them (Virtual I/O Device Version 1.3).
//!
//! A device knows nothing of the transport; the transport knows nothing of what a device does.

pub mod device;
pub mod transport;

pub use device::{ActivateError, Activation, ReadyQueue, VirtioDevice};
