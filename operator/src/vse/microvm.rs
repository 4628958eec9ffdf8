//! The MicroVM: the order to one node runtime, built once the pod has a host, pure.

use crate::vse::names;
use crate::vse::order::Order;
use kube::ResourceExt;
use serde::Serialize;
use vse_crds::{Boot, MicroVM, MicroVMNetwork, MicroVMSpec, PowerState, VSE, VSESpec, labels};

/// The pod an order goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Name of the pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Its Node.
    pub node_name: String,
}

/// What of an order can change while its guest lives: everything of a VSE's spec that is not in a
/// [`ResolvedSpec`](crate::vse::merge::ResolvedSpec), `runStrategy` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Adjustable {
    /// What a guest that is meant to run should be doing.
    pub power_state: PowerState,
    /// Seconds it may take to shut down.
    pub termination_grace_period_seconds: i64,
}

impl Adjustable {
    /// As a VSE asks for it.
    pub fn wanted(spec: &VSESpec) -> Self {
        Self {
            power_state: if spec.paused { PowerState::Paused } else { PowerState::Running },
            termination_grace_period_seconds: spec.termination_grace_period_seconds,
        }
    }

    /// As an order has it.
    pub fn ordered(spec: &MicroVMSpec) -> Self {
        Self { power_state: spec.power_state, termination_grace_period_seconds: spec.termination_grace_period_seconds }
    }
}

/// The MicroVM of an incarnation.
pub fn build(vse: &VSE, incarnation: i64, order: &Order, placement: &Placement) -> MicroVM {
    let mut metadata = names::metadata(vse, incarnation);
    metadata.finalizers = Some(vec![labels::FINALIZER.to_owned()]);
    let system = &order.spec.system;
    let Adjustable { power_state, termination_grace_period_seconds } = Adjustable::wanted(&vse.spec);
    let Placement { pod_name, pod_uid, node_name } = placement.clone();
    MicroVM {
        metadata,
        spec: MicroVMSpec {
            vse_name: vse.name_any(),
            vse_uid: vse.uid().unwrap_or_default(),
            incarnation,
            node_name,
            pod_name,
            pod_uid,
            power_state,
            engine: order.choice.engine.as_str().to_owned(),
            accelerator: order.choice.accelerator,
            machine: order.spec.machine.clone(),
            boot: Boot {
                image: system.image.clone(),
                root: system.root,
                root_disk: system.root_volume.clone(),
                kernel_path: system.kernel.as_ref().map(|kernel| kernel.path.clone()),
                kernel_arguments: system.kernel_arguments.clone(),
            },
            disks: order.storage.iter().map(|s| s.disk()).collect(),
            network: order.spec.networks.first().map(|network| MicroVMNetwork { ports: network.ports.clone() }),
            cloud_init: system.cloud_init.clone(),
            termination_grace_period_seconds,
        },
        status: None,
    }
}
