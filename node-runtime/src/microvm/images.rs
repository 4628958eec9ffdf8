//! Prepared system images of this host: the cache, and which of its entries stay.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use vse_system_image::{Cache, Key, Source, SystemImage};

/// How many images stay that were used last. Guests keep the files of a deleted one open, so only a later guest of the
/// same image notices: it is made again, in seconds.
const KEPT: usize = 16;

/// The cache of prepared system images.
#[derive(Debug)]
pub struct Images {
    cache: Cache,
    /// The program `vse-init`: read when it is needed, not held.
    guest_init: PathBuf,
    recent: Mutex<VecDeque<Key>>,
}

/// Why there is no prepared image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image or the cache.
    #[error(transparent)]
    Image(#[from] vse_system_image::Error),
    /// This installation.
    #[error("cannot read {}", path.display())]
    GuestInit {
        /// The program `vse-init`.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether trying again can't help.
    pub fn is_final(&self) -> bool {
        match self {
            Error::Image(error) => error.is_in_tree(),
            Error::GuestInit { .. } => false,
        }
    }
}

impl Images {
    /// Keeps images in that directory; they start with the program at `guest_init`.
    pub fn open(directory: &Path, guest_init: PathBuf) -> vse_system_image::Result<Self> {
        Ok(Self { cache: Cache::open(directory)?, guest_init, recent: Mutex::default() })
    }

    /// The system image of a tree, made when it is not there. Blocks, for seconds when it is made.
    pub fn prepare(&self, key: Key, tree: &OwnedFd, kernel: Option<&Path>) -> Result<SystemImage, Error> {
        let init = std::fs::read(&self.guest_init)
            .map_err(|source| Error::GuestInit { path: self.guest_init.clone(), source })?;
        let image = self.cache.prepare(&key, &Source { tree: tree.as_fd(), init: &init, kernel });
        crate::heap::give_back();
        let image = image?;
        // Space that can't be given back now is no reason not to boot.
        match self.cache.collect(&self.touch(key)) {
            Ok(deleted) if deleted.is_empty() => {}
            Ok(deleted) => tracing::info!(count = deleted.len(), "system images not used lately deleted"),
            Err(error) => tracing::warn!(error = %crate::report(&error), "system images not deleted"),
        }
        Ok(image)
    }

    /// Notes the use of an image; returns the ones to keep.
    fn touch(&self, key: Key) -> BTreeSet<Key> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|known| *known != key);
        recent.push_front(key);
        recent.truncate(KEPT);
        recent.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_used_last_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::open(directory.path(), PathBuf::new()).unwrap();
        let key = |n: usize| Key::new(&n.to_string(), None);
        for n in 0..KEPT {
            images.touch(key(n));
        }
        images.touch(key(0));
        let kept = images.touch(key(KEPT));
        assert_eq!(kept.len(), KEPT);
        assert!(kept.contains(&key(0)) && !kept.contains(&key(1)));
    }
}
