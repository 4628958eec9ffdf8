//! Volumes, and the disks the guest sees of them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A source of storage. The guest sees each as one disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.persistentVolumeClaim) != has(self.emptyDisk)")
    .message("give exactly one of persistentVolumeClaim and emptyDisk"))]
pub struct Volume {
    /// Name of the volume, and serial number of its disk in the guest (`/dev/disk/by-id/virtio-NAME`).
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("!(self in ['vse-system', 'vse-root', 'cidata'])")
        .message("the names vse-system, vse-root and cidata are taken by disks of the system itself"))]
    pub name: String,
    /// A PersistentVolumeClaim: a block volume as it is, a file-system volume through the raw file `disk.img` in it
    /// (made at first use, as large as the claim allows).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaim>,
    /// Scratch space on the host, gone with the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_disk: Option<EmptyDisk>,
}

/// A claim in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaim {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// Scratch space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDisk {
    /// Size of the disk, for example `20Gi`. Space is taken as the guest writes.
    // A CEL rule in a list would be over the API server's cost budget; the pattern says the same: more than 0.
    #[schemars(extend(
        "maxLength" = 32,
        "minimum" = 1,
        "pattern" = "^[0-9.]*[1-9][0-9.]*(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|[eE][0-9]+)?$"
    ))]
    pub capacity: Quantity,
}

/// How the guest sees a volume. A volume without an entry here is a writable virtio disk after all that have an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Name of the volume.
    #[schemars(length(min = 1, max = 20))]
    pub name: String,
    /// How the disk is attached.
    #[serde(default)]
    pub bus: Bus,
    /// Place among the guest's disks, lowest first; disks with none follow in the order of `volumes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub order: Option<u32>,
    /// The guest can't write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// How a disk is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Bus {
    /// virtio-blk.
    #[default]
    #[serde(rename = "virtio")]
    Virtio,
}
