//! The VSE's status from the situation the planner found, pure. Times move only when something changed, so that an
//! equal situation gives an equal status.

use crate::reason::Reason;
use crate::vse::observe::Observed;
use crate::vse::refusal::Refusal;
use crate::vse::trouble::Trouble;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use vse_crds::condition::{self, Status};
use vse_crds::{
    ExitRecord, MicroVM, MicroVMPhase, MicroVMStatus, VSEPhase, VSEStatus, microvm_conditions, vse_conditions,
};

/// Where a VSE is, for its users.
pub enum Situation<'a> {
    /// On its way to run, perhaps with something in the way.
    Starting(Option<Trouble>),
    /// The guest runs, or is paused.
    Running(Guest<'a>),
    /// Being ended, with what is waited for.
    Stopping(String),
    /// Not running, as asked for.
    Halted,
    /// Waiting before the next start.
    BackOff {
        /// How the last incarnation ended.
        exit: ExitRecord,
        /// When the next may start.
        until: Timestamp,
    },
    /// Ended, not to be started again.
    Over(ExitRecord),
    /// Nothing can be started as things stand.
    Refused(Refusal),
}

/// A guest that runs or is paused.
pub struct Guest<'a> {
    /// Its MicroVM.
    pub vm: &'a MicroVM,
    /// Fields whose change waits for the next incarnation.
    pub changed: Vec<String>,
    /// Why the next incarnation could not be made.
    pub refusal: Option<Refusal>,
    /// Why nobody knows whether it still runs.
    pub lost: Option<Trouble>,
}

impl Situation<'_> {
    /// On its way, nothing in the way.
    pub fn starting() -> Self {
        Situation::Starting(None)
    }
}

/// The status that reports the situation. `base` has incarnation, last exit and failures as they should be.
pub fn report(seen: &Observed, base: VSEStatus, situation: Situation<'_>) -> VSEStatus {
    let mut report = Report {
        generation: seen.vse.metadata.generation,
        now: seen.now,
        previous: base.conditions.clone(),
        conditions: Vec::new(),
    };
    let mut status = VSEStatus { observed_generation: seen.vse.metadata.generation, ..base };
    status.phase = Some(match &situation {
        Situation::Starting(trouble) => report.starting(status.incarnation, trouble.as_ref()),
        Situation::Running(guest) => {
            let told = guest.vm.status.clone().unwrap_or_default();
            let phase = report.running(guest, &told, seen.vse.spec.paused);
            copy(&mut status, guest.vm, told);
            phase
        }
        Situation::Stopping(why) => {
            report.unready(Reason::Stopping, why);
            report.progressing(Reason::Stopping, why);
            report.stalled(None);
            VSEPhase::Stopping
        }
        Situation::Halted => {
            report.settled(Reason::Halted, "not running, as runStrategy asks for");
            VSEPhase::Halted
        }
        Situation::BackOff { exit, until } => {
            let message = format!("{}; next start at {until:.0}", ending(exit));
            report.unready(Reason::BackOff, &message);
            report.progressing(Reason::BackOff, &message);
            report.stalled(None);
            VSEPhase::BackOff
        }
        Situation::Over(exit) if exit.reason.is_failure() => {
            report.settled(Reason::Failed, &ending(exit));
            VSEPhase::Failed
        }
        Situation::Over(exit) => {
            report.settled(Reason::Succeeded, &ending(exit));
            VSEPhase::Succeeded
        }
        Situation::Refused(refusal) => report.refused(refusal),
    });
    if !matches!(situation, Situation::Running(_)) {
        status.addresses.clear();
        status.guest = None;
    }
    status.conditions = report.conditions;
    status
}

/// A status that says that a call the plan needs was refused by the API server.
pub fn report_failure(seen: &Observed, base: VSEStatus, refusal: Refusal) -> VSEStatus {
    report(seen, base, Situation::Refused(refusal))
}

/// What the MicroVM's status says of the guest.
fn copy(status: &mut VSEStatus, vm: &MicroVM, told: MicroVMStatus) {
    status.node_name = Some(vm.spec.node_name.clone());
    status.engine = Some(vm.spec.engine.clone());
    status.accelerator = Some(vm.spec.accelerator);
    status.addresses = told.addresses;
    status.guest = told.guest;
    status.started_at = told.timings.and_then(|t| t.booted).or(status.started_at);
}

fn ending(exit: &ExitRecord) -> String {
    let reason = exit.reason;
    let separator = if exit.message.is_empty() { "" } else { ": " };
    format!("incarnation {} ended ({reason:?}){separator}{}", exit.incarnation, exit.message)
}

/// Conditions under way.
struct Report {
    generation: Option<i64>,
    now: Timestamp,
    previous: Vec<Condition>,
    conditions: Vec<Condition>,
}

impl Report {
    fn starting(&mut self, incarnation: i64, trouble: Option<&Trouble>) -> VSEPhase {
        let message = format!("incarnation {incarnation} is being started");
        self.progressing(Reason::Starting, &message);
        self.stalled(None);
        let Some(trouble) = trouble else {
            self.unready(Reason::Starting, &message);
            return VSEPhase::Starting;
        };
        let said = condition::find(&self.previous, vse_conditions::READY)
            .filter(|ready| trouble.vague && ready.reason == trouble.reason.as_str())
            .map_or(trouble.message.clone(), |ready| ready.message.clone());
        self.unready(trouble.reason, &said);
        match trouble.reason {
            Reason::Unschedulable => VSEPhase::Scheduling,
            _ => VSEPhase::Starting,
        }
    }

    fn running(&mut self, guest: &Guest<'_>, told: &MicroVMStatus, pause: bool) -> VSEPhase {
        use vse_conditions::{AGENT_CONNECTED, PAUSED, PROGRESSING, READY, RESTART_REQUIRED};
        let spec = &guest.vm.spec;
        let paused = told.phase == Some(MicroVMPhase::Paused);
        let state = if paused { Reason::Paused } else { Reason::Running };
        if let Some(lost) = &guest.lost {
            self.set(READY, Status::Unknown, lost.reason, &lost.message);
        } else if !paused {
            let place = format!("incarnation {} on host {}", spec.incarnation, spec.node_name);
            self.set(READY, Status::True, state, &place);
        }
        match (pause, paused) {
            (true, false) => self.progressing(Reason::Paused, "the vCPUs are being stopped"),
            (false, true) => self.progressing(Reason::Running, "the vCPUs are being started"),
            _ => self.set(PROGRESSING, Status::False, Reason::AsSpecified, ""),
        }
        self.stalled(guest.refusal.as_ref());
        self.set(PAUSED, paused.into(), state, "");
        if let Some(agent) = condition::find(&told.conditions, microvm_conditions::AGENT_CONNECTED) {
            let connected = match agent.status.as_str() {
                "True" => Status::True,
                "False" => Status::False,
                _ => Status::Unknown,
            };
            self.push(AGENT_CONNECTED, connected, &agent.reason, &agent.message);
        }
        if guest.changed.is_empty() {
            self.set(RESTART_REQUIRED, Status::False, Reason::AsSpecified, "");
        } else {
            let fields = format!("changes of {} wait for a restart (kubectl vse restart)", guest.changed.join(", "));
            self.set(RESTART_REQUIRED, Status::True, Reason::SpecChanged, &fields);
        }
        if paused { VSEPhase::Paused } else { VSEPhase::Running }
    }

    /// A spec that can't be met. Without hosts there is nothing wrong with it: that is waited out.
    fn refused(&mut self, refusal: &Refusal) -> VSEPhase {
        let message = refusal.to_string();
        self.unready(refusal.reason, &message);
        if refusal.reason == Reason::NoHost {
            self.progressing(refusal.reason, &message);
            self.stalled(None);
            return VSEPhase::Scheduling;
        }
        self.set(vse_conditions::PROGRESSING, Status::False, refusal.reason, "");
        self.stalled(Some(refusal));
        VSEPhase::Refused
    }

    /// Nothing under way and nothing meant to run: no `Ready`.
    fn settled(&mut self, reason: Reason, message: &str) {
        self.set(vse_conditions::PROGRESSING, Status::False, reason, message);
        self.stalled(None);
    }

    fn unready(&mut self, reason: Reason, message: &str) {
        self.set(vse_conditions::READY, Status::False, reason, message);
    }

    fn progressing(&mut self, reason: Reason, message: &str) {
        self.set(vse_conditions::PROGRESSING, Status::True, reason, message);
    }

    fn stalled(&mut self, refusal: Option<&Refusal>) {
        let type_ = vse_conditions::STALLED;
        match refusal {
            Some(refusal) => {
                self.set(type_, Status::True, refusal.reason, &refusal.to_string());
            }
            None => self.set(type_, Status::False, Reason::Accepted, ""),
        }
    }

    fn set(&mut self, type_: &str, status: Status, reason: Reason, message: &str) {
        self.push(type_, status, reason.as_str(), message);
    }

    fn push(&mut self, type_: &str, status: Status, reason: &str, message: &str) {
        self.conditions.push(condition::condition(
            &self.previous,
            type_,
            status,
            reason,
            message,
            self.generation,
            self.now,
        ));
    }
}
