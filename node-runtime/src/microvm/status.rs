//! What is said of a guest: [`MicroVMStatus`] from what was observed and remembered. Pure.

use super::plan::{Action, Observed, Plan, Wanted};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use vse_crds::condition::{self, Status};
use vse_crds::{
    Address, CpuPlacement, ExitRecord, GuestDevice, GuestInfo, MicroVMPhase, MicroVMStatus, Timings,
    microvm_conditions as conditions,
};

/// Preparing longer than this is worth a word: a system image is made on its first use on a host.
const LONG: SignedDuration = SignedDuration::from_secs(5);

/// What the guest's task remembers between looks. All of it can be read back from the last status.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// Kernel release.
    pub kernel: Option<String>,
    /// The engine and its version.
    pub engine_version: Option<String>,
    /// CPUs.
    pub cpus: Option<CpuPlacement>,
    /// Host devices.
    pub devices: Vec<GuestDevice>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// What the agent said; kept when it goes silent.
    pub guest: Option<GuestInfo>,
    /// Whether the agent answers.
    pub agent: bool,
    /// When each step was done.
    pub timings: Timings,
    /// The end.
    pub exit: Option<ExitRecord>,
}

impl Memory {
    /// What the last status remembers.
    pub(super) fn recall(status: Option<&MicroVMStatus>) -> Self {
        let Some(status) = status.cloned() else { return Self::default() };
        Self {
            agent: false,
            kernel: status.kernel,
            engine_version: status.engine_version,
            cpus: status.cpus,
            devices: status.devices,
            addresses: status.addresses,
            guest: status.guest,
            timings: status.timings.unwrap_or_default(),
            exit: status.exit,
        }
    }
}

/// The status to publish; nothing while all goes its way and nothing has happened that somebody could act on: then the
/// next thing said is that the guest runs.
pub(super) fn status(
    previous: Option<&MicroVMStatus>,
    seen: &Observed,
    plan: &Plan,
    memory: &Memory,
    generation: Option<i64>,
) -> Option<MicroVMStatus> {
    if matches!(plan.action, Some(Action::Release(..))) {
        // Said once it is so.
        return None;
    }
    let failing = seen.launch_failure.is_some();
    let preparing_long = memory.timings.pod_ready.is_some_and(|ready| seen.now.duration_since(ready) > LONG);
    if plan.phase == MicroVMPhase::Preparing && previous.is_none() && !failing && !preparing_long {
        return None;
    }
    Some(MicroVMStatus {
        observed_generation: generation,
        phase: Some(plan.phase),
        engine_version: memory.engine_version.clone(),
        kernel: memory.kernel.clone(),
        cpus: memory.cpus.clone(),
        devices: memory.devices.clone(),
        addresses: memory.addresses.clone(),
        guest: memory.guest.clone(),
        timings: Some(memory.timings.clone()),
        exit: memory.exit.clone(),
        conditions: all_conditions(previous, seen, plan, memory, generation),
    })
}

fn all_conditions(
    previous: Option<&MicroVMStatus>,
    seen: &Observed,
    plan: &Plan,
    memory: &Memory,
    generation: Option<i64>,
) -> Vec<Condition> {
    let before = previous.map_or(&[][..], |status| &status.conditions);
    let one = |type_, (status, reason, message): (Status, &str, String)| {
        condition::condition(before, type_, status, reason, message, generation, seen.now)
    };
    vec![
        one(conditions::READY, ready(seen, plan, memory)),
        one(conditions::PAUSED, paused(plan)),
        one(conditions::AGENT_CONNECTED, agent(plan, memory)),
    ]
}

fn ready(seen: &Observed, plan: &Plan, memory: &Memory) -> (Status, &'static str, String) {
    match plan.phase {
        MicroVMPhase::Preparing => match &seen.launch_failure {
            Some(failure) => (Status::False, "LaunchFailed", failure.message.clone()),
            None => (Status::False, "Preparing", "making the system image ready on this host".into()),
        },
        MicroVMPhase::Running => (Status::True, "Running", String::new()),
        MicroVMPhase::Paused => (Status::True, "Paused", String::new()),
        MicroVMPhase::Stopping => (Status::False, "Stopping", stopping(seen)),
        MicroVMPhase::Released => {
            let message = memory.exit.as_ref().map(|exit| exit.message.clone()).unwrap_or_default();
            (Status::False, "Released", message)
        }
    }
}

fn stopping(seen: &Observed) -> String {
    match seen.wanted {
        Wanted::Stop { deadline, .. } => {
            format!("power button pressed; the guest has until {}", second(deadline))
        }
        Wanted::Run | Wanted::Pause => String::new(),
    }
}

fn paused(plan: &Plan) -> (Status, &'static str, String) {
    match plan.phase {
        MicroVMPhase::Paused => (Status::True, "Requested", String::new()),
        _ => (Status::False, "NotRequested", String::new()),
    }
}

fn agent(plan: &Plan, memory: &Memory) -> (Status, &'static str, String) {
    match plan.phase {
        MicroVMPhase::Running | MicroVMPhase::Paused if memory.agent => (Status::True, "Answering", String::new()),
        MicroVMPhase::Running | MicroVMPhase::Paused => (Status::False, "Silent", String::new()),
        _ => (Status::False, "NotRunning", String::new()),
    }
}

/// For people: whole seconds.
fn second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::microvm::plan::{Inside, LaunchFailure, Pod, plan};

    fn running() -> Observed {
        Observed {
            wanted: Wanted::Run,
            pod: Pod::Running,
            inside: Inside::Running,
            ran: true,
            last_words: None,
            launch_failure: None,
            pressed_at: None,
            released: false,
            now: Timestamp::from_second(1000).unwrap(),
        }
    }

    fn say(previous: Option<&MicroVMStatus>, seen: &Observed, memory: &Memory) -> Option<MicroVMStatus> {
        status(previous, seen, &plan(seen), memory, Some(1))
    }

    #[test]
    fn nothing_is_said_on_a_smooth_way_up() {
        let seen = Observed { inside: Inside::Launcher, ..running() };
        assert_eq!(say(None, &seen, &Memory::default()), None);
    }

    #[test]
    fn a_failure_on_the_way_up_is_said() {
        let failure = LaunchFailure { is_final: false, message: "no space".into(), retry_at: Timestamp::MAX };
        let seen = Observed { inside: Inside::Launcher, launch_failure: Some(failure), ..running() };
        let said = say(None, &seen, &Memory::default()).unwrap();
        assert_eq!(condition::find(&said.conditions, "Ready").unwrap().message, "no space");
    }

    #[test]
    fn the_end_is_said_with_how_it_came() {
        let over = Observed { pod: Pod::Ended { code: 0, said: None }, inside: Inside::Nobody, ..running() };
        assert_eq!(say(None, &over, &Memory::default()), None);
        let exit = ExitRecord {
            incarnation: 1,
            reason: vse_crds::ExitReason::GuestShutdown,
            message: String::new(),
            at: over.now,
        };
        let memory = Memory { exit: Some(exit), ..Memory::default() };
        let said = say(None, &Observed { released: true, ..over }, &memory).unwrap();
        assert_eq!((said.phase, said.exit), (Some(MicroVMPhase::Released), memory.exit));
    }

    #[test]
    fn the_same_is_said_again_and_again() {
        let first = say(None, &running(), &Memory::default()).unwrap();
        let later = Observed { now: Timestamp::from_second(5000).unwrap(), ..running() };
        assert_eq!(say(Some(&first), &later, &Memory::default()).unwrap(), first);
    }

    #[test]
    fn what_is_remembered_is_recalled() {
        let memory = Memory {
            kernel: Some("6.12".into()),
            cpus: Some(CpuPlacement { summary: "shared 0-1".into(), ..CpuPlacement::default() }),
            ..Memory::default()
        };
        let said = say(None, &running(), &memory).unwrap();
        assert_eq!(Memory::recall(Some(&said)), memory);
    }
}
