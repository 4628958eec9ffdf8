//! Labels, annotations, finalizers and extended resources: every name the parts agree on besides the API types.

/// Label on VM pods and MicroVMs: name of the VSE.
pub const VSE: &str = "vse.hpc.io/vse";
/// Label on VM pods and MicroVMs: incarnation number, decimal.
pub const INCARNATION: &str = "vse.hpc.io/incarnation";
/// Recommended label: the part of the system an object belongs to.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`COMPONENT`] on VM pods.
pub const COMPONENT_VM: &str = "vm";
/// Recommended label: who manages the object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] on what the operator creates; also its field manager.
pub const OPERATOR: &str = "vse-operator";
/// Field manager of the node runtime.
pub const NODE_RUNTIME: &str = "vse-node-runtime";

/// Annotation on a VSE: a time (RFC 3339). An incarnation that started before it is ended and followed by a new one.
pub const RESTARTED_AT: &str = "vse.hpc.io/restarted-at";
/// Annotation on a VSE: the `runStrategy` that `kubectl vse stop` replaced, for `kubectl vse start` to put back.
pub const PREVIOUS_RUN_STRATEGY: &str = "vse.hpc.io/previous-run-strategy";

/// Finalizer of the operator on VSEs and MicroVMs: held until the guest is gone and its host has nothing left of it.
pub const FINALIZER: &str = "vse.hpc.io/guest";

/// Extended resource of hosts with usable KVM.
pub const RESOURCE_KVM: &str = "vse.hpc.io/kvm";
/// Extended resource of hosts whose HostPolicy allows emulation (QEMU with TCG).
pub const RESOURCE_EMULATION: &str = "vse.hpc.io/emulation";

/// Longest VSE name: pod names, host names and label values must hold `<name>-<incarnation>` in 63 characters.
pub const MAX_NAME: usize = 52;

/// Name of the pod and of the MicroVM of one incarnation.
pub fn incarnation_name(vse: &str, incarnation: i64) -> String {
    format!("{vse}-{incarnation}")
}

/// Where things lie in a VM pod's file system (see ARCHITECTURE.md).
pub mod paths {
    /// Mount of the launcher's image.
    pub const LAUNCHER: &str = "/vse/launcher";
    /// Mount of the guest's system image.
    pub const SYSTEM: &str = "/vse/system";
    /// One directory for each volume with a file system.
    pub const VOLUMES: &str = "/vse/volumes";
    /// One device node for each block volume.
    pub const DEVICES: &str = "/dev/vse";
    /// Mount of the Secret with cloud-init user data.
    pub const CLOUD_INIT: &str = "/vse/cloud-init";
    /// Sockets of launcher and engine.
    pub const RUN: &str = "/run/vse";
    /// Name of the emptyDir behind [`RUN`].
    pub const RUN_VOLUME: &str = "run";
    /// File name of the launcher's socket in [`RUN`].
    pub const LAUNCH_SOCKET: &str = "launch.sock";
    /// Name of the disk in a volume with a file system, as KubeVirt has it.
    pub const DISK_IMAGE: &str = "disk.img";
}

/// Name of the engine's container in a VM pod.
pub const VM_CONTAINER: &str = "vm";
