//! A distribution's own kernel, on a host with real KVM, meets our devices and orders.
//!
//! Needs root, `/boot/vmlinuz` with its modules, `/boot/initrd.img` with busybox and kmod, and `ip`, `mke2fs`, `socat`,
//! virtiofsd: a host of `hack/lab-host`.
//!
//! ```console
//! $ export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$PWD/hack/lab-runner
//! $ cargo test -p vse-vmm --test stock_kernel -- --ignored --test-threads 1
//! ```
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../process/mod.rs"]
mod process;

mod guest;
mod host;
mod hot_plug;
mod initramfs;
mod platform;
mod pmem;
mod pvh;
mod restore;
mod sockets;
mod start_over;
mod virtio_fs;
