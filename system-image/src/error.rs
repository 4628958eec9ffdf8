//! Why a tree cannot become a system image. Paths of trees are relative to the tree's root.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// See the variants; [`Error::is_in_tree`] tells whose fault it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no kernel where distributions put it.
    #[error(
        "no kernel in /boot or /lib/modules of the system image: \
         install the distribution's kernel package in it (for example linux-image-amd64 or kernel-core)"
    )]
    NoKernel,
    /// The kernel that was asked for is not there.
    #[error("no kernel {path:?} in the system image; /boot has: {found}")]
    NoSuchKernel {
        /// As asked for.
        path: PathBuf,
        /// What could be asked for.
        found: String,
    },
    /// The kernel is not one that boots here.
    #[error("{path:?} in the system image is no bootable x86 kernel (bzImage)")]
    NotAKernel {
        /// Which file.
        path: PathBuf,
    },
    /// The kernel's modules are not there.
    #[error("the kernel {version} has no modules in the system image: /lib/modules/{version} is missing")]
    NoModules {
        /// The kernel's release.
        version: String,
    },
    /// The kernel lacks what a guest needs to reach its root file system.
    #[error(
        "the kernel {version} of the system image has no {module}, neither built in nor as a module: \
         install the package with the kernel's other modules, or another kernel"
    )]
    NoModule {
        /// The kernel's release.
        version: String,
        /// The module.
        module: &'static str,
    },
    /// A file of the tree could not be read.
    #[error("cannot read {path:?} in the system image")]
    Tree {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the tree is larger than any honest one.
    #[error("{path:?} in the system image is larger than {limit} bytes")]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The limit, of the unpacked content.
        limit: u64,
    },
    /// The tree cannot be an EROFS image.
    #[error("cannot make the root file system of the system image")]
    Root(#[source] vse_erofs::Error),
    /// The cache could not be read or written.
    #[error("cannot {action} {path:?} in the cache of system images")]
    Cache {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Data for a NoCloud seed is larger than a seed may be.
    #[error("the cloud-init data has {bytes} bytes; {limit} is the most")]
    SeedTooLarge {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A NoCloud seed could not be made.
    #[error("cannot make the cloud-init seed")]
    Seed(#[source] io::Error),
}

impl Error {
    /// Whether the system image is at fault, so that trying again with the same image is in vain.
    pub fn is_in_tree(&self) -> bool {
        match self {
            Error::NoKernel
            | Error::NoSuchKernel { .. }
            | Error::NotAKernel { .. }
            | Error::NoModules { .. }
            | Error::NoModule { .. }
            | Error::TooLarge { .. }
            | Error::SeedTooLarge { .. } => true,
            Error::Root(source) => !matches!(source, vse_erofs::Error::Write(_) | vse_erofs::Error::Read { .. }),
            Error::Tree { .. } | Error::Cache { .. } | Error::Seed(_) => false,
        }
    }
}

/// Gives an I/O error in the cache its place: `.at("open", path)`.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Cache { action, path: path.to_owned(), source: source.into() })
    }
}
