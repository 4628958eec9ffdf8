//! Packets of a virtio socket (section 5.10.6). Pure.

/// Bytes of a header.
pub const HEADER: usize = 44;

/// The host's context ID.
pub const HOST: u64 = 2;

/// A stream, the only kind of socket here.
pub const STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_RCV`: nothing is received any more.
pub const NO_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_SEND`: nothing is sent any more.
pub const NO_SEND: u32 = 2;
/// Both.
pub const NOTHING: u32 = NO_RECEIVE | NO_SEND;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Agrees to one.
    Response,
    /// Ends or refuses one.
    Reset,
    /// One side sends or receives nothing any more.
    Shutdown,
    /// Data.
    Data,
    /// Says how much may be sent.
    CreditUpdate,
    /// Asks for that.
    CreditRequest,
}

const OPS: [(u16, Op); 7] = [
    (1, Op::Request),
    (2, Op::Response),
    (3, Op::Reset),
    (4, Op::Shutdown),
    (5, Op::Data),
    (6, Op::CreditUpdate),
    (7, Op::CreditRequest),
];

/// Header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Context ID of who sends it.
    pub from: u64,
    /// Of who receives it.
    pub to: u64,
    /// Port of who sends it.
    pub from_port: u32,
    /// Of who receives it.
    pub to_port: u32,
    /// Bytes of data behind it.
    pub length: u32,
    /// [`STREAM`] or something else.
    pub kind: u16,
    /// What it is for; `None` when that isn't known.
    pub op: Option<Op>,
    /// Of a shutdown: what ends.
    pub flags: u32,
    /// Bytes that the sender has room for.
    pub room: u32,
    /// Bytes that it has passed on so far.
    pub passed: u32,
}

impl Header {
    /// Reads one.
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let number = |start: usize, length: usize| {
            bytes[start..start + length].iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        };
        // Each is as long as its type.
        let (u16, u32) = (|start| number(start, 2) as u16, |start| number(start, 4) as u32);
        let op = u16(30);
        Self {
            from: number(0, 8),
            to: number(8, 8),
            from_port: u32(16),
            to_port: u32(20),
            length: u32(24),
            kind: u16(28),
            op: OPS.iter().find(|(code, _)| *code == op).map(|(_, op)| *op),
            flags: u32(32),
            room: u32(36),
            passed: u32(40),
        }
    }

    /// Writes it.
    pub fn bytes(&self) -> [u8; HEADER] {
        let op = OPS.iter().find(|(_, op)| Some(*op) == self.op).map_or(0, |(code, _)| *code);
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.from.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.to.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.from_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.to_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.room.to_le_bytes());
        bytes[40..].copy_from_slice(&self.passed.to_le_bytes());
        bytes
    }

    /// What refuses a packet of the guest's.
    pub fn refusal(&self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            from_port: self.to_port,
            to_port: self.from_port,
            length: 0,
            kind: self.kind,
            op: Some(Op::Reset),
            flags: 0,
            room: 0,
            passed: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(bytes in prop::array::uniform32(any::<u8>()), rest in any::<[u8; 12]>(), op in 1..8_u16) {
            let mut header: [u8; HEADER] = [&bytes[..], &rest].concat().try_into().unwrap();
            header[30..32].copy_from_slice(&op.to_le_bytes());
            prop_assert_eq!(Header::parse(&header).bytes(), header);
        }
    }
}
