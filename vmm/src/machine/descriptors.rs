//! Open descriptors that a configuration names by number.
#![allow(unsafe_code, reason = "a number becomes an owned descriptor here, and nowhere else")]

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Mutex;

/// A descriptor can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// Not open, or standard input, output or error.
    #[error("descriptor {0} is not open, or not to be given away")]
    NotOpen(RawFd),
    /// Named by two.
    #[error("descriptor {0} was taken already")]
    Taken(RawFd),
    /// A file by its path.
    #[error("{path:?} can't be opened")]
    Open {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Neither.
    #[error("neither a path nor a descriptor is given")]
    Neither,
}

/// Numbers that are owned by somebody in this process. One that was closed may be given out anew by the kernel to
/// something of the VMM's own, so that a number is taken at most once.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes an inherited descriptor over.
///
/// # Errors
/// When it is not open, or was taken before.
pub fn take(number: RawFd) -> Result<OwnedFd, DescriptorError> {
    check(number)?;
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(DescriptorError::Taken(number));
    }
    taken.push(number);
    // SAFETY: it is open, and nobody owns it: what this process opened itself has other numbers, as inherited ones were
    // open before it began, and each is given away once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A copy of an inherited descriptor, which stays open.
///
/// # Errors
/// When it is not open.
pub fn copy(number: RawFd) -> Result<OwnedFd, DescriptorError> {
    check(number)?;
    // SAFETY: it is open, and is used for this call only.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned().map_err(|_| DescriptorError::NotOpen(number))
}

fn check(number: RawFd) -> Result<(), DescriptorError> {
    // SAFETY: asks for flags by number; a closed one is an error.
    let is_open = number > libc::STDERR_FILENO && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    if is_open { Ok(()) } else { Err(DescriptorError::NotOpen(number)) }
}

/// A file by descriptor (of which a copy is used), or else by path.
///
/// # Errors
/// When there is neither, or it can't be opened.
pub fn file(number: Option<RawFd>, path: Option<&Path>, is_writable: bool) -> Result<File, DescriptorError> {
    if let Some(number) = number {
        return copy(number).map(File::from);
    }
    let path = path.ok_or(DescriptorError::Neither)?;
    let opened = File::options().read(true).write(is_writable).open(path);
    opened.map_err(|source| DescriptorError::Open { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn each_is_taken_once() {
        let number = File::open("/dev/null").unwrap().into_raw_fd();
        drop(copy(number).unwrap());
        let owned = take(number).unwrap();
        assert!(matches!(take(number), Err(DescriptorError::Taken(_))));
        drop(owned);
    }

    #[test]
    fn what_is_not_open_is_refused() {
        for number in [-1, 0, 1, 2, 9999, RawFd::MAX, RawFd::MIN] {
            assert!(matches!(take(number), Err(DescriptorError::NotOpen(_))));
            assert!(matches!(copy(number), Err(DescriptorError::NotOpen(_))));
        }
        assert!(matches!(file(None, None, false), Err(DescriptorError::Neither)));
        assert!(matches!(file(None, Some(Path::new("/nowhere")), false), Err(DescriptorError::Open { .. })));
    }
}
