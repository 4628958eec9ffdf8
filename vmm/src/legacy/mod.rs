//! What has no bus of its own: the serial port, the platform's events, what an x86 kernel expects to find.

#[cfg(test)]
mod fuzz;
pub mod keyboard;
pub mod output;
pub mod platform;
pub mod pvpanic;
pub mod serial;
