//! Whose each CPU and each device of a host is. Pure.

use super::cpu_list;
use super::devices::{self, DeviceUse};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use serde::Serialize;
use std::collections::BTreeMap;
use vse_crds::{CpuPlacement, Host, LogicalCpu, MicroVM, quantity};

/// A host, one of its guests, and whose its CPUs and devices are.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Map {
    pub host: String,
    pub model: String,
    /// The guest the picture is about, `NAMESPACE/NAME` of its MicroVM.
    pub guest: String,
    /// In the guest's own words: `0→2 1→3, emulator 1`.
    pub placement: String,
    pub cells: Vec<CellSummary>,
    /// By socket, cell, core, then number.
    pub cpus: Vec<CpuUse>,
    /// By address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceUse>,
}

/// A NUMA cell.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CellSummary {
    pub cell: u32,
    pub memory: String,
    pub huge_pages: Vec<String>,
}

/// A CPU and whose it is.
#[derive(Debug, Serialize)]
pub struct CpuUse {
    #[serde(flatten)]
    pub place: LogicalCpu,
    #[serde(rename = "use")]
    pub use_: Use,
}

/// Whose a CPU is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Use {
    /// The guest's vCPU of that number runs here and nothing else does.
    Vcpu { index: usize },
    /// The engine's other threads, and nothing else.
    Emulator,
    /// Shared by the guest, the HostOS and others.
    Shared,
    /// Another guest's alone.
    Other { guest: String },
    /// The HostOS's and whoever shares CPUs.
    HostOs,
}

/// Finds out whose each CPU is.
pub fn draw_up(host: &Host, vm: &MicroVM, others: &[MicroVM]) -> Map {
    let mut uses = BTreeMap::new();
    for other in others {
        let placement = placement(other);
        // Guests with shared CPUs own none.
        if !placement.pinned.is_empty() {
            let own = placement.pinned.iter().copied().chain(cpu_list::parse(&placement.emulator));
            uses.extend(own.map(|cpu| (cpu, Use::Other { guest: name(other) })));
        }
    }
    let placement = placement(vm);
    let rest = if placement.pinned.is_empty() { Use::Shared } else { Use::Emulator };
    uses.extend(cpu_list::parse(&placement.emulator).into_iter().map(|cpu| (cpu, rest.clone())));
    // Last: without a CPU of their own the engine's other threads run beside a vCPU.
    uses.extend(placement.pinned.iter().enumerate().map(|(index, &cpu)| (cpu, Use::Vcpu { index })));

    let status = host.status.clone().unwrap_or_default();
    let mut places = status.cpu.topology;
    places.sort_by_key(|place| (place.socket, place.cell, place.core, place.cpu));
    let cpus = places
        .into_iter()
        .map(|place| CpuUse { use_: uses.get(&place.cpu).cloned().unwrap_or(Use::HostOs), place })
        .collect();
    let cells = status
        .cells
        .into_iter()
        .map(|cell| CellSummary {
            cell: cell.id,
            memory: size(&cell.memory),
            huge_pages: cell
                .huge_pages
                .iter()
                .filter(|pool| pool.total > 0)
                .map(|pool| format!("{} × {}", pool.total, pool.page_size.as_str()))
                .collect(),
        })
        .collect();
    Map {
        host: host.name_any(),
        model: status.cpu.model,
        guest: name(vm),
        placement: placement.summary,
        cells,
        cpus,
        devices: devices::draw_up(host, vm, others, name),
    }
}

/// A size as people say it: `19.3 GiB`.
fn size(quantity: &Quantity) -> String {
    match quantity::bytes(quantity) {
        Ok(bytes) => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        Err(_) => quantity.0.clone(),
    }
}

fn placement(vm: &MicroVM) -> CpuPlacement {
    let status = vm.status.as_ref();
    status.and_then(|status| status.cpus.clone()).unwrap_or_default()
}

fn name(vm: &MicroVM) -> String {
    format!("{}/{}", vm.namespace().unwrap_or_default(), vm.name_any())
}
