//! A snapshot as a directory.
//!
//! It is whole or it isn't there: the manifest appears last, by rename, after everything else is on disk.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, renameat, unlinkat};
use vse_vmm_api::VmConfig;

use super::manifest::{Damaged, MANIFEST_BYTES, Manifest};
use super::{Unit, image};
use crate::memory::GuestMemory;
use crate::snapshot::image::FillError;

const MANIFEST: &str = "manifest";
const MANIFEST_PARTIAL: &str = "manifest.partial";
const STATE: &str = "state";
const MEMORY: &str = "memory";

/// A snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Where to is not said as it should be.
    #[error("{0:?} is not like file:///directory")]
    Url(String),
    /// There is one already.
    #[error("{0} has a snapshot in it")]
    Exists(String),
    /// What is there is none.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// A file.
    #[error("{what}")]
    File {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// A directory for one snapshot.
pub struct Directory {
    fd: OwnedFd,
    place: Place,
}

/// What a directory is called in errors.
enum Place {
    Path(PathBuf),
    Descriptor(RawFd),
}

impl Place {
    /// A file of it.
    fn file(&self, name: &str) -> String {
        match self {
            Self::Path(path) => path.join(name).display().to_string(),
            Self::Descriptor(_) => format!("{name} in {self}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(formatter),
            Self::Descriptor(number) => write!(formatter, "descriptor {number}"),
        }
    }
}

/// A snapshot that is whole, as far as can be told without reading RAM.
pub struct Snapshot {
    /// The guest's part of its configuration.
    pub config: VmConfig,
    /// State by place.
    pub units: BTreeMap<String, Unit>,
    image: image::Stored,
}

impl Snapshot {
    /// Reads RAM.
    ///
    /// # Errors
    /// When it is damaged, or `memory` is laid out otherwise.
    pub fn fill(&self, memory: &GuestMemory) -> Result<(), FillError> {
        image::read(memory, &self.image.file, &self.image.image)
    }
}

impl Directory {
    /// Opens the directory of a `file://` URL.
    ///
    /// # Errors
    /// When it is no such URL, or there is no such directory.
    pub fn open(url: &str) -> Result<Self, SnapshotError> {
        let path = url.strip_prefix("file://").map(Path::new).filter(|path| path.is_absolute());
        let path = path.ok_or_else(|| SnapshotError::Url(url.to_owned()))?.to_owned();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat(CWD, &path, flags, Mode::empty())
            .map_err(|error| failed(format!("{} can't be opened", path.display()), error))?;
        Ok(Self { fd, place: Place::Path(path) })
    }

    /// An open directory, which is called by its `number` in errors.
    #[must_use]
    pub fn of(fd: OwnedFd, number: RawFd) -> Self {
        Self { fd, place: Place::Descriptor(number) }
    }

    /// Writes a paused guest.
    ///
    /// # Errors
    /// When there is a snapshot already, or writing fails; there is none then.
    pub fn save(
        &self,
        config: &VmConfig,
        units: &BTreeMap<String, Unit>,
        memory: &GuestMemory,
    ) -> Result<(), SnapshotError> {
        if self.file(MANIFEST, OFlags::RDONLY).is_ok() {
            return Err(SnapshotError::Exists(self.place.to_string()));
        }
        self.write(config, units, memory).inspect_err(|_| {
            for name in [MANIFEST_PARTIAL, STATE, MEMORY] {
                // It may not be there at all.
                let _ = unlinkat(&self.fd, name, AtFlags::empty());
            }
        })
    }

    fn write(
        &self,
        config: &VmConfig,
        units: &BTreeMap<String, Unit>,
        memory: &GuestMemory,
    ) -> Result<(), SnapshotError> {
        let file = self.create(MEMORY)?;
        let image = image::write(memory, &file).map_err(|error| self.failed("written", MEMORY, error))?;
        file.sync_all().map_err(|error| self.failed("written", MEMORY, error))?;
        let (manifest, state) = Manifest::new(config, units, image);
        self.put(STATE, &state)?;
        let manifest = manifest.encode().map_err(|error| self.failed("written", MANIFEST, error.into()))?;
        self.put(MANIFEST_PARTIAL, &manifest)?;
        renameat(&self.fd, MANIFEST_PARTIAL, &self.fd, MANIFEST)
            .and_then(|()| rustix::fs::fsync(&self.fd))
            .map_err(|error| self.failed("written", MANIFEST, error.into()))
    }

    /// Reads a snapshot, all but RAM, and checks it.
    ///
    /// # Errors
    /// When there is none, or it is not whole.
    pub fn load(&self) -> Result<Snapshot, SnapshotError> {
        let manifest = Manifest::decode(&self.get(MANIFEST, None)?)?;
        let state = self.get(STATE, Some(manifest.state_length()?))?;
        let units = manifest.units(&state)?;
        let file = self.file(MEMORY, OFlags::RDONLY)?;
        let found = file.metadata().map_err(|error| self.failed("read", MEMORY, error))?.len();
        let expected = manifest.memory.length();
        if found != expected {
            return Err(Damaged::Length { file: MEMORY, expected, found }.into());
        }
        Ok(Snapshot { config: manifest.config, units, image: image::Stored { file, image: manifest.memory } })
    }

    /// Writes a file to the disk.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut file = self.create(name)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| self.failed("written", name, error))
    }

    /// Reads a file of `expected` bytes, or of at most what a manifest has.
    fn get(&self, name: &'static str, expected: Option<u64>) -> Result<Vec<u8>, SnapshotError> {
        let limit = expected.unwrap_or(MANIFEST_BYTES);
        let mut bytes = Vec::new();
        self.file(name, OFlags::RDONLY)?
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed("read", name, error))?;
        let found = bytes.len() as u64;
        if found > limit || expected.is_some_and(|expected| found != expected) {
            return Err(Damaged::Length { file: name, expected: limit, found }.into());
        }
        Ok(bytes)
    }

    fn create(&self, name: &str) -> Result<File, SnapshotError> {
        self.file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)
    }

    /// Only a file of the directory itself: what a link leads to may be anything.
    fn file(&self, name: &str, flags: OFlags) -> Result<File, SnapshotError> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(&self.fd, name, flags, mode).map(File::from);
        let file = file.map_err(|error| self.failed("opened", name, error.into()))?;
        let is_file = file.metadata().map_err(|error| self.failed("opened", name, error))?.is_file();
        if is_file { Ok(file) } else { Err(self.failed("opened", name, io::Error::other("it is no plain file"))) }
    }

    fn failed(&self, done: &str, name: &str, source: io::Error) -> SnapshotError {
        SnapshotError::File { what: format!("{} can't be {done}", self.place.file(name)), source }
    }
}

fn failed(what: String, source: rustix::io::Errno) -> SnapshotError {
    SnapshotError::File { what, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    fn guest() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn saved() -> (tempfile::TempDir, Directory) {
        let directory = tempfile::tempdir().unwrap();
        let opened = Directory::open(&format!("file://{}", directory.path().display())).unwrap();
        let memory = guest();
        memory.write_obj(0x1234_u16, GuestAddress(0x8000)).unwrap();
        let unit = Unit { kind: "cpu".into(), version: 1, bytes: b"registers".to_vec() };
        opened.save(&VmConfig::default(), &BTreeMap::from([("cpu0".into(), unit)]), &memory).unwrap();
        (directory, opened)
    }

    #[test]
    fn comes_back_as_it_was() {
        let (_kept, directory) = saved();
        let snapshot = directory.load().unwrap();
        assert_eq!(snapshot.units["cpu0"].bytes, b"registers");
        let memory = guest();
        snapshot.fill(&memory).unwrap();
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x8000)).unwrap(), 0x1234);
    }

    #[test]
    fn is_never_overwritten() {
        let (_kept, directory) = saved();
        let again = directory.save(&VmConfig::default(), &BTreeMap::new(), &guest());
        assert!(matches!(again, Err(SnapshotError::Exists(_))));
        assert!(directory.load().is_ok());
    }

    #[test]
    fn without_a_manifest_there_is_none() {
        let (kept, directory) = saved();
        std::fs::rename(kept.path().join(MANIFEST), kept.path().join(MANIFEST_PARTIAL)).unwrap();
        assert!(matches!(directory.load(), Err(SnapshotError::File { .. })));
        // What an attempt left that didn't come to its end is in nobody's way.
        directory.save(&VmConfig::default(), &BTreeMap::new(), &guest()).unwrap();
        assert!(directory.load().is_ok());
    }

    #[test]
    fn links_are_not_followed() {
        let (kept, directory) = saved();
        let state = kept.path().join(STATE);
        std::fs::rename(&state, kept.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &state).unwrap();
        assert!(matches!(directory.load(), Err(SnapshotError::File { .. })));
    }

    #[test]
    fn an_open_directory_is_called_by_its_number() {
        let kept = tempfile::tempdir().unwrap();
        let open = || Directory::of(File::open(kept.path()).unwrap().into(), 7);
        let error = open().load().err().unwrap().to_string();
        assert_eq!(error, "manifest in descriptor 7 can't be opened");
        open().save(&VmConfig::default(), &BTreeMap::new(), &guest()).unwrap();
        open().load().unwrap().fill(&guest()).unwrap();
        let error = open().save(&VmConfig::default(), &BTreeMap::new(), &guest()).unwrap_err().to_string();
        assert_eq!(error, "descriptor 7 has a snapshot in it");
        std::fs::rename(kept.path().join(STATE), kept.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", kept.path().join(STATE)).unwrap();
        assert!(matches!(open().load(), Err(SnapshotError::File { .. })), "links are not followed");
    }

    #[test]
    fn where_to_is_a_directory() {
        for url in ["", "/tmp", "tcp://x", "file://tmp", "file:///nowhere/at/all"] {
            assert!(Directory::open(url).is_err(), "{url}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_damage_to_any_file_is_noticed(
            name in prop::sample::select(vec![MANIFEST, STATE, MEMORY]), at in any::<prop::sample::Index>(), cut in any::<bool>(),
        ) {
            let (kept, directory) = saved();
            let path = kept.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 0x41 }
            std::fs::write(&path, bytes).unwrap();
            let is_noticed = directory.load().map_or(true, |snapshot| snapshot.fill(&guest()).is_err());
            prop_assert!(is_noticed);
        }
    }
}
