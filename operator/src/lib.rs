//! The operator: makes VSEs into VM pods and MicroVMs, and reports what became of them.
//!
//! Owns: the controllers of VSE, VSEProfile, HostPolicy and orphaned MicroVMs, each *observe → plan (pure) → execute →
//! status*; leader election; health endpoints and metrics. Must not: talk to hosts, pods or engines. All it knows it
//! reads from the API server, all it decides it writes there.

#![forbid(unsafe_code)]

pub mod cache;
pub mod error;
pub mod host_policy;
pub mod lease;
pub mod metrics;
pub mod options;
pub mod orphan;
pub mod profile;
pub mod reason;
pub mod serve;
pub mod vse;
