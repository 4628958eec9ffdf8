//! What an entry of the cache was made of, written last: an entry without it is not finished.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache::Source;
use crate::error::{At, Result};
use crate::tree::read_bounded;

/// Raised when what is made of the same source changes.
const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 64 << 10;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    format: u32,
    init_sha256: String,
    wanted_kernel: Option<PathBuf>,
    /// As `uname -r` says.
    pub(crate) kernel_version: String,
    pub(crate) sizes: Sizes,
}

/// Bytes of each file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sizes {
    pub(crate) kernel: u64,
    pub(crate) initramfs: u64,
    pub(crate) root: u64,
}

impl Manifest {
    pub(crate) fn new(source: &Source<'_>, kernel_version: String, sizes: Sizes) -> Self {
        Manifest {
            format: FORMAT,
            init_sha256: hex(&Sha256::digest(source.init)),
            wanted_kernel: source.kernel.map(Path::to_owned),
            kernel_version,
            sizes,
        }
    }

    /// Reads one; `None` when there is none that this version of the program could have written.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).at("open", path),
        };
        let Ok(bytes) = read_bounded(file, path, MAX_BYTES) else {
            return Ok(None);
        };
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Whether the same would be made again.
    pub(crate) fn is_of(&self, source: &Source<'_>) -> bool {
        *self == Manifest::new(source, self.kernel_version.clone(), self.sizes)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
