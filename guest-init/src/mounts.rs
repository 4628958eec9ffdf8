//! The mounts every guest needs, and mounting with errors that say what would help.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{At, Error, Result};

/// `/proc`, `/sys` and `/dev`.
pub(crate) fn kernel_file_systems() -> Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("proc", "proc", "/proc", safe | MountFlags::NODEV, "")?;
    mount("sysfs", "sysfs", "/sys", safe | MountFlags::NODEV, "")?;
    // Some kernels are built to mount it themselves.
    if !Path::new("/dev/null").exists() {
        mount("devtmpfs", "devtmpfs", "/dev", safe, "mode=0755")?;
    }
    Ok(())
}

/// The system image, read-only.
pub(crate) fn system(disk: &Path, on: &str) -> Result<()> {
    mount("erofs", disk, on, MountFlags::RDONLY, "")
}

/// Mounts, making the mount point.
pub(crate) fn mount(fs: &'static str, source: impl AsRef<Path>, on: &str, flags: MountFlags, data: &str) -> Result<()> {
    fs::create_dir_all(on).at("make the directory", on)?;
    let data = CString::new(data).map_err(std::io::Error::from).at("mount", on)?;
    rustix::mount::mount(source.as_ref(), on, fs, flags, Some(data.as_c_str())).map_err(|source| Error::Mount {
        fs,
        path: on.into(),
        source: source.into(),
    })
}

/// Unmounts now.
pub(crate) fn unmount(path: &str) -> Result<()> {
    rustix::mount::unmount(path, UnmountFlags::empty()).at("unmount", path)
}

/// Takes a mount out of the tree; what is made from it, as an overlay, keeps it.
pub(crate) fn detach(path: &str) -> Result<()> {
    rustix::mount::unmount(path, UnmountFlags::DETACH).at("unmount", path)
}

/// Lets a kernel panic reset the guest at once, unless the command line asked for something else: a guest that stays
/// in its panic looks as if it ran.
pub(crate) fn reset_on_panic() {
    const TIMEOUT: &str = "/proc/sys/kernel/panic";
    if fs::read_to_string(TIMEOUT).is_ok_and(|timeout| timeout.trim() == "0") {
        let _ = fs::write(TIMEOUT, "-1");
    }
}
