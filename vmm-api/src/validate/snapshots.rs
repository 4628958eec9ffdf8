//! Where snapshots are.

use super::names::fit_descriptor;
use super::{Findings, Problem, Refused};
use crate::config::Fd;
use crate::messages::{RestoreConfig, SnapshotPlace, VmSnapshotConfig};

impl VmSnapshotConfig {
    /// Where to write it.
    ///
    /// # Errors
    /// When it is said not at all, or twice.
    pub fn destination(&self) -> Result<SnapshotPlace<'_>, Refused> {
        place(["destination_url", "destination_fd"], self.destination_url.as_deref(), self.destination_fd)
    }
}

impl RestoreConfig {
    /// Where to read it.
    ///
    /// # Errors
    /// When it is said not at all, or twice.
    pub fn source(&self) -> Result<SnapshotPlace<'_>, Refused> {
        place(["source_url", "source_fd"], self.source_url.as_deref(), self.source_fd)
    }
}

fn place<'a>(fields: [&str; 2], url: Option<&'a str>, fd: Option<Fd>) -> Result<SnapshotPlace<'a>, Refused> {
    let mut findings = Findings::default();
    match (url, fd) {
        (Some(url), None) => return Ok(SnapshotPlace::Url(url)),
        (None, Some(fd)) if fit_descriptor(fields[1], fd, &mut findings) => return Ok(SnapshotPlace::Fd(fd)),
        (None, Some(_)) => {}
        (None, None) => findings.add(fields[0], Problem::Missing("or an open descriptor of it")),
        (Some(_), Some(_)) => findings.add(fields[1], Problem::Contradiction("is there by URL as well")),
    }
    Err(Refused(findings.told))
}
