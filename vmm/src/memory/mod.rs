//! Guest RAM: where it lies for the guest ([`plan`]), and what it is made of on the host ([`zones`]).

pub mod bind;
pub mod plan;
pub mod zones;

pub use plan::{PageSize, Region, Zone};
pub use zones::{MemoryError, allocate};

/// The guest's RAM as devices see it. Everything in it is the guest's and may change at any moment.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
