//! Reads files of an untrusted tree: symbolic links are followed inside it, sizes are bounded.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// The most names read from one directory.
const MAX_NAMES: usize = 10_000;

/// An image's file tree.
#[derive(Clone, Copy)]
pub(crate) struct Tree<'a>(pub(crate) BorrowedFd<'a>);

impl Tree<'_> {
    /// Opens a regular file; `None` when there is none.
    pub(crate) fn open(&self, path: &Path) -> Result<Option<File>> {
        // Found first and opened then: to open a device node can have effects.
        let Some(place) = self.resolve(path, OFlags::PATH).map_err(at(path))? else {
            return Ok(None);
        };
        let stat = rustix::fs::fstat(&place).map_err(|e| at(path)(e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let reopened = format!("/proc/self/fd/{}", place.as_raw_fd());
        File::open(reopened).map(Some).map_err(at(path))
    }

    /// Reads a regular file of at most `limit` bytes; `None` when there is none.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
        self.open(path)?.map(|file| read_bounded(file, path, limit)).transpose()
    }

    /// The sorted names in a directory; none when there is no such directory.
    pub(crate) fn names(&self, path: &Path) -> Result<Vec<String>> {
        let Some(directory) = self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(at(path))? else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(|e| at(path)(e.into()))? {
            let entry = entry.map_err(|e| at(path)(e.into()))?;
            // Kernels and modules have plain names; others are none of ours.
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
            if names.len() > MAX_NAMES {
                return Err(at(path)(io::Error::other(format!("more than {MAX_NAMES} names"))));
            }
        }
        names.retain(|name| name != "." && name != "..");
        names.sort_unstable();
        Ok(names)
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(source) => Err(source.into()),
        }
    }
}

/// Reads all, or fails when it is more than `limit` bytes.
pub(crate) fn read_bounded(reader: impl Read, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes).map_err(at(path))?;
    match bytes.len() as u64 > limit {
        true => Err(Error::TooLarge { path: path.to_owned(), limit }),
        false => Ok(bytes),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Tree { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_in_the_tree_and_only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("usr/lib")).unwrap();
        std::fs::write(root.join("usr/lib/a"), "inside").unwrap();
        symlink("/usr/lib", root.join("lib")).unwrap();
        symlink("../../../../../etc/passwd", root.join("escape")).unwrap();
        symlink("self", root.join("self")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();

        let handle = File::open(root).unwrap();
        let tree = Tree(handle.as_fd());
        assert_eq!(tree.read(Path::new("lib/a"), 6).unwrap().unwrap(), b"inside");
        assert!(matches!(tree.read(Path::new("lib/a"), 5), Err(Error::TooLarge { .. })));
        for path in ["escape", "self", "fifo", "usr", "absent", "lib/a/b"] {
            assert!(tree.open(Path::new(path)).unwrap().is_none(), "{path}");
        }
        assert_eq!(tree.names(Path::new("/lib")).unwrap(), ["a"]);
        assert!(tree.names(Path::new("absent")).unwrap().is_empty());
    }
}
