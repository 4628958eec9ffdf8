//! End-to-end scenarios: the harness they share. The scenarios themselves are in `tests/scenarios`.
//!
//! Owns: a namespace of its own for each scenario, waiting on conditions, what a failed wait tells, looking at hosts
//! and consoles, and the proof that a scenario left nothing behind. Must not: start clusters or install anything; the
//! cluster that KUBECONFIG names has the chart already, and `hack/cluster` is the only way to its hosts.

#![forbid(unsafe_code)]

pub mod audit;
pub mod cluster;
pub mod console;
pub mod hosts;
pub mod lab;
pub mod manifest;
mod report;
mod scenario;
mod shell;
mod vse;
mod wait;
mod world;

pub use anyhow::{Context, Error, Result, bail, ensure};
pub use manifest::{claim, patched, tiny};
pub use scenario::scenario;
pub use serde_json::{Value, json};
pub use shell::Shell;
pub use vse::{Conditions, refusal};
pub use world::World;
