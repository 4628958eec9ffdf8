//! What this node runtime changed on its host, and how it was before: written down before each change, crossed out
//! when the change is undone, so that a restart knows what is ours to give back.
//!
//! sysfs forgets everything at a reboot, and so does the ledger: it is good for one boot of the host.

use super::address::Address;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The changes in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// The boot of the host it is about (/proc/sys/kernel/random/boot_id).
    pub boot: String,
    /// Functions bound to vfio-pci.
    #[serde(default)]
    pub bound: BTreeMap<Address, Bound>,
    /// Functions with virtual functions made by us.
    #[serde(default)]
    pub made: BTreeMap<Address, Made>,
}

impl Ledger {
    /// Whether no change is in force.
    fn is_empty(&self) -> bool {
        self.bound.is_empty() && self.made.is_empty()
    }
}

/// A function bound to vfio-pci.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    /// UID of the pod it was bound for.
    pub pod: String,
    /// The driver it had.
    pub driver: Option<String>,
    /// The override it had.
    pub driver_override: Option<String>,
}

/// A function with virtual functions made by us; before, it had none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// How many.
    pub count: u32,
    /// Whether drivers bound to new ones by themselves.
    pub autoprobe: bool,
}

/// The ledger's file.
#[derive(Clone, Debug)]
pub struct LedgerFile(PathBuf);

impl LedgerFile {
    /// At this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// What is in force at this boot. A file that can't be understood is told of and counts as none: what it spoke of
    /// stays as it is until the host reboots.
    pub fn load(&self, boot: &str) -> Ledger {
        let empty = Ledger { boot: boot.to_owned(), ..Ledger::default() };
        let text = match fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return empty,
            Err(error) => {
                tracing::error!(path = %self.0.display(), %error, "ledger of devices can't be read");
                return empty;
            }
        };
        match serde_json::from_slice::<Ledger>(&text) {
            Ok(ledger) if ledger.boot == boot => ledger,
            Ok(_) => {
                // Nothing of what it says holds any more.
                if let Err(error) = self.remove() {
                    tracing::warn!(path = %self.0.display(), %error, "ledger of an earlier boot");
                }
                empty
            }
            Err(error) => {
                tracing::error!(path = %self.0.display(), %error, "ledger of devices makes no sense");
                empty
            }
        }
    }

    /// Replaces the file, or removes it when nothing is in force; on disk when this returns.
    pub fn store(&self, ledger: &Ledger) -> io::Result<()> {
        if ledger.is_empty() {
            return self.remove();
        }
        let partial = self.0.with_extension("new");
        let mut file = File::create(&partial)?;
        file.write_all(&serde_json::to_vec_pretty(ledger)?)?;
        file.sync_all()?;
        fs::rename(&partial, &self.0)?;
        self.sync_directory()
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_directory(),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(self.0.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_at_the_same_boot_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::new(directory.path().join("devices.json"));
        assert_eq!(file.load("a"), Ledger { boot: "a".into(), ..Ledger::default() });
        let bound = Bound { pod: "p".into(), driver: Some("e1000e".into()), driver_override: None };
        let mut ledger = file.load("a");
        ledger.bound.insert("0000:65:00.1".parse().unwrap(), bound);
        ledger.made.insert("0000:66:00.0".parse().unwrap(), Made { count: 2, autoprobe: true });
        file.store(&ledger).unwrap();
        assert_eq!(file.load("a"), ledger);
        assert_eq!(file.load("b").bound.len(), 0);
        assert!(!file.0.exists(), "a ledger of an earlier boot");
    }

    #[test]
    fn leaves_no_file_when_nothing_is_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let file = LedgerFile::new(directory.path().join("devices.json"));
        let mut ledger = file.load("a");
        file.store(&ledger).unwrap();
        ledger.made.insert("0000:66:00.0".parse().unwrap(), Made { count: 2, autoprobe: true });
        file.store(&ledger).unwrap();
        assert!(file.0.exists());
        ledger.made.clear();
        file.store(&ledger).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn nonsense_is_no_ledger() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("devices.json");
        for text in ["", "{", r#"{"boot":"a","bound":{"../x":{}}}"#, r#"{"boot":"a","more":1}"#] {
            fs::write(&path, text).unwrap();
            assert_eq!(LedgerFile::new(&path).load("a").bound.len(), 0, "{text}");
        }
    }
}
