//! Guest RAM.

/// The guest's RAM as devices see it. Everything in it is the guest's and may change at any moment.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
