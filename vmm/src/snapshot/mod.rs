//! State of a paused guest, as named units with versions, and how it is kept in a directory.

pub mod directory;
pub mod image;
pub mod manifest;
mod populated;

use serde::{Deserialize, Serialize};

pub use directory::{Directory, Snapshot, SnapshotError};

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
}
