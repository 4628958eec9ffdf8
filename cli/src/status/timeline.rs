//! The steps of an incarnation's start, and how long each took.
//!
//! The API server's times are whole seconds and its clock is not the host's: durations across the two are good to about
//! a second, and one that comes out negative is shown as 0.

use super::Seen;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use serde::Serialize;

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What was reached.
    pub step: &'static str,
    /// When; none: not yet, or not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Seconds since the last step before it that has a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Seconds since the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_seconds: Option<f64>,
}

/// The steps in order. The first incarnation's begin with the VSE itself, later ones with their pod.
pub fn steps(seen: &Seen) -> Vec<Step> {
    let Some(status) = seen.vse.status.as_ref().filter(|status| status.incarnation > 0) else {
        return Vec::new();
    };
    let created = seen.vse.meta().creation_timestamp.as_ref().map(|t| t.0);
    let vm = seen.microvm.as_ref().and_then(|vm| vm.status.as_ref());
    let timings = vm.and_then(|status| status.timings.clone()).unwrap_or_default();
    let pod = seen.pod.as_ref();
    let first = status.incarnation == 1;
    let times = [
        ("created", created.filter(|_| first)),
        ("pod created", pod.and_then(|p| Some(p.meta().creation_timestamp.as_ref()?.0))),
        ("scheduled", pod.and_then(scheduled)),
        ("pod ready", timings.pod_ready),
        ("prepared", timings.prepared),
        ("engine started", timings.engine_started),
        ("booted", timings.booted),
        ("agent connected", timings.agent_connected),
    ];
    measure(times.into_iter().filter(|(name, _)| first || *name != "created"))
}

fn measure(times: impl Iterator<Item = (&'static str, Option<Timestamp>)>) -> Vec<Step> {
    let (mut first, mut last) = (None, None);
    times
        .map(|(step, at)| {
            let since = |from: Option<Timestamp>| {
                let elapsed = at?.duration_since(from?).as_secs_f64();
                Some((elapsed.max(0.0) * 1000.0).round() / 1000.0)
            };
            let (seconds, total_seconds) = (since(last), since(first));
            first = first.or(at);
            last = at.or(last);
            Step { step, at, seconds, total_seconds }
        })
        .collect()
}

/// When kube-scheduler bound the pod.
fn scheduled(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let bound = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "True")?;
    Some(bound.last_transition_time.as_ref()?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millisecond: i64) -> Option<Timestamp> {
        Some(Timestamp::from_millisecond(millisecond).unwrap())
    }

    #[test]
    fn steps_without_a_time_are_bridged() {
        let steps = measure([("a", at(1000)), ("b", None), ("c", at(2500))].into_iter());
        assert_eq!(steps[0].seconds, None);
        assert_eq!(steps[1].total_seconds, None);
        assert_eq!(steps[2].seconds, Some(1.5));
        assert_eq!(steps[2].total_seconds, Some(1.5));
    }

    #[test]
    fn clocks_apart_never_give_negative_durations() {
        let steps = measure([("a", at(2000)), ("b", at(1900)), ("c", at(2100))].into_iter());
        assert_eq!(steps[1].seconds, Some(0.0));
        assert_eq!(steps[2].total_seconds, Some(0.1));
    }
}
