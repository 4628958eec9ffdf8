//! Guests whose VMM knows no path, from outside: confined, as in a pod.
#![allow(clippy::unwrap_used, reason = "tests")]

mod process;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use process::{COUNTS, Vmm, assert_snapshot_is_small, event, has_kvm, kernel, run, until};
use serde_json::json;
use tempfile::TempDir;
use vse_vmm::virtio::net::Tap;

/// What a guest has of the host, all of it open.
struct Given {
    folder: TempDir,
    kernel: OwnedFd,
    serial: OwnedFd,
    console: OwnedFd,
    agent: OwnedFd,
    vsock: OwnedFd,
}

impl Given {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        let file = |name: &str| File::options().create(true).append(true).open(path(name)).unwrap().into();
        let listener = |name: &str| UnixListener::bind(path(name)).unwrap().into();
        let kernel = File::open(kernel(folder.path(), &COUNTS)).unwrap().into();
        let (serial, console) = (file("serial"), file("console"));
        let (agent, vsock) = (listener("agent"), listener("vsock"));
        std::fs::write(path("serial"), "before\n").unwrap();
        Self { folder, kernel, serial, console, agent, vsock }
    }

    fn all(&self) -> [&OwnedFd; 5] {
        [&self.kernel, &self.serial, &self.console, &self.agent, &self.vsock]
    }

    fn config(&self) -> serde_json::Value {
        let [kernel, serial, console, agent, vsock] = self.all().map(AsRawFd::as_raw_fd);
        json!({
            "payload": {"kernel_fd": kernel}, "memory": {"size": 33_554_432},
            "serial": {"mode": "File", "fd": serial}, "console": {"mode": "File", "fd": console},
            "agent": {"socket_fd": agent}, "vsock": {"cid": 3, "socket_fd": vsock},
        })
    }

    /// What the guest has written since.
    fn output(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("serial")).unwrap().split_off("before\n".len())
    }

    fn connect(&self, name: &str) -> std::io::Result<UnixStream> {
        UnixStream::connect(self.folder.path().join(name))
    }

    /// Closes what is here, so that only the VMM has it; the result is where it was.
    fn let_go(self) -> TempDir {
        self.folder
    }
}

fn open(folder: &Path) -> OwnedFd {
    File::open(folder).unwrap().into()
}

#[test]
fn a_guest_of_descriptors_is_saved_and_goes_on_elsewhere() {
    if !has_kvm() {
        return;
    }
    let (given, snapshot) = (Given::new(), TempDir::new().unwrap());
    let folder = TempDir::new().unwrap();
    let events: OwnedFd = UnixListener::bind(folder.path().join("events")).unwrap().into();
    let monitor = format!("socket_fd={}", events.as_raw_fd());
    let inherited = [&given.all()[..], &[&events]].concat();
    let mut vmm = Vmm::start_with(folder, &["--event-monitor", &monitor], &inherited);
    let mut events = vmm.events();
    vmm.put("vm.create", &given.config().to_string());
    let info: serde_json::Value = serde_json::from_str(&vmm.ask("GET", "vm.info", "").1).unwrap();
    for (field, told) in [("agent", "socket_fd"), ("vsock", "socket_fd"), ("serial", "fd"), ("console", "fd")] {
        assert_eq!(info["config"][field][told], given.config()[field][told]);
    }
    vmm.put("vm.boot", "");
    assert_eq!([event(&mut events), event(&mut events)], ["vm/created", "vm/booted"]);
    until("the guest writes", || given.output().starts_with(b"abc"));
    drop((given.connect("agent").unwrap(), given.connect("vsock").unwrap()));
    // It boots again: they are its own until it is deleted.
    vmm.put("vm.shutdown", "");
    let first = given.output().len();
    vmm.put("vm.boot", "");
    until("the guest writes again", || given.output()[first..].starts_with(b"abc"));
    vmm.put("vm.pause", "");
    // Filters are on: 2 is SECCOMP_MODE_FILTER.
    assert_eq!(vmm.status("Seccomp"), "2");
    let null = File::open("/dev/null").unwrap();
    let (status, body) = vmm.ask_with("PUT", "vm.snapshot", "{}", &[null.as_fd()]);
    assert!(status == 400 && body.contains("destination_fd: descriptor "), "{status} {body}");
    let directory = open(snapshot.path());
    assert_eq!(vmm.ask_with("PUT", "vm.snapshot", "{}", &[directory.as_fd()]), (204, String::new()));
    assert!(!vmm.open_files().contains(&snapshot.path().to_owned()), "a directory is left open");
    let written = given.output();
    vmm.put("vmm.shutdown", "");
    assert_eq!(vmm.end(), Some(0));
    drop(vmm);
    assert_snapshot_is_small(snapshot.path());

    // By a request, in a process that is confined already; and by a number, from the beginning.
    let next = written.last().unwrap().wrapping_add(1);
    for by_number in [false, true] {
        let given = Given::new();
        let directory = open(snapshot.path());
        let inherited = [&given.all()[..], &[&directory]].concat();
        let config = given.config().to_string();
        let restore = format!("source_fd={},resume=on", directory.as_raw_fd());
        let options = if by_number { &["--restore", &restore, "--config-json", &config][..] } else { &[] };
        let vmm = Vmm::start_with(TempDir::new().unwrap(), options, &inherited);
        if !by_number {
            let body = json!({"config": given.config(), "resume": true}).to_string();
            assert_eq!(vmm.ask_with("PUT", "vm.restore", &body, &[directory.as_fd()]), (204, String::new()));
        }
        until("the guest goes on", || given.output().len() > 10);
        // The byte on its way when it was paused may be the last one again.
        assert!([next, next.wrapping_sub(1)].contains(&given.output()[0]), "{} after {next}", given.output()[0]);
        let holds = vmm.open_files().iter().filter(|file| **file == snapshot.path()).count();
        assert_eq!(holds, usize::from(!by_number), "only what it was not told of stays open");
        // The sockets, and their files, are not the VMM's to remove.
        vmm.put("vm.delete", "");
        let folder = given.let_go();
        for name in ["agent", "vsock"] {
            let is_refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
            // What other tests start just now has it for a moment, too.
            until("nobody listens", || UnixStream::connect(folder.path().join(name)).is_err_and(is_refused));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_its_field() {
    if !has_kvm() {
        return;
    }
    let given = Given::new();
    let other = OwnedFd::from(File::open("/dev/null").unwrap());
    let (client, _server) = UnixStream::pair().unwrap();
    let client = OwnedFd::from(client);
    let inherited = [&given.all()[..], &[&other, &client]].concat();
    let vmm = Vmm::start_with(TempDir::new().unwrap(), &[], &inherited);
    let before = vmm.has();
    for (field, name, expected) in [
        ("agent", "socket_fd", "agent.socket_fd: descriptor N is not a listening unix stream socket"),
        ("vsock", "socket_fd", "vsock.socket_fd: descriptor N is not a listening unix stream socket"),
        ("serial", "fd", "serial.fd: descriptor N is not open for writing"),
        ("console", "fd", "console.fd: descriptor N is not open for writing"),
    ] {
        let wrong = if name == "fd" { [&other, &given.kernel] } else { [&other, &client] };
        for wrong in wrong.map(AsRawFd::as_raw_fd) {
            let mut config = given.config();
            config["payload"] = json!({"kernel": given.folder.path().join("kernel")});
            config[field][name] = wrong.into();
            let (status, body) = vmm.ask("PUT", "vm.create", &config.to_string());
            assert!(status == 500 && body.contains(&expected.replace('N', &wrong.to_string())), "{status} {body}");
        }
    }
    for (name, body, expected) in [
        ("vm.restore", json!({}), "source_url: is missing: or an open descriptor of it"),
        ("vm.restore", json!({"source_fd": client.as_raw_fd()}), "is not an open directory"),
        ("vm.restore", json!({"source_fd": 4711}), "descriptor 4711 was not given, or is in use already"),
        ("vm.snapshot", json!({}), "destination_url: is missing: or an open descriptor of it"),
    ] {
        let (status, body) = vmm.ask("PUT", name, &body.to_string());
        assert!(status == 400 && body.contains(expected), "{name}: {status} {body}");
    }
    // All of it can be had still, and nothing else is left. Who has just asked may still be there.
    until("nothing is left", || vmm.has() <= before);
    vmm.put("vm.create", &given.config().to_string());

    drop(vmm);
    for (option, field, expected) in [
        ("--event-monitor", "fd", "open for writing"),
        ("--event-monitor", "socket_fd", "a listening unix stream socket"),
        ("--api-socket", "fd", "a listening unix stream socket"),
    ] {
        let number = other.as_raw_fd();
        let (code, text) = run(&["--api-socket", "/nowhere", option, &format!("{field}={number}")], &[&other]);
        assert_eq!(code, Some(1));
        assert_eq!(text, format!("vse-vmm: {option}: {field}: descriptor {number} is not {expected}\n"));
    }
    let (code, text) = run(&["--restore", &format!("source_fd={}", other.as_raw_fd())], &[&other]);
    assert!(code == Some(1) && text.contains("source_fd: descriptor "), "{text}");
}

#[test]
fn what_comes_with_a_device_is_closed_with_the_guest() {
    if !has_kvm() {
        return;
    }
    let given = Given::new();
    let vmm = Vmm::start_with(TempDir::new().unwrap(), &[], &given.all());
    vmm.put("vm.create", &given.config().to_string());
    vmm.put("vm.boot", "");
    let path = given.folder.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let disk = File::options().read(true).write(true).open(&path).unwrap();
    let holds = || vmm.open_files().iter().filter(|file| **file == path).count();
    let (status, body) = vmm.ask_with("PUT", "vm.add-disk", r#"{"num_queues": 0}"#, &[disk.as_fd()]);
    assert_eq!((status, holds()), (400, 0), "{body}");
    let (status, body) = vmm.ask_with("PUT", "vm.add-disk", r#"{"id": "more"}"#, &[disk.as_fd()]);
    assert!(status == 200 && body.contains("\"more\"") && holds() > 0, "{status} {body}");
    vmm.put("vm.shutdown", "");
    vmm.put("vm.boot", "");
    vmm.put("vm.delete", "");
    assert_eq!(holds(), 0);
    assert_eq!(vmm.ask_with("PUT", "vm.create", "{}", &[disk.as_fd()]).0, 400);
    assert_eq!(holds(), 0);
}

/// Runs `test` in a network namespace of its own, if that may be made.
fn in_new_network(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // Only this thread moves, and what it starts.
        #[expect(deprecated, reason = "the thread shares nothing that it would have to")]
        let moved = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
        match moved {
            Ok(()) => test(),
            Err(error) => eprintln!("skipped: no network namespace: {error}"),
        }
    });
    thread.join().unwrap();
}

#[test]
fn a_tap_serves_one_boot_after_the_other_until_its_device_goes() {
    if !has_kvm() {
        return;
    }
    in_new_network(|| {
        let taps: Vec<OwnedFd> = match Tap::open("vse0", 2) {
            Ok(taps) => taps.iter().map(|tap| tap.as_fd().try_clone_to_owned().unwrap()).collect(),
            Err(error) => return eprintln!("skipped: no tap: {error}"),
        };
        let given = Given::new();
        let inherited: Vec<_> = given.all().into_iter().chain(&taps).collect();
        let vmm = Vmm::start_with(TempDir::new().unwrap(), &[], &inherited);
        let numbers: Vec<_> = taps.iter().map(AsRawFd::as_raw_fd).collect();
        let mut config = given.config();
        config["net"] = json!([{"fds": numbers, "num_queues": 4}]);
        drop(taps);
        let taps = || vmm.open_files().iter().filter(|file| file.ends_with("net/tun")).count();
        vmm.put("vm.create", &config.to_string());
        for _ in 0..2 {
            vmm.put("vm.boot", "");
            assert_eq!(taps(), 4, "the device's, and those for the next boot");
            vmm.put("vm.shutdown", "");
            assert_eq!(taps(), 2);
        }
        vmm.put("vm.delete", "");
        assert_eq!(taps(), 0);
    });
}
