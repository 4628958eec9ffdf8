//! Telling a guest that reboots from one that resets in a loop: a kernel without enough memory faults before it can say
//! anything, many times a second. Pure.

use jiff::{SignedDuration, Timestamp};
use std::collections::VecDeque;

/// This many resets …
const MANY: usize = 10;
/// … within this are no reboots: a kernel alone takes longer to come up that often.
const WINDOW: SignedDuration = SignedDuration::from_secs(10);

/// The guest's latest resets.
#[derive(Debug, Default)]
pub(super) struct Resets(VecDeque<Timestamp>);

impl Resets {
    /// Counts one more; whether that makes a loop.
    pub(super) fn count(&mut self, now: Timestamp) -> bool {
        self.0.push_back(now);
        if self.0.len() > MANY {
            self.0.pop_front();
        }
        self.0.len() == MANY && self.0.front().is_some_and(|first| now.duration_since(*first) < WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any_loop(milliseconds_apart: i64) -> bool {
        let mut resets = Resets::default();
        (0..50).any(|n| resets.count(Timestamp::from_millisecond(n * milliseconds_apart).unwrap()))
    }

    #[test]
    fn reboots_are_no_loop() {
        assert!(!any_loop(2_000));
        assert!(any_loop(50));
    }
}
