//! The root of a diskless guest: what it writes is kept in RAM, over the read-only system image.

use std::fs;

use rustix::mount::MountFlags;

use crate::error::{At, Result};
use crate::mounts;

const RAM: &str = "/overlay";

/// Mounts the overlay of `system` and a tmpfs on `root`.
pub(crate) fn mount(system: &str, root: &str, size: Option<&str>) -> Result<()> {
    let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
    mounts::mount("tmpfs", "overlay", RAM, MountFlags::empty(), &format!("mode=0755{size}"))?;
    let (upper, work) = (format!("{RAM}/upper"), format!("{RAM}/work"));
    for directory in [&upper, &work] {
        fs::create_dir(directory).at("make the directory", directory)?;
    }
    let options = format!("lowerdir={system},upperdir={upper},workdir={work}");
    mounts::mount("overlay", "overlay", root, MountFlags::empty(), &options)?;
    mounts::detach(RAM)
}
