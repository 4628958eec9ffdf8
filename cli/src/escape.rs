//! The key that leaves the console.

/// Ctrl-], as in telnet and virsh.
pub const ESCAPE: u8 = 0x1d;

/// What was typed before the escape key, and whether it was typed.
pub fn split(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|&byte| byte == ESCAPE) {
        Some(at) => (&typed[..at], true),
        None => (typed, false),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn what_comes_before_the_escape_key_is_still_sent() {
        assert_eq!(split(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(split(b"ab\x1dcd"), (&b"ab"[..], true));
        assert_eq!(split(b"\x1d"), (&b""[..], true));
    }
}
