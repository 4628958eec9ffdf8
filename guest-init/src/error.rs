//! Why a guest cannot boot, in words for whoever reads its console.

use std::io;
use std::path::{Path, PathBuf};

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// One variant for each kind of failure with its own remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot mount {fs} on {}; is the module {fs} part of the image's kernel?", path.display())]
    Mount { fs: &'static str, path: PathBuf, source: io::Error },
    #[error("vse.root={0:?} is not known: use diskless or disk")]
    UnknownRoot(String),
    #[error("no disk with the serial number {serial:?} appeared within {seconds} s; there are: {found}")]
    NoDisk { serial: &'static str, seconds: u64, found: String },
    #[error("the system image has no {program}, which a root disk needs: install {package} in the image")]
    NoProgram { program: &'static str, package: &'static str },
    #[error("{program} failed ({status}); its own message is above")]
    Program { program: String, status: String },
    #[error("the root disk {} holds data but no ext4 file system, and is left as it is: use an empty volume, or wipe it", .0.display())]
    ForeignDisk(PathBuf),
    #[error("the root disk {} has {bytes} bytes, too few for a root file system: {least} at least", path.display())]
    SmallDisk { path: PathBuf, bytes: u64, least: u64 },
    #[error("the root file system has no program {}: set vse.init= to the path of the image's init", .0.display())]
    NoInit(PathBuf),
    #[error("the file system at / is not an initramfs, and is left as it is")]
    NotInitramfs,
}

impl Error {
    /// The error and what caused it, in one line.
    pub(crate) fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            line = format!("{line}: {cause}");
            source = cause.source();
        }
        line
    }
}

/// Gives an I/O error its place: `.at("open", path)`.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.as_ref().to_owned(), source: source.into() })
    }
}
