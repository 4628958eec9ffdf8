//! Finds disks by their virtio serial numbers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::error::{At, Error, Result};

/// A disk that is given is there when its driver is; under emulation, and with many disks, that takes a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// The device node of the disk with this serial number, waited for.
pub(crate) fn wait_for(serial: &'static str) -> Result<PathBuf> {
    // The watch comes before the look, so that no disk is missed between the two.
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).at("watch", "/dev")?;
    inotify::add_watch(&watch, "/dev", WatchFlags::CREATE).at("watch", "/dev")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let disks = list(Path::new("/sys/block"))?;
        if let Some((name, _)) = disks.iter().find(|(_, found)| found == serial) {
            return Ok(Path::new("/dev").join(name));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let found: Vec<String> = disks.iter().map(|(name, serial)| format!("{name} ({serial:?})")).collect();
            return Err(Error::NoDisk { serial, seconds: PATIENCE.as_secs(), found: found.join(", ") });
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        rustix::event::poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)).at("watch", "/dev")?;
        drain(&watch);
    }
}

/// Takes the events, of which only that there were some matters.
fn drain(watch: &impl std::os::fd::AsFd) {
    let mut buffer = [0u8; 4096];
    while rustix::io::read(watch, &mut buffer).is_ok_and(|bytes| bytes > 0) {}
}

/// Names and serial numbers of the disks that have one.
fn list(directory: &Path) -> Result<Vec<(String, String)>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(directory).at("list", directory)? {
        let entry = entry.at("list", directory)?;
        if let Ok(serial) = fs::read_to_string(entry.path().join("serial")) {
            disks.push((entry.file_name().to_string_lossy().into_owned(), serial.trim().to_owned()));
        }
    }
    disks.sort();
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_only_what_has_a_serial_number() {
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir_all(sys.path().join("loop0")).unwrap();
        for (name, serial) in [("vdb", "vse-root\n"), ("vda", "vse-system")] {
            fs::create_dir_all(sys.path().join(name)).unwrap();
            fs::write(sys.path().join(name).join("serial"), serial).unwrap();
        }
        let expected = [("vda", "vse-system"), ("vdb", "vse-root")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(list(sys.path()).unwrap(), expected);
    }
}
