//! virtio: devices, and the PCI transport that carries them (Virtual I/O Device Version 1.3).
//!
//! A device knows nothing of the transport; the transport knows nothing of what a device does.

pub mod block;
pub mod chain;
pub mod config;
pub mod console;
pub mod device;
pub mod fs;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod transfer;
pub mod transport;
pub mod vhost;
pub mod vsock;
pub mod worker;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(crate) mod testing;

pub use device::{ActivateError, Activation, ReadyQueue, VirtioDevice};
