//! The scenarios, one subject each and none depending on another. `make test` runs them on a cluster of its own; on one
//! that is up: `cargo test -p vse-e2e -- --test-threads 1 [NAME]` with KUBECONFIG set and kubectl in PATH.

mod bad_input;
mod deletion;
mod examples;
mod first_guest;
mod guest_panic;
mod host_changes;
mod killed_steps;
mod network;
mod node_runtime_restart;
mod operator_crash;
mod placement;
mod refusals;
mod run_strategies;
mod settled;
mod shared_image;
mod spec_changed;
mod stolen_token;
mod storage;
mod tour;
mod underneath;
mod unwritten_status;
