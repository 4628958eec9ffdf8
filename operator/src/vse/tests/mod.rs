//! Tests of the planner and of what it builds.

mod decisions;
mod golden;
mod properties;
mod refusals;
mod sim;

use crate::vse::pod::Images;
use std::sync::Arc;
use vse_crds::{Host, VSE};

/// A small VSE.
pub(crate) const DEMO: &str = r"
apiVersion: vse.hpc.io/v1alpha1
kind: VSE
metadata: {name: demo, namespace: team, uid: vse-uid, generation: 1, resourceVersion: '1'}
spec:
  system: {image: example.org/debian-hpc:13}
  machine: {memory: {guest: 512Mi}}
";

/// A host that emulates.
const HOST: &str = r"
apiVersion: vse.hpc.io/v1alpha1
kind: Host
metadata: {name: host-1}
spec: {}
status:
  cpu: {count: 8}
  memory: 32Gi
  kvm: {usable: false, reason: the CPU has neither vmx nor svm}
  emulation: Allow
  engines: [{name: qemu, accelerators: [TCG]}]
  cells:
  - {id: 0, cpus: 0-7, memory: 32Gi, hugePages: [{pageSize: 2Mi, total: 512}]}
  conditions:
  - {type: Ready, status: 'True', reason: Ready, message: '', lastTransitionTime: '2026-01-01T00:00:00Z'}
";

pub(crate) fn from_yaml<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
    serde_yaml::from_str(yaml).unwrap()
}

pub(crate) fn vse() -> VSE {
    from_yaml(DEMO)
}

pub(crate) fn host() -> Arc<Host> {
    Arc::new(from_yaml(HOST))
}

pub(crate) fn images() -> Images {
    Images {
        launcher: "example.org/vse/launcher:1".into(),
        engine_qemu: "example.org/vse/engine-qemu:1".into(),
        pull_policy: None,
    }
}
