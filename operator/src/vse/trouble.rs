//! What keeps a guest from starting, or from being known to run, read from pod, MicroVM and host, pure.

use crate::reason::Reason;
use crate::vse::observe::Observed;
use crate::vse::pod_facts::{PodFacts, SLOW_AFTER};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use vse_crds::{MicroVM, condition};

/// How often a pod that is slow to start is looked at; its events are not watched.
const SLOW_AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// What keeps a guest from starting for longer than usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The kind of trouble.
    pub reason: Reason,
    /// What is known of it.
    pub message: String,
    /// The message adds nothing to an earlier one for the same reason.
    pub vague: bool,
}

impl Trouble {
    /// Trouble with its message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Trouble { reason, message: message.into(), vague: false }
    }

    /// kubelet's reason why it can't make the container. It alternates between the failure and "Back-off …", which
    /// must not alternate the status.
    pub fn pod(reason: &str, message: &str) -> Self {
        Trouble {
            vague: reason.ends_with("BackOff"),
            ..Trouble::new(Reason::PodNotStarting, format!("{reason}: {message}"))
        }
    }
}

/// Why nobody can tell what an ordered guest does: its host is gone or does not answer. Whether it may be started
/// elsewhere is a matter of fencing; until it is known to have ended, it is waited for.
pub fn host_trouble(seen: &Observed, vm: &MicroVM, pod: Option<&Pod>) -> Option<Trouble> {
    let node = &vm.spec.node_name;
    if seen.host(node).is_none() {
        let message = format!("host {node} is gone; the guest can't be known to have ended");
        return Some(Trouble::new(Reason::HostGone, message));
    }
    let silent = pod.is_some_and(|pod| PodFacts::of(pod).unreachable());
    silent.then(|| {
        let message = format!("kubelet of host {node} does not answer; the guest can't be known to have ended");
        Trouble::new(Reason::HostSilent, message)
    })
}

/// What keeps an ordered guest from running, when it takes long; and when to look again.
pub fn launch_trouble(seen: &Observed, vm: &MicroVM, pod: Option<&Pod>) -> (Option<Trouble>, Option<Timestamp>) {
    let node = &vm.spec.node_name;
    if let Some(trouble) = host_trouble(seen, vm, pod) {
        return (Some(trouble), None);
    }
    let facts = pod.map(PodFacts::of);
    if let Some((reason, message)) = facts.as_ref().and_then(PodFacts::waiting) {
        return (Some(Trouble::pod(reason, message)), None);
    }
    let ready = vm.status.as_ref().and_then(|status| condition::find(&status.conditions, "Ready"));
    if let Some(ready) = ready.filter(|c| c.status != "True" && !c.message.is_empty()) {
        let reason = if ready.reason == Reason::Preparing.as_str() { Reason::Preparing } else { Reason::LaunchDelayed };
        return (Some(Trouble::new(reason, &ready.message)), None);
    }
    let slow_at = facts.as_ref().and_then(PodFacts::slow_at);
    let running = facts.as_ref().is_some_and(PodFacts::running);
    let silent_at = vm
        .metadata
        .creation_timestamp
        .as_ref()
        .filter(|_| running && vm.status.is_none())
        .map(|created| created.0 + SLOW_AFTER + SLOW_AFTER);
    match (slow_at, silent_at) {
        (Some(at), _) if at <= seen.now => {
            let trouble = seen.pod_warning.as_ref();
            (trouble.map(|warning| Trouble::new(Reason::PodNotStarting, warning)), Some(seen.now + SLOW_AGAIN))
        }
        (_, Some(at)) if at <= seen.now => {
            let message = format!("the node runtime of host {node} has not taken up the guest");
            (Some(Trouble::new(Reason::HostSilent, message)), None)
        }
        (slow_at, silent_at) => (None, slow_at.into_iter().chain(silent_at).min()),
    }
}
