//! What a snapshot consists of, and how to tell that it is whole. Pure.
//!
//! ```text
//!   DIRECTORY/manifest   vse-snapshot 1 crc32c=…   ← written last: without it, there is no snapshot
//!                        {config, units: [{place, kind, version, length, crc32c}], memory: {ranges, crc32c}}
//!   DIRECTORY/state      the units' bytes, one after the other
//!   DIRECTORY/memory     RAM, range after range; pages that are all zero are holes
//! ```
//!
//! Numbers, paths and addresses of the host are in none of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vse_vmm_api::VmConfig;

use super::Unit;

/// Raised whenever something in the layout above changes its meaning.
pub const FORMAT: u32 = 1;
/// Most bytes of a manifest.
pub const MANIFEST_BYTES: u64 = 4 << 20;
/// Most bytes of all units together: 254 vCPUs have less than 1 MiB.
pub const STATE_BYTES: u64 = 64 << 20;
/// RAM is looked at in pieces of this size.
pub const PAGE: u64 = 4 << 10;
const MAGIC: &str = "vse-snapshot";

/// What a snapshot consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The guest's part of its configuration.
    pub config: VmConfig,
    /// What is in the state file, in this order.
    pub units: Vec<UnitEntry>,
    /// What is in the memory file.
    pub memory: Image,
}

/// A unit in the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitEntry {
    /// Where in the machine it belongs.
    pub place: String,
    /// Whose state.
    pub kind: String,
    /// Version of its layout.
    pub version: u16,
    /// Its bytes.
    pub length: u64,
    /// Their checksum.
    pub crc32c: u32,
}

/// RAM in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Ranges of guest addresses, in the order in which they are in the file; they don't touch.
    pub ranges: Vec<AddressRange>,
    /// Checksum of every page that isn't all zero, each after its number in the file (8 bytes, little-endian).
    pub crc32c: u32,
}

/// Guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// It is no snapshot, or not all of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damaged {
    /// The first line isn't what it should be.
    #[error("the manifest is no snapshot's")]
    NoSnapshot,
    /// Written by another release.
    #[error("the snapshot has format {0}, known is {FORMAT}")]
    Format(u32),
    /// A checksum is not what it was.
    #[error("{0} is damaged: its checksum differs")]
    Checksum(String),
    /// What is behind the checksum makes no sense all the same.
    #[error("the manifest is damaged: {0}")]
    Manifest(String),
    /// A file is longer or shorter than it should be.
    #[error("{file} has {found} bytes and should have {expected}")]
    Length {
        /// Which.
        file: &'static str,
        /// What it should have.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// RAM is elsewhere in the guest that was built.
    #[error("the guest's RAM is laid out otherwise than in the snapshot")]
    Layout,
}

impl Image {
    /// Bytes of RAM, and of the file that they are in.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| sum.saturating_add(range.length))
    }

    fn check(&self) -> Result<(), Damaged> {
        let mut free_from = 0;
        for range in &self.ranges {
            let end = range.start.checked_add(range.length);
            let is_whole = range.start % PAGE == 0 && range.length % PAGE == 0 && range.length > 0;
            match end {
                Some(end) if is_whole && range.start >= free_from => free_from = end,
                _ => return Err(Damaged::Manifest("ranges of RAM overlap or are no whole pages".to_owned())),
            }
        }
        Ok(())
    }
}

impl Manifest {
    /// Describes a guest; the second value is the state file's content.
    #[must_use]
    pub fn new(config: &VmConfig, units: &BTreeMap<String, Unit>, memory: Image) -> (Self, Vec<u8>) {
        let mut state = Vec::new();
        let mut entries = Vec::new();
        for (place, unit) in units {
            entries.push(UnitEntry {
                place: place.clone(),
                kind: unit.kind.clone(),
                version: unit.version,
                length: unit.bytes.len() as u64,
                crc32c: crc32c::crc32c(&unit.bytes),
            });
            state.extend_from_slice(&unit.bytes);
        }
        (Self { config: config.portable(), units: entries, memory }, state)
    }

    /// The manifest file's content.
    ///
    /// # Errors
    /// When it can't be written as JSON, which it always can.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let body = serde_json::to_vec_pretty(self)?;
        let mut bytes = format!("{MAGIC} {FORMAT} crc32c={:08x}\n", crc32c::crc32c(&body)).into_bytes();
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// Reads what [`Manifest::encode`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let end = bytes.iter().take(64).position(|byte| *byte == b'\n').ok_or(Damaged::NoSnapshot)?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| Damaged::NoSnapshot)?;
        let mut words = head.split(' ');
        if words.next() != Some(MAGIC) {
            return Err(Damaged::NoSnapshot);
        }
        let format = words.next().and_then(|word| word.parse().ok()).ok_or(Damaged::NoSnapshot)?;
        if format != FORMAT {
            return Err(Damaged::Format(format));
        }
        let body = &bytes[end + 1..];
        if words.next() != Some(&format!("crc32c={:08x}", crc32c::crc32c(body))) || words.next().is_some() {
            return Err(Damaged::Checksum("the manifest".to_owned()));
        }
        let manifest: Self = serde_json::from_slice(body).map_err(|error| Damaged::Manifest(error.to_string()))?;
        manifest.memory.check()?;
        Ok(manifest)
    }

    /// Bytes of the state file.
    ///
    /// # Errors
    /// When they are more than any guest has.
    pub fn state_length(&self) -> Result<u64, Damaged> {
        let length = self.units.iter().fold(0_u64, |sum, unit| sum.saturating_add(unit.length));
        if length > STATE_BYTES { Err(Damaged::Manifest("its units are too long".to_owned())) } else { Ok(length) }
    }

    /// Takes the state file apart.
    ///
    /// # Errors
    /// When it is not what the manifest says.
    pub fn units(&self, state: &[u8]) -> Result<BTreeMap<String, Unit>, Damaged> {
        let expected = self.state_length()?;
        let found = state.len() as u64;
        if found != expected {
            return Err(Damaged::Length { file: "state", expected, found });
        }
        let mut rest = state;
        let mut units = BTreeMap::new();
        for entry in &self.units {
            // The lengths add up to what there is, so each is within it.
            let length = usize::try_from(entry.length).unwrap_or(usize::MAX).min(rest.len());
            let (bytes, after) = rest.split_at(length);
            rest = after;
            if crc32c::crc32c(bytes) != entry.crc32c {
                return Err(Damaged::Checksum(format!("the state of {}", entry.place)));
            }
            let unit = Unit { kind: entry.kind.clone(), version: entry.version, bytes: bytes.to_vec() };
            if units.insert(entry.place.clone(), unit).is_some() {
                return Err(Damaged::Manifest(format!("{} is there twice", entry.place)));
            }
        }
        Ok(units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> (Manifest, Vec<u8>) {
        let unit = |text: &str| Unit { kind: "virtio-block".into(), version: 3, bytes: text.into() };
        let units = BTreeMap::from([("disk0".to_owned(), unit("abc")), ("disk1".to_owned(), unit(""))]);
        let ranges = vec![AddressRange { start: 0, length: 8 * PAGE }, AddressRange { start: 1 << 32, length: PAGE }];
        Manifest::new(&VmConfig::default(), &units, Image { ranges, crc32c: 7 })
    }

    #[test]
    fn comes_back_the_same() {
        let (manifest, state) = sample();
        let again = Manifest::decode(&manifest.encode().unwrap()).unwrap();
        assert_eq!(again, manifest);
        let units = again.units(&state).unwrap();
        assert_eq!(units["disk0"].bytes, b"abc");
        assert_eq!((units["disk1"].version, units.len()), (3, 2));
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let (manifest, state) = sample();
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(b""), Err(Damaged::NoSnapshot));
        assert_eq!(Manifest::decode(b"vse-snapshot 2 crc32c=0\n{}"), Err(Damaged::Format(2)));
        assert_eq!(Manifest::decode(&bytes[..bytes.len() - 1]), Err(Damaged::Checksum("the manifest".into())));
        let damaged = manifest.units(b"abd").unwrap_err();
        assert_eq!(damaged.to_string(), "the state of disk0 is damaged: its checksum differs");
        assert_eq!(manifest.units(b"ab").unwrap_err(), Damaged::Length { file: "state", expected: 3, found: 2 });
        let mut twice = manifest.clone();
        twice.units[1].place = "disk0".into();
        assert!(matches!(twice.units(&state), Err(Damaged::Manifest(_))));
    }

    #[test]
    fn ranges_that_overlap_are_refused() {
        let refused = |ranges: &[(u64, u64)]| {
            let (mut manifest, _) = sample();
            let ranges = ranges.iter().map(|(start, length)| AddressRange { start: *start, length: *length });
            manifest.memory.ranges = ranges.collect();
            Manifest::decode(&manifest.encode().unwrap()).is_err()
        };
        assert!(!refused(&[(0, PAGE), (PAGE, PAGE)]));
        assert!(refused(&[(0, 2 * PAGE), (PAGE, PAGE)]));
        assert!(refused(&[(PAGE, PAGE), (0, PAGE)]));
        assert!(refused(&[(0, 100)]));
        assert!(refused(&[(0, 0)]));
        assert!(refused(&[(u64::MAX - PAGE + 1, PAGE)]));
    }

    proptest! {
        #[test]
        fn any_damage_is_noticed(at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let mut bytes = sample().0.encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(Manifest::decode(&bytes).is_err());
        }

        // Whoever can write a manifest can also write its checksum.
        #[test]
        fn forged_numbers_never_panic(lengths in prop::collection::vec(any::<u64>(), 0..4), state in prop::collection::vec(any::<u8>(), 0..64)) {
            let (mut manifest, _) = sample();
            manifest.units = lengths.iter().enumerate().map(|(index, length)| UnitEntry {
                place: index.to_string(), kind: String::new(), version: 0, length: *length, crc32c: 0,
            }).collect();
            let _ = manifest.units(&state);
        }
    }
}
