//! The files of VFIO under /dev: one for each IOMMU group, which only one process opens at a time, and the container
//! (Documentation/driver-api/vfio.rst).

use crate::sysfs::Root;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// The container's file.
const CONTAINER: &str = "dev/vfio/vfio";

/// A file of VFIO that can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {path}")]
pub struct Error {
    path: String,
    source: io::Error,
}

impl Error {
    /// Whether somebody else has it open.
    fn is_busy(&self) -> bool {
        self.source.kind() == io::ErrorKind::ResourceBusy
    }
}

/// A new container, without groups and IOMMU type.
pub fn container(root: &Root) -> Result<OwnedFd, Error> {
    open(root, CONTAINER.to_owned())
}

/// A group.
pub fn group(root: &Root, number: u32) -> Result<OwnedFd, Error> {
    open(root, format!("dev/vfio/{number}"))
}

/// Whether somebody has the group open. The kernel knows best: it gives a group to one only.
pub fn is_open(root: &Root, number: u32) -> bool {
    group(root, number).is_err_and(|error| error.is_busy())
}

fn open(root: &Root, path: String) -> Result<OwnedFd, Error> {
    let file: io::Result<File> = root.open(&path);
    file.map(OwnedFd::from).map_err(|source| Error { path: format!("/{path}"), source })
}
