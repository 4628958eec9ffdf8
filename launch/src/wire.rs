//! The frame around an order: constants and the pure part of reading and writing it.

/// First bytes of every order.
const MAGIC: [u8; 4] = *b"VSEL";

/// Raised whenever an older launcher would misread an order.
const VERSION: u16 = 1;

/// Bytes of the header.
pub(crate) const HEADER: usize = 12;

/// Most bytes of the body.
pub(crate) const MAX_BODY: usize = 256 << 10;

/// Most descriptors the kernel takes in one message (SCM_MAX_FD, include/net/scm.h).
pub(crate) const MAX_PER_MESSAGE: usize = 253;

/// The byte that carries descriptors.
pub(crate) const CARRIER: u8 = 0xfd;

/// Answer: every descriptor is placed and the `execve` follows.
pub(crate) const ACCEPTED: u8 = b'+';

/// Answer: an error, as text, follows.
pub(crate) const REFUSED: u8 = b'-';

/// Most bytes of an answer.
pub(crate) const MAX_ANSWER: usize = 4096;

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// Something else is talking.
    #[error("this is no launch order")]
    Magic,
    /// The two sides are of different releases.
    #[error("the order has version {0}, this launcher knows version {VERSION}: use images of one release")]
    Version(u16),
    /// Over the limit.
    #[error("the order has {0} bytes, at most {MAX_BODY} are taken")]
    Length(u32),
}

/// The header for a body of this many bytes.
pub(crate) fn header(body: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes[8..].copy_from_slice(&body.to_le_bytes());
    bytes
}

/// How many bytes of body follow this header.
pub(crate) fn body_length(header: &[u8; HEADER]) -> Result<usize, InvalidHeader> {
    let [m0, m1, m2, m3, v0, v1, _, _, l0, l1, l2, l3] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(InvalidHeader::Magic);
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(InvalidHeader::Version(version));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    match usize::try_from(length) {
        Ok(bytes) if bytes <= MAX_BODY => Ok(bytes),
        _ => Err(InvalidHeader::Length(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_releases_and_lengths_are_told_apart() {
        let mut newer = header(1);
        newer[4] = 2;
        assert_eq!(body_length(&newer), Err(InvalidHeader::Version(2)));
        assert_eq!(body_length(&header(u32::MAX)), Err(InvalidHeader::Length(u32::MAX)));
        assert_eq!(body_length(b"GET / HTTP/1"), Err(InvalidHeader::Magic));
    }

    proptest! {
        #[test]
        fn every_length_within_the_limit_comes_back(length in 0..=MAX_BODY) {
            let length = u32::try_from(length).unwrap();
            prop_assert_eq!(body_length(&header(length)), Ok(length as usize));
        }
    }
}
