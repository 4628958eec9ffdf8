//! vCPUs: what CPUID says, how they begin, their threads, and their saved state.

pub mod baseline;
pub mod cpuid;
pub mod exits;
mod host_caches;
mod kick;
pub mod state;
pub mod threads;
pub mod topology;

#[cfg(test)]
mod tests;

pub use exits::{Buses, ExitCounters, Outcome};
pub use host_caches::{host_caches, sharers_of_third_level};
pub use threads::{Listener, Starting, ThreadError, Vcpus};
pub use topology::Topology;
