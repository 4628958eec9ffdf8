//! A lock on one entry of the cache, held by one process at a time and gone with it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{At, Result};

/// Held until dropped.
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for the lock.
    pub(crate) fn wait(path: &Path) -> Result<Lock> {
        loop {
            if let Some(lock) = Lock::take(path, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// The lock, unless another holds it.
    pub(crate) fn try_now(path: &Path) -> Result<Option<Lock>> {
        Lock::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    fn take(path: &Path, how: FlockOperation) -> Result<Option<Lock>> {
        let file = File::options().create(true).append(true).open(path).at("open", path)?;
        match rustix::fs::flock(&file, how) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(source) => return Err(source).at("lock", path),
        }
        // Whoever held it may have deleted it: then another may hold the one that took its place.
        let locked = file.metadata().at("examine", path)?;
        let is_there = fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (locked.dev(), locked.ino()));
        Ok(is_there.then(|| Lock { path: path.to_owned(), _file: file }))
    }

    /// Lets go, and deletes the lock's file.
    pub(crate) fn delete(self) -> Result<()> {
        fs::remove_file(&self.path).at("delete", &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.lock");
        let lock = Lock::wait(&path).unwrap();
        assert!(Lock::try_now(&path).unwrap().is_none());
        lock.delete().unwrap();
        let lock = Lock::try_now(&path).unwrap().unwrap();
        drop(lock);
        assert!(Lock::try_now(&path).unwrap().is_some());
    }
}
