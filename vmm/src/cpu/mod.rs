//! vCPUs: what CPUID says, how they begin, their threads, and their saved state.

pub mod baseline;
pub mod cpuid;
pub mod topology;
