//! Where the latest incarnation is, read from what exists of it, pure.
//!
//! ```text
//! Unborn ──pod──► Pending ──MicroVM──► Placed ──Released──► Leaving ──pod ended──► Ended
//!    ▲               │                                                              ▲ │
//!    └──pod deleted──┘ (no guest was ever ordered)      pod ended without MicroVM ──┘ │ recorded in status, objects removed
//!                                                                                     ▼ next incarnation claimed: Unborn
//! ```

use crate::vse::exit;
use crate::vse::observe::Observed;
use crate::vse::pod_facts::PodFacts;
use std::sync::Arc;
use vse_crds::{ExitRecord, MicroVM, MicroVMPhase};

use k8s_openapi::api::core::v1::Pod;

/// Where the latest incarnation is.
pub enum Life<'a> {
    /// Nothing of it exists, or none was claimed yet.
    Unborn,
    /// It has a pod; no guest was ordered.
    Pending {
        /// The pod.
        pod: &'a Pod,
    },
    /// The guest was ordered; it may be running.
    Placed {
        /// The order.
        vm: &'a MicroVM,
        /// The pod, if it is still there.
        pod: Option<&'a Pod>,
    },
    /// The guest is gone; the pod still runs (its launcher).
    Leaving {
        /// The pod.
        pod: &'a Pod,
    },
    /// Over: no process of it is left. Objects of it may be.
    Ended {
        /// How.
        exit: ExitRecord,
        /// Whether the VSE's status has it, so that the objects are no longer needed.
        recorded: bool,
    },
}

impl<'a> Life<'a> {
    /// Where the incarnation is.
    pub fn of(seen: &'a Observed, incarnation: i64) -> Life<'a> {
        if incarnation == 0 {
            return Life::Unborn;
        }
        let recorded = seen
            .vse
            .status
            .as_ref()
            .and_then(|status| status.last_exit.as_ref())
            .filter(|exit| exit.incarnation >= incarnation);
        if let Some(exit) = recorded {
            return Life::Ended { exit: exit.clone(), recorded: true };
        }
        let vm = seen.microvm(incarnation).map(Arc::as_ref);
        let pod = seen.pod(incarnation).map(Arc::as_ref).filter(|pod| vm.is_none_or(|vm| !is_stray(pod, vm)));
        let end = pod.and_then(|pod| PodFacts::of(pod).end());
        let said = vm.filter(|vm| is_released(vm)).and_then(|vm| vm.status.as_ref()?.exit.clone());
        let ended = |exit| Life::Ended { exit: ExitRecord { incarnation, ..exit }, recorded: false };
        match (vm, said, pod, end) {
            (None, _, None, _) => Life::Unborn,
            // A deleted pod that no guest was ordered for leaves no end: nothing lived in it.
            (None, _, Some(pod), Some(end)) if !PodFacts::of(pod).deleting() => {
                ended(exit::without_guest(incarnation, &end, seen.now))
            }
            (None, _, Some(pod), _) => Life::Pending { pod },
            (Some(vm), None, pod, _) => Life::Placed { vm, pod },
            (Some(_), Some(_), Some(pod), None) => Life::Leaving { pod },
            (Some(_), Some(exit), _, _) => ended(exit),
        }
    }
}

/// Whether the node runtime says that the host holds nothing of it, and how it ended: one without the other is not its
/// last word yet.
pub fn is_released(vm: &MicroVM) -> bool {
    let status = vm.status.as_ref();
    status.is_some_and(|status| status.phase == Some(MicroVMPhase::Released) && status.exit.is_some())
}

/// Whether the pod has the MicroVM's pod's name only: made anew after the MicroVM's own was deleted. No guest is ever
/// launched in it.
pub fn is_stray(pod: &Pod, vm: &MicroVM) -> bool {
    PodFacts::of(pod).uid() != vm.spec.pod_uid
}
