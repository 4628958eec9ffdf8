//! Hands over: the new root takes the initramfs's place, and its init this process's.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::StatFs;

use crate::error::{At, Error, Result};
use crate::program;

/// Becomes `init` of the file system mounted on `root`.
///
/// The initramfs's files are deleted first, for they stay in RAM otherwise (Linux,
/// `Documentation/filesystems/ramfs-rootfs-initramfs.rst`).
pub(crate) fn become_init(root: &str, init: &Path) -> Result<Infallible> {
    if !program::exists(Path::new(root), init) {
        return Err(Error::NoInit(init.to_owned()));
    }
    if !is_in_ram(&rustix::fs::statfs("/").at("examine", "/")?) {
        return Err(Error::NotInitramfs);
    }
    for mount in ["/dev", "/proc", "/sys"] {
        let target = format!("{root}{mount}");
        fs::create_dir_all(&target).at("make the directory", &target)?;
        rustix::mount::mount_move(mount, target.as_str()).at("move the mount", mount)?;
    }
    let device = fs::metadata("/").at("examine", "/")?.dev();
    delete_below(Path::new("/"), device)?;

    rustix::process::chdir(root).at("change to", root)?;
    rustix::mount::mount_move(".", "/").at("move the mount", root)?;
    rustix::process::chroot(".").at("change the root to", root)?;
    rustix::process::chdir("/").at("change to", "/")?;
    let error = Command::new(init).args(std::env::args_os().skip(1)).exec();
    Err(error).at("execute", init)
}

fn is_in_ram(fs: &StatFs) -> bool {
    const RAMFS_MAGIC: u64 = 0x8584_58f6;
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    [RAMFS_MAGIC, TMPFS_MAGIC].contains(&(fs.f_type as u64))
}

/// Deletes what lies in a directory, but nothing of another file system and no mount point.
fn delete_below(directory: &Path, device: u64) -> Result<()> {
    for entry in fs::read_dir(directory).at("list", directory)? {
        let path = entry.at("list", directory)?.path();
        let metadata = fs::symlink_metadata(&path).at("examine", &path)?;
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            delete_below(&path, device)?;
            // A directory that holds a mount point stays.
            let _ = fs::remove_dir(&path);
        } else {
            fs::remove_file(&path).at("delete", &path)?;
        }
    }
    Ok(())
}
