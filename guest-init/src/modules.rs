//! Loads the kernel modules of the initramfs.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::say;

/// File names, one a line, each after those it needs.
const ORDER: &str = "order";
const DIRECTORY: &str = "/modules";

/// Loads all modules in order.
///
/// A module that does not load is told, and no failure: it may be for a CPU or device this guest lacks. If it was
/// needed after all, the mount that needs it fails.
pub(crate) fn load() {
    let directory = Path::new(DIRECTORY);
    let order = match std::fs::read_to_string(directory.join(ORDER)) {
        Ok(order) => order,
        Err(error) => return say(&format!("no modules to load: {DIRECTORY}/{ORDER}: {error}")),
    };
    for name in order.lines().filter(|line| !line.is_empty()) {
        if let Err(error) = load_one(&directory.join(name)) {
            say(&format!("module {name} not loaded: {error}"));
        }
    }
}

fn load_one(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(file, c"", 0) {
        // Loaded already, or the device it drives is not here.
        Ok(()) | Err(Errno::EXIST | Errno::NODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
