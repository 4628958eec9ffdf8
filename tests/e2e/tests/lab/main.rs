//! The scenarios that need bare-metal hosts: KVM, NUMA cells, huge pages, devices. `make lab-test` runs them, on the lab
//! cluster that is up or else on one of its own.

mod block;
mod cards;
mod cells;
mod devices;
mod engines;
mod failures;
mod guest;
mod nvme;
mod reboot;
