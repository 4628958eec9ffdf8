//! Which engine and accelerator are chosen, over hosts that differ.

use super::{fast_host, from_yaml, host};
use crate::reason::Reason;
use crate::vse::choose::{Choice, choose};
use crate::vse::merge::merge;
use crate::vse::refusal::Refusal;
use crate::vse::shape::shape;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use vse_crds::EngineName::{CloudHypervisor, Qemu, Vmm};
use vse_crds::{Accelerator, EngineLimits, EngineName, Host, VSE};

fn chosen_from(spec: &str, hosts: &[Arc<Host>], images: &[EngineName]) -> Result<Choice, Refusal> {
    let vse: VSE =
        from_yaml(&format!("{{apiVersion: vse.hpc.io/v1alpha1, kind: VSE, metadata: {{name: demo}}, spec: {spec}}}"));
    let spec = merge(&vse.spec, None).unwrap();
    choose(&spec, &shape(&spec.machine).unwrap(), hosts, &images.iter().copied().collect())
}

fn chosen(spec: &str, hosts: &[Arc<Host>]) -> Result<EngineName, Refusal> {
    chosen_from(spec, hosts, &EngineName::ALL).map(|choice| choice.engine)
}

const ANY: &str = "{system: {image: i}, machine: {memory: {guest: 512Mi}}}";
const MIRRORED: &str = "{system: {image: i}, machine: {memory: {guest: 512Mi}, \
                        cpu: {dedicatedCPUPlacement: true, numa: {guestMappingPassthrough: {}}}}}";

#[test]
fn kvm_is_taken_where_there_is_any() {
    let choice = chosen_from(ANY, &[host(), fast_host("fast", &[Qemu])], &[Qemu]).unwrap();
    assert_eq!(choice, Choice { engine: Qemu, accelerator: Accelerator::Kvm });
    let choice = chosen_from(ANY, &[host()], &EngineName::ALL).unwrap();
    assert_eq!(choice, Choice { engine: Qemu, accelerator: Accelerator::Tcg });
}

#[test]
fn what_stands_first_in_a_policy_is_taken() {
    assert_eq!(chosen(ANY, &[fast_host("a", &[Vmm, Qemu])]), Ok(Vmm));
    assert_eq!(chosen(ANY, &[fast_host("a", &[Qemu, Vmm])]), Ok(Qemu));
    // Both stand first somewhere: ours.
    assert_eq!(chosen(ANY, &[fast_host("a", &[Qemu]), fast_host("b", &[Vmm, Qemu])]), Ok(Vmm));
    assert_eq!(chosen(ANY, &[fast_host("a", &[CloudHypervisor, Vmm])]), Ok(CloudHypervisor));
}

#[test]
fn an_engine_that_can_not_is_passed_over() {
    let mut host = fast_host("a", &[Vmm, Qemu]).as_ref().clone();
    host.status.as_mut().unwrap().engines[0].capabilities.clear();
    let hosts = [Arc::new(host)];
    assert_eq!(chosen(ANY, &hosts), Ok(Vmm));
    assert_eq!(chosen(MIRRORED, &hosts), Ok(Qemu));
}

#[test]
fn the_order_of_a_host_without_room_does_not_count() {
    let mut small = fast_host("small", &[Qemu, Vmm]).as_ref().clone();
    small.status.as_mut().unwrap().cpu.count = 1;
    let large = fast_host("large", &[Vmm, Qemu]);
    let spec = "{system: {image: i}, machine: {cpu: {cores: 4}, memory: {guest: 512Mi}}}";
    assert_eq!(chosen(spec, &[Arc::new(small), large]), Ok(Vmm));
}

#[test]
fn engines_without_an_image_are_none() {
    let hosts = [fast_host("a", &[Vmm, Qemu])];
    assert_eq!(chosen_from(ANY, &hosts, &[Qemu]).unwrap().engine, Qemu);
    let named = "{engine: vmm, system: {image: i}, machine: {memory: {guest: 512Mi}}}";
    let refusal = chosen_from(named, &hosts, &[Qemu]).unwrap_err().to_string();
    assert!(refusal.contains("no image of engine vmm"), "{refusal}");
}

#[test]
fn every_mismatch_of_every_host_is_told() {
    let mut lacking = fast_host("a", &[Vmm]).as_ref().clone();
    lacking.status.as_mut().unwrap().engines[0].capabilities.clear();
    let spec = "{engine: vmm, system: {image: i}, machine: {memory: {guest: 512Mi, hugepages: {pageSize: 2Mi}}, \
                cpu: {dedicatedCPUPlacement: true, numa: {guestMappingPassthrough: {}}}}}";
    let refusal = chosen(spec, &[Arc::new(lacking), fast_host("b", &[Qemu]), host()]).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "spec.engine: no host can run the guest under vmm (a: vmm: lacks HugePages2Mi, which \
         spec.machine.memory.hugepages.pageSize needs and lacks GuestCells, which \
         spec.machine.cpu.numa.guestMappingPassthrough needs; b: vmm: its HostPolicy does not list it; \
         host-1: vmm: KVM is not usable)"
    );
}

#[test]
fn an_engine_too_small_for_the_guest_is_passed_over_and_told_of() {
    let mut host = fast_host("a", &[Vmm, Qemu]).as_ref().clone();
    let status = host.status.as_mut().unwrap();
    status.cpu.count = 512;
    status.engines[0].limits = Some(EngineLimits { vcpus: 254, volumes: 18, devices: Some(26) });
    let hosts = [Arc::new(host)];
    let volumes =
        |n| (0..n).map(|n| format!("{{name: v{n}, emptyDisk: {{capacity: 1Gi}}}}")).collect::<Vec<_>>().join(", ");
    let spec = |engine: &str, cores: u32, n: u32| {
        let machine = format!("{{cpu: {{cores: {cores}}}, memory: {{guest: 512Mi}}}}");
        format!("{{engine: {engine}, system: {{image: i}}, machine: {machine}, volumes: [{}]}}", volumes(n))
    };
    assert_eq!(chosen(&spec("Auto", 254, 18), &hosts), Ok(Vmm));
    assert_eq!(chosen(&spec("Auto", 255, 1), &hosts), Ok(Qemu));
    assert_eq!(
        chosen(&spec("vmm", 300, 19), &hosts).unwrap_err().to_string(),
        "spec.engine: no host can run the guest under vmm (a: vmm: has at most 254 vCPUs for a guest, fewer than \
         the 300 of spec.machine.cpu and has at most 18 volumes for a guest, fewer than the 19 of spec.volumes)"
    );
}

#[test]
fn devices_of_all_kinds_share_the_places_that_an_engine_has() {
    let mut host = fast_host("a", &[Vmm]).as_ref().clone();
    host.status.as_mut().unwrap().engines[0].limits = Some(EngineLimits { vcpus: 4, volumes: 18, devices: Some(2) });
    let hosts = [Arc::new(host)];
    let spec = |volumes: &str| {
        format!("{{system: {{image: i}}, machine: {{memory: {{guest: 512Mi}}}}, volumes: [{volumes}]}}")
    };
    assert_eq!(chosen(&spec("{name: a, emptyDisk: {capacity: 1Gi}}"), &hosts), Ok(Vmm));
    let two = spec("{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}");
    assert!(chosen(&two, &hosts).unwrap_err().to_string().contains(
        "a: vmm: has at most 2 devices for a guest, fewer than the 3 of spec.volumes, spec.networks and \
         spec.machine.devices.hostDevices"
    ));
}

#[test]
fn what_no_host_has_is_told_beside_what_no_engine_can() {
    let mut host = fast_host("a", &[Vmm]).as_ref().clone();
    let status = host.status.as_mut().unwrap();
    status.engines[0].limits = Some(EngineLimits { vcpus: 254, volumes: 18, devices: None });
    let count = status.cpu.count;
    let spec = "{engine: vmm, system: {image: i}, machine: {cpu: {cores: 512}, memory: {guest: 512Mi}}}";
    let refusal = chosen(spec, &[Arc::new(host)]).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoEngine);
    assert_eq!(
        refusal.to_string(),
        format!(
            "spec.engine: no host can run the guest under vmm (a: vmm: has at most 254 vCPUs for a guest, fewer than the \
             512 of spec.machine.cpu); spec.machine.cpu: no host has 512 CPUs (a: {count})"
        )
    );
}

proptest! {
    /// Whatever the hosts list: the choice runs on one of them, and no host lists a better one at that place.
    #[test]
    fn the_choice_runs_somewhere_and_does_not_depend_on_the_order_of_hosts(
        lists in proptest::collection::vec(proptest::sample::subsequence(EngineName::ALL.to_vec(), 0..=3).prop_shuffle(), 1..5),
    ) {
        let hosts: Vec<_> = lists.iter().enumerate().map(|(n, list)| fast_host(&format!("h{n}"), list)).collect();
        let reversed: Vec<_> = hosts.iter().rev().cloned().collect();
        let all: BTreeSet<EngineName> = lists.iter().flatten().copied().collect();
        match chosen(ANY, &hosts) {
            Ok(engine) => {
                prop_assert!(all.contains(&engine));
                prop_assert!(lists.iter().any(|list| list.first() == Some(&engine)));
                prop_assert_eq!(chosen(ANY, &reversed), Ok(engine));
            }
            Err(_) => prop_assert!(all.is_empty()),
        }
    }
}
