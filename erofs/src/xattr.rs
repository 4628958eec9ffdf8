//! Extended attributes: which are kept, and their encoding behind an inode. Reads nothing itself.

use crate::format::{put16, put32};

/// The most bytes one inode's encoded attributes may take. Linux limits one value to 64 KiB.
pub(crate) const MAX_BYTES: usize = 128 * 1024;

/// The name prefixes EROFS stores as a number.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Whether an attribute belongs to the tree, and not to the host that unpacked it: SELinux labels name the host's
/// policy, `trusted.overlay.*` how the host stacks its layers.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    name != b"security.selinux" && !name.starts_with(b"trusted.overlay.") && split(name).is_some()
}

/// The prefix's number and the rest of the name.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(prefix, index)| {
        let rest = name.strip_prefix(prefix)?;
        // The two ACL prefixes are whole names, the others are not.
        (rest.is_empty() != prefix.ends_with(b".")).then_some((index, rest))
    })
}

/// Encodes kept attributes: a 12-byte header, then entries padded to 4 bytes. Empty when there are none.
pub(crate) fn encode(attributes: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in attributes {
        let Some((index, rest)) = split(name) else {
            continue;
        };
        if out.is_empty() {
            put32(&mut out, 0); // no name filter
            out.resize(12, 0); // no shared attributes
        }
        out.push(rest.len() as u8);
        out.push(index);
        put16(&mut out, value.len() as u16);
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_the_trees_and_drops_what_is_the_hosts() {
        for name in ["user.a", "security.capability", "system.posix_acl_access", "trusted.x"] {
            assert!(is_kept(name.as_bytes()), "{name}");
        }
        for name in ["security.selinux", "trusted.overlay.opaque", "user.", "system.posix_acl_access2", "odd.name"] {
            assert!(!is_kept(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn entries_are_padded_to_four_bytes() {
        let encoded = encode(&[(b"user.abc".to_vec(), b"12".to_vec())]);
        assert_eq!(encoded.len(), 12 + 12);
        assert_eq!(&encoded[12..], b"\x03\x01\x02\0abc12\0\0\0");
        assert!(encode(&[]).is_empty());
    }
}
