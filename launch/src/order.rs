//! The order itself and what makes one valid. Both sides check it: the sender to fail early, the launcher because
//! it trusts no bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Most descriptors one order can carry.
pub const MAX_DESCRIPTORS: usize = 400;

/// Descriptor numbers an order may ask for. 0, 1 and 2 stay the container's. Together with [`MAX_DESCRIPTORS`]
/// this keeps the launcher below the usual soft limit of 1024 open files while it moves descriptors about.
pub const TARGETS: Range<i32> = 3..512;

/// Everything the launcher needs to become another program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchOrder {
    /// Absolute path of the program, in the pod's file system.
    pub program: String,
    /// Arguments after the program's own name.
    pub args: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// What the descriptors sent along are, in the order in which they are sent.
    pub descriptors: Vec<Descriptor>,
}

/// One descriptor sent along with an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// What it is, for error messages.
    pub name: String,
    /// Its number in the new program, within [`TARGETS`].
    pub target: i32,
}

/// Why an order cannot be carried out by any launcher.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOrder {
    /// The program is looked up nowhere.
    #[error("program {0:?} is not an absolute path")]
    RelativeProgram(String),
    /// The kernel's strings end at the first NUL.
    #[error("{what} contains a NUL byte")]
    Nul {
        /// The field, for example `args[3]`.
        what: String,
    },
    /// An environment name that no program could look up.
    #[error("{0:?} is not a name for an environment variable")]
    EnvironmentName(String),
    /// More than [`MAX_DESCRIPTORS`].
    #[error("{0} descriptors are more than the {MAX_DESCRIPTORS} an order can carry")]
    TooManyDescriptors(usize),
    /// Outside [`TARGETS`].
    #[error("descriptor {name:?} asks for number {target}; numbers from {} to {} can be asked for", TARGETS.start, TARGETS.end - 1)]
    Target {
        /// The descriptor's name.
        name: String,
        /// The number it asks for.
        target: i32,
    },
    /// Two descriptors in one place.
    #[error("descriptor {name:?} asks for number {target}, which another one has")]
    DuplicateTarget {
        /// The later descriptor's name.
        name: String,
        /// The number both ask for.
        target: i32,
    },
}

impl LaunchOrder {
    /// Whether a launcher could carry this out.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn check(&self) -> Result<(), InvalidOrder> {
        if !self.program.starts_with('/') {
            return Err(InvalidOrder::RelativeProgram(self.program.clone()));
        }
        no_nul(&self.program, || "program".to_owned())?;
        for (index, arg) in self.args.iter().enumerate() {
            no_nul(arg, || format!("args[{index}]"))?;
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(InvalidOrder::EnvironmentName(name.clone()));
            }
            no_nul(value, || format!("env.{name}"))?;
        }
        if self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(InvalidOrder::TooManyDescriptors(self.descriptors.len()));
        }
        let mut taken = BTreeSet::new();
        for Descriptor { name, target } in &self.descriptors {
            let (name, target) = (name.clone(), *target);
            if !TARGETS.contains(&target) {
                return Err(InvalidOrder::Target { name, target });
            }
            if !taken.insert(target) {
                return Err(InvalidOrder::DuplicateTarget { name, target });
            }
        }
        Ok(())
    }
}

fn no_nul(text: &str, what: impl FnOnce() -> String) -> Result<(), InvalidOrder> {
    if text.contains('\0') { Err(InvalidOrder::Nul { what: what() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(targets: &[i32]) -> LaunchOrder {
        LaunchOrder {
            program: "/bin/engine".into(),
            args: vec!["-x".into()],
            env: BTreeMap::from([("A".into(), "b".into())]),
            descriptors: targets.iter().map(|&target| Descriptor { name: format!("d{target}"), target }).collect(),
        }
    }

    #[test]
    fn a_plain_order_is_valid() {
        assert_eq!(order(&[3, 511]).check(), Ok(()));
    }

    #[test]
    fn targets_stay_off_the_standard_streams_and_off_each_other() {
        for target in [-1, 0, 2, 512, i32::MAX] {
            assert!(matches!(order(&[target]).check(), Err(InvalidOrder::Target { .. })), "{target}");
        }
        assert!(matches!(order(&[7, 7]).check(), Err(InvalidOrder::DuplicateTarget { target: 7, .. })));
    }

    #[test]
    fn what_the_kernel_would_cut_short_is_refused() {
        let mut nul = order(&[]);
        nul.args.push("a\0b".into());
        assert_eq!(nul.check(), Err(InvalidOrder::Nul { what: "args[1]".into() }));
        let mut name = order(&[]);
        name.env.insert("A=B".into(), String::new());
        assert_eq!(name.check(), Err(InvalidOrder::EnvironmentName("A=B".into())));
        let mut relative = order(&[]);
        relative.program = "engine".into();
        assert!(matches!(relative.check(), Err(InvalidOrder::RelativeProgram(_))));
    }

    #[test]
    fn more_descriptors_than_fit_are_refused() {
        let many: Vec<i32> = (3..=403).collect();
        assert_eq!(order(&many).check(), Err(InvalidOrder::TooManyDescriptors(401)));
    }
}
