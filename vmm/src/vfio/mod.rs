//! Host functions handed to the guest, by VFIO (kernel documentation, driver-api/vfio).
//!
//! ```text
//!  container (IOMMU: all guest RAM mapped) ◄── group ◄── Device ── HostFunction ──► VfioPci (PciFunction)
//!                                                                                  │  ├── view     what the guest sees
//!   events: function ─► irqfd ─► vCPU                                              │  └── regions  BARs, mapped or trapped
//! ```
//!
//! Nothing of the configuration space a guest writes reaches the function, but for a few bits of it that are named in
//! [`view`]; its BARs are the guest's, mapped without this process in the way. Descriptors come in open; whoever opened
//! them decided that the guest may have the function.

#![allow(clippy::single_range_in_vec_init, reason = "areas are lists of ranges, often of one")]

mod container;
mod device;
mod function;
mod host;
mod interrupts;
mod ioctls;
mod regions;
mod view;

pub use container::{Container, Group, VfioError, locate, open_group};
pub use device::Device;
pub use function::{Ports, VfioPci};
pub use host::{HostFunction, IrqKind, Region};
