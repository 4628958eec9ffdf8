//! Reading and writing small files of /sys and /proc below a root that tests can replace.

use rustix::fs::OFlags;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest file read here; sysfs attributes are at most a page, /proc/cpuinfo of a large host some hundred KiB.
const MAX_FILE: u64 = 4 << 20;

/// A file that could not be read, or says something unexpected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Could not be written.
    #[error("cannot write {text:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        text: String,
        /// Why.
        source: io::Error,
    },
    /// Says something unexpected.
    #[error("{} holds {text:?}, not {expected}", path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// What it says, shortened.
        text: String,
        /// What it should.
        expected: &'static str,
    },
}

/// A directory tree shaped as the root file system: `proc/…`, `sys/…`.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The tree below that directory; `/` for the host itself.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file.trim_start_matches('/'))
    }

    /// The file's text without surrounding white space.
    pub fn text(&self, file: &str) -> Result<String, Error> {
        let path = self.path(file);
        read(&path).map_err(|source| Error::Read { path, source })
    }

    /// The file's text, or nothing when there is no such file (or the attribute has no value here).
    pub fn optional(&self, file: &str) -> Option<String> {
        read(&self.path(file)).ok().filter(|text| !text.is_empty())
    }

    /// The file's text as a value.
    pub fn parse<T: FromStr>(&self, file: &str, expected: &'static str) -> Result<T, Error> {
        let text = self.text(file)?;
        text.parse().map_err(|_| Error::Unexpected {
            path: self.path(file),
            text: text.chars().take(80).collect(),
            expected,
        })
    }

    /// Names in a directory, sorted; none when there is no such directory.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(directory))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }

    /// What a symbolic link points to.
    pub fn link_target(&self, link: &str) -> Option<PathBuf> {
        fs::read_link(self.path(link)).ok()
    }

    /// Whether there is such a file or directory.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Writes an attribute, in one piece as sysfs wants it. Never makes a file.
    pub fn write(&self, file: &str, text: &str) -> Result<(), Error> {
        let path = self.path(file);
        let written = fs::File::options().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|source| Error::Write { path, text: text.trim().to_owned(), source })
    }

    /// Opens a file for reading and writing. Never makes one.
    pub fn open(&self, file: &str) -> io::Result<fs::File> {
        fs::File::options().read(true).write(true).open(self.path(file))
    }

    /// Opens a file for reading, of a disk only if nobody has claimed it: no mount, in whatever namespace, no swap, no
    /// volume (open(2), O_EXCL on block devices).
    pub fn open_unclaimed(&self, file: &str) -> io::Result<fs::File> {
        let flags = (OFlags::EXCL | OFlags::NONBLOCK).bits();
        fs::File::options().read(true).custom_flags(flags as i32).open(self.path(file))
    }

    /// Last component of what a symbolic link points to, as sysfs names drivers and IOMMU groups.
    pub fn link_name(&self, link: &str) -> Option<String> {
        fs::read_link(self.path(link)).ok()?.file_name()?.to_str().map(str::to_owned)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}
