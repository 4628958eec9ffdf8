//! What tests outside this crate know of the node runtime; all else is the program's own (`main.rs`).

#![forbid(unsafe_code)]

pub mod crash_point;
