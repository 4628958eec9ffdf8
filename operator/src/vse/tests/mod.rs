//! Tests of the planner and of what it builds.

mod choices;
mod decisions;
mod golden;
mod properties;
mod refusals;
mod sim;

use crate::vse::pod::Images;
use std::sync::Arc;
use vse_crds::{Accelerator, EngineName, Host, HostEngine, VSE};

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
  engines:
  - {name: vmm, reason: KVM is not usable}
  - {name: qemu, accelerators: [TCG], capabilities: [HugePages2Mi, HugePages1Gi, GuestCells]}
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

/// A host with KVM and these engines, best first, that can do all there is to do.
pub(crate) fn fast_host(name: &str, engines: &[EngineName]) -> Arc<Host> {
    let mut fast = host().as_ref().clone();
    fast.metadata.name = Some(name.into());
    let status = fast.status.as_mut().unwrap();
    let capabilities = status.engines[1].capabilities.clone();
    status.engines = engines
        .iter()
        .map(|engine| HostEngine {
            name: *engine,
            accelerators: vec![Accelerator::Kvm],
            capabilities: capabilities.clone(),
            limits: None,
            reason: String::new(),
        })
        .collect();
    Arc::new(fast)
}

pub(crate) fn images() -> Images {
    Images {
        launcher: "example.org/vse/launcher:1".into(),
        engines: EngineName::ALL.map(|engine| (engine, format!("example.org/vse/engine-{}:1", engine.as_str()))).into(),
        pull_policy: None,
    }
}
