//! Linux CPU lists (`0-3,8`), as in cpuset(7) and sysfs; lists of NUMA nodes have the same form.

use std::collections::BTreeSet;
use std::fmt;

/// Highest CPU number believed; the kernel's own limit is 8192 (CONFIG_NR_CPUS on x86-64).
const MAX_CPU: u32 = 8191;

/// A set of CPU numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuList(BTreeSet<u32>);

/// Text that is no CPU list.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a CPU list such as 0-3,8")]
pub struct InvalidCpuList(String);

impl CpuList {
    /// Parses a list; white space around it is ignored, and an empty text is the empty set.
    pub fn parse(text: &str) -> Result<Self, InvalidCpuList> {
        let invalid = || InvalidCpuList(text.chars().take(80).collect());
        let number = |s: &str| s.parse::<u32>().ok().filter(|n| *n <= MAX_CPU).ok_or_else(invalid);
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(invalid());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }

    /// Number of CPUs.
    #[allow(clippy::len_without_is_empty)] // nobody asks
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether that number is in it.
    pub fn contains(&self, number: u32) -> bool {
        self.0.contains(&number)
    }

    /// The CPUs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }
}

impl Extend<u32> for CpuList {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, cpus: I) {
        self.0.extend(cpus);
    }
}

impl FromIterator<u32> for CpuList {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while cpus.peek() == Some(&(last + 1)) {
                last += 1;
                cpus.next();
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(CpuList::parse("0-2,7\n").unwrap(), [0, 1, 2, 7].into_iter().collect());
        assert_eq!(CpuList::parse("\n").unwrap().len(), 0);
        for text in ["3-1", "a", "1-", "99999", "0-4294967295", "-1"] {
            assert!(CpuList::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(cpus in proptest::collection::btree_set(0u32..300, 0..40)) {
            let list = CpuList(cpus);
            prop_assert_eq!(CpuList::parse(&list.to_string()).unwrap(), list);
        }
    }
}
