//! A refused spec: what is wrong, where, and what would help.

use crate::reason::Reason;
use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Field path, for example `spec.machine.cpu.cores`.
    pub path: String,
    /// What is wrong with it and what would help.
    pub message: String,
}

impl Problem {
    /// A problem at a field path.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Why no incarnation can be made from a spec as things stand. Never without a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of refusal.
    pub reason: Reason,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

impl Refusal {
    /// A refusal for several problems of one kind.
    pub fn new(reason: Reason, problems: Vec<Problem>) -> Self {
        Refusal { reason, problems }
    }

    /// A refusal for one problem.
    pub fn one(reason: Reason, path: impl Into<String>, message: impl Into<String>) -> Self {
        Refusal::new(reason, vec![Problem::new(path, message)])
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}
