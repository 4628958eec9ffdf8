//! What kubelet has made of a pod, in words that help. Pure.

use super::plan::Pod;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use vse_crds::{Cell, Machine, labels, quantity};

/// Most characters of an engine's last line.
const LAST_LINE_CHARS: usize = 300;
/// kubelet's reason when its topology manager finds no place for a pod (pkg/kubelet/cm/topologymanager).
const TOPOLOGY: &str = "TopologyAffinityError";

/// The engine's container. `cells` are the host's.
pub(super) fn state(pod: &core::Pod, machine: &Machine, cells: &[Cell]) -> Pod {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let state = containers.iter().find(|c| c.name == labels::VM_CONTAINER).and_then(|c| c.state.as_ref());
    let over = status.filter(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
    match state {
        Some(core::ContainerState { terminated: Some(end), .. }) => {
            Pod::Ended { code: end.exit_code, said: last_line(end.message.as_deref().unwrap_or_default()) }
        }
        // Also of a pod that the control plane declared over, as it does before it removes those of a Node that is gone.
        Some(core::ContainerState { running: Some(_), .. }) => Pod::Running,
        _ => match over {
            Some(status) => Pod::Refused { message: refusal(status, machine, cells) },
            None => Pod::Starting,
        },
    }
}

/// When the pod's deletion was asked for: its deletion timestamp is when the grace period ends.
pub(super) fn deletion_asked(pod: &core::Pod) -> Option<Timestamp> {
    let ends = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
    Some(ends - grace)
}

/// The last thing the engine said: kubelet keeps the end of a failed container's output. It is the guest's console, too,
/// so it is bounded and stripped of what a terminal would act on.
fn last_line(output: &str) -> Option<String> {
    let line = output.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(LAST_LINE_CHARS).collect())
}

/// Why kubelet refused a pod. That its topology manager found no place is all kubelet says then; what no cell of the host
/// has is said here.
fn refusal(status: &core::PodStatus, machine: &Machine, cells: &[Cell]) -> String {
    let words = [status.reason.as_deref(), status.message.as_deref()].into_iter().flatten().collect::<Vec<_>>();
    let said = format!("kubelet ended the pod: {}", words.join(": "));
    match no_cell_has(machine, cells) {
        Some(lacking) if status.reason.as_deref() == Some(TOPOLOGY) => format!("{said}; {lacking}"),
        _ => said,
    }
}

/// Huge pages that the guest wants and that no cell has as many of, in use or not. A guest that is shown its cells may
/// span them.
fn no_cell_has(machine: &Machine, cells: &[Cell]) -> Option<String> {
    if machine.cpu.numa.as_ref().is_some_and(|numa| numa.guest_mapping_passthrough.is_some()) {
        return None;
    }
    let size = machine.memory.hugepages.as_ref()?.page_size;
    let needed = quantity::bytes(machine.memory.guest.as_ref()?).ok()? / size.bytes();
    let has = |cell: &Cell| {
        let pools = cell.huge_pages.iter().filter(|pool| pool.page_size == size);
        (cell.id, pools.map(|pool| pool.total).sum::<u64>())
    };
    let pages: Vec<(u32, u64)> = cells.iter().map(has).collect();
    if pages.iter().any(|(_, pages)| *pages >= needed) {
        return None;
    }
    let each: Vec<String> = pages.iter().map(|(cell, pages)| format!("cell {cell} has {pages}")).collect();
    Some(format!(
        "spec.machine.memory: {needed} huge pages of {} are needed on one NUMA cell, {}",
        size.as_str(),
        each.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use vse_crds::{HugePagePool, PageSize};

    fn refused(reason: &str, guest: &str, cpu: serde_json::Value) -> String {
        let pod = json!({"status": {"phase": "Failed", "reason": reason, "message": "Pod was rejected"}});
        let machine = json!({"cpu": cpu, "memory": {"guest": guest, "hugepages": {"pageSize": "2Mi"}}});
        let (pod, machine) = (serde_json::from_value(pod).unwrap(), serde_json::from_value(machine).unwrap());
        let cell = |id| Cell {
            id,
            cpus: "0".into(),
            memory: quantity::from_bytes(1 << 30),
            huge_pages: vec![HugePagePool { page_size: PageSize::TwoMi, total: 400 + u64::from(id) }],
            distances: Vec::new(),
        };
        match state(&pod, &machine, &[cell(0), cell(1)]) {
            Pod::Refused { message } => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_no_cell_has_is_said() {
        assert!(refused(TOPOLOGY, "1Gi", json!({})).ends_with(
            "TopologyAffinityError: Pod was rejected; spec.machine.memory: 512 huge pages of 2Mi are needed on one NUMA cell, \
             cell 0 has 400, cell 1 has 401"
        ));
        // It is something else that they lack.
        assert!(refused(TOPOLOGY, "256Mi", json!({})).ends_with("Pod was rejected"));
        let spanning = json!({"numa": {"guestMappingPassthrough": {}}});
        assert!(refused(TOPOLOGY, "1Gi", spanning).ends_with("Pod was rejected"));
        assert!(refused("OutOfcpu", "1Gi", json!({})).ends_with("Pod was rejected"));
    }

    #[test]
    fn a_pod_is_refused_if_it_is_over_and_nothing_is_known_of_its_container() {
        let state = |phase: &str, container: serde_json::Value| {
            let statuses = json!([{
                "name": labels::VM_CONTAINER, "state": container, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            }]);
            let pod = json!({"status": {"phase": phase, "containerStatuses": statuses}});
            super::state(&serde_json::from_value(pod).unwrap(), &Machine::default(), &[])
        };
        let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
        assert_eq!(state("Pending", waiting.clone()), Pod::Starting);
        assert!(matches!(state("Failed", waiting), Pod::Refused { .. }));
        // The control plane says so of pods on a Node that is gone.
        assert_eq!(state("Failed", json!({"running": {}})), Pod::Running);
        let ended = json!({"terminated": {"exitCode": 137}});
        assert_eq!(state("Failed", ended), Pod::Ended { code: 137, said: None });
    }

    #[test]
    fn an_engines_last_line_is_bounded_and_plain() {
        assert_eq!(last_line("a\n\x1b[31mb\x07 \n\n").as_deref(), Some("[31mb"));
        assert_eq!(last_line(" \n"), None);
        assert_eq!(last_line(&"x".repeat(1000)).map(|line| line.len()), Some(LAST_LINE_CHARS));
    }
}
