//! What a guest boots from: makes `kernel`, `initramfs` and `root.erofs` of an OCI image's file tree, keeps them in a
//! cache for all guests of that image, and makes NoCloud seeds.
//!
//! It runs nothing from the tree: the kernel is copied, the initramfs is made of `vse-init` and the tree's own kernel
//! modules, and the tree as a whole becomes an EROFS image. Everything read from a tree is untrusted: it is opened
//! inside the tree only, its size is bounded, and what is not a regular file is not opened.
//!
//! - [`Cache`] is the way in; [`nocloud`] stands for itself.
//! - Calls block, for seconds to a minute when a system image is new: run them where that is fine.

mod cache;
mod decompress;
mod error;
mod initramfs;
mod kernel;
mod lock;
mod manifest;
mod modules;
pub mod nocloud;
mod tree;
mod version;

pub use cache::{Cache, Key, Source, SystemImage};
pub use error::{Error, Result};
