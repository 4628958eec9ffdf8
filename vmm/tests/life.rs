//! Lives of guests, from outside.
#![allow(clippy::unwrap_used, reason = "tests")]

mod process;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use process::{COUNTS, Vmm, assert_snapshot_is_small, event, has_kvm, kernel, out, serve_files, until};

/// A guest that writes to a file by its serial port.
fn config(folder: &std::path::Path, kernel: &std::path::Path) -> String {
    format!(
        r#"{{"payload": {{"kernel": "{}"}}, "memory": {{"size": 33554432}}, "pvpanic": true, "console": {{"mode": "Off"}},
             "serial": {{"mode": "File", "file": "{}"}}}}"#,
        kernel.display(),
        folder.join("serial").display()
    )
}

#[test]
fn a_guest_is_created_booted_paused_and_ended_by_orders() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &kernel(folder.path(), &COUNTS));
    let mut vmm = Vmm::start(folder, &["--config-json", &config]);
    let mut events = vmm.events();
    let info = || vmm.ask("GET", "vm.info", "").1;
    assert!(info().contains("\"state\":\"Created\""), "{}", info());
    vmm.put("vm.boot", "");
    assert_eq!(event(&mut events), "vm/booted");
    let output = || std::fs::read(vmm.folder.path().join("serial")).unwrap();
    until("the guest writes", || output().starts_with(b"abc"));
    vmm.put("vm.pause", "");
    let before = output();
    assert_eq!(output(), before);
    vmm.put("vm.resume", "");
    until("the guest goes on", || output().len() > before.len());
    assert_eq!([event(&mut events), event(&mut events)], ["vm/paused", "vm/resumed"]);
    let threads: serde_json::Value = serde_json::from_str(&info()).unwrap();
    assert_eq!(threads["vcpu_threads"].as_array().unwrap().len(), 1);
    // Filters are on: 2 is SECCOMP_MODE_FILTER.
    assert_eq!(vmm.status("Seccomp"), "2");
    vmm.put("vmm.shutdown", "");
    assert_eq!([event(&mut events), event(&mut events), event(&mut events)], ["vm/shutdown", "vm/deleted", "end"]);
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn nothing_is_left_of_guests_that_are_no_more() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("disk"), [0; 4096]).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_str(&config(folder.path(), &kernel(folder.path(), &COUNTS))).unwrap();
    config["memory"]["shared"] = true.into();
    config["disks"] = serde_json::json!([{"path": path("disk")}]);
    config["console"] = serde_json::json!({"mode": "Null"});
    config["agent"] = serde_json::json!({"socket": path("agent")});
    config["vsock"] = serde_json::json!({"cid": 3, "socket": path("vsock")});
    let mut impossible = config.clone();
    impossible["payload"]["kernel"] = path("disk").into();
    let (config, impossible) = (config.to_string(), impossible.to_string());
    let vmm = Vmm::start(folder, &[]);
    let life = || {
        vmm.put("vm.create", &config);
        vmm.put("vm.boot", "");
        vmm.put("vm.shutdown", "");
        vmm.put("vm.boot", "");
        vmm.put("vm.delete", "");
        assert_eq!(vmm.ask("PUT", "vm.create", &impossible).0, 500);
    };
    // The first may leave what all others use.
    life();
    let before = vmm.has();
    for _ in 0..3 {
        life();
    }
    assert_eq!(vmm.has(), before);
    assert!(!vmm.folder.path().join("agent").exists() && !vmm.folder.path().join("vsock").exists());
}

#[test]
fn a_file_system_is_added_by_a_confined_process() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("fs");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_str(&config(folder.path(), &kernel(folder.path(), &COUNTS))).unwrap();
    config["memory"]["shared"] = true.into();
    let vmm = Vmm::start(folder, &["--config-json", &config.to_string(), "--boot"]);
    let server = std::thread::spawn(move || serve_files(&listener));
    let fs = serde_json::json!({"tag": "files", "socket": socket}).to_string();
    assert_eq!(vmm.ask("PUT", "vm.add-fs", &fs).0, 200);
    // It lets go of the connection with the guest.
    vmm.put("vm.delete", "");
    assert_eq!(server.join().unwrap().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_panic_is_told_and_ends_it_with_code_3() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config =
        config(folder.path(), &kernel(folder.path(), &[out(0x3F8, b'!'), out(0x505, 1), vec![0xFA, 0xF4]].concat()));
    let mut vmm = Vmm::start(folder, &["--config-json", &config]);
    let mut events = vmm.events();
    vmm.put("vm.boot", "");
    assert_eq!([event(&mut events), event(&mut events)], ["vm/booted", "guest/panic"]);
    assert_eq!(vmm.end(), Some(3));
    // Its last words are there, though no line ends with them.
    assert_eq!(std::fs::read(vmm.folder.path().join("serial")).unwrap(), b"!");
}

#[test]
fn a_snapshot_goes_on_in_another_process() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernels = tempfile::tempdir().unwrap();
    let first = config(folder.path(), &kernel(kernels.path(), &COUNTS));
    let snapshot = tempfile::tempdir().unwrap();
    let url = format!("file://{}", snapshot.path().display());
    let vmm = Vmm::start(folder, &["--config-json", &first, "--boot"]);
    until("the guest writes", || std::fs::read(vmm.folder.path().join("serial")).is_ok_and(|out| out.len() > 100));
    vmm.put("vm.pause", "");
    vmm.put("vm.snapshot", &format!(r#"{{"destination_url": "{url}"}}"#));
    let written = std::fs::read(vmm.folder.path().join("serial")).unwrap();
    drop(vmm);
    assert_snapshot_is_small(snapshot.path());

    let folder = tempfile::tempdir().unwrap();
    let second = config_in(&first, folder.path());
    let restore = format!("source_url={url},resume=on");
    let vmm = Vmm::start(folder, &["--restore", &restore, "--config-json", &second]);
    let next = written.last().unwrap().wrapping_add(1);
    let output = || std::fs::read(vmm.folder.path().join("serial")).unwrap_or_default();
    until("the guest goes on", || output().len() > 10);
    // The byte on its way when it was paused may be the last one again.
    assert!([next, next.wrapping_sub(1)].contains(&output()[0]), "{} after {:?}", output()[0], written.last());
}

/// The same guest, whose serial port's file is in another folder.
fn config_in(config: &str, folder: &std::path::Path) -> String {
    let mut value: serde_json::Value = serde_json::from_str(config).unwrap();
    value["serial"]["file"] = folder.join("serial").display().to_string().into();
    value.to_string()
}

#[test]
fn who_can_not_be_let_in_costs_nothing() {
    if !has_kvm() {
        return;
    }
    let vmm = Vmm::start(tempfile::tempdir().unwrap(), &[]);
    let mut inside = UnixStream::connect(vmm.api()).unwrap();
    let ping = |stream: &mut UnixStream| {
        stream.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n").unwrap();
        stream.read(&mut [0; 4096]).unwrap()
    };
    assert!(ping(&mut inside) > 0);
    // Numbers below this one that are free are soon not.
    let before = vmm.limit_descriptors(vmm.has()[0] as u64);
    let mut outside: Vec<_> = (0..8).map(|_| UnixStream::connect(vmm.api()).unwrap()).collect();
    let _listener = vmm.events();
    // A loop that never waits has none of these.
    let rests = || vmm.status("voluntary_ctxt_switches").parse::<u64>().unwrap();
    let begin = rests();
    until("it rests", || rests() > begin + 50);
    assert!(ping(&mut inside) > 0);
    vmm.limit_descriptors(before);
    assert!(outside.iter_mut().all(|stream| ping(stream) > 0));
}

#[test]
fn what_can_not_be_is_said_in_one_line() {
    let run = |options: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_vse-vmm")).args(options).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = run(&["--nothing"]);
    assert_eq!((code, text.as_str()), (Some(2), "vse-vmm: there is no option --nothing; --help says more\n"));
    let (code, text) = run(&["--config-json", r#"{"payload": {"kernel": "/k"}, "cpus": {"boot_vcpu": 1}}"#]);
    assert_eq!(code, Some(1));
    assert!(text.contains("cpus.boot_vcpu: unknown field") && text.lines().count() == 1, "{text}");
    let (code, text) = run(&["--kernel", "/nowhere", "--memory", "size=1000"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("memory.size: 1000 is not from"), "{text}");
}
