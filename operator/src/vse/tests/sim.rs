//! A cluster in memory: an API server that checks preconditions as the real one does, and the other actors (scheduler,
//! kubelet, node runtime, guest) as state machines. Every launch of a guest is checked: no other may live.

use super::{host, images, vse};
use crate::vse::execute::without_ours;
use crate::vse::life::{is_released, is_stray};
use crate::vse::names;
use crate::vse::observe::Observed;
use crate::vse::plan::{Action, Plan, Target, plan};
use crate::vse::pod_facts::PodFacts;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};
use k8s_openapi::api::core::v1::{ContainerStateRunning, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use vse_crds::{
    EngineName, ExitReason, ExitRecord, MicroVM, MicroVMPhase, MicroVMStatus, PowerState, Timings, VSE, VSEStatus,
    labels,
};

/// Operators that act at the same time: a leader, and one that does not know yet that it lost the Lease.
pub(crate) const OPERATORS: usize = 2;

/// What the operator is told when a precondition does not hold.
#[derive(Debug)]
pub(crate) struct Refused;

/// Objects of the namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Objects {
    pub(crate) vse: Option<VSE>,
    pub(crate) pods: BTreeMap<String, Pod>,
    pub(crate) vms: BTreeMap<String, MicroVM>,
}

/// The cluster.
pub(crate) struct World {
    /// Objects now, and as they were after each change, oldest first.
    pub(crate) history: Vec<Objects>,
    /// Indices into the history: each operator's view of VSE, pods and MicroVMs; each only grows.
    views: [[usize; 3]; OPERATORS],
    pub(crate) now: Timestamp,
    uids: u64,
    /// Incarnation of each guest that lives, by its pod's UID.
    pub(crate) guests: BTreeMap<String, i64>,
    /// Incarnations that were launched, in order.
    pub(crate) launched: Vec<i64>,
    /// Calls that changed something.
    pub(crate) writes: usize,
}

impl World {
    pub(crate) fn new() -> World {
        World {
            history: vec![Objects { vse: Some(vse()), ..Objects::default() }],
            views: [[0; 3]; OPERATORS],
            now: Timestamp::from_second(1_000_000).unwrap(),
            uids: 0,
            guests: BTreeMap::new(),
            launched: Vec::new(),
            writes: 0,
        }
    }

    pub(crate) fn objects(&self) -> &Objects {
        self.history.last().unwrap()
    }

    /// Changes objects as one write.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Objects)) {
        let mut next = self.objects().clone();
        change(&mut next);
        if next != *self.objects() {
            let version = (self.history.len() + 1).to_string();
            if let (Some(was), Some(is)) = (&self.objects().vse, &mut next.vse)
                && was != is
            {
                if was.spec != is.spec {
                    is.metadata.generation = is.metadata.generation.map(|g| g + 1);
                }
                is.metadata.resource_version = Some(version);
            }
            self.history.push(next);
        }
    }

    pub(crate) fn vse(&mut self, change: impl FnOnce(&mut VSE)) {
        self.change(|objects| {
            if let Some(vse) = &mut objects.vse {
                change(vse);
            }
        });
    }

    pub(crate) fn status(&self) -> VSEStatus {
        let vse = self.objects().vse.as_ref();
        vse.and_then(|vse| vse.status.clone()).unwrap_or_default()
    }

    /// An operator's watches catch up, each by itself: 0 not at all, 255 wholly.
    pub(crate) fn catch_up(&mut self, who: usize, progress: [u8; 3]) {
        let newest = self.history.len() - 1;
        for (view, progress) in self.views[who].iter_mut().zip(progress) {
            *view += (newest - *view) * usize::from(progress) / 255;
        }
    }

    /// What an operator sees; none while it sees no VSE.
    fn observed(&self, who: usize) -> Option<Observed> {
        let [vse, pods, vms] = self.views[who].map(|index| &self.history[index]);
        Some(Observed {
            vse: Arc::new(vse.vse.clone()?),
            profile: None,
            claims: BTreeMap::new(),
            engines: EngineName::ALL.into(),
            hosts: vec![host()],
            pods: pods.pods.values().cloned().map(Arc::new).collect(),
            microvms: vms.vms.values().cloned().map(Arc::new).collect(),
            pod_warning: None,
            now: self.now,
        })
    }

    /// One pass of the first operator with a full view.
    pub(crate) fn operate(&mut self) -> Option<Plan> {
        self.catch_up(0, [255; 3]);
        self.pass(0, usize::MAX)
    }

    /// One pass of an operator, killed after so many calls. Returns its plan.
    pub(crate) fn pass(&mut self, who: usize, killed_after: usize) -> Option<Plan> {
        let seen = self.observed(who)?;
        let plan = plan(&seen, &images());
        let mut calls = 0;
        for action in &plan.actions {
            if calls == killed_after || self.execute(&seen, action).is_err() {
                return Some(plan);
            }
            calls += 1;
        }
        if calls < killed_after && plan.status != seen.status() {
            let _ = self.write_status(&seen, &plan.status);
        }
        Some(plan)
    }

    fn write_status(&mut self, seen: &Observed, status: &VSEStatus) -> Result<(), Refused> {
        let now = self.objects().vse.as_ref().ok_or(Refused)?;
        if now.metadata.resource_version != seen.vse.metadata.resource_version {
            return Err(Refused);
        }
        let was = self.status();
        if status.incarnation != was.incarnation {
            self.check_claim(was.incarnation, status.incarnation);
        }
        self.writes += 1;
        self.vse(|vse| vse.status = Some(status.clone()));
        Ok(())
    }

    /// A claim is the next number, and of the incarnation before nothing runs. A stray pod, which an operator with an
    /// old view may make at any time, never gets a guest.
    fn check_claim(&self, was: i64, is: i64) {
        assert_eq!(is, was + 1);
        let name = labels::incarnation_name("demo", was);
        let vm = self.objects().vms.get(&name);
        assert!(vm.is_none_or(is_released), "{is} is claimed while a host has {was}");
        let pod = self.objects().pods.get(&name).filter(|pod| vm.is_none_or(|vm| !is_stray(pod, vm)));
        let pod = pod.map(PodFacts::of);
        assert!(pod.is_none_or(|pod| pod.end().is_some()), "{is} is claimed while the pod of {was} runs");
    }

    /// As `execute.rs`, against these objects.
    fn execute(&mut self, seen: &Observed, action: &Action) -> Result<(), Refused> {
        self.writes += 1;
        match action {
            Action::AddFinalizer => {
                self.unchanged(seen)?;
                self.vse(|vse| {
                    vse.finalizers_mut().push(labels::FINALIZER.into());
                });
            }
            Action::RemoveFinalizer => {
                self.unchanged(seen)?;
                if !self.objects().pods.is_empty() || !self.objects().vms.is_empty() {
                    return Err(Refused);
                }
                self.vse(|vse| *vse.finalizers_mut() = without_ours(vse.finalizers()));
                self.collect();
            }
            Action::CreatePod(pod) => {
                self.claim_holds(&pod.metadata)?;
                let pod = Pod { metadata: self.born(&pod.metadata), ..pod.as_ref().clone() };
                self.change(|objects| {
                    objects.pods.entry(pod.name_any()).or_insert(pod);
                });
            }
            Action::CreateMicroVM(vm) => {
                self.claim_holds(&vm.metadata)?;
                let vm = MicroVM { metadata: self.born(&vm.metadata), ..vm.as_ref().clone() };
                self.change(|objects| {
                    objects.vms.entry(vm.name_any()).or_insert(vm);
                });
            }
            Action::DeletePod(target) => self.delete_pod(target),
            Action::DeleteMicroVM(target) => {
                let now = Time(self.now);
                self.microvm(target, |vm| {
                    vm.metadata.deletion_timestamp.get_or_insert(now);
                });
                self.collect();
            }
            Action::Adjust(target, to) => {
                self.microvm(target, |vm| {
                    vm.spec.power_state = to.power_state;
                    vm.spec.termination_grace_period_seconds = to.termination_grace_period_seconds;
                });
            }
            Action::ReleaseMicroVM(target) => {
                self.microvm(target, |vm| *vm.finalizers_mut() = without_ours(vm.finalizers()));
                self.collect();
            }
        }
        Ok(())
    }

    fn unchanged(&self, seen: &Observed) -> Result<(), Refused> {
        let now = self.objects().vse.as_ref().ok_or(Refused)?;
        (now.metadata.resource_version == seen.vse.metadata.resource_version).then_some(()).ok_or(Refused)
    }

    fn claim_holds(&self, object: &ObjectMeta) -> Result<(), Refused> {
        let vse = self.objects().vse.as_ref().ok_or(Refused)?;
        let status = self.status();
        let over = status.last_exit.is_some_and(|exit| exit.incarnation >= status.incarnation);
        let number = names::incarnation(object, vse.metadata.uid.as_deref().unwrap());
        let holds = number == Some(status.incarnation) && !over && vse.metadata.deletion_timestamp.is_none();
        holds.then_some(()).ok_or(Refused)
    }

    fn born(&mut self, metadata: &ObjectMeta) -> ObjectMeta {
        self.uids += 1;
        ObjectMeta {
            uid: Some(format!("uid-{}", self.uids)),
            creation_timestamp: Some(Time(self.now)),
            ..metadata.clone()
        }
    }

    fn microvm(&mut self, target: &Target, change: impl FnOnce(&mut MicroVM)) {
        self.change(|objects| {
            let found = objects.vms.get_mut(&target.name);
            if let Some(vm) = found.filter(|vm| vm.metadata.uid.as_deref() == Some(&target.uid)) {
                change(vm);
            }
        });
    }

    /// Deletes a pod: one without a host is gone at once.
    pub(crate) fn delete_pod(&mut self, target: &Target) {
        let now = Time(self.now);
        self.change(|objects| {
            let Some(pod) = objects.pods.get_mut(&target.name) else {
                return;
            };
            if pod.metadata.uid.as_deref() != Some(&target.uid) {
                return;
            }
            if PodFacts::of(pod).node().is_none() {
                objects.pods.remove(&target.name);
            } else {
                pod.metadata.deletion_timestamp.get_or_insert(now);
            }
        });
    }

    /// Removes deleted objects without finalizers.
    pub(crate) fn collect(&mut self) {
        self.change(|objects| {
            objects.vms.retain(|_, vm| vm.metadata.deletion_timestamp.is_none() || !vm.finalizers().is_empty());
            objects.vse = objects
                .vse
                .take()
                .filter(|vse| vse.metadata.deletion_timestamp.is_none() || !vse.finalizers().is_empty());
        });
    }

    /// kube-scheduler binds what has no host.
    pub(crate) fn schedule(&mut self) {
        self.each_pod(|pod, _| {
            let spec = pod.spec.as_mut().unwrap();
            spec.node_name.get_or_insert_with(|| "host-1".into());
        });
    }

    /// kubelet starts containers, ends those of deleted pods whose guest is gone, and removes ended deleted pods.
    pub(crate) fn kubelet(&mut self) {
        let guests = self.guests.clone();
        let now = self.now;
        self.each_pod(|pod, gone| {
            let facts = PodFacts::of(pod);
            if facts.node().is_none() {
                return;
            }
            let ended = facts.end().is_some();
            match (facts.deleting(), ended) {
                (true, true) => *gone = true,
                (true, false) if !guests.contains_key(facts.uid()) => terminate(pod, 0, now),
                (false, false) if !facts.running() => run(pod, now),
                _ => {}
            }
        });
    }

    fn each_pod(&mut self, mut step: impl FnMut(&mut Pod, &mut bool)) {
        self.change(|objects| {
            objects.pods.retain(|_, pod| {
                let mut gone = false;
                step(pod, &mut gone);
                !gone
            });
        });
    }

    /// The node runtime launches guests whose pod runs, and releases those that are deleted or whose pod is.
    pub(crate) fn node_runtime(&mut self) {
        let names: Vec<_> = self.objects().vms.keys().cloned().collect();
        for name in names {
            let vm = self.objects().vms[&name].clone();
            let phase = vm.status.as_ref().and_then(|s| s.phase);
            if phase == Some(MicroVMPhase::Released) {
                continue;
            }
            let pod = self.objects().pods.get(&vm.spec.pod_name);
            let pod = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&vm.spec.pod_uid));
            let facts = pod.map(PodFacts::of);
            let alive = self.guests.contains_key(&vm.spec.pod_uid);
            let ready = facts.as_ref().is_some_and(|pod| pod.running() && !pod.deleting());
            let launched = phase.is_some();
            let why = if vm.metadata.deletion_timestamp.is_some() {
                Some(ExitReason::Stopped)
            } else if facts.as_ref().is_none_or(PodFacts::deleting) {
                Some(ExitReason::PodGone)
            } else if launched && !alive {
                Some(ExitReason::EngineFailed)
            } else if facts.as_ref().is_some_and(|pod| pod.end().is_some()) && !launched {
                Some(ExitReason::PodRefused)
            } else {
                None
            };
            if let Some(why) = why {
                self.release(&name, why);
            } else if ready && !launched {
                self.launch(&name);
            } else if launched {
                self.power(&name);
            }
        }
    }

    fn launch(&mut self, name: &str) {
        let vm = self.objects().vms[name].clone();
        assert!(self.guests.is_empty(), "incarnation {} is launched while {:?} live", vm.spec.incarnation, self.guests);
        assert!(!self.launched.contains(&vm.spec.incarnation), "incarnation {} is launched twice", vm.spec.incarnation);
        self.launched.push(vm.spec.incarnation);
        self.guests.insert(vm.spec.pod_uid.clone(), vm.spec.incarnation);
        self.power(name);
    }

    fn power(&mut self, name: &str) {
        let now = self.now;
        self.change(|objects| {
            let vm = objects.vms.get_mut(name).unwrap();
            let status = vm.status.get_or_insert_default();
            status.phase = Some(match vm.spec.power_state {
                PowerState::Paused => MicroVMPhase::Paused,
                PowerState::Running => MicroVMPhase::Running,
            });
            status.timings.get_or_insert(Timings { booted: Some(now), ..Timings::default() });
        });
    }

    /// The guest ends by itself, and the engine's container with it.
    pub(crate) fn end_guest(&mut self, reason: ExitReason) {
        let Some((uid, incarnation)) = self.guests.pop_first() else {
            return;
        };
        let now = self.now;
        let code = i32::from(reason.is_failure());
        self.each_pod(|pod, _| {
            if pod.metadata.uid.as_ref() == Some(&uid) {
                terminate(pod, code, now);
            }
        });
        let name = labels::incarnation_name("demo", incarnation);
        self.release(&name, reason);
    }

    fn release(&mut self, name: &str, reason: ExitReason) {
        let now = self.now;
        let vm = self.objects().vms[name].clone();
        let lived = self.guests.remove(&vm.spec.pod_uid).is_some();
        self.change(|objects| {
            let vm = objects.vms.get_mut(name).unwrap();
            vm.status = Some(MicroVMStatus {
                phase: Some(MicroVMPhase::Released),
                exit: Some(ExitRecord { incarnation: vm.spec.incarnation, reason, message: String::new(), at: now }),
                ..vm.status.clone().unwrap_or_default()
            });
            // The engine's end is the container's; a launcher that never became an engine goes on waiting.
            let pod = objects.pods.get_mut(&vm.spec.pod_name);
            let own = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&vm.spec.pod_uid));
            if let Some(pod) = own.filter(|_| lived) {
                terminate(pod, i32::from(reason.is_failure()), now);
            }
        });
    }

    /// kubelet refuses a bound pod that has not started.
    pub(crate) fn reject_pod(&mut self) {
        self.each_pod(|pod, _| {
            let facts = PodFacts::of(pod);
            if facts.node().is_some() && !facts.running() && facts.end().is_none() {
                let status = pod.status.get_or_insert_default();
                status.phase = Some("Failed".into());
                status.reason = Some("TopologyAffinityError".into());
            }
        });
    }

    /// Everybody but the user acts, and the operator sees everything, until nothing changes any more.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200 {
            let before = self.history.len();
            self.schedule();
            self.kubelet();
            self.node_runtime();
            let plan = self.operate();
            if self.history.len() > before {
                self.now += SignedDuration::from_millis(100);
                continue;
            }
            match plan.and_then(|plan| plan.again_at) {
                Some(later) => self.now = self.now.max(later),
                None => return,
            }
        }
        panic!("never settles: {:#?}", self.status());
    }
}

fn run(pod: &mut Pod, now: Timestamp) {
    set_state(
        pod,
        "Running",
        ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(now)) }),
            ..ContainerState::default()
        },
    );
}

fn terminate(pod: &mut Pod, exit_code: i32, now: Timestamp) {
    let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
    set_state(
        pod,
        phase,
        ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code,
                finished_at: Some(Time(now)),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        },
    );
}

fn set_state(pod: &mut Pod, phase: &str, state: ContainerState) {
    pod.status = Some(PodStatus {
        phase: Some(phase.into()),
        container_statuses: Some(vec![ContainerStatus {
            name: labels::VM_CONTAINER.into(),
            state: Some(state),
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    });
}
