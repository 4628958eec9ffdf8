//! The whole way: launcher, launch order with real descriptors, a real engine, its monitor.

#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not take for tests

mod qemu;
mod running;
mod vmm;
