//! `vse-vmm`: one process, one guest.
//!
//! ```text
//!   REST (unix socket) ─► api ─► vmm ──── owns the one VM and its state; the only one who changes it
//!   command line ───────────────┘ │
//!                                 ▼
//!   machine ── builds a guest out of a configuration: memory, vCPUs, bus, PCI, devices, ACPI tables, boot
//!     ├─ memory       zones of guest RAM on host cells and pages
//!     ├─ cpu          CPUID, registers, the run loop of a vCPU, its saved state
//!     ├─ boot         bzImage and PVH kernels, command line, boot parameters
//!     ├─ acpi         the tables that describe all of it to the guest
//!     ├─ smbios       those that say what it is called
//!     ├─ bus          who answers at an address
//!     ├─ legacy       serial port, power and hot-plug events, what an x86 kernel expects to find
//!     ├─ interrupts   GSIs, irqfds, MSI routes
//!     ├─ pci          root complex with ECAM, configuration space, BARs, MSI-X
//!     ├─ virtio       the virtio-pci transport and the devices behind it
//!     └─ vfio         host functions handed to the guest
//!   counters ── what vm.counters tells of devices and vCPUs
//!   snapshot ── named, versioned, checksummed units of state
//!   seccomp ─── one filter for each role of thread
//! ```
//!
//! What holds everywhere: a guest, a caller or a file is never a reason to panic; devices see offsets, never their own
//! address, and *ask* ([`bus::Request`]) instead of acting; what a guest wrote is copied once and then checked; no file
//! needs a path, everything can come in as an open descriptor; memory beside guest RAM is bounded whatever the guest
//! does.

pub mod acpi;
pub mod api;
pub mod boot;
pub mod bus;
pub mod counters;
pub mod cpu;
#[cfg(test)]
mod fuzzing;
pub mod hypervisor;
pub mod interrupts;
pub mod layout;
pub mod legacy;
pub mod machine;
pub mod made_socket;
pub mod memory;
pub mod monitor;
pub mod options;
pub mod pci;
pub mod readiness;
pub mod seccomp;
pub mod smbios;
pub mod snapshot;
pub mod start;
pub mod vfio;
pub mod virtio;
pub mod vmm;
