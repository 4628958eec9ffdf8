//! What a plan is made from: the VSE and everything it refers to or owns, at one time.

use crate::vse::names;
use crate::vse::storage::Claims;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use std::collections::BTreeSet;
use std::sync::Arc;
use vse_crds::{EngineName, Host, MicroVM, VSE, VSEProfile, VSEStatus};

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The VSE.
    pub vse: Arc<VSE>,
    /// The profile it names, if it exists.
    pub profile: Option<Arc<VSEProfile>>,
    /// The claims it names, those that exist.
    pub claims: Claims,
    /// Engines that VM pods can be made of.
    pub engines: BTreeSet<EngineName>,
    /// All hosts.
    pub hosts: Vec<Arc<Host>>,
    /// Its pods, of all incarnations.
    pub pods: Vec<Arc<Pod>>,
    /// Its MicroVMs, of all incarnations.
    pub microvms: Vec<Arc<MicroVM>>,
    /// The newest warning among the events of a pod that takes long to start.
    pub pod_warning: Option<String>,
    /// The time.
    pub now: Timestamp,
}

impl Observed {
    /// UID of the VSE.
    pub fn uid(&self) -> &str {
        self.vse.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The VSE's status; the default before the first.
    pub fn status(&self) -> VSEStatus {
        self.vse.status.clone().unwrap_or_default()
    }

    /// The pod of an incarnation.
    pub fn pod(&self, incarnation: i64) -> Option<&Arc<Pod>> {
        self.pods.iter().find(|pod| names::incarnation(&pod.metadata, self.uid()) == Some(incarnation))
    }

    /// The MicroVM of an incarnation.
    pub fn microvm(&self, incarnation: i64) -> Option<&Arc<MicroVM>> {
        self.microvms.iter().find(|vm| names::incarnation(&vm.metadata, self.uid()) == Some(incarnation))
    }

    /// The Host object of that name.
    pub fn host(&self, name: &str) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| host.name_any() == name)
    }
}
