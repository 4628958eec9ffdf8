//! KVM: the virtual machine, its interrupt controllers and its memory slots.

pub mod slots;
pub mod vm;

pub use slots::{Slot, Slots};
pub use vm::{Hypervisor, HypervisorError};
