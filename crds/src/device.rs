//! Host devices: the classes admins make of them, and what guests ask of these.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What every device class's extended resource begins with.
pub const DEVICE_PREFIX: &str = "vse.hpc.io/";

/// Most host devices of one guest.
pub const MAX_HOST_DEVICES: usize = 16;

/// Extended resource of a device class.
pub fn device_resource(class: &str) -> String {
    format!("{DEVICE_PREFIX}{class}")
}

/// Host devices given to the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Devices {
    /// PCI functions of the host, passed through: the guest's own drivers work them without the host in the path. Those
    /// of the profile come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub host_devices: Vec<HostDevice>,
}

impl Devices {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.host_devices.is_empty()
    }
}

/// One host device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostDevice {
    /// Name of the device in this spec.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Resource of the device class to take it from, `vse.hpc.io/CLASS`, where a HostPolicy declares CLASS.
    #[schemars(length(min = 12, max = 64))]
    #[x_kube(
        validation = Rule::new("self.matches('^vse[.]hpc[.]io/[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
            .message("deviceName must be vse.hpc.io/CLASS, where a HostPolicy declares CLASS in deviceClasses"),
        validation = Rule::new("!(self in ['vse.hpc.io/kvm', 'vse.hpc.io/emulation'] || self.startsWith('vse.hpc.io/engine-'))")
            .message("deviceName must be a device class: vse.hpc.io/kvm, vse.hpc.io/emulation and vse.hpc.io/engine-… are asked for by every guest anyway")
    )]
    pub device_name: String,
}

impl HostDevice {
    /// Name of its class.
    pub fn class(&self) -> &str {
        self.device_name.strip_prefix(DEVICE_PREFIX).unwrap_or(&self.device_name)
    }
}

/// A class of PCI functions that guests may have. Each IOMMU group whose functions are all of the class is one device of
/// the extended resource `vse.hpc.io/NAME`; a function belongs to the first class that selects it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.selector.interfaces) || has(self.virtualFunctions)")
        .message("selector.interfaces needs virtualFunctions: a device given to a guest as a whole has no interface on the host any more; name it in selector.addresses")
        .field_path(".selector.interfaces")
)]
pub struct DeviceClass {
    /// Name of the class.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("!(self in ['kvm', 'emulation'] || self.startsWith('engine-'))")
        .message("the names kvm, emulation and engine-… are taken by resources of the hosts themselves"))]
    pub name: String,
    /// Which PCI functions. All that is given must hold.
    pub selector: PciSelector,
    /// Make this many virtual functions (SR-IOV) on each selected function, and give these to guests instead. They get no
    /// driver on the host. A function that has virtual functions already, made by somebody else, gives those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub virtual_functions: Option<u32>,
    /// What a migration does with these devices.
    #[serde(default)]
    pub migration: DeviceMigration,
}

/// Selects PCI functions of a host. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.vendorDevice) || has(self.class) || has(self.addresses) || has(self.interfaces)")
    .message("selector must give at least one of vendorDevice, class, addresses and interfaces"))]
pub struct PciSelector {
    /// Vendor and device, four hexadecimal digits each, for example `8086:10d3` (`lspci -nn`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{4}:[0-9a-f]{4}$"))]
    pub vendor_device: Option<String>,
    /// Beginning of the class code: two, four or six hexadecimal digits, for example `0200` (Ethernet) or `03` (displays).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9a-f]{2}){1,3}$"))]
    pub class: Option<String>,
    /// One of these addresses, for example `0000:65:00.1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(regex(pattern = r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f][.][0-7]$")))]
    pub addresses: Vec<String>,
    /// Has one of these network interfaces on the host, for example `ens1f0`. Needs virtualFunctions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 15)))]
    pub interfaces: Vec<String>,
}

/// What a migration does with a host device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DeviceMigration {
    /// The device's state moves with the guest.
    Migratable,
    /// The guest loses it before, and gets one of the same class on the other host after.
    #[default]
    DetachReattach,
    /// A guest that has one is not moved.
    Blocked,
}

/// What a guest got for one of its host devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestDevice {
    /// Name of the device in the spec.
    pub name: String,
    /// Resource it was taken from.
    pub device_name: String,
    /// The PCI functions, all of one IOMMU group.
    pub addresses: Vec<String>,
}

/// A device class in force on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostDeviceClass {
    /// Its name.
    pub name: String,
    /// Devices guests can have here, whether or not they are taken.
    pub devices: u32,
    /// What a migration does with them.
    #[serde(default)]
    pub migration: DeviceMigration,
    /// What keeps the class from having all that its policy asks for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Whether a guest can have a PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceVerdict {
    /// It can, if a class selects it.
    pub usable: bool,
    /// `Usable`, or why it can't.
    pub reason: VerdictReason,
    /// What is in the way, and what would help.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Why a guest can have a PCI function, or can't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum VerdictReason {
    /// It can be passed through.
    Usable,
    /// It is a part of the bus itself.
    Bridge,
    /// No IOMMU keeps it from reaching all of the host's memory.
    NoIommu,
    /// The kernel was told not to insist on interrupt remapping.
    UnsafeInterrupts,
    /// The vfio-pci driver is not there.
    NoVfio,
    /// The host uses it.
    InUse,
    /// It shares its IOMMU group with a function that is not of its class, or can't be passed through.
    SharedGroup,
    /// It has virtual functions, which are given instead.
    HasVirtualFunctions,
}
