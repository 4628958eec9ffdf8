//! The on-disk structures of EROFS, as byte encoders. Owns every number of the format; knows no file tree.
//!
//! Source: Linux, `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`. All integers are little-endian.

/// Bytes of a block, of data, directories and metadata alike.
pub(crate) const BLOCK: u64 = 4096;
/// Inode numbers ("nids") count slots of this many bytes from the start of the metadata area.
pub(crate) const SLOT: u64 = 32;
/// Bytes of an extended inode; the compact form cannot hold modification times.
pub(crate) const INODE: u64 = 64;
/// The longest name of a directory entry.
pub(crate) const NAME_MAX: usize = 255;

const SUPER_OFFSET: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_SB_CHECKSUM: u32 = 0x1;
const COMPAT_MTIME: u32 = 0x2;
const DIRENT: usize = 12;

/// What differs between superblocks of images this crate writes.
pub(crate) struct Superblock<'a> {
    pub(crate) root_nid: u16,
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    pub(crate) uuid: [u8; 16],
    /// At most 15 bytes are kept.
    pub(crate) volume_name: &'a [u8],
}

/// Block 0 of the image: 1024 free bytes, the superblock, zeros; with its checksum.
pub(crate) fn superblock(sb: &Superblock<'_>) -> Vec<u8> {
    let mut block = vec![0; SUPER_OFFSET];
    put32(&mut block, MAGIC);
    put32(&mut block, 0); // checksum, below
    put32(&mut block, COMPAT_SB_CHECKSUM | COMPAT_MTIME);
    block.push(BLOCK.trailing_zeros() as u8);
    block.push(0); // no superblock extension
    put16(&mut block, sb.root_nid);
    put64(&mut block, sb.inodes);
    put64(&mut block, 0); // build time: only compact inodes derive from it
    put32(&mut block, 0);
    put32(&mut block, sb.blocks);
    put32(&mut block, 0); // the metadata area starts at block 0, so a nid is the byte offset / SLOT
    put32(&mut block, 0); // no shared extended attributes
    block.extend_from_slice(&sb.uuid);
    let mut name = [0; 16];
    let length = sb.volume_name.len().min(name.len() - 1);
    name[..length].copy_from_slice(&sb.volume_name[..length]);
    block.extend_from_slice(&name);
    block.resize(BLOCK as usize, 0); // no incompatible feature

    // The kernel's crc32c is seeded with ~0 and, unlike the usual definition, not inverted at the end.
    let checksum = !crc32c::crc32c(&block[SUPER_OFFSET..]);
    block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// Where an inode's content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataLayout {
    /// All of it in consecutive blocks.
    Plain,
    /// Full blocks as in `Plain`, the rest directly behind the inode.
    InlineTail,
}

/// The fields of one inode.
pub(crate) struct Inode {
    pub(crate) layout: DataLayout,
    /// Bytes of the encoded extended attributes behind the inode: 0, or as `xattr` encodes them.
    pub(crate) xattr_bytes: usize,
    pub(crate) mode: u16,
    pub(crate) size: u64,
    /// First block of the content, or the device number as [`device_number`] encodes it.
    pub(crate) location: u32,
    pub(crate) ino: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) nlink: u32,
}

impl Inode {
    /// The extended on-disk inode, [`INODE`] bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        const EXTENDED: u16 = 1;
        let layout = match self.layout {
            DataLayout::Plain => 0,
            DataLayout::InlineTail => 2,
        };
        // A 12-byte header counts as 1, every 4 bytes after it as 1 more.
        let xattr_count = match self.xattr_bytes {
            0 => 0,
            bytes => 1 + (bytes - 12) / 4,
        };
        let mut out = Vec::with_capacity(INODE as usize);
        put16(&mut out, EXTENDED | (layout << 1));
        put16(&mut out, xattr_count as u16);
        put16(&mut out, self.mode);
        put16(&mut out, 0);
        put64(&mut out, self.size);
        put32(&mut out, self.location);
        put32(&mut out, self.ino);
        put32(&mut out, self.uid);
        put32(&mut out, self.gid);
        put64(&mut out, self.mtime as u64);
        put32(&mut out, self.mtime_nsec);
        put32(&mut out, self.nlink);
        out.resize(INODE as usize, 0);
        out
    }
}

/// A device number as Linux's `new_encode_dev` packs it.
pub(crate) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// One name in a directory. `file_type` is the generic `FT_*` number.
#[derive(Clone, Copy)]
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) nid: u64,
    pub(crate) file_type: u8,
}

/// How many bytes [`directory`] makes of entries with names of these lengths, in this order.
pub(crate) fn directory_size(lengths: impl Iterator<Item = usize>) -> u64 {
    let (mut full_blocks, mut used) = (0, 0);
    for length in lengths {
        if used + DIRENT + length > BLOCK as usize {
            full_blocks += 1;
            used = 0;
        }
        used += DIRENT + length;
    }
    full_blocks * BLOCK + used as u64
}

/// A directory's content. Entries must come sorted by name, byte by byte: readers search by halving.
///
/// Each block holds its entries first and then their names; a block that is not the last is padded with zeros.
pub(crate) fn directory(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fits = rest
            .iter()
            .take_while(|entry| {
                used += DIRENT + entry.name.len();
                used <= BLOCK as usize
            })
            .count();
        let (block, next) = rest.split_at(fits);
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let mut name_offset = fits * DIRENT;
        for entry in block {
            put64(&mut out, entry.nid);
            put16(&mut out, name_offset as u16);
            out.push(entry.file_type);
            out.push(0);
            name_offset += entry.name.len();
        }
        for entry in block {
            out.extend_from_slice(entry.name);
        }
        rest = next;
    }
    out
}

pub(crate) fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_size_is_what_directory_writes() {
        for count in [1, 2, 15, 16, 100, 1000] {
            for length in [1, 7, 100, NAME_MAX] {
                let name = vec![b'x'; length];
                let entries = vec![Dirent { name: &name, nid: 1, file_type: 1 }; count];
                let expected = directory(&entries).len() as u64;
                assert_eq!(directory_size(entries.iter().map(|e| e.name.len())), expected, "{count}×{length}");
            }
        }
    }

    #[test]
    fn device_numbers_above_eight_bits_survive() {
        assert_eq!(device_number(8, 1), 0x801);
        assert_eq!(device_number(0xabc, 0x12345), 0x123a_bc45);
    }
}
