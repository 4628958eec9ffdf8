//! How long to wait for more requests before a driver is told what is done. Pure.
//!
//! A driver with many requests in flight adds them one by one. Told at once of each that is done, it pays an interrupt for
//! each, and a notification to wake this side again; told a little later, it pays them for many. The longest wait is a few
//! times what sending an interrupt takes, so that waiting in vain costs little beside what it may save, whatever the host.
//! A driver with nothing more to ask for, which waits for the answer, soon isn't made to wait any more.

use std::time::Duration;

/// The longest wait, in times of sending an interrupt: the guest's part of it, and its notification, cost more.
const WORTH: u32 = 8;

/// Most times in a row without a wait.
const MOST_PASSED: u32 = 64;

/// Whether and how long to wait, from what came of it before.
#[derive(Debug, Default)]
pub struct Patience {
    /// What sending an interrupt takes, on average.
    interrupt: Duration,
    /// How often not to wait after the next wait in vain.
    penalty: u32,
    /// How often not to wait from now on.
    to_pass: u32,
}

impl Patience {
    /// How long to wait for more now; `None` when it lately was in vain.
    pub fn limit(&mut self) -> Option<Duration> {
        match self.to_pass.checked_sub(1) {
            Some(less) => {
                self.to_pass = less;
                None
            }
            None => Some(self.interrupt * WORTH),
        }
    }

    /// Takes note of what a wait came to: whether there was more.
    pub fn waited(&mut self, came: bool) {
        if came {
            self.penalty = 1;
        } else {
            self.penalty = (self.penalty * 2).clamp(1, MOST_PASSED);
            self.to_pass = self.penalty;
        }
    }

    /// Takes note of how long it took to send an interrupt. What took far longer than usual was held up by something else.
    pub fn sent(&mut self, took: Duration) {
        let most = self.interrupt * 2 + Duration::from_micros(1);
        self.interrupt = (self.interrupt * 7 + took.min(most)) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many occasions, how often it waits, if each wait comes to this.
    fn waits(patience: &mut Patience, occasions: u32, came: bool) -> u32 {
        let mut waits = 0;
        for _ in 0..occasions {
            if patience.limit().is_some() {
                patience.waited(came);
                waits += 1;
            }
        }
        waits
    }

    #[test]
    fn it_waits_while_that_pays() {
        let mut patience = Patience::default();
        assert_eq!(waits(&mut patience, 1000, true), 1000);
        // 1000 occasions are the first eight waits, of which the last six have 2 to 64 passed after them, and one in 65.
        let in_vain = waits(&mut patience, 1000, false);
        assert!((15..=25).contains(&in_vain), "{in_vain}");
        // One that paid, and it is patient again.
        while patience.limit().is_none() {}
        patience.waited(true);
        assert_eq!(waits(&mut patience, 1000, true), 1000);
    }

    #[test]
    fn it_waits_as_long_as_an_interrupt_is_worth() {
        let mut patience = Patience::default();
        assert_eq!(patience.limit(), Some(Duration::ZERO));
        (0..100).for_each(|_| patience.sent(Duration::from_micros(2)));
        let limit = patience.limit().unwrap();
        assert!((Duration::from_micros(15)..=Duration::from_micros(16)).contains(&limit), "{limit:?}");
        // Once held up is not for ever.
        patience.sent(Duration::MAX);
        let limit = patience.limit().unwrap();
        assert!(limit < Duration::from_micros(20), "{limit:?}");
    }
}
