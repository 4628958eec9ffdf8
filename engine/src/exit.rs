//! What the end of an engine's process says about its guest.

/// Why an engine's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitMeaning {
    /// The guest powered itself off, or the engine was told to stop.
    PoweredOff,
    /// The engine could not start or go on, or the guest's kernel panicked.
    Failed {
        /// Exit code of the process.
        code: i32,
    },
    /// Somebody killed it: an operator, or the kernel for lack of memory.
    Killed {
        /// The signal.
        signal: i32,
    },
}

impl ExitMeaning {
    /// From the exit code or the signal, whichever there is. Container runtimes fold a signal into the code as
    /// 128 + signal; that is unfolded for the signals there are (1 to 64).
    #[must_use]
    pub fn from(code: i32, signal: Option<i32>) -> Self {
        match (signal, code) {
            (Some(signal), _) => Self::Killed { signal },
            (None, 0) => Self::PoweredOff,
            (None, 129..=192) => Self::Killed { signal: code - 128 },
            (None, code) => Self::Failed { code },
        }
    }

    /// Whether the guest ended as it should.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::PoweredOff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_signals() {
        assert!(ExitMeaning::from(0, None).is_success());
        assert_eq!(ExitMeaning::from(1, None), ExitMeaning::Failed { code: 1 });
        assert_eq!(ExitMeaning::from(137, None), ExitMeaning::Killed { signal: 9 });
        assert_eq!(ExitMeaning::from(0, Some(9)), ExitMeaning::Killed { signal: 9 });
        assert_eq!(ExitMeaning::from(255, None), ExitMeaning::Failed { code: 255 });
    }
}
