//! KVM: the virtual machine, its interrupt controllers and its memory slots.

mod machine_check;
pub mod slots;
pub mod vm;

pub use machine_check::limit_banks;
pub use slots::{Slot, Slots};
pub use vm::{Hypervisor, HypervisorError, open, supported_cpuid};
