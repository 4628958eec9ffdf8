//! `vse-init`: `/init` of a guest's initramfs. Loads the modules that reach the root, makes the root file system
//! from the system image, and becomes the image's own init.
//!
//! ```text
//! vse.root=diskless|disk   a RAM overlay over the system image (default), or the root disk
//! vse.overlay_size=SIZE    of the RAM overlay, as tmpfs takes it: bytes, 512m, 50% (default: half of the memory)
//! vse.init=PATH            the program to become (default: /sbin/init)
//! ```
//!
//! The initramfs holds `/init`, and `/modules` with kernel modules and their `order`. Disks are told apart by their
//! virtio serial numbers.
//!
//! It must not set up anything that the image's own init can: networks, users, other disks.
//!
//! When it cannot go on it says why on the console and ends, which makes the kernel panic: whoever runs the guest
//! can tell that from a guest that was shut down.

mod disk;
mod disks;
mod error;
mod fill;
mod modules;
mod mounts;
mod overlay;
mod program;
mod settings;
mod switch_root;

use std::process::ExitCode;

use error::Result;
use settings::{Root, Settings};

/// Where the system image, and the root made from it, are mounted until they are handed over.
const SYSTEM: &str = "/system";
const ROOT: &str = "/root";

fn main() -> ExitCode {
    if let Some(exit) = program::entered() {
        return exit;
    }
    if !rustix::process::getpid().is_init() {
        say("error: this is the first process of a guest, not a command");
        return ExitCode::FAILURE;
    }
    let Err(error) = boot();
    say(&format!("error: {}", error.chain()));
    mounts::reset_on_panic();
    ExitCode::FAILURE
}

fn boot() -> Result<std::convert::Infallible> {
    mounts::kernel_file_systems()?;
    let settings = Settings::read()?;
    modules::load();

    let system = disks::wait_for("vse-system")?;
    mounts::system(&system, SYSTEM)?;
    match settings.root {
        Root::Diskless => overlay::mount(SYSTEM, ROOT, settings.overlay_size.as_deref())?,
        Root::Disk => disk::mount(SYSTEM, &disks::wait_for("vse-root")?, ROOT)?,
    }
    mounts::detach(SYSTEM)?;
    switch_root::become_init(ROOT, &settings.init)
}

/// One line on the console.
fn say(line: &str) {
    eprintln!("vse-init: {line}");
}
