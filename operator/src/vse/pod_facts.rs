//! What the planner needs to know of a pod, read from the object, pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use vse_crds::labels;

/// kube-scheduler says "unschedulable" at once and often changes its mind; wait so long before telling users.
pub const UNSCHEDULABLE_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// A container that takes longer than this to be made is worth a look at the pod's events.
pub const SLOW_AFTER: SignedDuration = SignedDuration::from_secs(20);

/// Name, identity and phase of a pod's life, as far as the planner cares.
pub struct PodFacts<'a> {
    pod: &'a Pod,
}

/// How a pod's container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// What was seen.
    pub message: String,
    /// When.
    pub at: Option<Timestamp>,
    /// Whether its container ever ran.
    pub ran: bool,
}

impl<'a> PodFacts<'a> {
    /// Facts of a pod.
    pub fn of(pod: &'a Pod) -> Self {
        PodFacts { pod }
    }

    /// UID.
    pub fn uid(&self) -> &'a str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Its Node, once bound.
    pub fn node(&self) -> Option<&'a str> {
        let node = self.pod.spec.as_ref()?.node_name.as_deref()?;
        (!node.is_empty()).then_some(node)
    }

    /// Whether its deletion was asked for.
    pub fn deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// How it ended; none while any process of it may be running.
    pub fn end(&self) -> Option<PodEnd> {
        let status = self.pod.status.as_ref()?;
        let terminated = self.container().and_then(|c| c.state.as_ref()).and_then(|s| s.terminated.as_ref());
        if let Some(terminated) = terminated {
            return Some(PodEnd {
                message: format!("the container ended with exit code {}", terminated.exit_code),
                at: terminated.finished_at.as_ref().map(|time| time.0),
                ran: true,
            });
        }
        let ran = self.running();
        let message = || {
            let reason = status.reason.as_deref().unwrap_or("no reason given");
            let message = status.message.as_deref().unwrap_or_default();
            let when = if ran { "" } else { " before its container ran" };
            format!("the pod ended{when}: {reason} {message}").trim_end().to_owned()
        };
        let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        over.then(|| PodEnd { message: message(), at: None, ran })
    }

    /// kube-scheduler's words, when it has found no host for a while; else when that while is over.
    pub fn unschedulable(&self, now: Timestamp) -> Option<Result<&'a str, Timestamp>> {
        let conditions = self.pod.status.as_ref()?.conditions.as_ref()?;
        let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
        let since = scheduled.last_transition_time.as_ref()?.0;
        let due = since + UNSCHEDULABLE_AFTER;
        Some(if now < due { Err(due) } else { Ok(scheduled.message.as_deref().unwrap_or("no host fits")) })
    }

    /// Why kubelet can't make the container, when it says so.
    pub fn waiting(&self) -> Option<(&'a str, &'a str)> {
        let waiting = self.container()?.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let message = waiting.message.as_deref().unwrap_or_default();
        let normal = matches!(reason, "" | "ContainerCreating" | "PodInitializing");
        (!normal).then_some((reason, message))
    }

    /// Whether its container runs.
    pub fn running(&self) -> bool {
        self.container().and_then(|c| c.state.as_ref()).is_some_and(|state| state.running.is_some())
    }

    /// Whether the control plane gave up on the pod's kubelet: it marks the pods of such a Node as not ready, and a
    /// running container without probes is never so by itself.
    pub fn unreachable(&self) -> bool {
        let conditions = self.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let mut ready = conditions.into_iter().flatten().filter(|c| c.type_ == "Ready");
        self.running() && ready.any(|c| c.status != "True")
    }

    /// When a bound pod whose container does not run counts as slow.
    pub fn slow_at(&self) -> Option<Timestamp> {
        let start = self.pod.status.as_ref()?.start_time.as_ref()?.0;
        (!self.running() && self.end().is_none()).then(|| start + SLOW_AFTER)
    }

    fn container(&self) -> Option<&'a ContainerStatus> {
        let statuses = self.pod.status.as_ref()?.container_statuses.as_ref()?;
        statuses.iter().find(|c| c.name == labels::VM_CONTAINER)
    }
}
