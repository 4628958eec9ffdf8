//! Kernel modules as distributions pack them, unpacked.

use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::tree::read_bounded;

/// The most memory a decompressor may take; modules are a few MiB, and are packed with windows no larger.
const MAX_WINDOW: u32 = 64 << 20;

/// Unpacks `bytes` by the end of `path`'s name; what has no known end is returned as it is.
pub(crate) fn unpack(bytes: Vec<u8>, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let source = bytes.as_slice();
    let reader: Box<dyn Read + '_> = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, MAX_WINDOW / 1024)),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(source)),
        Some("zst") => Box::new(zstd(source).map_err(|source| Error::Tree { path: path.to_owned(), source })?),
        _ => return Ok(bytes),
    };
    read_bounded(reader, path, limit)
}

/// A file name without what compression added to it.
pub(crate) fn unpacked_name(name: &str) -> &str {
    [".xz", ".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

fn zstd(source: &[u8]) -> io::Result<impl Read + '_> {
    ruzstd::decoding::StreamingDecoder::new_with_max_window_size(source, MAX_WINDOW.into()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn gzip_is_unpacked_and_bounded() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&[7; 100_000]).unwrap();
        let packed = packed.finish().unwrap();
        let path = Path::new("a.ko.gz");
        assert_eq!(unpack(packed.clone(), path, 100_000).unwrap(), [7; 100_000]);
        assert!(matches!(unpack(packed, path, 99_999), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn zstd_is_unpacked() {
        let packed = ruzstd::encoding::compress_to_vec(&[7; 1000][..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(unpack(packed.clone(), Path::new("a.ko.zst"), 1000).unwrap(), [7; 1000]);
        assert!(matches!(unpack(packed, Path::new("a.ko.zst"), 999), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn xz_is_unpacked() {
        // printf module | xz --check=crc32
        let packed = b"\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\x01\x00\x05\x6d\x6f\x64\x75\x6c\x65\x00\x00\x00\x28\x26\x24\x0c\x00\x01\x1a\x06\xc5\xea\xc8\x79\x90\x42\x99\x0d\x01\x00\x00\x00\x00\x01\x59\x5a";
        assert_eq!(unpack(packed.to_vec(), Path::new("a.ko.xz"), 6).unwrap(), b"module");
    }

    #[test]
    fn nonsense_is_an_error() {
        for name in ["a.ko.xz", "a.ko.gz", "a.ko.zst"] {
            let message = unpack(b"nonsense".to_vec(), Path::new(name), 100).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        assert_eq!(unpack(b"nonsense".to_vec(), Path::new("a.ko"), 100).unwrap(), b"nonsense");
    }
}
