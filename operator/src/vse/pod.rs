//! The VM pod, built from an incarnation's order, pure. ARCHITECTURE.md has its file system and its promises: no
//! privilege, one container, one process.

use crate::vse::choose::Choice;
use crate::vse::devices;
use crate::vse::fingerprint::{self, fingerprint};
use crate::vse::names;
use crate::vse::order::Order;
use crate::vse::overhead::overhead;
use crate::vse::shape::Cpus;
use crate::vse::storage::{Source, Storage};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, ImageVolumeSource, KeyToPath,
    PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile,
    SecretVolumeSource, SecurityContext, Toleration, Volume, VolumeDevice, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use std::collections::BTreeMap;
use vse_crds::labels::{self, paths};
use vse_crds::{Accelerator, Backing, EngineName, VSE, quantity};

/// User, group and group of volumes in VM pods: the conventional uid of `qemu` (libvirt's and KubeVirt's).
pub const QEMU_USER: i64 = 107;

/// What the pod gets beyond the guest's own time to shut down: the node runtime stops the engine and cleans up in it.
const GRACE_BEYOND_GUEST: i64 = 30;

/// What a scratch volume may take beyond its disk: the file system's own blocks for a sparse file.
const SCRATCH_SLACK: u64 = 16 << 20;

/// Volumes that are not the user's. User volumes are prefixed, so that none can collide.
const LAUNCHER_VOLUME: &str = "launcher";
const SYSTEM_VOLUME: &str = "system";
const CLOUD_INIT_VOLUME: &str = "cloud-init";

/// Images every VM pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// The launcher.
    pub launcher: String,
    /// The engines, those there are images of.
    pub engines: BTreeMap<EngineName, String>,
    /// Pull policy of all of them; kubelet's default when none.
    pub pull_policy: Option<String>,
}

/// The pod of an incarnation.
pub fn build(vse: &VSE, incarnation: i64, order: &Order, images: &Images) -> Pod {
    let mut metadata = names::metadata(vse, incarnation);
    let prints = serde_json::to_string(&fingerprint(&order.spec)).unwrap_or_default();
    metadata.annotations.get_or_insert_default().insert(fingerprint::ANNOTATION.to_owned(), prints);
    let spec = &order.spec;
    Pod {
        metadata,
        spec: Some(PodSpec {
            containers: vec![container(order, images)],
            volumes: Some(volumes(order, images)),
            hostname: Some(hostname(&vse.name_any())),
            restart_policy: Some("Never".into()),
            termination_grace_period_seconds: Some(vse.spec.termination_grace_period_seconds + GRACE_BEYOND_GUEST),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(QEMU_USER),
                run_as_group: Some(QEMU_USER),
                fs_group: Some(QEMU_USER),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            node_selector: Some(node_selector(&spec.node_selector)),
            tolerations: Some(tolerations(&spec.tolerations)),
            affinity: spec.affinity.clone(),
            priority_class_name: spec.priority_class_name.clone(),
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// Engine and accelerator a pod was made for.
pub fn made_with(pod: &Pod) -> Option<Choice> {
    let container = pod.spec.as_ref()?.containers.first()?;
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    let accelerators = [Accelerator::Kvm, Accelerator::Tcg];
    Some(Choice {
        engine: EngineName::ALL.into_iter().find(|engine| limits.contains_key(engine.resource()))?,
        accelerator: accelerators.into_iter().find(|accelerator| limits.contains_key(resource(*accelerator)))?,
    })
}

fn resource(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => labels::RESOURCE_KVM,
        Accelerator::Tcg => labels::RESOURCE_EMULATION,
    }
}

fn container(order: &Order, images: &Images) -> Container {
    Container {
        name: labels::VM_CONTAINER.into(),
        image: images.engines.get(&order.choice.engine).cloned(),
        image_pull_policy: images.pull_policy.clone(),
        command: Some(vec![
            format!("{}/vse-launcher", paths::LAUNCHER),
            "--socket".into(),
            format!("{}/{}", paths::RUN, paths::LAUNCH_SOCKET),
        ]),
        stdin: Some(true),
        tty: Some(true),
        ports: some(ports(order)),
        resources: Some(resources(order)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        // What an engine that failed said last is the end of its output.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(mounts(order)),
        volume_devices: some(block_devices(&order.storage)),
        ..Container::default()
    }
}

fn ports(order: &Order) -> Vec<ContainerPort> {
    let ports = order.spec.networks.iter().flat_map(|net| &net.ports);
    ports
        .map(|port| ContainerPort {
            name: port.name.clone(),
            container_port: i32::from(port.port),
            protocol: Some(match port.protocol {
                vse_crds::Protocol::Tcp => "TCP".into(),
                vse_crds::Protocol::Udp => "UDP".into(),
            }),
            ..ContainerPort::default()
        })
        .collect()
}

/// Requests and limits. They are equal (QoS class Guaranteed) unless CPUs are overcommitted.
///
/// kubelet's static CPU manager gives exclusive CPUs to Guaranteed pods with whole CPUs. A guest with shared CPUs must
/// not get them, so it asks for a thousandth less.
fn resources(order: &Order) -> ResourceRequirements {
    let shape = &order.shape;
    let overhead = overhead(order.choice.engine, order.choice.accelerator, shape.vcpus, shape.memory);
    let mut limits = BTreeMap::new();
    let mut limit = |name: &str, amount: Quantity| limits.insert(name.to_owned(), amount);
    match shape.huge_pages {
        Some(size) => {
            limit("memory", quantity::from_bytes(overhead));
            limit(&format!("hugepages-{}", size.as_str()), quantity::from_bytes(shape.memory));
        }
        None => {
            limit("memory", quantity::from_bytes(shape.memory + overhead));
        }
    }
    for ticket in [resource(order.choice.accelerator), order.choice.engine.resource()] {
        limit(ticket, Quantity("1".into()));
    }
    for (resource, count) in devices::counted(&order.spec.machine.devices) {
        limit(resource, Quantity(count.to_string()));
    }
    let mut requests = limits.clone();
    let cpu = match shape.cpus {
        Cpus::Dedicated(cpus) => Quantity(cpus.to_string()),
        Cpus::Shared => Quantity(format!("{}m", u64::from(shape.vcpus) * 1000 - 1)),
        Cpus::Overcommitted(millis) => Quantity(format!("{millis}m")),
    };
    if !matches!(shape.cpus, Cpus::Overcommitted(_)) {
        limits.insert("cpu".into(), cpu.clone());
    }
    requests.insert("cpu".into(), cpu);
    ResourceRequirements { limits: Some(limits), requests: Some(requests), claims: None }
}

fn volumes(order: &Order, images: &Images) -> Vec<Volume> {
    let system = &order.spec.system;
    let mut volumes = vec![
        image_volume(LAUNCHER_VOLUME, &images.launcher, images.pull_policy.clone()),
        image_volume(SYSTEM_VOLUME, &system.image, system.image_pull_policy.map(|p| p.as_str().to_owned())),
        Volume {
            name: paths::RUN_VOLUME.into(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".into()),
                size_limit: Some(Quantity("1Mi".into())),
            }),
            ..Volume::default()
        },
    ];
    if let Some(secret) = order.user_data_secret() {
        volumes.push(Volume {
            name: CLOUD_INIT_VOLUME.into(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret.to_owned()),
                items: Some(vec![KeyToPath { key: "userdata".into(), path: "userdata".into(), mode: None }]),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes.extend(order.storage.iter().map(|storage| {
        let volume = Volume { name: user_volume(&storage.name), ..Volume::default() };
        match &storage.source {
            Source::Claim(name) => Volume {
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: name.clone(),
                    read_only: None,
                }),
                ..volume
            },
            Source::Scratch(size) => Volume {
                empty_dir: Some(EmptyDirVolumeSource {
                    medium: None,
                    size_limit: quantity::bytes(size)
                        .ok()
                        .map(|bytes| quantity::from_bytes(bytes.saturating_add(SCRATCH_SLACK))),
                }),
                ..volume
            },
        }
    }));
    volumes
}

fn image_volume(name: &str, reference: &str, pull_policy: Option<String>) -> Volume {
    Volume {
        name: name.into(),
        image: Some(ImageVolumeSource { reference: Some(reference.into()), pull_policy }),
        ..Volume::default()
    }
}

fn mounts(order: &Order) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![
        mount(LAUNCHER_VOLUME, paths::LAUNCHER, true),
        mount(SYSTEM_VOLUME, paths::SYSTEM, true),
        mount(paths::RUN_VOLUME, paths::RUN, false),
    ];
    if order.user_data_secret().is_some() {
        mounts.push(mount(CLOUD_INIT_VOLUME, paths::CLOUD_INIT, true));
    }
    let files = order.storage.iter().filter(|storage| storage.backing == Backing::File);
    mounts.extend(files.map(|storage| {
        let path = format!("{}/{}", paths::VOLUMES, storage.name);
        mount(&user_volume(&storage.name), &path, false)
    }));
    mounts
}

fn block_devices(storage: &[Storage]) -> Vec<VolumeDevice> {
    storage
        .iter()
        .filter(|storage| storage.backing == Backing::Block)
        .map(|storage| VolumeDevice {
            name: user_volume(&storage.name),
            device_path: format!("{}/{}", paths::DEVICES, storage.name),
        })
        .collect()
}

fn user_volume(name: &str) -> String {
    format!("volume-{name}")
}

fn node_selector(wanted: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut selector = wanted.clone();
    selector.insert("kubernetes.io/arch".into(), "amd64".into());
    selector.insert("kubernetes.io/os".into(), "linux".into());
    selector
}

/// The user's, and those that keep a guest from being evicted (after 300 s by default) when its host does not answer:
/// whether it may be started elsewhere is a matter of fencing, not of time.
fn tolerations(wanted: &[Toleration]) -> Vec<Toleration> {
    let stay = ["not-ready", "unreachable"].map(|condition| Toleration {
        key: Some(format!("node.kubernetes.io/{condition}")),
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    stay.into_iter().chain(wanted.iter().cloned()).collect()
}

/// A VSE's name may have dots, a host name may not.
fn hostname(name: &str) -> String {
    name.replace('.', "-")
}

fn some<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}
