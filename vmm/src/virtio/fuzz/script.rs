//! What a hostile driver does, as bytes: any bytes are a script.

use super::super::testing::{BUFFERS, RAM};

/// Bytes of a step.
pub const STEP: usize = 24;

/// Most steps of a script; more are left out.
pub const MOST: usize = 64;

/// One thing that a driver, the host, or whoever drives the device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Writes a descriptor.
    Describe { queue: u8, index: u16, address: u64, length: u32, flags: u16, next: u16 },
    /// Makes a head available.
    Offer { queue: u8, head: u16 },
    /// Notifies.
    Kick { queue: u8 },
    /// Writes to RAM.
    Put { address: u64, data: [u8; 14] },
    /// Writes the index of the available ring.
    Jump { queue: u8, index: u16 },
    /// Writes device configuration.
    Configure { offset: u64, data: [u8; 4] },
    /// Stops and goes on.
    Pause,
    /// Starts over.
    Reset,
    /// Something happens at the host's end.
    Host { what: u8, length: u32 },
}

impl Step {
    /// Reads a step.
    pub fn decode(bytes: &[u8; STEP]) -> Self {
        let u16 = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32 = |at: usize| u32::from(u16(at)) | u32::from(u16(at + 2)) << 16;
        let queue = bytes[1];
        let address = near(u64::from(u32(8)) | u64::from(u32(12)) << 32);
        match bytes[0] % 12 {
            0..=2 => {
                let (index, next, flags) = (u16(2), u16(4), u16(6) & 7);
                Self::Describe { queue, index, address, length: short(u32(16)), flags, next }
            }
            3 | 4 => Self::Offer { queue, head: u16(2) },
            5 => Self::Kick { queue },
            6 | 7 => {
                let mut data = [0; 14];
                data[..6].copy_from_slice(&bytes[2..8]);
                data[6..].copy_from_slice(&bytes[16..]);
                Self::Put { address: address % (RAM - 16), data }
            }
            8 => Self::Host { what: queue, length: u32(16) },
            9 => Self::Configure { offset: address, data: u32(16).to_le_bytes() },
            10 if queue & 1 == 0 => Self::Pause,
            10 => Self::Reset,
            _ => Self::Jump { queue, index: u16(2) },
        }
    }

    /// Writes it, so that it is read again.
    pub fn encode(self) -> [u8; STEP] {
        let mut bytes = [0; STEP];
        let mut set = |op: u8, queue: u8, shorts: [u16; 3], address: u64, length: u32| {
            (bytes[0], bytes[1]) = (op, queue);
            shorts
                .iter()
                .zip(bytes[2..8].chunks_mut(2))
                .for_each(|(short, to)| to.copy_from_slice(&short.to_le_bytes()));
            bytes[8..16].copy_from_slice(&address.to_le_bytes());
            bytes[16..20].copy_from_slice(&length.to_le_bytes());
        };
        match self {
            Self::Describe { queue, index, address, length, flags, next } => {
                set(0, queue, [index, next, flags], address, length);
            }
            Self::Offer { queue, head } => set(3, queue, [head, 0, 0], 0, 0),
            Self::Kick { queue } => set(5, queue, [0; 3], 0, 0),
            Self::Put { address, data } => {
                set(6, 0, [0; 3], address, 0);
                bytes[2..8].copy_from_slice(&data[..6]);
                bytes[16..].copy_from_slice(&data[6..]);
            }
            Self::Host { what, length } => set(8, what, [0; 3], 0, length),
            Self::Configure { offset, data } => set(9, 0, [0; 3], offset, u32::from_le_bytes(data)),
            Self::Pause => set(10, 0, [0; 3], 0, 0),
            Self::Reset => set(10, 1, [0; 3], 0, 0),
            Self::Jump { queue, index } => set(11, queue, [index, 0, 0], 0, 0),
        }
        bytes
    }
}

/// Mostly an address in RAM or just beyond it, sometimes any.
fn near(address: u64) -> u64 {
    if address >> 60 == 0xf { address } else { address % (RAM + 0x2000) }
}

/// Mostly a short length, sometimes any.
fn short(length: u32) -> u32 {
    if length >> 31 == 1 { length } else { length % 0x3000 }
}

/// The steps that bytes stand for.
pub fn decode(bytes: &[u8]) -> impl Iterator<Item = Step> {
    bytes.as_chunks::<STEP>().0.iter().take(MOST).map(Step::decode)
}

/// A chain of buffers one after the other in RAM, made available and notified: what the driver writes, then room.
pub fn chain(queue: u8, first: u16, input: &[&[u8]], room: &[u32]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut address = BUFFERS + u64::from(first) * 0x1_0000;
    let count = (input.len() + room.len()) as u16;
    let lengths = input.iter().map(|bytes| bytes.len() as u32).chain(room.iter().copied());
    for (place, length) in (0..).zip(lengths) {
        for (at, piece) in (0..).zip(input.get(usize::from(place)).unwrap_or(&&[][..]).chunks(14)) {
            let mut data = [0; 14];
            data[..piece.len()].copy_from_slice(piece);
            steps.push(Step::Put { address: address + 14 * at, data });
        }
        let flags = u16::from(place + 1 < count) | u16::from(usize::from(place) >= input.len()) << 1;
        steps.push(Step::Describe { queue, index: first + place, address, length, flags, next: first + place + 1 });
        address += 0x3000;
    }
    steps.extend([Step::Offer { queue, head: first }, Step::Kick { queue }]);
    steps
}

#[test]
fn steps_are_read_as_they_were_written() {
    let data = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
    for step in [
        Step::Describe { queue: 1, index: 2, address: 3, length: 4, flags: 5, next: 6 },
        Step::Offer { queue: 1, head: 2 },
        Step::Kick { queue: 3 },
        Step::Put { address: 4, data },
        Step::Jump { queue: 5, index: 6 },
        Step::Configure { offset: 7, data: [1, 2, 3, 4] },
        Step::Pause,
        Step::Reset,
        Step::Host { what: 8, length: 9 },
    ] {
        assert_eq!(Step::decode(&step.encode()), step);
    }
}
