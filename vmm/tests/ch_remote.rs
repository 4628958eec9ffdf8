//! Cloud Hypervisor's own client, `ch-remote`, drives this VMM by all it can say.
//!
//! ```console
//! $ CH_REMOTE=PROGRAM cargo test -p vse-vmm --test ch_remote -- --ignored
//! ```
#![allow(clippy::unwrap_used, reason = "tests")]

mod process;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use process::{COUNTS, Vmm, kernel, serve_files, until};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};

/// The client, for one VMM.
struct Client(PathBuf);

impl Client {
    fn run(&self, words: &[&str], input: &str) -> Output {
        let program = std::env::var_os("CH_REMOTE").expect("CH_REMOTE names the program");
        let mut child = Command::new(program)
            .arg("--api-socket")
            .arg(&self.0)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn create(&self, config: &Value) {
        let output = self.run(&["create"], &config.to_string());
        assert!(output.status.success(), "{output:?}");
    }

    /// What has to work; the result is what it says.
    fn does(&self, words: &[&str]) -> String {
        let output = self.run(words, "");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn asks(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.does(words)).unwrap()
    }

    /// What must not work: with that status, as far as the client has a word for it, and that message.
    fn is_refused(&self, words: &[&str], status: &str, message: &str) {
        let output = self.run(words, "");
        assert!(!output.status.success(), "{words:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        let has = |wanted: &str| errors.lines().any(|line| line.contains(wanted));
        assert!(
            has(&format!(": Server responded with {status}")) && has(&format!(": {message}")),
            "{words:?}: {errors}"
        );
    }

    fn state(&self) -> String {
        self.asks(&["info"])["state"].as_str().unwrap().to_owned()
    }
}

/// The client says so of statuses that it doesn't know: 405 and 409.
const UNKNOWN: &str = "Unknown";

fn start() -> (Vmm, Client) {
    let vmm = Vmm::start(tempfile::tempdir().unwrap(), &[]);
    let client = Client(vmm.api());
    (vmm, client)
}

fn config(folder: &Path, code: &[u8]) -> Value {
    json!({
        "payload": {"kernel": kernel(folder, code)},
        "memory": {"size": 32 << 20, "shared": true},
        "console": {"mode": "Off"},
        "serial": {"mode": "Null"},
    })
}

#[test]
#[ignore = "needs Cloud Hypervisor's client: CH_REMOTE=PROGRAM"]
fn a_whole_life() {
    let (mut vmm, client) = start();
    assert_eq!(client.asks(&["ping"])["version"], env!("CARGO_PKG_VERSION"));
    client.is_refused(&["info"], "NotFound", "the VM is not created");
    client.is_refused(&["boot"], "NotFound", "the VM is not created");
    let config = config(vmm.folder.path(), &COUNTS);
    client.create(&config);
    let file = vmm.folder.path().join("config");
    std::fs::write(&file, config.to_string()).unwrap();
    client.is_refused(&["create", file.to_str().unwrap()], UNKNOWN, "the VM is created already");
    assert_eq!(client.state(), "Created");
    client.is_refused(&["pause"], UNKNOWN, "the VM is Created; only a running VM can be paused");

    client.does(&["boot"]);
    let written = || client.asks(&["counters"])["vcpu0"]["io_exits"].as_u64().unwrap();
    until("the guest writes", || written() > 100);
    client.does(&["pause"]);
    assert_eq!(client.state(), "Paused");
    let before = written();
    assert_eq!(written(), before);
    client.does(&["resume"]);
    until("the guest goes on", || written() > before);
    client.does(&["power-button"]);
    client.does(&["reboot"]);
    assert_eq!(client.state(), "Running");
    client.does(&["resize", "--cpus", "1", "--memory", "32M"]);
    let not_supported = |field: &str| format!("{field}: not supported by this VMM");
    for (option, value, field) in
        [("--cpus", "2", "desired_vcpus"), ("--memory", "64M", "desired_ram"), ("--balloon", "1M", "desired_balloon")]
    {
        client.is_refused(&["resize", option, value], "BadRequest", &not_supported(field));
    }

    client.does(&["shutdown"]);
    assert_eq!(client.state(), "Shutdown");
    client.does(&["boot"]);
    client.does(&["delete"]);
    client.does(&["create", file.to_str().unwrap()]);
    client.does(&["shutdown-vmm"]);
    assert_eq!(vmm.end(), Some(0));
}

#[test]
#[ignore = "needs Cloud Hypervisor's client: CH_REMOTE=PROGRAM"]
fn what_is_not_there_is_refused_by_name() {
    let (_vmm, client) = start();
    for words in [
        &["add-generic-vhost-user", "socket=/s,virtio_id=1,queue_sizes=[1]"][..],
        &["add-user-device", "socket=/s"],
        &["add-vdpa", "path=/dev/vhost-vdpa-0"],
        &["coredump", "file:///c"],
        &["nmi"],
        &["receive-migration", "receiver_url=unix:/s"],
        &["resize-disk", "--disk", "d", "--size", "1M"],
        &["resize-zone", "--id", "z", "--size", "1M"],
        &["send-migration", "destination_url=unix:/s"],
    ] {
        client.is_refused(words, "NotImplemented", &format!("vm.{} is not supported by this VMM", words[0]));
    }
}

/// Lets go of each device that it is asked for, and powers off at the power button. The platform's registers come to the
/// last 2 MiB that the page tables map.
const LETS_GO: [u8; 64] = [
    0xB8, 0x83, 0x00, 0xC0, 0xFE, // mov eax, 0xFEC00083
    0x48, 0x89, 0x04, 0x25, 0xF8, 0xBF, 0x00, 0x00, // mov [0xBFF8], rax
    0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8, // mov rax, cr3; mov cr3, rax
    0x8B, 0x0C, 0x25, 0x0C, 0x00, 0xF0, 0x3F, // again: mov ecx, [PCI_UNPLUGGING]
    0x89, 0xC8, 0xF7, 0xD8, 0x21, 0xC8, // next: mov eax, ecx; neg eax; and eax, ecx
    0x89, 0x04, 0x25, 0x10, 0x00, 0xF0, 0x3F, // mov [PCI_EJECT], eax
    0x31, 0xC1, 0x75, 0xEF, // xor ecx, eax; jnz next
    0x8B, 0x04, 0x25, 0x04, 0x00, 0xF0, 0x3F, // mov eax, [EVENTS]
    0xA8, 0x01, 0x74, 0xDD, // test al, 1; jz again
    0xC6, 0x04, 0x25, 0x00, 0x00, 0xF0, 0x3F, 0x34, // mov byte [SLEEP_CONTROL], off
    0xEB, 0xFE, // jmp $
];

#[test]
#[ignore = "needs Cloud Hypervisor's client: CH_REMOTE=PROGRAM"]
fn devices_come_and_go() {
    let (mut vmm, client) = start();
    let path = |name: &str| vmm.folder.path().join(name).display().to_string();
    client.create(&config(vmm.folder.path(), &LETS_GO));
    client.does(&["boot"]);
    for (name, size) in [("disk", 1 << 20), ("pmem", 2 << 20)] {
        std::fs::write(path(name), vec![0; size]).unwrap();
    }
    let disk = format!("path={},id=disk,readonly=on,serial=s1,num_queues=2", path("disk"));
    let pmem = format!("file={},id=pmem,discard_writes=on", path("pmem"));
    let vsock = format!("cid=3,socket={},id=vsock", path("vsock"));
    let fs = format!("tag=files,socket={},id=fs", path("fs"));
    let listener = UnixListener::bind(path("fs")).unwrap();
    let devices = [
        ("disk", "add-disk", &disk),
        ("pmem", "add-pmem", &pmem),
        ("vsock", "add-vsock", &vsock),
        ("fs", "add-fs", &fs),
    ];
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve_files(&listener));
        for (id, verb, options) in devices {
            let added = client.asks(&[verb, options]);
            assert_eq!(added["id"], id);
            assert!(added["bdf"].as_str().unwrap().starts_with("0000:00:"), "{added}");
        }
        let info = client.asks(&["info"]);
        let [added, vsock] = ["/config/disks/0", "/config/vsock"].map(|at| info.pointer(at).unwrap());
        assert_eq!((&added["serial"], &added["readonly"], &vsock["cid"]), (&json!("s1"), &json!(true), &json!(3)));
        assert!(client.asks(&["counters"])["disk"]["read_ops"].is_u64());

        client.is_refused(&["add-disk", &disk], UNKNOWN, "disks[1].id: name disk is disks[0] already");
        client.is_refused(&["add-disk", "path=/nowhere"], "InternalServerError", "\"/nowhere\" can't be opened");
        client.is_refused(&["add-disk", "path=/d,image_type=qcow2"], "BadRequest", "image_type: unknown variant");
        client.is_refused(&["add-disk", "path=/d,iommu=on"], "BadRequest", "iommu: not supported by this VMM");
        client.is_refused(&["add-pmem", "file=/p,size=3M"], "BadRequest", "pmem[1].size: 3145728 is no multiple");
        client.is_refused(&["add-vsock", "cid=4,socket=/v"], UNKNOWN, "vsock: the guest has one already");
        client.is_refused(&["add-fs", "tag=a,socket=/nowhere"], "InternalServerError", "No such file or directory");
        client.is_refused(&["add-device", "path=/nowhere"], "InternalServerError", "No such file or directory");
        client.is_refused(&["add-net", "id=net"], "BadRequest", "net[0].tap: is missing");
        client.is_refused(&["remove-device", "nothing"], "NotFound", "id: there is no device \"nothing\"");

        let stays = "device \"pmem\" can't be removed while the guest runs";
        client.is_refused(&["remove-device", "pmem"], "InternalServerError", stays);
        for id in ["disk", "vsock", "fs"] {
            client.does(&["remove-device", id]);
        }
        let lists = ["disks", "vsock", "fs"];
        until("the guest has let go of all", || {
            let info = client.asks(&["info"]);
            lists.iter().all(|list| info["config"].get(list).is_none())
        });
        assert_eq!(server.join().unwrap().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    });
    client.does(&["add-disk", &disk]);
    client.does(&["power-button"]);
    assert_eq!(vmm.end(), Some(0));
}

#[test]
#[ignore = "needs Cloud Hypervisor's client: CH_REMOTE=PROGRAM"]
fn a_snapshot_goes_on() {
    let (vmm, client) = start();
    let [with, without] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let [with, without] = [&with, &without].map(|folder| format!("file://{}", folder.path().display()));
    client.create(&config(vmm.folder.path(), &COUNTS));
    client.does(&["boot"]);
    client.is_refused(&["snapshot", &without], UNKNOWN, "the VM is Running; only a paused VM can be saved");
    client.does(&["pause"]);
    client.does(&["snapshot", &without]);
    client.is_refused(&["snapshot", &without], UNKNOWN, "the snapshot failed");
    let restore = format!("source_url={without}");
    client.is_refused(&["restore", &restore], "NotFound", "the VM is created already");
    client.does(&["delete"]);
    client.does(&["restore", &restore]);
    assert_eq!(client.state(), "Paused");
    client.does(&["delete"]);
    client.does(&["restore", &format!("{restore},prefault=on,resume=on")]);
    let written = || client.asks(&["counters"])["vcpu0"]["io_exits"].as_u64().unwrap();
    until("the guest goes on", || written() > 100);
    client.is_refused(&["reboot"], UNKNOWN, "the VM was restored without a kernel");
    assert_eq!(client.state(), "Running");

    let disk = vmm.folder.path().join("disk");
    std::fs::write(&disk, [0; 4096]).unwrap();
    client.does(&["add-disk", &format!("path={}", disk.display())]);
    client.does(&["pause"]);
    client.does(&["snapshot", &with]);
    client.does(&["delete"]);
    // A snapshot has no path in it, and the client can't say another.
    client.is_refused(&["restore", &format!("source_url={with}")], "BadRequest", "disks[0].path: is missing");
}

/// A new tap, there until it is closed. Other programs inherit it.
#[allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper in the libraries at hand")]
fn tap(name: &str) -> std::io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // `struct ifreq` of linux/if.h: name, then flags.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[libc::IFNAMSIZ..][..2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is as large as; the descriptor is open.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    fcntl_setfd(&file, FdFlags::empty())?;
    Ok(file)
}

#[test]
#[ignore = "needs Cloud Hypervisor's client: CH_REMOTE=PROGRAM"]
fn taps_come_by_name_and_descriptor() {
    let name = |what: char| format!("vse{what}{}", std::process::id());
    let first = match tap(&name('a')) {
        Ok(first) => first,
        Err(error) => {
            eprintln!("left out, for there are no taps: {error}");
            return;
        }
    };
    let (vmm, client) = start();
    client.create(&config(vmm.folder.path(), &COUNTS));
    client.does(&["boot"]);
    let tap_option = format!("id=named,tap={},mac=02:00:00:00:00:01,mtu=1400", name('b'));
    assert_eq!(client.asks(&["add-net", &tap_option])["id"], "named");
    let fd_option = |file: &File, id: &str| format!("id={id},fd={},mac=02:00:00:00:00:02", file.as_raw_fd());
    assert_eq!(client.asks(&["add-net", &fd_option(&first, "open")])["id"], "open");
    drop(first);
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    fcntl_setfd(&null, FdFlags::empty()).unwrap();
    // The last connection may not be closed yet, so one refusal would not show.
    let before = vmm.has();
    for _ in 0..3 {
        let message = "device \"null\" can't be made";
        client.is_refused(&["add-net", &fd_option(&null, "null")], "InternalServerError", message);
    }
    until("nothing of it is left", || vmm.has().iter().zip(before).all(|(now, before)| *now <= before));
    let info = client.asks(&["info"]);
    let [named, open] = [0, 1].map(|at| &info["config"]["net"][at]);
    assert_eq!((&named["mac"], &open["mac"]), (&json!("02:00:00:00:00:01"), &json!("02:00:00:00:00:02")));
    let counters = client.asks(&["counters"]);
    assert!(["named", "open"].iter().all(|id| counters[id]["rx_frames"].is_u64()), "{counters}");

    client.does(&["pause"]);
    let snapshot = tempfile::tempdir().unwrap();
    let url = format!("file://{}", snapshot.path().display());
    client.does(&["snapshot", &url]);
    client.does(&["delete"]);
    let [first, second] = ['c', 'd'].map(|what| tap(&name(what)).unwrap());
    let restore = |second_id: &str| {
        let [first, second] = [&first, &second].map(AsRawFd::as_raw_fd);
        format!("source_url={url},net_fds=[open@[{first}],{second_id}@[{second}]],resume=on")
    };
    client.is_refused(&["restore", &restore("other")], "BadRequest", "net_fds: there is no network device \"other\"");
    client.does(&["restore", &restore("named")]);
    assert_eq!(client.state(), "Running");
    let info = client.asks(&["info"]);
    assert!(info["config"]["net"].as_array().unwrap().iter().all(|net| net["fds"].is_array()), "{info}");
    client.does(&["shutdown-vmm"]);
}
