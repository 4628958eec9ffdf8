//! The disks of a guest, opened through its pod's file system, which is untrusted: no link is followed, nothing but a
//! regular file or a block device is opened.

use super::pod_process::{self, PodProcess};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, fstatvfs, ftruncate, openat2, unlinkat};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use vse_crds::labels::paths;
use vse_crds::{Backing, MicroVMDisk, quantity};
use vse_engine::{Cache, Disk, DiskSource, Storage};

/// Disk sizes are whole MiB, so that every file system and sector size fits.
const ALIGNMENT: u64 = 1 << 20;

/// A disk that can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pod's file system.
    #[error("volume {name}")]
    Pod {
        /// The volume.
        name: String,
        /// Why.
        source: pod_process::Error,
    },
    /// A call failed.
    #[error("volume {name}: cannot {action} {what}")]
    Io {
        /// The volume.
        name: String,
        /// What was tried.
        action: &'static str,
        /// On what.
        what: &'static str,
        /// Why it failed.
        source: Errno,
    },
    /// Somebody has it.
    #[error(
        "volume {name}: the host, or another of its guests, has this disk in use; a claim is for one VSE at a time"
    )]
    InUse {
        /// The volume.
        name: String,
    },
    /// Not a disk.
    #[error("volume {name}: {problem}")]
    NoDisk {
        /// The volume.
        name: String,
        /// What is wrong, and what would help.
        problem: String,
    },
}

impl Error {
    /// Whether trying again can't help.
    pub fn is_final(&self) -> bool {
        match self {
            Error::NoDisk { .. } => true,
            Error::Pod { .. } | Error::Io { .. } | Error::InUse { .. } => false,
        }
    }
}

/// Opens a disk of a running pod, making `disk.img` in a file-system volume that has none yet.
pub fn open(process: &PodProcess, disk: &MicroVMDisk) -> Result<Disk, Error> {
    let ((fd, cache), storage) = match disk.backing {
        Backing::Block => ((block(process, disk)?, Cache::Direct), Storage::BlockDevice),
        Backing::File => (file(process, disk)?, Storage::File),
    };
    Ok(Disk {
        serial: disk.name.clone(),
        source: DiskSource::Fd(fd),
        storage,
        read_only: disk.read_only,
        discard: !disk.read_only,
        cache,
    })
}

fn access(disk: &MicroVMDisk) -> OFlags {
    if disk.read_only { OFlags::RDONLY } else { OFlags::RDWR }
}

fn block(process: &PodProcess, disk: &MicroVMDisk) -> Result<OwnedFd, Error> {
    let path = format!("{}/{}", paths::DEVICES, disk.name);
    let pod = |source| Error::Pod { name: disk.name.clone(), source };
    let looked = process.open_in_root(&path, OFlags::PATH | OFlags::NOFOLLOW).map_err(pod)?;
    open_block(disk, &looked)
}

/// Opens what was looked at: opening some character devices has effects, and at its path another may lie by now. What
/// can be written is claimed as long as somebody has this descriptor, which is the engine (open(2), O_EXCL on block
/// devices): no mount, no other guest, and [`crate::pci`] sees it.
fn open_block(disk: &MicroVMDisk, looked: &OwnedFd) -> Result<OwnedFd, Error> {
    if kind(disk, looked)? != FileType::BlockDevice {
        return Err(no_disk(disk, "what the pod has for it is no block device".into()));
    }
    let same = format!("/proc/self/fd/{}", looked.as_raw_fd());
    let claim = if disk.read_only { OFlags::empty() } else { OFlags::EXCL };
    let name = disk.name.clone();
    match rustix::fs::open(same, access(disk) | claim | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::BUSY) => Err(Error::InUse { name }),
        opened => opened.map_err(|source| Error::Io { name, action: "open", what: "its block device", source }),
    }
}

fn file(process: &PodProcess, disk: &MicroVMDisk) -> Result<(OwnedFd, Cache), Error> {
    let path = format!("{}/{}", paths::VOLUMES, disk.name);
    let directory = process
        .open_in_root(&path, OFlags::DIRECTORY | OFlags::RDONLY)
        .map_err(|source| Error::Pod { name: disk.name.clone(), source })?;
    let found = match beneath(&directory, access(disk) | OFlags::DIRECT) {
        Err(Errno::NOENT) if disk.read_only => {
            return Err(no_disk(disk, format!("it has no {} to read", paths::DISK_IMAGE)));
        }
        Err(Errno::NOENT) => {
            make(disk, &directory)?;
            beneath(&directory, access(disk) | OFlags::DIRECT)
        }
        found => found,
    };
    let (image, cache) = match found {
        Ok(image) => (image, Cache::Direct),
        // The file system can't go around the page cache.
        Err(Errno::INVAL) => (beneath(&directory, access(disk)).map_err(io(disk, "open"))?, Cache::Shared),
        Err(Errno::LOOP) => return Err(no_disk(disk, format!("{} is a link", paths::DISK_IMAGE))),
        Err(errno) => return Err(io(disk, "open")(errno)),
    };
    if kind(disk, &image)? != FileType::RegularFile {
        return Err(no_disk(disk, format!("{} is no regular file", paths::DISK_IMAGE)));
    }
    let size = fstat(&image).map_err(io(disk, "look at"))?.st_size;
    if size <= 0 || size % 512 != 0 {
        let problem = format!("{} has {size} bytes, which is no whole number of sectors", paths::DISK_IMAGE);
        return Err(no_disk(disk, problem));
    }
    Ok((image, cache))
}

/// Makes `disk.img`, sparse, as large as asked for and the volume allows. It appears complete or not at all.
fn make(disk: &MicroVMDisk, directory: &OwnedFd) -> Result<(), Error> {
    let asked = disk.capacity.as_ref().and_then(|capacity| quantity::bytes(capacity).ok()).unwrap_or(0);
    let room = fstatvfs(directory).map_err(io(disk, "look at"))?;
    let bytes = asked.min(room.f_bavail.saturating_mul(room.f_frsize)) / ALIGNMENT * ALIGNMENT;
    if bytes == 0 {
        return Err(no_disk(disk, format!("it has no {} and no room for one", paths::DISK_IMAGE)));
    }
    let partial = format!("{}.new", paths::DISK_IMAGE);
    match unlinkat(directory, &partial, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(io(disk, "remove a half-made")(errno)),
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let image = openat2(directory, &partial, flags, mode, ResolveFlags::BENEATH).map_err(io(disk, "make"))?;
    ftruncate(&image, bytes).map_err(io(disk, "size"))?;
    rustix::fs::renameat(directory, &partial, directory, paths::DISK_IMAGE).map_err(io(disk, "name"))
}

fn beneath(directory: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(directory, paths::DISK_IMAGE, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty(), resolve)
}

fn kind(disk: &MicroVMDisk, fd: impl AsFd) -> Result<FileType, Error> {
    fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode)).map_err(io(disk, "look at"))
}

fn io(disk: &MicroVMDisk, action: &'static str) -> impl Fn(Errno) -> Error {
    let name = disk.name.clone();
    move |source| Error::Io { name: name.clone(), action, what: paths::DISK_IMAGE, source }
}

fn no_disk(disk: &MicroVMDisk, problem: String) -> Error {
    Error::NoDisk { name: disk.name.clone(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_is_not_opened() {
        let disk = MicroVMDisk { name: "data".into(), backing: Backing::Block, read_only: false, capacity: None };
        let directory = tempfile::tempdir().unwrap();
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        for path in [std::path::Path::new("/dev/null"), directory.path()] {
            let looked = rustix::fs::open(path, flags, Mode::empty()).unwrap();
            let error = open_block(&disk, &looked).unwrap_err();
            assert_eq!(error.to_string(), "volume data: what the pod has for it is no block device");
        }
    }
}
