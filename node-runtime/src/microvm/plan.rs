//! What to do next for one guest, from what was observed. Pure: the clock is an input, nothing is remembered.
//!
//! ```text
//!            launcher answers        engine answers          resumed
//!  (pod) ──► Waiting ────Launch────► Prelaunch ────Boot────► Running ◄──Pause/Resume──► Paused
//!               │                        │                      │                          │
//!               └────────────┬───────────┴───── stop ordered ───┴──────────────────────────┘
//!                            ▼
//!             PowerButton … Stop (grace over) … Kill        pod ended or gone ──► Release (last, once)
//! ```

use jiff::{SignedDuration, Timestamp};
use vse_crds::{ExitReason, MicroVMPhase};

/// The power button is pressed again after this: a guest early in its boot does not see the first press.
const PRESS_AGAIN: SignedDuration = SignedDuration::from_secs(5);
/// An engine told to stop has this long before it is killed.
const STOP_TIMEOUT: SignedDuration = SignedDuration::from_secs(5);
/// How soon to look again for a launcher or an engine that is starting: nothing tells when its socket appears.
const STARTING: SignedDuration = SignedDuration::from_millis(100);
/// How soon to look again when what answers makes no sense.
const UNINTELLIGIBLE: SignedDuration = SignedDuration::from_secs(1);
/// How soon to look again while kubelet has not started the container.
const NOT_STARTED: SignedDuration = SignedDuration::from_millis(500);

/// What is asked of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// vCPUs run.
    Run,
    /// vCPUs stand still.
    Pause,
    /// The guest ends, in order until the deadline.
    Stop {
        /// Who asks.
        cause: StopCause,
        /// From then on without asking the guest.
        deadline: Timestamp,
    },
}

/// Who asks for the end of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The operator.
    Order,
    /// Somebody deleted the pod underneath.
    PodDeleted,
}

/// The VM pod, as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pod {
    /// There is none with this UID.
    Absent,
    /// Its container has not started.
    Starting,
    /// Its container runs.
    Running,
    /// Its container ended.
    Ended {
        /// Exit code, 128 + n for signal n.
        code: i32,
        /// The last line of a container that failed.
        said: Option<String>,
    },
    /// It ended, and its status has nothing of its container: kubelet refused it. A kubelet that starts anew may refuse a
    /// pod that ran before, and the pod's status does not tell.
    Refused {
        /// kubelet's words.
        message: String,
    },
}

/// Who answers in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// Nobody (yet, or any more).
    Nobody,
    /// The launcher, waiting for its order.
    Launcher,
    /// The engine, its guest not started.
    Prelaunch,
    /// The engine, its guest running.
    Running,
    /// The engine, its guest paused.
    Paused,
    /// The engine, its guest ended.
    Ended,
    /// Somebody who keeps to no protocol: an engine that was taken over, or is out of order.
    Unintelligible,
}

impl Inside {
    /// Whether an engine has taken the memory of its guest, or will take none any more. What it waits for before it
    /// boots, or whether it waits at all, differs.
    pub fn has_its_memory(self) -> bool {
        matches!(self, Inside::Prelaunch | Inside::Running | Inside::Paused | Inside::Ended)
    }
}

/// What the engine said about the guest's end before it went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastWords {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest resets itself again and again: it does not get as far as to panic.
    ResetLoop,
}

/// A launch that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchFailure {
    /// Trying again can't help.
    pub is_final: bool,
    /// What, where, what would help.
    pub message: String,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// Everything the decision depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// What is asked of the guest.
    pub wanted: Wanted,
    /// The VM pod.
    pub pod: Pod,
    /// Who answers in it.
    pub inside: Inside,
    /// Whether its launcher ever answered.
    pub ran: bool,
    /// What the engine said last.
    pub last_words: Option<LastWords>,
    /// The latest failed launch, if nothing was launched since.
    pub launch_failure: Option<LaunchFailure>,
    /// When the power button was pressed last.
    pub pressed_at: Option<Timestamp>,
    /// The end was reported already.
    pub released: bool,
    /// The clock.
    pub now: Timestamp,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make everything ready and turn the launcher into the engine.
    Launch,
    /// Pin the engine's threads and let the guest run its first instruction.
    Boot,
    /// Let the vCPUs run.
    Resume,
    /// Stop the vCPUs.
    Pause,
    /// Ask the guest to shut down.
    PowerButton,
    /// End the engine.
    Stop,
    /// Kill every process of the pod's container.
    Kill,
    /// Give back what the host still holds and report the end.
    Release(ExitReason, String),
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The one next step; none when there is nothing to do but wait.
    pub action: Option<Action>,
    /// Look again then at the latest.
    pub wake_at: Option<Timestamp>,
    /// Where the guest is.
    pub phase: MicroVMPhase,
}

impl Plan {
    fn act(phase: MicroVMPhase, action: Action) -> Self {
        Self { action: Some(action), wake_at: None, phase }
    }

    fn wait(phase: MicroVMPhase, wake_at: Option<Timestamp>) -> Self {
        Self { action: None, wake_at, phase }
    }
}

/// The next step.
pub fn plan(seen: &Observed) -> Plan {
    if seen.released {
        return Plan::wait(MicroVMPhase::Released, None);
    }
    if let Some((reason, message)) = ended(seen) {
        return Plan::act(MicroVMPhase::Released, Action::Release(reason, message));
    }
    match seen.wanted {
        Wanted::Stop { cause, deadline } => stop(seen, cause, deadline),
        Wanted::Run | Wanted::Pause => go(seen),
    }
}

/// How the guest ended, once its process is known to be gone.
fn ended(seen: &Observed) -> Option<(ExitReason, String)> {
    let (code, said) = match &seen.pod {
        Pod::Ended { code, said } => (Some(*code), said.as_deref()),
        Pod::Absent => (None, None),
        Pod::Refused { message } if !seen.ran => return Some((ExitReason::PodRefused, message.clone())),
        Pod::Refused { message } => (None, Some(message.as_str())),
        Pod::Starting | Pod::Running => return None,
    };
    Some(match (seen.last_words, seen.wanted, code) {
        // It was started, and stopped before it ran.
        _ if seen.launch_failure.as_ref().is_some_and(|failure| failure.is_final) => {
            let message = seen.launch_failure.as_ref().map(|failure| failure.message.clone());
            (ExitReason::LaunchFailed, message.unwrap_or_default())
        }
        (Some(LastWords::GuestPanic), ..) | (None, _, Some(vse_engine::rest::EXIT_PANIC)) => {
            (ExitReason::GuestPanic, "the guest's kernel panicked".into())
        }
        (Some(LastWords::ResetLoop), ..) => (
            ExitReason::GuestPanic,
            "the guest reset itself again and again: its kernel does not come up; has it enough memory?".into(),
        ),
        (_, Wanted::Stop { cause: StopCause::Order, .. }, _) => (ExitReason::Stopped, String::new()),
        (_, Wanted::Stop { cause: StopCause::PodDeleted, .. }, Some(_)) => {
            (ExitReason::PodGone, "the pod was deleted".into())
        }
        (_, _, None) => (ExitReason::PodGone, said.unwrap_or("the pod was deleted").into()),
        (Some(LastWords::GuestShutdown), ..) | (None, _, Some(0)) => {
            (ExitReason::GuestShutdown, "the guest powered itself off".into())
        }
        (None, _, Some(code)) => {
            let said = said.map(|said| format!(": {said}")).unwrap_or_default();
            (ExitReason::EngineFailed, format!("the engine ended with exit code {code}{said}"))
        }
    })
}

fn stop(seen: &Observed, cause: StopCause, deadline: Timestamp) -> Plan {
    let phase = MicroVMPhase::Stopping;
    match seen.inside {
        // Nothing runs, and nothing will: only this runtime gives launch orders.
        Inside::Launcher => Plan::act(phase, release_unstarted(cause)),
        Inside::Nobody if seen.pod == Pod::Starting => Plan::act(phase, release_unstarted(cause)),
        // Whoever is in the pod by then, and whether or not it answers.
        _ if seen.now >= deadline + STOP_TIMEOUT => Plan::act(phase, Action::Kill),
        // An engine is starting, or ending.
        Inside::Nobody => Plan::wait(phase, Some(seen.now + STARTING)),
        Inside::Unintelligible => Plan::wait(phase, Some(seen.now + UNINTELLIGIBLE)),
        Inside::Prelaunch | Inside::Ended => Plan::act(phase, Action::Stop),
        Inside::Running | Inside::Paused if seen.now >= deadline => Plan::act(phase, Action::Stop),
        Inside::Paused => Plan::act(phase, Action::Resume),
        Inside::Running => match seen.pressed_at.map(|pressed| pressed + PRESS_AGAIN) {
            Some(again) if seen.now < again => Plan::wait(phase, Some(again.min(deadline))),
            _ => Plan::act(phase, Action::PowerButton),
        },
    }
}

fn release_unstarted(cause: StopCause) -> Action {
    match cause {
        StopCause::Order => Action::Release(ExitReason::Stopped, "stopped before it was started".into()),
        StopCause::PodDeleted => Action::Release(ExitReason::PodGone, "the pod was deleted".into()),
    }
}

fn go(seen: &Observed) -> Plan {
    let pause = seen.wanted == Wanted::Pause;
    match seen.inside {
        Inside::Nobody if seen.pod == Pod::Running => Plan::wait(MicroVMPhase::Preparing, Some(seen.now + STARTING)),
        Inside::Nobody => Plan::wait(MicroVMPhase::Preparing, Some(seen.now + NOT_STARTED)),
        Inside::Launcher => match &seen.launch_failure {
            Some(failure) if failure.is_final => {
                Plan::act(MicroVMPhase::Preparing, Action::Release(ExitReason::LaunchFailed, failure.message.clone()))
            }
            Some(failure) if seen.now < failure.retry_at => Plan::wait(MicroVMPhase::Preparing, Some(failure.retry_at)),
            _ => Plan::act(MicroVMPhase::Preparing, Action::Launch),
        },
        Inside::Prelaunch if seen.launch_failure.as_ref().is_some_and(|failure| failure.is_final) => {
            Plan::act(MicroVMPhase::Preparing, Action::Stop)
        }
        Inside::Prelaunch if pause => Plan::wait(MicroVMPhase::Paused, None),
        Inside::Prelaunch => Plan::act(MicroVMPhase::Preparing, Action::Boot),
        // Engines that let a guest go on after a panic, too.
        Inside::Running | Inside::Paused
            if matches!(seen.last_words, Some(LastWords::ResetLoop | LastWords::GuestPanic)) =>
        {
            Plan::act(MicroVMPhase::Running, Action::Stop)
        }
        Inside::Running if pause => Plan::act(MicroVMPhase::Running, Action::Pause),
        Inside::Running => Plan::wait(MicroVMPhase::Running, None),
        Inside::Paused if pause => Plan::wait(MicroVMPhase::Paused, None),
        Inside::Paused => Plan::act(MicroVMPhase::Paused, Action::Resume),
        Inside::Ended => Plan::act(MicroVMPhase::Running, Action::Stop),
        Inside::Unintelligible => Plan::wait(MicroVMPhase::Running, Some(seen.now + UNINTELLIGIBLE)),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
