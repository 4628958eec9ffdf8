//! What a configuration must be beyond well-formed. Pure: whether the host has what is asked for shows later.
//!
//! Everything that is wrong is reported, not only what is found first; but of a list that is too long only that it is,
//! and no more than anyone would read.

mod devices;
mod machine;
mod names;
mod snapshots;

use std::fmt;

use crate::config::VmConfig;

pub use machine::{MAX_CELLS, MAX_VCPUS};

/// A field that can't be what it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct Invalid {
    /// Where, for example `disks[1].queue_size`.
    pub path: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It isn't there.
    #[error("is missing: {0}")]
    Missing(&'static str),
    /// A number, count or length.
    #[error("{found} is not from {least} to {most}")]
    OutOfRange {
        /// What it is.
        found: u64,
        /// Least it can be.
        least: u64,
        /// Most it can be.
        most: u64,
    },
    /// A number.
    #[error("{0} is no power of two")]
    NotPowerOfTwo(u64),
    /// A number of bytes.
    #[error("{found} is no multiple of {of}")]
    NotMultiple {
        /// What it is.
        found: u64,
        /// What it must be a multiple of.
        of: u64,
    },
    /// A number that follows from others.
    #[error("{found} should be {expected}, {because}")]
    Mismatch {
        /// What it is.
        found: u64,
        /// What it must be.
        expected: u64,
        /// Why.
        because: &'static str,
    },
    /// It is elsewhere already.
    #[error("{what} is {first} already")]
    Taken {
        /// What is.
        what: String,
        /// Where else.
        first: String,
    },
    /// It names something that isn't there.
    #[error("there is no {what} {name}")]
    Unknown {
        /// Kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Text of the wrong form.
    #[error("{found:?} is not {expected}")]
    Form {
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// It can't be together with something else.
    #[error("{0}")]
    Contradiction(&'static str),
    /// A feature that isn't there.
    #[error("not supported by this VMM: {0}")]
    NotSupported(&'static str),
    /// More is wrong than is told.
    #[error("{0} more are wrong")]
    More(usize),
}

/// What is reported; the rest is counted.
const MOST_FINDINGS: usize = 32;

/// All that is wrong with a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub Vec<Invalid>);

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, invalid) in self.0.iter().enumerate() {
            write!(formatter, "{}{invalid}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// Whether all that is wrong is that names are taken.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.0.iter().all(|invalid| matches!(invalid.problem, Problem::Taken { .. }))
    }
}

impl VmConfig {
    /// Checks all of it, and fills in the names of devices and of memory zones that have none.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn validate(self) -> Result<Self, Refused> {
        let mut findings = Findings::default();
        machine::payload(&self, &mut findings);
        self.validate_onto(findings)
    }

    /// The same for a guest that is there, or goes on from a snapshot: it needs a kernel only to start over.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn validate_restored(self) -> Result<Self, Refused> {
        self.validate_onto(Findings::default())
    }

    fn validate_onto(mut self, mut findings: Findings) -> Result<Self, Refused> {
        // Some of what follows goes through all of one list for each part of another.
        let is_bounded = [names::bound(&mut self, &mut findings), machine::bound(&self, &mut findings)];
        if is_bounded == [true, true] {
            names::fill(&mut self);
            machine::check(&self, &mut findings);
            devices::check(&self, &mut findings);
            names::check(&self, &mut findings);
        }
        findings.result().map(|()| self)
    }
}

/// What was found so far.
#[derive(Default)]
struct Findings {
    told: Vec<Invalid>,
    more: usize,
}

impl Findings {
    fn add(&mut self, path: impl Into<String>, problem: Problem) {
        if self.told.len() < MOST_FINDINGS {
            self.told.push(Invalid { path: path.into(), problem });
        } else {
            self.more += 1;
        }
    }

    fn result(mut self) -> Result<(), Refused> {
        if self.more > 0 {
            self.told.push(Invalid { path: "others".to_owned(), problem: Problem::More(self.more) });
        }
        if self.told.is_empty() { Ok(()) } else { Err(Refused(self.told)) }
    }

    fn range(&mut self, path: impl Into<String>, found: u64, range: std::ops::RangeInclusive<u64>) -> bool {
        let is_in = range.contains(&found);
        if !is_in {
            self.add(path, Problem::OutOfRange { found, least: *range.start(), most: *range.end() });
        }
        is_in
    }
}

#[cfg(test)]
mod tests;
