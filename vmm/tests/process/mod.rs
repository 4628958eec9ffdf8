//! The VMM as a process, with guests of a few instructions.
#![allow(dead_code, reason = "each test uses some of it")]

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Guests run here, though maybe slowly.
pub fn has_kvm() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Writes a bzImage whose 64-bit entry is `code` (Documentation/arch/x86/boot.rst).
pub fn kernel(folder: &Path, code: &[u8]) -> PathBuf {
    let mut image = vec![0; 3 * 512];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[1]);
    put(0x200, &[0xEB, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x20F_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &255_u32.to_le_bytes());
    image.extend(code);
    let path = folder.join("kernel");
    std::fs::write(&path, image).unwrap();
    path
}

/// `mov al, BYTE; mov dx, PORT; out dx, al`
pub fn out(port: u16, byte: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xB0, byte, 0x66, 0xBA, low, high, 0xEE]
}

/// `mov bl, 'a'; again: mov al, bl; mov dx, 0x3F8; out dx, al; inc bl; jmp again`
pub const COUNTS: [u8; 13] = [0xB3, b'a', 0x88, 0xD8, 0x66, 0xBA, 0xF8, 0x03, 0xEE, 0xFE, 0xC3, 0xEB, 0xF5];

/// Answers what a vhost-user front-end asks first (SET_OWNER, GET_FEATURES): that it can do nothing special.
pub fn serve_files(listener: &UnixListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    loop {
        let mut header = [0; 12];
        stream.read_exact(&mut header)?;
        if header[0] == 1 {
            // A reply of version 1, with 8 bytes.
            stream.write_all(&[[1, 0, 0, 0, 5, 0, 0, 0], [8, 0, 0, 0, 0, 0, 0, 0], [0; 8]].concat()[..20])?;
        }
    }
}

/// How long anything may take: on a virtual host that is short of time, clocks run ahead.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The program, beside the tests: they may have been carried to another host together.
fn program() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("vse-vmm")
}

/// Nothing else that a test starts may have what is for one only.
static INHERITING: Mutex<()> = Mutex::new(());

/// Descriptors stay open in what is started, until this is dropped.
struct Inheriting<'a>(&'a [&'a OwnedFd], MutexGuard<'static, ()>);

impl<'a> Inheriting<'a> {
    fn new(descriptors: &'a [&'a OwnedFd]) -> Self {
        let alone = INHERITING.lock().unwrap_or_else(PoisonError::into_inner);
        descriptors.iter().for_each(|descriptor| fcntl_setfd(descriptor, FdFlags::empty()).unwrap());
        Self(descriptors, alone)
    }
}

impl Drop for Inheriting<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|descriptor| fcntl_setfd(descriptor, FdFlags::CLOEXEC).unwrap());
    }
}

/// Runs it to its end, with descriptors that it inherits; the result is its exit code and what it says.
pub fn run(options: &[&str], inherited: &[&OwnedFd]) -> (Option<i32>, String) {
    let inheriting = Inheriting::new(inherited);
    let output = Command::new(program()).args(options).output().unwrap();
    drop(inheriting);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A running VMM; killed when it goes out of scope.
pub struct Vmm {
    child: Child,
    pub folder: tempfile::TempDir,
}

impl Vmm {
    /// Starts it with an API socket, an event monitor and more options.
    pub fn start(folder: tempfile::TempDir, options: &[&str]) -> Self {
        Self::start_with(folder, options, &[])
    }

    /// The same, with descriptors that it has by the numbers that they have here.
    pub fn start_with(folder: tempfile::TempDir, options: &[&str], inherited: &[&OwnedFd]) -> Self {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let inheriting = Inheriting::new(inherited);
        let child = Command::new(program())
            .args(["--api-socket", &format!("path={}", path("api"))])
            .args(["--event-monitor", &format!("socket={}", path("events"))])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(inheriting);
        let mut vmm = Self { child, folder };
        until("the API socket is there", || {
            if let Some(status) = vmm.child.try_wait().unwrap() {
                panic!("it ended with {status}: {}", vmm.errors());
            }
            UnixStream::connect(vmm.api()).is_ok()
        });
        vmm
    }

    pub fn api(&self) -> PathBuf {
        self.folder.path().join("api")
    }

    /// Connects to the event monitor.
    pub fn events(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.folder.path().join("events")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        BufReader::new(stream)
    }

    /// Waits for its end; the result is its exit code.
    pub fn end(&mut self) -> Option<i32> {
        let mut status = None;
        until("it has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(!self.api().exists(), "the socket is left behind");
        status.unwrap().code()
    }

    pub fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            errors.read_to_string(&mut text).unwrap();
        }
        text
    }

    /// One request on a connection of its own; the result is status and body.
    pub fn ask(&self, verb: &str, name: &str, body: &str) -> (u16, String) {
        self.ask_with(verb, name, body, &[])
    }

    /// The same, with descriptors that come along.
    pub fn ask_with(&self, verb: &str, name: &str, body: &str, along: &[BorrowedFd<'_>]) -> (u16, String) {
        let mut stream = UnixStream::connect(self.api()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head = format!("{verb} /api/v1/{name} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(along.is_empty() || control.push(SendAncillaryMessage::ScmRights(along)));
        let sent = sendmsg(&stream, &[IoSlice::new(head.as_bytes())], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(sent, head.len());
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// An order that has to work.
    pub fn put(&self, name: &str, body: &str) {
        let (status, answer) = self.ask("PUT", name, body);
        assert!(matches!(status, 200 | 204), "{name}: {status} {answer}");
    }

    /// How many descriptors, threads and mappings of guest RAM it has.
    pub fn has(&self) -> [usize; 3] {
        let process = Path::new("/proc").join(self.child.id().to_string());
        let count = |name: &str| std::fs::read_dir(process.join(name)).unwrap().count();
        let maps = std::fs::read_to_string(process.join("maps")).unwrap();
        [count("fd"), count("task"), maps.lines().filter(|line| line.contains("memfd")).count()]
    }

    /// How many descriptors it may have; the result is how many it might before.
    pub fn limit_descriptors(&self, limit: u64) -> u64 {
        let process = rustix::process::Pid::from_child(&self.child);
        let before = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let new = rustix::process::Rlimit { current: Some(limit), maximum: before.maximum };
        rustix::process::prlimit(Some(process), rustix::process::Resource::Nofile, new).unwrap().current.unwrap()
    }

    /// What its descriptors lead to.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        // One may be closed meanwhile.
        folder.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect()
    }

    /// A process ID's line of `/proc/PID/status`.
    pub fn status(&self, name: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim_matches([':', '\t', ' ']).to_owned()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next event's source and name.
pub fn event(from: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    if line.is_empty() {
        return "end".to_owned();
    }
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    format!("{}/{}", value["source"].as_str().unwrap(), value["event"].as_str().unwrap())
}

/// A snapshot takes little more room than the pages that have something in them.
pub fn assert_snapshot_is_small(snapshot: &Path) {
    let ram = std::fs::read(snapshot.join("memory")).unwrap();
    let used = ram.chunks(4096).filter(|page| page.iter().any(|byte| *byte != 0)).count() as u64 * 4096;
    let files = std::fs::read_dir(snapshot).unwrap();
    let taken: u64 = files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum();
    assert!(taken <= used + used / 100 + (64 << 10), "{taken} bytes for {used}");
}
