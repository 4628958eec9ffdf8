//! State of a paused guest, as named units with versions, and how it is kept in a directory.

pub mod directory;
#[cfg(test)]
mod fuzz;
pub mod image;
pub mod manifest;
mod populated;

use std::io::Read;

use flate2::Compression;
use flate2::bufread::{ZlibDecoder, ZlibEncoder};
use serde::{Deserialize, Serialize};

pub use directory::{Directory, Snapshot, SnapshotError};

/// Most bytes that [`Unit::unpack`] makes of a unit: a vCPU with all registers of AMX has some 100 KiB.
const UNPACKED_BYTES: u64 = 1 << 20;

/// What a device says of its state. There is no default: each one has to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// It has none beyond its configuration and what its transport saves.
    Stateless,
    /// It can't be saved, and why, in words for the user; the whole snapshot is refused.
    Unsupported(&'static str),
    /// Its state.
    State(Unit),
}

/// One named piece of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Whose it is, for example `virtio-block`. Not which one: that is the place it is stored at.
    pub kind: String,
    /// Version of the bytes' layout; raised whenever it changes.
    pub version: u16,
    /// The state.
    pub bytes: Vec<u8>,
}

/// A unit is not what it should be. It came from a file, so it may be anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidState {
    /// Another device's.
    #[error("state of {found:?} where {expected:?} belongs")]
    Kind {
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// Written by another release.
    #[error("state of {kind} has version {found}, known is {known}")]
    Version {
        /// Whose.
        kind: &'static str,
        /// What is known.
        known: u16,
        /// What is there.
        found: u16,
    },
    /// Bytes that make no sense.
    #[error("state of {kind} is damaged: {reason}")]
    Damaged {
        /// Whose.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Unit {
    /// Encodes `state` (as JSON: small, and legible to whoever looks into a snapshot).
    #[must_use]
    pub fn encode<T: Serialize>(kind: &str, version: u16, state: &T) -> Self {
        // Types that hold only numbers, strings, lists and structures always encode.
        let bytes = serde_json::to_vec(state).unwrap_or_default();
        Self { kind: kind.to_owned(), version, bytes }
    }

    /// The same in fewer bytes: deflated (zlib, RFC 1950). For state with long lists of numbers, most of them zero.
    #[must_use]
    pub fn pack<T: Serialize>(kind: &str, version: u16, state: &T) -> Self {
        let legible = Self::encode(kind, version, state);
        let mut bytes = Vec::new();
        // Reading from memory can't fail.
        let _ = ZlibEncoder::new(legible.bytes.as_slice(), Compression::default()).read_to_end(&mut bytes);
        Self { bytes, ..legible }
    }

    /// Decodes what [`Unit::encode`] wrote.
    ///
    /// # Errors
    /// When it is of another kind or version, or damaged.
    pub fn decode<T: for<'a> Deserialize<'a>>(&self, kind: &'static str, version: u16) -> Result<T, InvalidState> {
        if self.kind != kind {
            return Err(InvalidState::Kind { expected: kind, found: self.kind.clone() });
        }
        if self.version != version {
            return Err(InvalidState::Version { kind, known: version, found: self.version });
        }
        serde_json::from_slice(&self.bytes).map_err(|error| InvalidState::Damaged { kind, reason: error.to_string() })
    }

    /// Decodes what [`Unit::pack`] wrote.
    ///
    /// # Errors
    /// As [`Unit::decode`].
    pub fn unpack<T: for<'a> Deserialize<'a>>(&self, kind: &'static str, version: u16) -> Result<T, InvalidState> {
        self.unpacked().decode(kind, version)
    }

    /// As [`Unit::encode`] would have written it. Of bytes that are no stream, what was read before that showed: it is no
    /// whole JSON.
    pub(crate) fn unpacked(&self) -> Self {
        let mut bytes = Vec::new();
        let _ = ZlibDecoder::new(self.bytes.as_slice()).take(UNPACKED_BYTES).read_to_end(&mut bytes);
        Self { kind: self.kind.clone(), version: self.version, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_state_is_small_and_comes_back() {
        let zeros = vec![0_u8; 4096];
        let unit = Unit::pack("xsave", 2, &zeros);
        assert!(unit.bytes.len() < 64, "{} bytes", unit.bytes.len());
        assert_eq!(unit.unpack::<Vec<u8>>("xsave", 2), Ok(zeros));
        let error = unit.unpack::<Vec<u8>>("xsave", 3).unwrap_err();
        assert_eq!(error.to_string(), "state of xsave has version 2, known is 3");
        assert!(matches!(unit.unpack::<Vec<u8>>("lapic", 2), Err(InvalidState::Kind { .. })));
    }

    #[test]
    fn what_is_no_stream_or_has_no_end_is_damaged() {
        let unit = Unit::pack("text", 1, &"x".repeat(UNPACKED_BYTES as usize));
        let damaged = |bytes: &[u8]| {
            let unit = Unit { bytes: bytes.to_vec(), ..unit.clone() };
            matches!(unit.unpack::<String>("text", 1), Err(InvalidState::Damaged { .. }))
        };
        assert!(damaged(&unit.bytes), "more than there may be");
        assert!(damaged(b"") && damaged(b"\"plain\"") && damaged(&unit.bytes[..20]));
    }
}
