//! Bad input: each refusal says what, where and what would help.

use super::{from_yaml, host, vse};
use crate::reason::Reason;
use crate::vse::observe::Observed;
use crate::vse::order::Order;
use crate::vse::refusal::Refusal;
use std::collections::BTreeMap;
use std::sync::Arc;
use vse_crds::{EngineName, Host, VSE, VSEProfile};

fn seen(vse: VSE, profile: Option<&str>, hosts: Vec<Arc<Host>>) -> Observed {
    Observed {
        vse: Arc::new(vse),
        profile: profile.map(|yaml| Arc::new(from_yaml::<VSEProfile>(yaml))),
        claims: BTreeMap::new(),
        hosts,
        engines: EngineName::ALL.into(),
        pods: Vec::new(),
        microvms: Vec::new(),
        pod_warning: None,
        now: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn with(spec: &str) -> VSE {
    let base = r"{apiVersion: vse.hpc.io/v1alpha1, kind: VSE, metadata: {name: demo, namespace: team, uid: u}, spec: ";
    from_yaml(&format!("{base}{spec}}}"))
}

fn refusal(vse: VSE, profile: Option<&str>, hosts: Vec<Arc<Host>>) -> Refusal {
    Order::new(&seen(vse, profile, hosts), None).unwrap_err()
}

const PROFILE: &str = r"
apiVersion: vse.hpc.io/v1alpha1
kind: VSEProfile
metadata: {name: small}
spec:
  engine: qemu
  kernelArguments: [quiet]
  nodeSelector: {zone: a}
  machine:
    cpu: {cores: 2}
    memory: {guest: 4Gi, hugepages: {pageSize: 2Mi}}
";

#[test]
fn a_profile_gives_what_the_spec_does_not() {
    let vse = with(
        "{profileName: small, system: {image: i, kernelArguments: [debug]}, machine: {cpu: {cores: 2}, memory: {guest: 4096Mi}}, nodeSelector: {rack: b}}",
    );
    let seen = seen(vse, Some(PROFILE), Vec::new());
    let spec = crate::vse::order::resolve(&seen).unwrap();
    assert_eq!(spec.system.kernel_arguments, ["quiet", "debug"]);
    assert_eq!(spec.machine.cpu.cores, Some(2));
    assert_eq!(spec.machine.cpu.sockets, Some(1));
    assert!(spec.machine.memory.hugepages.is_some());
    assert_eq!(spec.node_selector.len(), 2);
}

#[test]
fn every_conflict_with_the_profile_is_named() {
    let vse = with(
        "{profileName: small, engine: Auto, system: {image: i}, machine: {cpu: {cores: 4}, memory: {guest: 1Gi, hugepages: {pageSize: 1Gi}}}, nodeSelector: {zone: b}}",
    );
    let refusal = refusal(vse, Some(PROFILE), vec![host()]);
    assert_eq!(refusal.reason, Reason::ProfileConflict);
    let text = refusal.to_string();
    for part in [
        r#"spec.machine.cpu.cores: 4 conflicts with 2 from profile "small""#,
        "spec.machine.memory.guest: 1Gi conflicts with 4Gi",
        r#"spec.machine.memory.hugepages.pageSize: "1Gi" conflicts with "2Mi""#,
        r#"spec.nodeSelector[zone]: "b" conflicts with "a""#,
        r#"spec.engine: "Auto" conflicts with "qemu""#,
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn a_missing_profile_is_waited_for_by_name() {
    let refusal = refusal(with("{profileName: nowhere, system: {image: i}}"), None, vec![host()]);
    assert_eq!(refusal.reason, Reason::ProfileNotFound);
    assert!(refusal.to_string().starts_with("spec.profileName: "));
}

#[test]
fn a_missing_claim_is_named_by_its_field() {
    let vse = with(
        "{system: {image: i}, machine: {memory: {guest: 1Gi}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, persistentVolumeClaim: {claimName: gone}}]}",
    );
    let refusal = refusal(vse, None, vec![host()]);
    assert_eq!(refusal.reason, Reason::VolumeNotFound);
    assert!(refusal.to_string().starts_with("spec.volumes[1].persistentVolumeClaim.claimName: "));
}

#[test]
fn what_no_host_has_is_refused_with_what_they_have() {
    let cases = [
        (
            "cpu: {cores: 16}, memory: {guest: 1Gi}",
            Reason::InsufficientCPUs,
            "spec.machine.cpu: no host has 16 CPUs (host-1: 8)",
        ),
        ("memory: {guest: 64Gi}", Reason::InsufficientMemory, "spec.machine.memory.guest: no host has "),
        (
            "memory: {guest: 2Gi, hugepages: {pageSize: 2Mi}}",
            Reason::InsufficientHugePages,
            "spec.machine.memory.hugepages: no host has 2Gi in huge pages of 2Mi (host-1: 1Gi)",
        ),
        (
            "memory: {guest: 1Gi, hugepages: {pageSize: 1Gi}}",
            Reason::InsufficientHugePages,
            "spec.machine.memory.hugepages: no host has 1Gi in huge pages of 1Gi (host-1: 0)",
        ),
    ];
    for (machine, reason, text) in cases {
        let vse = with(&format!("{{system: {{image: i}}, machine: {{{machine}}}}}"));
        let refusal = refusal(vse, None, vec![host()]);
        assert_eq!(refusal.reason, reason, "{refusal}");
        assert!(refusal.to_string().starts_with(text), "{refusal}");
    }
}

/// A host with an engine that passes devices through, and two network cards for guests.
fn host_with_cards() -> Arc<Host> {
    let mut host = host().as_ref().clone();
    let status = host.status.as_mut().unwrap();
    status.engines[1].capabilities = vec!["Passthrough".into()];
    status.device_classes = vec![from_yaml("{name: nic, devices: 2}")];
    Arc::new(host)
}

fn with_devices(devices: &str) -> VSE {
    with(&format!(
        "{{system: {{image: i}}, machine: {{memory: {{guest: 1Gi}}, devices: {{hostDevices: [{devices}]}}}}}}"
    ))
}

#[test]
fn host_devices_are_asked_of_the_hosts_by_count() {
    let vse = with_devices("{name: a, deviceName: vse.hpc.io/nic}, {name: b, deviceName: vse.hpc.io/nic}");
    let order = Order::new(&seen(vse, None, vec![host(), host_with_cards()]), None).unwrap();
    let pod = crate::vse::pod::build(&super::vse(), 1, &order, &super::images());
    let resources = pod.spec.unwrap().containers[0].resources.clone().unwrap();
    assert_eq!(resources.limits.unwrap()["vse.hpc.io/nic"].0, "2");
    assert_eq!(resources.requests.unwrap()["vse.hpc.io/nic"].0, "2");
}

#[test]
fn a_device_class_nobody_declares_is_waited_for_by_its_field() {
    let vse = with_devices("{name: a, deviceName: vse.hpc.io/nic}, {name: b, deviceName: vse.hpc.io/gpu}");
    let refusal = refusal(vse, None, vec![host_with_cards()]);
    assert_eq!(refusal.reason, Reason::DeviceClassNotFound);
    assert_eq!(
        refusal.to_string(),
        "spec.machine.devices.hostDevices[b].deviceName: no HostPolicy in force on a ready host has device class \"gpu\"; \
         waiting for one (deviceClasses)"
    );
}

#[test]
fn more_devices_than_any_host_has_are_refused() {
    let device = |name: &str| format!("{{name: {name}, deviceName: vse.hpc.io/nic}}");
    let vse = with_devices(&["a", "b", "c"].map(device).join(", "));
    let refusal = refusal(vse, None, vec![host_with_cards()]);
    assert_eq!(refusal.reason, Reason::InsufficientDevices);
    assert_eq!(
        refusal.to_string(),
        "spec.machine.devices.hostDevices[a].deviceName: no host has 3 of vse.hpc.io/nic (host-1: 2)"
    );
}

#[test]
fn an_engine_without_passthrough_is_not_taken_for_devices() {
    let mut host = host_with_cards().as_ref().clone();
    host.status.as_mut().unwrap().engines[1].capabilities.clear();
    let refusal = refusal(with_devices("{name: a, deviceName: vse.hpc.io/nic}"), None, vec![Arc::new(host)]);
    assert_eq!(refusal.reason, Reason::NoEngine);
    assert!(
        refusal.to_string().contains("qemu: lacks Passthrough, which spec.machine.devices.hostDevices needs"),
        "{refusal}"
    );
}

#[test]
fn devices_of_profile_and_spec_are_joined_by_name() {
    let profile = |device: &str| {
        format!(
            "{{apiVersion: vse.hpc.io/v1alpha1, kind: VSEProfile, metadata: {{name: small}}, \
             spec: {{machine: {{devices: {{hostDevices: [{{name: a, deviceName: {device}}}]}}}}}}}}"
        )
    };
    let spec = "{profileName: small, system: {image: i}, machine: {memory: {guest: 1Gi}, devices: {hostDevices: \
                [{name: b, deviceName: vse.hpc.io/nic}, {name: a, deviceName: vse.hpc.io/nic}]}}}";
    let same = seen(with(spec), Some(&profile("vse.hpc.io/nic")), Vec::new());
    let devices = crate::vse::order::resolve(&same).unwrap().machine.devices;
    assert_eq!(devices.host_devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let refusal = refusal(with(spec), Some(&profile("vse.hpc.io/gpu")), vec![host()]);
    assert_eq!(refusal.reason, Reason::ProfileConflict);
    assert!(refusal.to_string().starts_with("spec.machine.devices.hostDevices[a].deviceName: "), "{refusal}");
}

#[test]
fn overcommitted_cpus_may_be_more_than_a_host_has() {
    let vse = with("{system: {image: i}, machine: {cpu: {cores: 64, request: 100m}, memory: {guest: 1Gi}}}");
    assert!(Order::new(&seen(vse, None, vec![host()]), None).is_ok());
}

#[test]
fn without_hosts_it_waits_without_engines_it_says_why() {
    assert_eq!(refusal(vse(), None, Vec::new()).reason, Reason::NoHost);
    let mut idle = host().as_ref().clone();
    let status = idle.status.as_mut().unwrap();
    status.engines.iter_mut().for_each(|engine| engine.accelerators.clear());
    let refusal = refusal(vse(), None, vec![Arc::new(idle)]);
    assert_eq!(refusal.reason, Reason::NoEngine);
    assert_eq!(
        refusal.to_string(),
        "spec.engine: no host can run the guest under vmm or cloud-hypervisor or qemu (host-1: vmm: KVM is not usable, \
         cloud-hypervisor: its HostPolicy does not list it, qemu: KVM is not usable (the CPU has neither vmx nor svm) and \
         its HostPolicy does not allow emulation)"
    );
}
