//! The owner, with a guest that only takes notes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use vm_memory::{Bytes, GuestAddress};
use vse_vmm_api::{NetConfig, VmCounters, json};

use super::*;
use crate::api::http::{Method, Request};
use crate::api::routes;
use crate::memory::GuestMemory;
use crate::snapshot::{Snapshot, Unit};

type Notes = Rc<RefCell<Vec<String>>>;

struct FakeGuest {
    notes: Notes,
    memory: GuestMemory,
}

impl FakeGuest {
    fn new(notes: &Notes) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        Self { notes: Rc::clone(notes), memory }
    }

    fn note(&self, what: &str) -> Outcome<()> {
        self.notes.borrow_mut().push(what.to_owned());
        Ok(())
    }
}

impl Guest for FakeGuest {
    fn boot(&mut self) -> Outcome<()> {
        self.memory.write_obj(0x55_u8, GuestAddress(0x1000))?;
        self.note("boot")
    }

    fn pause(&mut self) -> Outcome<()> {
        self.note("pause")
    }

    fn resume(&mut self) -> Outcome<()> {
        self.note("resume")
    }

    fn reset(&mut self) -> Outcome<()> {
        self.note("reset")
    }

    fn power_button(&self) {
        let _ = self.note("power button");
    }

    fn save(&self) -> Outcome<BTreeMap<String, Unit>> {
        Ok([("cpu0".to_owned(), Unit { kind: "cpu".into(), version: 1, bytes: vec![1, 2] })].into())
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn add(&mut self, device: &NewDevice) -> Outcome<String> {
        self.note(&format!("add {}", device.id().unwrap_or("?")))?;
        Ok("0000:00:06.0".to_owned())
    }

    fn remove(&mut self, id: &str) -> Outcome<()> {
        self.note(&format!("remove {id}"))
    }

    fn eject(&mut self, slot: u8) -> Option<String> {
        (slot == 6).then(|| "x".to_owned())
    }

    fn counters(&self) -> VmCounters {
        VmCounters::from([("disk0".to_owned(), BTreeMap::from([("reads".to_owned(), 3)]))])
    }

    fn vcpu_threads(&self) -> Vec<i32> {
        vec![4711]
    }

    fn watch<'a>(&'a self, _: &mut Vec<rustix::event::PollFd<'a>>) {}

    fn ready(&mut self) {}
}

impl Drop for FakeGuest {
    fn drop(&mut self) {
        let _ = self.note("drop");
    }
}

struct FakeBuilder(Notes);

impl Builder for FakeBuilder {
    fn create(&mut self, config: &VmConfig) -> Outcome<Box<dyn Guest>> {
        if config.payload.cmdline.as_deref() == Some("impossible") {
            return Err(Box::new(std::io::Error::other("no such host")));
        }
        self.0.borrow_mut().push("create".to_owned());
        Ok(Box::new(FakeGuest::new(&self.0)))
    }

    fn restore(&mut self, _: &VmConfig, snapshot: &Snapshot, _: bool) -> Outcome<Box<dyn Guest>> {
        assert_eq!(snapshot.units["cpu0"].bytes, [1, 2]);
        let guest = FakeGuest::new(&self.0);
        snapshot.fill(&guest.memory)?;
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(0x1000))?, 0x55);
        self.0.borrow_mut().push("restore".to_owned());
        Ok(Box::new(guest))
    }
}

pub(super) struct Owner {
    pub(super) vmm: Vmm,
    notes: Notes,
}

const CONFIG: &str =
    r#"{"payload": {"kernel": "/k"}, "memory": {"size": 16777216}, "disks": [{"path": "/d", "id": "x"}]}"#;

impl Owner {
    fn new() -> Self {
        let notes = Notes::default();
        Self { vmm: Vmm::new(Box::new(FakeBuilder(Rc::clone(&notes))), Monitor::default()), notes }
    }

    /// One that was told to do these.
    pub(super) fn in_state(way: &[&str]) -> Self {
        let mut owner = Self::new();
        for step in way {
            assert_eq!(owner.put(step, CONFIG), 204, "{step}");
        }
        owner
    }

    /// Asks as a client does; the result is status and body.
    fn ask(&mut self, method: Method, name: &str, body: &str) -> (u16, String) {
        let request = Request { method, path: format!("/api/v1/{name}"), body: body.into(), keep_alive: true };
        let response = match routes::command(&request) {
            Ok(command) => self.vmm.command(command, Vec::new()),
            Err(response) => response,
        };
        (response.status as u16, String::from_utf8(response.body).unwrap())
    }

    fn put(&mut self, name: &str, body: &str) -> u16 {
        self.ask(Method::Put, name, body).0
    }

    fn state(&mut self) -> String {
        let (status, body) = self.ask(Method::Get, "vm.info", "");
        if status != 200 {
            return format!("{status}");
        }
        let info: serde_json::Value = serde_json::from_str(&body).unwrap();
        info["state"].as_str().unwrap().to_owned()
    }

    fn notes(&self) -> String {
        std::mem::take(&mut *self.notes.borrow_mut()).join(", ")
    }
}

/// Every verb in every state: what it answers, and where it leads.
#[test]
fn states_and_verbs() {
    let ways: [(&str, &[&str]); 5] = [
        ("404", &[]),
        ("Created", &["vm.create"]),
        ("Running", &["vm.create", "vm.boot"]),
        ("Paused", &["vm.create", "vm.boot", "vm.pause"]),
        ("Shutdown", &["vm.create", "vm.boot", "vm.shutdown"]),
    ];
    let expected = [
        ("vm.create", ["204 Created", "409 Created", "409 Running", "409 Paused", "409 Shutdown"]),
        ("vm.boot", ["404 404", "204 Running", "405 Running", "405 Paused", "204 Running"]),
        ("vm.pause", ["404 404", "405 Created", "204 Paused", "405 Paused", "405 Shutdown"]),
        ("vm.resume", ["404 404", "405 Created", "405 Running", "204 Running", "405 Shutdown"]),
        ("vm.reboot", ["404 404", "405 Created", "204 Running", "405 Paused", "405 Shutdown"]),
        ("vm.power-button", ["404 404", "405 Created", "204 Running", "405 Paused", "405 Shutdown"]),
        ("vm.shutdown", ["404 404", "405 Created", "204 Shutdown", "204 Shutdown", "405 Shutdown"]),
        ("vm.delete", ["204 404", "204 404", "204 404", "204 404", "204 404"]),
        ("vm.resize", ["404 404", "204 Created", "204 Running", "204 Paused", "204 Shutdown"]),
        ("vm.add-disk", ["404 404", "204 Created", "200 Running", "200 Paused", "204 Shutdown"]),
        ("vm.remove-device", ["404 404", "405 Created", "204 Running", "405 Paused", "405 Shutdown"]),
    ];
    for (verb, answers) in expected {
        for ((start, way), answer) in ways.iter().zip(answers) {
            let mut owner = Owner::in_state(way);
            assert_eq!(owner.state(), *start);
            let body = match verb {
                "vm.create" => CONFIG,
                "vm.add-disk" => r#"{"path": "/more"}"#,
                "vm.remove-device" => r#"{"id": "x"}"#,
                _ => "{}",
            };
            let status = owner.put(verb, body);
            assert_eq!(format!("{status} {}", owner.state()), answer, "{verb} in {start}");
        }
    }
}

#[test]
fn the_guest_is_gone_after_shutdown_and_delete() {
    let mut owner = Owner::new();
    owner.put("vm.create", CONFIG);
    owner.put("vm.boot", "");
    owner.put("vm.shutdown", "");
    assert_eq!(owner.notes(), "create, boot, pause, drop");
    owner.put("vm.boot", "");
    owner.put("vm.delete", "");
    assert_eq!(owner.notes(), "create, boot, pause, drop");
}

#[test]
fn errors_are_lists_of_what_is_wrong() {
    let mut owner = Owner::new();
    let two = r#"{"payload": {}, "disks": [{}]}"#;
    let expected = r#"["payload.kernel: is missing: a guest boots a kernel","disks[0].path: is missing: or an open descriptor of it"]"#;
    assert_eq!(owner.ask(Method::Put, "vm.create", two), (400, expected.to_owned()));
    let impossible = r#"{"payload": {"kernel": "/k", "cmdline": "impossible"}}"#;
    let expected = r#"["vm.create failed","no such host"]"#;
    assert_eq!(owner.ask(Method::Put, "vm.create", impossible), (500, expected.to_owned()));
    assert_eq!(owner.state(), "404");
    owner.put("vm.create", CONFIG);
    assert_eq!(owner.put("vm.add-net", r#"{"tap": "t", "id": "x"}"#), 409);
    assert_eq!(owner.put("vm.remove-device", r#"{"id": "y"}"#), 404);
    let (status, body) = owner.ask(Method::Put, "vm.resize", r#"{"desired_vcpus": 2}"#);
    assert_eq!(
        (status, body.as_str()),
        (400, r#"["desired_vcpus: not supported by this VMM: it is 1 and can't be 2"]"#)
    );
}

#[test]
fn what_the_guest_does() {
    let mut owner = Owner::new();
    owner.put("vm.create", CONFIG);
    owner.put("vm.boot", "");
    owner.vmm.request(bus::Request::Reset);
    assert_eq!(owner.notes(), "create, boot, reset, resume");
    owner.put("vm.pause", "");
    owner.vmm.request(bus::Request::Reset);
    assert_eq!((owner.notes().as_str(), owner.state().as_str()), ("pause, reset", "Paused"));
    owner.put("vm.resume", "");
    owner.notes();
    assert_eq!(owner.put("vm.remove-device", r#"{"id": "x"}"#), 204);
    assert!(owner.ask(Method::Get, "vm.info", "").1.contains("\"id\":\"x\""));
    owner.vmm.request(bus::Request::Eject { slot: 6 });
    assert!(!owner.ask(Method::Get, "vm.info", "").1.contains("\"id\":\"x\""));
    assert_eq!(owner.vmm.end(), None);
    owner.vmm.request(bus::Request::Panicked);
    owner.vmm.request(bus::Request::PowerOff);
    assert_eq!(owner.vmm.end().map(End::exit_code), Some(3));
}

#[test]
fn hot_plug_takes_descriptors() {
    let mut owner = Owner::new();
    owner.put("vm.create", CONFIG);
    let fd = || vec![OwnedFd::from(std::fs::File::open("/dev/null").unwrap())];
    let net = || Command::Add(Box::new(NewDevice::Net(Default::default())));
    let response = owner.vmm.command(net(), fd());
    assert_eq!(response.status as u16, 204, "{}", String::from_utf8_lossy(&response.body));
    assert_eq!(owner.notes(), "create, add _net0");
    let too_many = owner.vmm.command(net(), [fd(), fd()].into_iter().flatten().collect());
    assert_eq!(too_many.status as u16, 400);
    assert_eq!(owner.vmm.command(Command::Pause, fd()).status as u16, 400);
}

/// Whether the other end of a connection is closed.
fn is_closed(other_end: &mut UnixStream) -> bool {
    other_end.set_nonblocking(true).unwrap();
    other_end.read(&mut [0]).is_ok()
}

#[test]
fn descriptors_are_the_guests_until_it_is_deleted() {
    for way in [&["vm.create", "vm.boot"][..], &["vm.create", "vm.boot", "vm.shutdown"]] {
        let mut owner = Owner::in_state(way);
        let (mut other_end, end) = UnixStream::pair().unwrap();
        let net = Command::Add(Box::new(NewDevice::Net(Default::default())));
        assert!(matches!(owner.vmm.command(net, vec![end.into()]).status as u16, 200 | 204));
        for step in ["vm.shutdown", "vm.boot", "vm.shutdown"] {
            owner.put(step, "");
            assert!(!is_closed(&mut other_end), "{step}");
        }
        owner.put("vm.delete", "");
        assert!(is_closed(&mut other_end));
    }
    let mut owner = Owner::in_state(&["vm.create", "vm.boot"]);
    let (mut other_end, end) = UnixStream::pair().unwrap();
    // The fake guest lets go of what has this name, which the disk makes free.
    owner.vmm.request(bus::Request::Eject { slot: 6 });
    let net = NetConfig { id: Some("x".into()), ..Default::default() };
    let net = Command::Add(Box::new(NewDevice::Net(net)));
    assert_eq!(owner.vmm.command(net, vec![end.into()]).status as u16, 200);
    assert!(!is_closed(&mut other_end));
    owner.vmm.request(bus::Request::Eject { slot: 6 });
    assert!(is_closed(&mut other_end));
}

#[test]
fn a_snapshot_goes_on_with_another_hosts_part() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}", directory.path().display());
    let mut owner = Owner::new();
    owner.put("vm.create", CONFIG);
    owner.put("vm.boot", "");
    let save = format!(r#"{{"destination_url": "{url}"}}"#);
    assert_eq!(owner.put("vm.snapshot", &save), 405);
    owner.put("vm.pause", "");
    assert_eq!(owner.put("vm.snapshot", &save), 204);
    assert_eq!(owner.put("vm.snapshot", &save), 409);

    let mut owner = Owner::new();
    let (status, body) = owner.ask(Method::Put, "vm.restore", "{}");
    assert_eq!((status, body.as_str()), (400, r#"["source_url: is missing: or an open descriptor of it"]"#));
    let restore = |config: &str| format!(r#"{{"source_url": "{url}", "resume": true, "config": {config}}}"#);
    let (status, body) = owner.ask(Method::Put, "vm.restore", &format!(r#"{{"source_url": "{url}"}}"#));
    assert_eq!(status, 400);
    assert!(body.contains("disks[0].path"), "{body}");
    let (status, body) = owner.ask(Method::Put, "vm.restore", &restore(&CONFIG.replace("16777216", "33554432")));
    assert_eq!(status, 400);
    assert!(body.contains("memory.size"), "{body}");
    assert_eq!(owner.put("vm.restore", &restore(&CONFIG.replace("/d", "/elsewhere"))), 204);
    assert_eq!(owner.state(), "Running");
    assert_eq!(owner.notes(), "restore, resume");
    assert_eq!(owner.put("vm.restore", &restore(CONFIG)), 404);
}

#[test]
fn a_snapshot_is_in_a_directory_that_comes_along() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| OwnedFd::from(std::fs::File::open(path).unwrap());
    let mut owner = Owner::in_state(&["vm.create", "vm.boot", "vm.pause"]);
    let mut save = |body: &str, fds| {
        let response = owner.vmm.command(Command::Snapshot(json::read(body.as_bytes()).unwrap()), fds);
        (response.status as u16, String::from_utf8(response.body).unwrap())
    };
    assert_eq!(save("{}", vec![]), (400, r#"["destination_url: is missing: or an open descriptor of it"]"#.to_owned()));
    assert_eq!(save(r#"{"destination_url": "file:///s"}"#, vec![open(folder.path())]).0, 400, "one of both");
    assert_eq!(save("{}", vec![open(folder.path()), open(folder.path())]).0, 400, "one");
    let (status, body) = save("{}", vec![open(std::path::Path::new("/dev/null"))]);
    assert!(status == 400 && body.contains("is not an open directory"), "{status} {body}");
    assert_eq!(save("{}", vec![open(folder.path())]).0, 204);
    let (status, body) = save("{}", vec![open(folder.path())]);
    assert!(status == 409 && body.contains(" has a snapshot in it"), "{status} {body}");

    let restore = || Command::Restore(json::read(format!(r#"{{"config": {CONFIG}}}"#).as_bytes()).unwrap());
    let mut owner = Owner::new();
    let response = owner.vmm.command(restore(), vec![open(tempfile::tempdir().unwrap().path())]);
    let body = String::from_utf8(response.body).unwrap();
    assert!(response.status as u16 == 500 && body.contains("manifest in descriptor "), "{body}");
    // By a number that it was started with.
    let number = descriptors::receive(open(folder.path()));
    let by_number = format!(r#"{{"source_fd": {number}, "config": {CONFIG}}}"#);
    assert_eq!(owner.put("vm.restore", &by_number), 204);
    owner.put("vm.delete", "");
    assert_eq!(owner.vmm.command(restore(), vec![open(folder.path())]).status as u16, 204);
    assert_eq!(owner.state(), "Paused");
}

#[test]
fn a_restored_guest_gets_taps_that_come_along_and_needs_no_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}", directory.path().display());
    let net = r#"{"payload": {"kernel": "/k"}, "memory": {"size": 16777216}, "net": [{"id": "a", "tap": "t"}, {"id": "b", "tap": "u"}]}"#;
    let mut owner = Owner::new();
    for (verb, body) in [("vm.create", net), ("vm.boot", ""), ("vm.pause", "")] {
        assert_eq!(owner.put(verb, body), 204);
    }
    assert_eq!(owner.put("vm.snapshot", &format!(r#"{{"destination_url": "{url}"}}"#)), 204);

    let mut owner = Owner::new();
    let mut restore = |net_fds: &str, count: usize| {
        let text = format!(r#"{{"source_url": "{url}", "net_fds": {net_fds}}}"#);
        let fds = (0..count).map(|_| OwnedFd::from(std::fs::File::open("/dev/null").unwrap())).collect();
        let response = owner.vmm.command(Command::Restore(vse_vmm_api::json::read(text.as_bytes()).unwrap()), fds);
        (response.status as u16, String::from_utf8(response.body).unwrap())
    };
    let refused = |message: &str| (400, format!("[{message:?}]"));
    let both = r#"[{"id": "b", "num_fds": 1}, {"id": "a", "num_fds": 1}]"#;
    assert_eq!(restore(both, 1), refused("net_fds: 1 descriptors came along, not 2"));
    assert_eq!(restore(both, 0), refused("net_fds: 0 descriptors came along, not 2"));
    assert_eq!(restore("null", 1), refused("source_fd: is there by URL as well"));
    assert_eq!(restore("null", 2), refused("2 descriptors came along, and there is use for one"));
    assert_eq!(
        restore(r#"[{"id": "c", "num_fds": 1}]"#, 1),
        (400, r#"["net_fds: there is no network device \"c\""]"#.to_owned())
    );
    let (status, body) = restore(r#"[{"id": "a", "num_fds": 2}]"#, 2);
    assert!(status == 400 && body.contains("net[0].fds") && body.contains("net[1].tap"), "{body}");
    assert_eq!(restore(both, 2).0, 204);
    let info: serde_json::Value = serde_json::from_str(&owner.ask(Method::Get, "vm.info", "").1).unwrap();
    let [a, b] = ["/config/net/0/fds/0", "/config/net/1/fds/0"].map(|at| info.pointer(at).unwrap().as_i64());
    assert!(b < a, "{info}");
    // It has no kernel, and takes none to go on.
    assert_eq!(owner.put("vm.add-disk", r#"{"path": "/d"}"#), 200);
    assert_eq!((owner.put("vm.resume", ""), owner.put("vm.reboot", "")), (204, 405));
    assert_eq!((owner.state().as_str(), owner.vmm.end()), ("Running", None));
}

#[test]
fn pings_and_shutdown() {
    let mut owner = Owner::new();
    let (status, body) = owner.ask(Method::Get, "vmm.ping", "");
    assert_eq!(status, 200);
    assert!(body.contains("\"build_version\":\"vse-vmm "), "{body}");
    assert_eq!(owner.put("vmm.shutdown", ""), 204);
    assert_eq!(owner.vmm.end(), Some(&End::Ordered));
}
