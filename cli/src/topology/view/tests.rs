use super::*;
use crate::golden;
use crate::topology::map;
use vse_crds::{CpuPlacement, GuestDevice, MicroVM};

fn parts() -> (vse_crds::Host, MicroVM) {
    let seen = golden::fixture("running");
    (seen.host.unwrap(), seen.microvm.unwrap())
}

fn guest(name: &str, cpus: CpuPlacement) -> MicroVM {
    let (_, mut vm) = parts();
    vm.metadata.name = Some(name.into());
    let status = vm.status.as_mut().unwrap();
    status.cpus = Some(cpus);
    status.devices.clear();
    vm
}

#[test]
fn dedicated_cpus_beside_another_guest() {
    let (host, vm) = parts();
    let mut other = guest(
        "other-7",
        CpuPlacement { summary: String::new(), pinned: vec![3, 7], emulator: "3".into(), cells: Vec::new() },
    );
    let gpu = GuestDevice {
        name: "gpu".into(),
        device_name: "vse.hpc.io/accelerator".into(),
        addresses: vec!["0000:c1:00.0".into()],
    };
    other.status.as_mut().unwrap().devices.push(gpu);
    let map = map::draw_up(&host, &vm, &[other]);
    golden::check("topology-dedicated.txt", &render(&map, Paint::off()));
    let json = serde_json::to_string_pretty(&map).unwrap();
    golden::check("topology-dedicated.json", &format!("{json}\n"));
}

#[test]
fn shared_cpus() {
    let (host, _) = parts();
    let vm = guest(
        "hello-1",
        CpuPlacement { summary: "shared 0-7".into(), pinned: Vec::new(), emulator: "0-7".into(), cells: Vec::new() },
    );
    let map = map::draw_up(&host, &vm, &[]);
    golden::check("topology-shared.txt", &render(&map, Paint::off()));
}

#[test]
fn many_cores_are_wrapped() {
    let (mut host, vm) = parts();
    let status = host.status.as_mut().unwrap();
    status.devices.clear();
    status.cpu.topology = (0..64).map(|cpu| vse_crds::LogicalCpu { cpu, core: cpu % 32, socket: 0, cell: 0 }).collect();
    let text = render(&map::draw_up(&host, &vm, &[]), Paint::off());
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
}

#[test]
fn letters_go_on_after_z() {
    assert_eq!([letters(0), letters(25), letters(26), letters(52)], ["A", "Z", "AA", "BA"]);
}
