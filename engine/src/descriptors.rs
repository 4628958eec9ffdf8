//! The descriptors an engine is handed, and the numbers at which it finds them.

use std::os::fd::{AsFd, OwnedFd};

use crate::Handed;

/// First descriptor number that is used; the ones below are the container's.
const FIRST_FD: i32 = 10;

/// Descriptors in the order of their numbers.
#[derive(Default)]
pub(crate) struct Descriptors<'a>(Vec<Handed<'a>>);

impl<'a> Descriptors<'a> {
    /// Hands a descriptor over and returns its number.
    pub(crate) fn add(&mut self, name: impl Into<String>, fd: &'a OwnedFd) -> i32 {
        // The count is bounded: by the engines' limits, and by the queues that fit an order.
        let target = FIRST_FD.saturating_add(i32::try_from(self.0.len()).unwrap_or(i32::MAX));
        self.0.push(Handed { name: name.into(), target, fd: fd.as_fd() });
        target
    }

    pub(crate) fn into_vec(self) -> Vec<Handed<'a>> {
        self.0
    }
}
