//! PCI functions of this host for guests: virtual functions made, functions bound to vfio-pci for a guest and given back
//! after it.
//!
//! - [`function`] with [`host_use`]: what there is and what the host does with it, from sysfs
//! - [`class`], [`verdict`], [`plan`]: which class a function is of, whether a guest can have it, what to change; pure
//! - [`ledger`]: what was changed and how it was before, over restarts
//! - [`act`], [`group_file`]: steps of a plan, and the files of VFIO; thin
//! - [`keeper`]: all of it in turn
//! - [`report`]: what is said of it in the Host; pure
//! - [`devices`]: the way in for the rest of the node runtime
//!
//! Owns the drivers of functions that are in a device class, and nothing of any other function. A function stays with its
//! driver until a guest's pod starts: a host without guests is a host with all its devices.

mod act;
mod address;
mod class;
mod devices;
#[cfg(test)]
mod fixture;
mod function;
mod group_file;
mod host_use;
mod keeper;
mod ledger;
mod plan;
mod report;
mod verdict;

#[cfg(test)]
mod lab_tests;
#[cfg(test)]
mod sysfs_tests;
#[cfg(test)]
mod verdict_tests;

pub use address::Address;
pub use devices::{Devices, GiveBackError, TakeError};
pub use keeper::Taken;
pub use report::Report;
pub use verdict::Unit;
