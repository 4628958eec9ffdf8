//! Writes [EROFS](https://docs.kernel.org/filesystems/erofs.html) images, Linux's read-only file system, from a
//! directory tree: uncompressed, so that guests share its pages through the host's page cache.
//!
//! - **Faithful**: owners, modes, times, hard links, device nodes, extended attributes, files of any size; holes stay
//!   holes. Left out are attributes that belong to the host, not to the tree (`security.selinux`, `trusted.overlay.*`).
//! - **Reproducible**: the image is a function of the tree and the [`Options`].
//! - **Bounded**: file content is streamed; names and attributes are held in memory, up to [`Options::max_inodes`].
//! - **Careful**: the tree is untrusted. Nothing is opened outside it, through a symbolic link or across a mount.
//!   A tree that changes meanwhile gives an error or an image of a state in between, never a broken image.
//!
//! It must not decide what belongs in a tree, and reads no images.

mod format;
mod layout;
mod tree;
mod write;
mod xattr;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// What of the image is not in the tree.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file system's UUID.
    pub uuid: [u8; 16],
    /// The file system's label; 15 bytes of it are kept.
    pub volume_name: String,
    /// The most files, directories and so on a tree may have, and the most names.
    pub max_inodes: u32,
}

impl Default for Options {
    /// No UUID, no label, at most 4 million inodes (a full desktop distribution has half a million).
    fn default() -> Self {
        Options { uuid: [0; 16], volume_name: String::new(), max_inodes: 4_000_000 }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Files, directories and so on; the names of one file count once.
    pub inodes: u64,
    /// Bytes of the image. Holes are not allocated, so it may take less on disk.
    pub image_bytes: u64,
    /// Bytes of it that are inodes, attributes and the last parts of files.
    pub metadata_bytes: u64,
}

/// Why an image could not be written. Paths are relative to the tree's root.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something of the tree could not be read.
    #[error("cannot {action} {path:?} in the tree")]
    Read {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed. `EXDEV` is a mount in the tree.
        source: io::Error,
    },
    /// The image could not be written.
    #[error("cannot write the EROFS image")]
    Write(#[source] io::Error),
    /// A file is not what it was a moment ago.
    #[error("{path:?} changed while the tree was read; the tree must be left alone meanwhile")]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// The tree has more files than [`Options::max_inodes`].
    #[error("the tree has more than {limit} files")]
    TooManyFiles {
        /// The limit.
        limit: u32,
    },
    /// The tree is nested too deep.
    #[error("{path:?} in the tree is nested too deep: paths can have {limit} bytes")]
    PathTooLong {
        /// The path so far.
        path: PathBuf,
        /// The limit in bytes.
        limit: usize,
    },
    /// A file has more extended attributes than an inode can hold.
    #[error("{path:?} has more than {limit} bytes of extended attributes")]
    TooManyAttributes {
        /// Which file.
        path: PathBuf,
        /// The limit in bytes.
        limit: usize,
    },
    /// The image would be larger than EROFS can address: 2³² blocks of 4096 bytes.
    #[error("the tree is too large: an image holds 16 TiB")]
    TooLarge,
}

/// Writes an EROFS image of the directory `tree` to `out`, which must be an empty regular file.
///
/// Needs `/proc` (to read extended attributes of files that must not be opened), and privilege where files of the
/// tree are not readable to all. Does not sync `out`.
///
/// # Errors
/// See [`Error`]. `out` then holds no usable image.
pub fn write(tree: BorrowedFd<'_>, out: &File, options: &Options) -> Result<Summary, Error> {
    let tree = tree::read(tree, options.max_inodes)?;
    write::image(&tree, out, options)
}
