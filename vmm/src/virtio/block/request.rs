//! What a driver asks of a block device (section 5.2.6), as bytes of the disk. Pure.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::memory::GuestMemory;
use crate::virtio::chain::{Buffers, Chain, Malformed};

/// Bytes of a sector, whatever the disk's blocks are.
pub const SECTOR: u64 = 512;

/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;

/// Bytes of a serial number.
pub const SERIAL: usize = 20;

/// Most sectors that one discard or write of zeroes covers: 1 GiB.
pub const MOST_CLEARED: u32 = 1 << 21;

/// A range of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// A request that makes sense for this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Disk to guest.
    Read(Extent),
    /// Guest to disk.
    Write(Extent),
    /// What was written must be on stable storage.
    Flush,
    /// The serial number.
    Id,
    /// What is there is not needed any more.
    Discard(Extent),
    /// Zeroes, and whether the space may be given up for them.
    Zero(Extent, bool),
}

/// A request that is answered without doing anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// `VIRTIO_BLK_S_IOERR`: outside of the disk, of a wrong size, or to a disk that can't be written.
    Invalid,
    /// `VIRTIO_BLK_S_UNSUPP`: of a kind that isn't offered.
    Unsupported,
}

/// What requests are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Sectors of the disk.
    pub sectors: u64,
    /// Bytes that every request is a multiple of, a power of two.
    pub block: u64,
    /// Whether it may be written.
    pub is_writable: bool,
    /// Whether blocks may be discarded and zeroed.
    pub can_clear: bool,
    /// Whether that may make the file smaller.
    pub may_unmap: bool,
}

/// A request's parts in memory.
pub struct Parts<'a> {
    /// Written by the driver, behind the header.
    pub input: Buffers<'a>,
    /// Written by the device, before the status.
    pub output: Buffers<'a>,
    /// The status: one byte.
    pub status: Buffers<'a>,
    header: Buffers<'a>,
}

impl<'a> Parts<'a> {
    /// Finds them.
    ///
    /// # Errors
    /// When there is no room for a status: nothing could be answered.
    pub fn of(chain: &'a Chain) -> Result<Self, Malformed> {
        let writable = chain.writable();
        let last = writable.len().checked_sub(1).ok_or(Malformed::Shape)?;
        let (output, status) = writable.split_at(last);
        let (header, input) = chain.readable().split_at(HEADER as u64);
        Ok(Self { input, output, status, header })
    }
}

/// Reads a request.
///
/// # Errors
/// When it can't be done on this disk.
pub fn parse(parts: &Parts<'_>, memory: &GuestMemory, rules: &Rules) -> Result<Request, Refused> {
    let mut header = [0; HEADER];
    if parts.header.read(memory, &mut header) != HEADER {
        return Err(Refused::Invalid);
    }
    let kind = le32(&header[..4]);
    let sector = le64(&header[8..]);
    let extent = |length| rules.extent(sector, length);
    match kind {
        VIRTIO_BLK_T_IN => Ok(Request::Read(extent(parts.output.len())?)),
        VIRTIO_BLK_T_OUT if rules.is_writable => Ok(Request::Write(extent(parts.input.len())?)),
        VIRTIO_BLK_T_OUT => Err(Refused::Invalid),
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID if parts.output.len() >= SERIAL as u64 => Ok(Request::Id),
        VIRTIO_BLK_T_GET_ID => Err(Refused::Invalid),
        VIRTIO_BLK_T_DISCARD if rules.can_clear && rules.may_unmap => {
            let (extent, flags) = range(parts.input, memory, rules)?;
            // Discards have no flags (5.2.6.2: unknown ones are not supported).
            if flags == 0 { Ok(Request::Discard(extent)) } else { Err(Refused::Unsupported) }
        }
        VIRTIO_BLK_T_WRITE_ZEROES if rules.can_clear => {
            let (extent, flags) = range(parts.input, memory, rules)?;
            match flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP {
                0 => Ok(Request::Zero(extent, flags != 0 && rules.may_unmap)),
                _ => Err(Refused::Unsupported),
            }
        }
        _ => Err(Refused::Unsupported),
    }
}

/// Reads the one range that a discard or write of zeroes may have (`max_*_seg` is 1).
fn range(input: Buffers<'_>, memory: &GuestMemory, rules: &Rules) -> Result<(Extent, u32), Refused> {
    let mut range = [0; 16];
    if input.len() != range.len() as u64 || input.read(memory, &mut range) != range.len() {
        return Err(Refused::Invalid);
    }
    let sectors = le32(&range[8..12]);
    if sectors > MOST_CLEARED {
        return Err(Refused::Invalid);
    }
    let extent = rules.extent(le64(&range[..8]), u64::from(sectors) * SECTOR)?;
    Ok((extent, le32(&range[12..])))
}

impl Rules {
    fn extent(&self, sector: u64, length: u64) -> Result<Extent, Refused> {
        let end = sector.checked_add(length / SECTOR).ok_or(Refused::Invalid)?;
        // `end` is in the disk, so `offset` is in a file and fits.
        if end > self.sectors || length == 0 {
            return Err(Refused::Invalid);
        }
        let offset = sector * SECTOR;
        if (offset | length) & (self.block - 1) != 0 {
            return Err(Refused::Invalid);
        }
        Ok(Extent { offset, length })
    }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
