//! Linux CPU lists, such as `0-3,8`.

/// Highest CPU number taken seriously: Linux's own limit on x86-64 (NR_CPUS).
const MAX_CPU: u32 = 8192;

/// The CPUs of a list; what is no part of a list is left out.
pub fn parse(list: &str) -> Vec<u32> {
    list.split(',')
        .filter_map(|part| {
            let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last && last < MAX_CPU).then_some(first..=last)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lists() {
        assert_eq!(parse("0-2,8, 5"), [0, 1, 2, 8, 5]);
        assert!(parse("").is_empty());
        assert_eq!(parse("3-1,x,0-4294967295,7"), [7]);
    }
}
