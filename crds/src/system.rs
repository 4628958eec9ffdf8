//! What runs in the guest: system image, kernel, cloud-init.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The system a guest runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.root != 'Disk' || has(self.rootVolume)")
        .message("rootVolume must name the volume to hold the root file system when root is Disk")
        .field_path(".rootVolume"),
    validation = Rule::new("self.root == 'Disk' || !has(self.rootVolume)")
        .message("rootVolume is only used when root is Disk")
        .field_path(".rootVolume")
)]
pub struct System {
    /// OCI reference of the system image: a file tree with a kernel in /boot and its modules in /lib/modules.
    /// A reference by digest (NAME@sha256:…) always means the same system.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^\S+$"))]
    pub image: String,

    /// When the image is pulled to a host: Always, IfNotPresent or Never. As for containers, the default is Always for
    /// the tag `latest` and IfNotPresent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,

    /// Where the root file system lives. `Diskless`: the image read-only (one EROFS for all guests of a host) under an
    /// overlay in RAM; nothing survives the guest. `Disk`: a writable file system on `rootVolume`, filled from the
    /// image at first boot.
    #[serde(default)]
    pub root: Root,

    /// Name of the volume that holds the root file system when `root` is `Disk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub root_volume: Option<String>,

    /// Arguments added to the kernel's command line, one an item, for example `mitigations=off`. Those of the profile
    /// come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256), regex(pattern = r"^[!-~]+$")))]
    pub kernel_arguments: Vec<String>,

    /// Which of the image's kernels to boot; by default the newest in /boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,

    /// First-boot configuration by cloud-init (NoCloud), for images that have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
}

/// Pull policy of the system image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// Ask the registry each time.
    Always,
    /// Pull only when the host lacks it.
    IfNotPresent,
    /// The host must have it.
    Never,
}

impl ImagePullPolicy {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Where the root file system lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Root {
    /// Read-only image under a RAM overlay.
    #[default]
    Diskless,
    /// Writable file system on a volume.
    Disk,
}

/// A kernel other than the newest of the image's /boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// Path of the kernel in the system image, for example `/boot/vmlinuz-6.12.0-rt`. Its modules must lie in
    /// /lib/modules/VERSION.
    #[schemars(length(min = 2, max = 512), regex(pattern = r"^/[!-~]+$"))]
    pub path: String,
}

/// First-boot configuration, given to the guest as a NoCloud seed disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.userData) && has(self.userDataSecretRef))")
    .message("give userData or userDataSecretRef, not both")
    .field_path(".userData"))]
pub struct CloudInit {
    /// Host name of the guest; by default the VSE's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub hostname: Option<String>,

    /// Public SSH keys, one an item as in authorized_keys, for the image's default user (in `debian-hpc`: debian, and
    /// root too).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 8192), regex(pattern = r"^[ -~]+$")))]
    pub ssh_authorized_keys: Vec<String>,

    /// User data as cloud-init reads it (`#cloud-config`, a script, MIME).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262144))]
    pub user_data: Option<String>,

    /// Secret with the user data under the key `userdata`, in the VSE's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_secret_ref: Option<SecretRef>,
}

/// A Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
