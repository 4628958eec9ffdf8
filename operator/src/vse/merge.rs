//! Profile + VSE → [`ResolvedSpec`], pure. A field both give to different values is a conflict; all are reported.

use crate::reason::Reason;
use crate::vse::refusal::{Problem, Refusal};
use k8s_openapi::api::core::v1::{Affinity, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Serialize;
use std::collections::BTreeMap;
use vse_crds::{
    Cpu, Devices, Disk, EngineChoice, HugePages, Machine, Memory, Network, System, VSEProfile, VSESpec, Volume,
    quantity,
};

/// What an incarnation is made from: the VSE's spec with the profile's and with every default filled in. It has the
/// VSE's field names, so that a path in it means the same to users. What can change while a guest runs is not in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedSpec {
    /// Engine, or the best there is.
    pub engine: EngineChoice,
    /// What runs in the guest; kernel arguments of the profile first.
    pub system: System,
    /// The machine's shape, every field given but `numa`, `request` and `hugepages`.
    pub machine: Machine,
    /// How the guest sees its volumes.
    pub disks: Vec<Disk>,
    /// Storage.
    pub volumes: Vec<Volume>,
    /// Networks.
    pub networks: Vec<Network>,
    /// Labels a host's Node must have: the VSE's and the profile's.
    pub node_selector: BTreeMap<String, String>,
    /// Taints of hosts that are tolerated.
    pub tolerations: Vec<Toleration>,
    /// Affinity.
    pub affinity: Option<Affinity>,
    /// PriorityClass.
    pub priority_class_name: Option<String>,
}

/// Merges a VSE's spec with the profile it names.
pub fn merge(spec: &VSESpec, profile: Option<&VSEProfile>) -> Result<ResolvedSpec, Refusal> {
    let mut merge =
        Merge { profile: profile.and_then(|p| p.metadata.name.as_deref()).unwrap_or_default(), conflicts: Vec::new() };
    let base = profile.map(|p| p.spec.clone()).unwrap_or_default();

    let cpu = merge.cpu(&spec.machine.cpu, &base.machine.cpu);
    let memory = merge.memory(&spec.machine.memory, &base.machine.memory);
    let engine = merge.pick("spec.engine", &spec.engine, &base.engine).unwrap_or_default();
    let devices = merge.devices(&spec.machine.devices, &base.machine.devices);
    let node_selector = merge.node_selector(&spec.node_selector, &base.node_selector);
    if !merge.conflicts.is_empty() {
        return Err(Refusal::new(Reason::ProfileConflict, merge.conflicts));
    }

    let mut system = spec.system.clone();
    system.kernel_arguments = [&base.kernel_arguments[..], &spec.system.kernel_arguments].concat();
    Ok(ResolvedSpec {
        engine,
        system,
        machine: Machine { cpu, memory, devices },
        disks: spec.disks.clone(),
        volumes: spec.volumes.clone(),
        networks: spec.networks.clone(),
        node_selector,
        tolerations: spec.tolerations.clone(),
        affinity: spec.affinity.clone(),
        priority_class_name: spec.priority_class_name.clone(),
    })
}

/// A merge under way: the conflicts so far.
struct Merge<'a> {
    profile: &'a str,
    conflicts: Vec<Problem>,
}

impl Merge<'_> {
    fn cpu(&mut self, ours: &Cpu, base: &Cpu) -> Cpu {
        let path = |field: &str| format!("spec.machine.cpu.{field}");
        Cpu {
            sockets: self.pick(&path("sockets"), &ours.sockets, &base.sockets).or(Some(1)),
            cores: self.pick(&path("cores"), &ours.cores, &base.cores).or(Some(1)),
            threads: self.pick(&path("threads"), &ours.threads, &base.threads).or(Some(1)),
            dedicated_cpu_placement: self
                .pick(&path("dedicatedCPUPlacement"), &ours.dedicated_cpu_placement, &base.dedicated_cpu_placement)
                .or(Some(false)),
            isolate_emulator_thread: self
                .pick(&path("isolateEmulatorThread"), &ours.isolate_emulator_thread, &base.isolate_emulator_thread)
                .or(Some(false)),
            numa: self.pick(&path("numa"), &ours.numa, &base.numa),
            request: self.quantity(&path("request"), &ours.request, &base.request),
        }
    }

    fn memory(&mut self, ours: &Memory, base: &Memory) -> Memory {
        Memory {
            guest: self.quantity("spec.machine.memory.guest", &ours.guest, &base.guest),
            hugepages: self
                .pick(
                    "spec.machine.memory.hugepages.pageSize",
                    &ours.hugepages.as_ref().map(|h| h.page_size),
                    &base.hugepages.as_ref().map(|h| h.page_size),
                )
                .map(|page_size| HugePages { page_size }),
        }
    }

    /// The profile's devices, then those of the VSE that it does not have by that name.
    fn devices(&mut self, ours: &Devices, base: &Devices) -> Devices {
        let mut host_devices = base.host_devices.clone();
        for device in &ours.host_devices {
            match base.host_devices.iter().find(|known| known.name == device.name) {
                Some(known) => {
                    let path = format!("spec.machine.devices.hostDevices[{}].deviceName", device.name);
                    self.pick(&path, &Some(&device.device_name), &Some(&known.device_name));
                }
                None => host_devices.push(device.clone()),
            }
        }
        Devices { host_devices }
    }

    fn node_selector(
        &mut self,
        ours: &BTreeMap<String, String>,
        base: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let mut union = base.clone();
        for (label, value) in ours {
            let path = format!("spec.nodeSelector[{label}]");
            self.pick(&path, &Some(value), &base.get(label));
            union.insert(label.clone(), value.clone());
        }
        union
    }

    /// The value either gives; a conflict when both give different ones.
    fn pick<T: Clone + PartialEq + Serialize>(&mut self, path: &str, ours: &Option<T>, base: &Option<T>) -> Option<T> {
        if let (Some(ours), Some(base)) = (ours, base)
            && ours != base
        {
            self.conflict(path, &spelled(ours), &spelled(base));
        }
        ours.clone().or_else(|| base.clone())
    }

    /// As [`Merge::pick`], with quantities compared by value: `4Gi` is `4096Mi`.
    fn quantity(&mut self, path: &str, ours: &Option<Quantity>, base: &Option<Quantity>) -> Option<Quantity> {
        if let (Some(ours), Some(base)) = (ours, base)
            && quantity::millis(ours) != quantity::millis(base)
        {
            self.conflict(path, &ours.0, &base.0);
        }
        ours.clone().or_else(|| base.clone())
    }

    fn conflict(&mut self, path: &str, ours: &str, base: &str) {
        self.conflicts.push(Problem::new(
            path,
            format!("{ours} conflicts with {base} from profile {:?}; remove one", self.profile),
        ));
    }
}

/// A value as it stands in a manifest.
fn spelled(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
