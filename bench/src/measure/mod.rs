//! What is measured, one file each. Every measure runs all contenders in turn and makes a table.

pub mod block;
pub mod boot;
pub mod compute;
pub mod instructions;
pub mod memory;
pub mod net;
pub mod snapshot;
pub mod start;
