//! Ends of incarnations: what is counted as one, whether another follows and when, pure.

use crate::vse::pod_facts::PodEnd;
use jiff::{SignedDuration, Timestamp};
use vse_crds::{ExitReason, ExitRecord, RunStrategy, VSEStatus};

/// Delay before the start after a first failure.
const FIRST_DELAY: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay.
const LONGEST_DELAY: SignedDuration = SignedDuration::from_secs(300);
/// A guest that ran so long was well; its failure counts as the first.
const WELL_AFTER: SignedDuration = SignedDuration::from_secs(600);

/// The end of an incarnation no guest was ever ordered for: its pod ended before.
pub fn without_guest(incarnation: i64, pod: &PodEnd, now: Timestamp) -> ExitRecord {
    ExitRecord {
        incarnation,
        reason: if pod.ran { ExitReason::LaunchFailed } else { ExitReason::PodRefused },
        message: pod.message.clone(),
        at: pod.at.unwrap_or(now),
    }
}

/// Failures in a row, this end counted.
pub fn recent_failures(before: u32, exit: &ExitRecord, started: Option<Timestamp>) -> u32 {
    let was_well = started.is_some_and(|started| exit.at.duration_since(started) >= WELL_AFTER);
    match (exit.reason.is_failure(), was_well) {
        (false, _) => 0,
        (true, true) => 1,
        (true, false) => before.saturating_add(1),
    }
}

/// Whether another incarnation follows.
pub fn follows(strategy: RunStrategy, exit: &ExitRecord) -> bool {
    match strategy {
        RunStrategy::Halted => false,
        RunStrategy::Always => true,
        // An end that was asked for (Halted, restart) is not the guest's own.
        RunStrategy::RerunOnFailure => exit.reason.is_failure() || exit.reason == ExitReason::Stopped,
        // Nor is one before anything of it ran: kube-scheduler's view of a host may be older than kubelet's.
        RunStrategy::Once => matches!(exit.reason, ExitReason::Stopped | ExitReason::PodRefused),
    }
}

/// When the next incarnation may start.
pub fn due(status: &VSEStatus, exit: &ExitRecord) -> Timestamp {
    exit.at + delay(status.recent_failures)
}

/// Delay after so many failures in a row: none, 10 s, 20 s … 5 min.
pub fn delay(failures: u32) -> SignedDuration {
    match failures {
        0 => SignedDuration::ZERO,
        n => FIRST_DELAY.saturating_mul(1 << (n - 1).min(16)).min(LONGEST_DELAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vse::pod_facts::PodFacts;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use vse_crds::labels;

    fn ended(reason: ExitReason, at: i64) -> ExitRecord {
        ExitRecord { incarnation: 1, reason, message: String::new(), at: Timestamp::from_second(at).unwrap() }
    }

    #[test]
    fn delays_double_up_to_five_minutes() {
        let seconds: Vec<_> = (0..8).map(|n| delay(n).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(delay(u32::MAX).as_secs(), 300);
    }

    #[test]
    fn ten_minutes_of_running_forgive() {
        let started = Timestamp::from_second(1000).ok();
        let early = ended(ExitReason::EngineFailed, 1599);
        let late = ended(ExitReason::EngineFailed, 1600);
        assert_eq!(recent_failures(3, &early, started), 4);
        assert_eq!(recent_failures(3, &late, started), 1);
        assert_eq!(recent_failures(3, &late, None), 4);
        assert_eq!(recent_failures(3, &ended(ExitReason::GuestShutdown, 1001), started), 0);
    }

    #[test]
    fn only_a_pod_of_which_nothing_ran_was_refused() {
        let end = |state: serde_json::Value| {
            let status = json!({
                "name": labels::VM_CONTAINER, "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            });
            let pod = json!({"status": {"phase": "Failed", "containerStatuses": [status]}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            without_guest(1, &PodFacts::of(&pod).end().unwrap(), Timestamp::UNIX_EPOCH).reason
        };
        assert_eq!(end(json!({"waiting": {}})), ExitReason::PodRefused);
        assert_eq!(end(json!({"running": {}})), ExitReason::LaunchFailed);
        assert_eq!(end(json!({"terminated": {"exitCode": 1}})), ExitReason::LaunchFailed);
    }

    #[test]
    fn what_follows_what() {
        use ExitReason::{EngineFailed, GuestShutdown, PodRefused, Stopped};
        use RunStrategy::{Always, Halted, Once, RerunOnFailure};
        for (strategy, expected) in [
            (Always, [true, true, true, true]),
            (RerunOnFailure, [true, false, true, true]),
            (Once, [false, false, true, true]),
            (Halted, [false, false, false, false]),
        ] {
            let ends = [EngineFailed, GuestShutdown, Stopped, PodRefused];
            assert_eq!(ends.map(|reason| follows(strategy, &ended(reason, 0))), expected, "{strategy:?}");
        }
    }
}
