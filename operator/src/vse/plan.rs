//! What to do next for a VSE, pure.
//!
//! Owns every decision: the executor makes none. What it promises, whatever happened before and however stale the view:
//! a new incarnation is claimed only when the previous one is known to have ended, and a settled plan stays settled.

use crate::reason::Reason;
use crate::vse::exit;
use crate::vse::fingerprint::{self, Fingerprint, fingerprint};
use crate::vse::life::{Life, is_released, is_stray};
use crate::vse::microvm::{self, Adjustable, Placement};
use crate::vse::names;
use crate::vse::observe::Observed;
use crate::vse::order::{self, Order};
use crate::vse::pod::{self, Images};
use crate::vse::pod_facts::PodFacts;
use crate::vse::refusal::Refusal;
use crate::vse::shape::shape;
use crate::vse::status::{Guest, Situation, report};
use crate::vse::storage::storage;
use crate::vse::trouble::{Trouble, host_trouble, launch_trouble};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};
use vse_crds::{ExitRecord, MicroVM, MicroVMPhase, RunStrategy, VSEStatus, labels};

/// One call to the API server.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Add the finalizer to the VSE.
    AddFinalizer,
    /// Remove it; nothing of the VSE is left.
    RemoveFinalizer,
    /// Create the pod of the claimed incarnation.
    CreatePod(Box<Pod>),
    /// Delete a pod.
    DeletePod(Target),
    /// Create the MicroVM of the claimed incarnation.
    CreateMicroVM(Box<MicroVM>),
    /// Change what of an order can change while its guest lives.
    Adjust(Target, Adjustable),
    /// Delete a MicroVM: its node runtime shuts the guest down.
    DeleteMicroVM(Target),
    /// Remove the finalizer of a deleted MicroVM whose host holds nothing of it.
    ReleaseMicroVM(Target),
}

/// The one object an action is for; another of the same name is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl Target {
    fn of<K: Resource>(object: &K) -> Target {
        Target { name: object.name_any(), uid: object.meta().uid.clone().unwrap_or_default() }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Calls, in this order; after a failed one the rest is not done.
    pub actions: Vec<Action>,
    /// What the VSE's status should be.
    pub status: VSEStatus,
    /// When to plan again although nothing changed.
    pub again_at: Option<Timestamp>,
}

/// Plans.
pub fn plan(seen: &Observed, images: &Images) -> Plan {
    let status = seen.status();
    if seen.vse.metadata.deletion_timestamp.is_some() {
        return deletion(seen, status);
    }
    if !seen.vse.finalizers().iter().any(|f| f == labels::FINALIZER) {
        return Plan::only(vec![Action::AddFinalizer], status);
    }
    let newest = incarnations(seen).into_iter().max().unwrap_or(0);
    if newest > status.incarnation {
        // The view of the VSE is older than that of its objects; its own event is on the way.
        return Plan::only(Vec::new(), status);
    }
    let mut actions = Vec::new();
    for old in incarnations(seen) {
        if old < status.incarnation {
            actions.extend(clear(seen, old));
            if lives(seen, old) {
                let why = format!("incarnation {old} is still ending");
                return Plan::of(seen, status, actions, Situation::Stopping(why));
            }
        }
    }
    let next = latest(seen, status, images);
    actions.extend(next.actions);
    Plan { actions, ..next }
}

impl Plan {
    /// Actions that leave the status as it is.
    fn only(actions: Vec<Action>, status: VSEStatus) -> Plan {
        Plan { actions, status, again_at: None }
    }

    /// Actions, and a status that reports a situation.
    fn of(seen: &Observed, status: VSEStatus, actions: Vec<Action>, situation: Situation<'_>) -> Plan {
        Plan { actions, status: report(seen, status, situation), again_at: None }
    }

    fn again_at(mut self, at: Option<Timestamp>) -> Plan {
        self.again_at = at;
        self
    }
}

/// The latest incarnation's next step.
fn latest(seen: &Observed, status: VSEStatus, images: &Images) -> Plan {
    let halted = seen.vse.spec.run_strategy == RunStrategy::Halted;
    match Life::of(seen, status.incarnation) {
        Life::Unborn if halted => Plan::of(seen, status, Vec::new(), Situation::Halted),
        Life::Unborn => unborn(seen, status, images),
        Life::Pending { pod } if halted => {
            let why = "the pod is being deleted; no guest was started in it".to_owned();
            Plan::of(seen, status, delete_pod(pod), Situation::Stopping(why))
        }
        Life::Pending { pod } => pending(seen, status, pod),
        Life::Placed { vm, pod } => placed(seen, status, vm, pod, halted),
        Life::Leaving { pod } => {
            let why = "the guest is gone; its pod is being deleted".to_owned();
            Plan::of(seen, status, delete_pod(pod), Situation::Stopping(why))
        }
        Life::Ended { exit, recorded } => ended(seen, status, exit, recorded),
    }
}

/// Nothing of the incarnation exists: claim the first, or create the claimed one's pod.
fn unborn(seen: &Observed, mut status: VSEStatus, images: &Images) -> Plan {
    let order = match Order::new(seen, None) {
        Ok(order) => order,
        Err(refusal) => return Plan::of(seen, status, Vec::new(), Situation::Refused(refusal)),
    };
    if status.incarnation == 0 {
        claim(&mut status, 1);
        return Plan::of(seen, status, Vec::new(), Situation::starting());
    }
    let pod = pod::build(&seen.vse, status.incarnation, &order, images);
    let actions = vec![Action::CreatePod(Box::new(pod))];
    Plan::of(seen, status, actions, Situation::starting())
}

/// There is a pod, and no guest was ordered: bound, it gets its MicroVM; outdated, it is replaced.
fn pending(seen: &Observed, status: VSEStatus, pod: &Pod) -> Plan {
    let facts = PodFacts::of(pod);
    if facts.deleting() {
        return Plan::of(seen, status, Vec::new(), Situation::starting());
    }
    let placed = facts.node().and_then(|_| pod::made_with(pod));
    let order = match Order::new(seen, placed) {
        Ok(order) => order,
        // Hosts that went away are no reason to give up a pod's place in the queue.
        Err(refusal) if is_about_hosts(&refusal) && !is_outdated(seen, pod) => {
            return waiting_for_host(seen, status, &facts);
        }
        Err(refusal) => {
            return Plan::of(seen, status, delete_pod(pod), Situation::Refused(refusal));
        }
    };
    if is_outdated(seen, pod) || pod::made_with(pod) != Some(order.choice) {
        return Plan::of(seen, status, delete_pod(pod), Situation::starting());
    }
    let Some(node) = facts.node() else {
        return waiting_for_host(seen, status, &facts);
    };
    let placement = Placement { pod_name: pod.name_any(), pod_uid: facts.uid().to_owned(), node_name: node.to_owned() };
    let vm = microvm::build(&seen.vse, status.incarnation, &order, &placement);
    let actions = vec![Action::CreateMicroVM(Box::new(vm))];
    Plan::of(seen, status, actions, Situation::starting())
}

fn waiting_for_host(seen: &Observed, status: VSEStatus, pod: &PodFacts<'_>) -> Plan {
    let (trouble, again) = match pod.unschedulable(seen.now) {
        Some(Ok(message)) => (Some(Trouble::new(Reason::Unschedulable, message)), None),
        Some(Err(later)) => (None, Some(later)),
        None => (None, None),
    };
    Plan::of(seen, status, Vec::new(), Situation::Starting(trouble)).again_at(again)
}

/// The guest was ordered: end it when it should not run, else see that it does as asked.
fn placed(seen: &Observed, status: VSEStatus, vm: &MicroVM, pod: Option<&Pod>, halted: bool) -> Plan {
    let mut actions = stray_pod(seen, vm);
    actions.extend(adjust(seen, vm));
    let restart = restart_wanted(seen, Some(vm), pod) || (!has_started(vm) && !changed_fields(seen, pod).is_empty());
    let deleting = vm.metadata.deletion_timestamp.is_some();
    if halted || restart || deleting {
        if !deleting {
            actions.push(Action::DeleteMicroVM(Target::of(vm)));
        }
        let why = if halted {
            "the guest is being shut down"
        } else {
            "the guest is being shut down; another incarnation follows"
        };
        return Plan::of(seen, status, actions, Situation::Stopping(why.into()));
    }
    match vm.status.as_ref().and_then(|status| status.phase) {
        Some(MicroVMPhase::Running | MicroVMPhase::Paused) => {
            let guest = Guest {
                vm,
                changed: changed_fields(seen, pod),
                refusal: next_refusal(seen),
                lost: host_trouble(seen, vm, pod),
            };
            Plan::of(seen, status, actions, Situation::Running(guest))
        }
        Some(MicroVMPhase::Stopping | MicroVMPhase::Released) => {
            let why = "the guest is shutting down".to_owned();
            Plan::of(seen, status, actions, Situation::Stopping(why))
        }
        Some(MicroVMPhase::Preparing) | None => {
            let (trouble, again) = launch_trouble(seen, vm, pod);
            Plan::of(seen, status, actions, Situation::Starting(trouble)).again_at(again)
        }
    }
}

/// Whether a guest may have run already. Until then a changed spec, which may name a better image, is followed at once:
/// nothing is lost with an incarnation that never ran.
fn has_started(vm: &MicroVM) -> bool {
    !matches!(vm.status.as_ref().and_then(|status| status.phase), None | Some(MicroVMPhase::Preparing))
}

/// The incarnation is over: record it, then the next one, the wait for it, or the end.
fn ended(seen: &Observed, mut status: VSEStatus, exit: ExitRecord, recorded: bool) -> Plan {
    let incarnation = status.incarnation;
    if !recorded {
        status.recent_failures = exit::recent_failures(status.recent_failures, &exit, started_at(seen, &status));
        status.last_exit = Some(exit.clone());
    }
    let strategy = seen.vse.spec.run_strategy;
    let stray = seen.microvm(incarnation).map(|vm| stray_pod(seen, vm)).unwrap_or_default();
    if !stray.is_empty() {
        let why = "a pod that no guest was ordered in is being deleted".to_owned();
        return Plan::of(seen, status, stray, Situation::Stopping(why));
    }
    if strategy == RunStrategy::Halted {
        let actions = if recorded { clear(seen, incarnation) } else { Vec::new() };
        return Plan::of(seen, status, actions, Situation::Halted);
    }
    let vm = seen.microvm(incarnation).map(|vm| vm.as_ref());
    let pod = seen.pod(incarnation).map(|pod| pod.as_ref());
    if !exit::follows(strategy, &exit) && !restart_wanted(seen, vm, pod) {
        // Pod and MicroVM stay, for logs; only what somebody deleted is let go.
        let gone = |vm: &&MicroVM| recorded && vm.metadata.deletion_timestamp.is_some();
        let release = vm.filter(gone).map(|vm| Action::ReleaseMicroVM(Target::of(vm)));
        return Plan::of(seen, status, release.into_iter().collect(), Situation::Over(exit));
    }
    let due = exit::due(&status, &exit);
    if seen.now < due {
        let situation = Situation::BackOff { exit, until: due };
        return Plan::of(seen, status, Vec::new(), situation).again_at(Some(due));
    }
    if let Err(refusal) = Order::new(seen, None) {
        return Plan::of(seen, status, Vec::new(), Situation::Refused(refusal));
    }
    claim(&mut status, incarnation + 1);
    Plan::of(seen, status, Vec::new(), Situation::starting())
}

/// The VSE is being deleted: every guest is shut down, then everything of it goes, then its finalizer.
fn deletion(seen: &Observed, status: VSEStatus) -> Plan {
    let all = incarnations(seen);
    if !seen.vse.finalizers().iter().any(|f| f == labels::FINALIZER) {
        return Plan::only(Vec::new(), status);
    }
    if all.is_empty() {
        return Plan::only(vec![Action::RemoveFinalizer], status);
    }
    let actions = all.iter().flat_map(|&n| clear(seen, n)).collect();
    let waiting = all.iter().filter_map(|&n| seen.microvm(n)).find(|vm| !is_released(vm));
    match waiting {
        None => Plan::only(actions, status),
        Some(vm) => {
            let node = &vm.spec.node_name;
            let why = match seen.host(node) {
                Some(_) => format!("host {node} is shutting the guest down"),
                None => format!("host {node} is gone; the guest can't be known to have ended"),
            };
            Plan::of(seen, status, actions, Situation::Stopping(why))
        }
    }
}

/// Ends an incarnation and removes what is left of it, in order: MicroVM deleted (the guest is shut down), released by
/// its host, pod deleted, finalizer removed.
fn clear(seen: &Observed, incarnation: i64) -> Vec<Action> {
    let pod = seen.pod(incarnation);
    let Some(vm) = seen.microvm(incarnation) else {
        return pod.map(|pod| delete_pod(pod)).unwrap_or_default();
    };
    let mut actions = stray_pod(seen, vm);
    actions.extend(adjust(seen, vm));
    let deleting = vm.metadata.deletion_timestamp.is_some();
    if !deleting {
        actions.push(Action::DeleteMicroVM(Target::of(vm.as_ref())));
    }
    if is_released(vm) {
        let own = pod.filter(|pod| !is_stray(pod, vm));
        actions.extend(own.into_iter().flat_map(|pod| delete_pod(pod)));
        if deleting {
            actions.push(Action::ReleaseMicroVM(Target::of(vm.as_ref())));
        }
    }
    actions
}

/// Has the order follow the spec in what can change while the guest lives, also while it is shutting down.
fn adjust(seen: &Observed, vm: &MicroVM) -> Option<Action> {
    let wanted = Adjustable::wanted(&seen.vse.spec);
    (!is_released(vm) && Adjustable::ordered(&vm.spec) != wanted).then(|| Action::Adjust(Target::of(vm), wanted))
}

/// Whether a process of the incarnation may be left.
fn lives(seen: &Observed, incarnation: i64) -> bool {
    let vm = seen.microvm(incarnation).is_some_and(|vm| !is_released(vm));
    let pod = seen.pod(incarnation).is_some_and(|pod| PodFacts::of(pod).end().is_none());
    vm || pod
}

/// Numbers of all incarnations something exists of.
fn incarnations(seen: &Observed) -> Vec<i64> {
    let pods = seen.pods.iter().map(|pod| &pod.metadata);
    let vms = seen.microvms.iter().map(|vm| &vm.metadata);
    let mut numbers: Vec<_> = pods.chain(vms).filter_map(|meta| names::incarnation(meta, seen.uid())).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Claims an incarnation: what the status says of the guest speaks of the new one from here on.
fn claim(status: &mut VSEStatus, incarnation: i64) {
    *status = VSEStatus {
        incarnation,
        observed_generation: status.observed_generation,
        last_exit: status.last_exit.take(),
        recent_failures: status.recent_failures,
        conditions: std::mem::take(&mut status.conditions),
        ..VSEStatus::default()
    };
}

fn started_at(seen: &Observed, status: &VSEStatus) -> Option<Timestamp> {
    let vm = seen.microvm(status.incarnation)?;
    let timings = vm.status.as_ref()?.timings.as_ref();
    timings.and_then(|t| t.booted).or(status.started_at)
}

fn delete_pod(pod: &Pod) -> Vec<Action> {
    if PodFacts::of(pod).deleting() { Vec::new() } else { vec![Action::DeletePod(Target::of(pod))] }
}

fn stray_pod(seen: &Observed, vm: &MicroVM) -> Vec<Action> {
    seen.pod(vm.spec.incarnation).filter(|pod| is_stray(pod, vm)).map(|pod| delete_pod(pod)).unwrap_or_default()
}

/// Whether the user asked for a restart that the incarnation was not made with.
fn restart_wanted(seen: &Observed, vm: Option<&MicroVM>, pod: Option<&Pod>) -> bool {
    let made_with = match (vm, pod) {
        (Some(vm), _) => vm.annotations().get(names::MADE_WITH_RESTART),
        (None, Some(pod)) => pod.annotations().get(names::MADE_WITH_RESTART),
        (None, None) => return false,
    };
    let asked = names::restarted_at(&seen.vse);
    asked.is_some() && asked != made_with.map(String::as_str)
}

/// Whether a pod without a guest was made from another spec or for an earlier restart.
fn is_outdated(seen: &Observed, pod: &Pod) -> bool {
    !changed_fields(seen, Some(pod)).is_empty() || restart_wanted(seen, None, Some(pod))
}

/// Field paths in which the spec differs from the one the pod was made from.
fn changed_fields(seen: &Observed, pod: Option<&Pod>) -> Vec<String> {
    let was: Option<Fingerprint> = pod
        .and_then(|pod| pod.annotations().get(fingerprint::ANNOTATION))
        .and_then(|json| serde_json::from_str(json).ok());
    match (was, order::resolve(seen)) {
        (Some(was), Ok(spec)) => fingerprint::changed(&was, &fingerprint(&spec)),
        _ => Vec::new(),
    }
}

/// Why no next incarnation could be made from the spec; hosts, which come and go, apart.
fn next_refusal(seen: &Observed) -> Option<Refusal> {
    let spec = match order::resolve(seen) {
        Ok(spec) => spec,
        Err(refusal) => return Some(refusal),
    };
    shape(&spec.machine).err().or(storage(&spec, &seen.claims).err())
}

fn is_about_hosts(refusal: &Refusal) -> bool {
    matches!(
        refusal.reason,
        Reason::NoHost
            | Reason::NoEngine
            | Reason::InsufficientCPUs
            | Reason::InsufficientMemory
            | Reason::InsufficientHugePages
            | Reason::InsufficientDevices
            | Reason::DeviceClassNotFound
    )
}
