//! Sockets that this process makes, which go when nobody listens at them any more.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The file of a socket. Dropping it removes the file, unless another one is there by now.
#[derive(Debug)]
pub struct MadeSocket {
    path: PathBuf,
    file: (u64, u64),
}

impl MadeSocket {
    /// Makes a socket, and listens at it.
    ///
    /// # Errors
    /// When the kernel refuses, as for a path that is taken.
    pub fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        let listener = UnixListener::bind(path)?;
        Ok((listener, Self { path: path.to_owned(), file: file_at(path)? }))
    }
}

fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

impl Drop for MadeSocket {
    fn drop(&mut self) {
        if file_at(&self.path).is_ok_and(|file| file == self.file) {
            // Someone may have done it meanwhile.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_is_unmade() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for _ in 0..2 {
            let (_listener, _made) = MadeSocket::bind(&path).unwrap();
            assert!(MadeSocket::bind(&path).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse));
            assert!(path.exists(), "an attempt takes nothing away");
        }
        assert!(!path.exists());
        let (_listener, made) = MadeSocket::bind(&path).unwrap();
        // It stays there by another name, so that its number is not given to the next.
        std::fs::rename(&path, folder.path().join("before")).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(made);
        assert!(path.exists());
    }
}
