//! The order of kernel releases.

use std::cmp::Ordering;

/// Compares as package managers do: runs of digits by value, the rest byte by byte, a `~` before everything.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let order = match (take(&mut a, |c| !c.is_ascii_digit()), take(&mut b, |c| !c.is_ascii_digit())) {
            (x, y) if x == y => Ordering::Equal,
            (x, y) => x.iter().map(rank).chain([0]).cmp(y.iter().map(rank).chain([0])),
        };
        let numbers = (take(&mut a, u8::is_ascii_digit), take(&mut b, u8::is_ascii_digit));
        let order = order.then_with(|| compare_numbers(numbers.0, numbers.1));
        if order != Ordering::Equal || (a.is_empty() && b.is_empty()) {
            return order;
        }
    }
}

/// 0 is the end of the text: `6.1~rc1` comes before `6.1`.
fn rank(byte: &u8) -> i16 {
    if *byte == b'~' { -1 } else { i16::from(*byte) }
}

/// By value; of any length.
fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let strip = |digits: &[u8]| -> Vec<u8> { digits.iter().copied().skip_while(|&digit| digit == b'0').collect() };
    let (a, b) = (strip(a), strip(b));
    a.len().cmp(&b.len()).then(a.cmp(&b))
}

fn take<'a>(text: &mut &'a [u8], is_in: impl Fn(&u8) -> bool) -> &'a [u8] {
    let (taken, rest) = text.split_at(text.iter().position(|byte| !is_in(byte)).unwrap_or(text.len()));
    *text = rest;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_is_greater() {
        let ascending = [
            "",
            "0-rescue-1234",
            "5.14.0-70.el9.x86_64",
            "5.14.0-503.el9.x86_64",
            "6.1~rc1",
            "6.1",
            "6.1.0-9-amd64",
            "6.1.0-10-amd64",
            "6.12.9+deb13-amd64",
            "6.12.41+deb13-amd64",
            "6.12.41+deb13-cloud-amd64",
            "18446744073709551616000",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} {b}");
            }
        }
    }
}
