//! A hook of tests: the node runtime dies right after a step of a guest's life, as if it were killed there.
//!
//! A step is armed by a file of its name in [`DIRECTORY`], which only the host's root can make. Dying removes the file
//! first: once for each step and host, and the next life goes on from there. Nobody but a test arms anything; an attempt
//! to remove a file that is not there is all that a step costs otherwise.

use clap::ValueEnum;
use rustix::process::{Signal, getpid, kill_process};
use std::path::{Path, PathBuf};

/// Where steps are armed on a host.
pub const DIRECTORY: &str = "/var/lib/vse/crash-after";

/// What is done for a guest, in the order of its life: all of it that a death could leave half-done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// CPUs were dealt out.
    Placed,
    /// The system image is in the host's cache.
    ImageReady,
    /// Disks were made and opened.
    DisksOpen,
    /// Tap and rules are in the pod's network namespace, and DHCP answers.
    NetworkAttached,
    /// The launcher took its order.
    OrderSent,
    /// The engine's threads are pinned; the guest has not run yet.
    Pinned,
    /// The guest runs.
    Booted,
    /// The API server knows that it runs.
    RunningSaid,
    /// The vCPUs were stopped.
    Paused,
    /// The vCPUs were let go on.
    Resumed,
    /// The guest was asked to shut down.
    PowerButtonPressed,
    /// The engine was told to end.
    StopSent,
    /// The pod's processes were killed.
    Killed,
    /// The host gave back all it held.
    Released,
    /// The API server knows that it did.
    ReleasedSaid,
}

impl Step {
    /// Every step, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    /// Name of the file that arms it, for example `order-sent`.
    pub fn name(self) -> String {
        // No variant is skipped, so each has a value.
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The armed steps of this host.
#[derive(Clone, Debug)]
pub struct CrashPoints(PathBuf);

impl CrashPoints {
    /// Those of that directory, which need not exist.
    pub fn of(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Ends this process without warning if the step just done is armed.
    pub fn after(&self, step: Step) {
        if self.disarm(step) {
            tracing::warn!(?step, "dying right after this step, as a test asked");
            // Neither can fail; the second is for a process that signals do not reach (the first of its namespace).
            let _ = kill_process(getpid(), Signal::KILL);
            std::process::abort();
        }
    }

    fn disarm(&self, step: Step) -> bool {
        std::fs::remove_file(self.0.join(step.name())).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_armed_step_is_fired_once() {
        let directory = tempfile::tempdir().unwrap();
        let points = CrashPoints::of(directory.path());
        std::fs::write(directory.path().join("order-sent"), "").unwrap();
        assert!(!points.disarm(Step::Placed));
        assert!(points.disarm(Step::OrderSent));
        assert!(!points.disarm(Step::OrderSent));
    }

    #[test]
    fn nothing_is_armed_without_the_directory() {
        let points = CrashPoints::of(Path::new("/nonexistent/crash-after"));
        for step in Step::all() {
            points.after(step);
        }
    }
}
