//! The whole way: launcher, launch order with real descriptors, a real QEMU, its monitor.
//!
//! Needs `qemu-system-x86_64`; `QEMU` names another one. The guest is a boot sector's worth of code in the place of
//! a kernel: enough to run, stop and reset.

#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not take for tests

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vse_engine::qemu::Qemu;
use vse_engine::threads::threads;
use vse_engine::{
    Accelerator, Boot, Cache, Channels, CpuTopology, Disk, DiskSource, Engine, Event, ExitMeaning, Guest, GuestCell,
    GuestConfig, Memory, PageSize, Placement, RunState, ShutdownCause, Storage,
};
use vse_launch::{Descriptor, LaunchOrder, connect_beneath, send};

/// An engine, started by a launcher, in a directory of its own.
struct Running {
    dir: TempDir,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn qemu() -> Qemu {
    Qemu::new(std::env::var("QEMU").unwrap_or_else(|_| "/usr/bin/qemu-system-x86_64".into()))
}

/// The smallest image that QEMU takes for a Linux kernel (Documentation/arch/x86/boot.rst, protocol 2.00): its setup
/// code, entered at offset 0x200 of its segment, runs in real mode.
fn kernel(dir: &Path, code: &[u8]) -> OwnedFd {
    let mut image = vec![0; 4096];
    image[0x1f1] = 4; // setup sectors
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x200_u16.to_le_bytes());
    image[0x211] = 1; // loaded high
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x66]); // jmp 0x268
    image[0x268..0x268 + code.len()].copy_from_slice(code);
    file(dir, "kernel", &image)
}

/// A file like those the node runtime hands over: readable by all, no name, opened read-only.
fn file(dir: &Path, name: &str, content: &[u8]) -> OwnedFd {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file.into()
}

/// `mov dx, 0x3f8`, each letter to the serial port.
fn say(text: &str) -> Vec<u8> {
    let mut code = vec![0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// `sti`, then `hlt` for ever.
const IDLE: &[u8] = &[0xfb, 0xf4, 0xeb, 0xfd];

/// Soft-off through the ICH9's PM1a control register, which SeaBIOS puts at 0x604 (sleep type 0, enable).
const POWER_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef];

/// A panic told to pvpanic.
const PANIC: &[u8] = &[0xba, 0x05, 0x05, 0xb0, 0x01, 0xee];

/// A hard reset through the chipset's reset control register.
const RESET: &[u8] = &[0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee];

fn guest(dir: &Path, code: &[u8]) -> GuestConfig {
    let image = dir.join("scratch,disk.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let writable = File::options().read(true).write(true).create_new(true).open(dir.join("root")).unwrap();
    writable.set_len(1 << 20).unwrap();
    let disk = |serial: &str, source, read_only| Disk {
        serial: serial.into(),
        source,
        storage: Storage::File,
        read_only,
        discard: !read_only,
        cache: Cache::Shared,
    };
    GuestConfig {
        name: "default/test-1".into(),
        uuid: "6f1c2f0e-1de1-4b5a-9d3c-0a2b4c6d8e0f".into(),
        runtime_dir: dir.to_str().unwrap().into(),
        cpu: CpuTopology { sockets: 1, cores: 2, threads: 1 },
        memory: Memory { bytes: 64 << 20, pages: PageSize::Default },
        cells: vec![],
        placement: Placement::default(),
        boot: Boot {
            kernel: kernel(dir, code),
            initramfs: Some(file(dir, "initramfs", b"x")),
            command_line: "a, b=c".into(),
        },
        disks: vec![
            disk("vse-system", DiskSource::Fd(file(dir, "system", &[0; 4096])), true),
            disk("vse-root", DiskSource::Fd(writable.into()), false),
            disk("scratch", DiskSource::Path(image.to_str().unwrap().into()), false),
        ],
        nics: vec![],
        accelerator: Accelerator::Emulation,
        passthrough: None,
    }
}

/// The same on the first CPU of this machine, memory from its cell.
fn placed_guest(dir: &Path, code: &[u8]) -> GuestConfig {
    let mut guest = guest(dir, code);
    let cell = |vcpu: u32| GuestCell {
        vcpus: vec![vcpu],
        bytes: 32 << 20,
        distances: if vcpu == 0 { vec![10, 21] } else { vec![21, 10] },
        host_cells: vec![0],
    };
    guest.cells = vec![cell(0), cell(1)];
    guest.placement = Placement { pinned: vec![0, 1] };
    guest
}

impl Running {
    /// Launches a guest with this code in real mode; returns with the engine's monitor connected.
    async fn launch(code: &[u8]) -> (Self, Box<dyn Guest>) {
        Self::launch_as(guest, code).await
    }

    async fn launch_as(guest: fn(&Path, &[u8]) -> GuestConfig, code: &[u8]) -> (Self, Box<dyn Guest>) {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_vse-launcher"))
            .arg("--socket")
            .arg(dir.path().join("launch.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let console = child.stdout.as_mut().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, console).read_line(&mut line).unwrap();
        assert!(line.contains("waiting"), "{line}");
        let mut running = Self { dir, child };

        let guest = guest(running.dir.path(), code);
        let engine = qemu();
        let command = engine.command(&guest).unwrap();
        let order = LaunchOrder {
            program: command.program,
            args: command.args,
            env: command.env.into_iter().collect(),
            descriptors: command
                .descriptors
                .iter()
                .map(|handed| Descriptor { name: handed.name.clone(), target: handed.target })
                .collect(),
        };
        let fds: Vec<_> = command.descriptors.iter().map(|handed| handed.fd).collect();
        let dir = File::open(running.dir.path()).unwrap();
        let launcher = connect_beneath(dir.as_fd(), "launch.sock").unwrap();
        send(&launcher.stream, &order, &fds).unwrap();
        let guest = running.connect().await;
        (running, guest)
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The engine's monitor, as soon as there is one.
    async fn connect(&mut self) -> Box<dyn Guest> {
        let dir = File::open(self.dir.path()).unwrap();
        let engine = qemu();
        let stream = until("the monitor", || connect_beneath(dir.as_fd(), engine.files().monitor).ok()).await;
        assert_eq!(stream.peer_pid, self.pid());
        stream.stream.set_nonblocking(true).unwrap();
        let monitor = tokio::net::UnixStream::from_std(stream.stream).unwrap();
        engine.connect(Channels::monitor(monitor)).await.unwrap()
    }

    fn link(&self, name: &str) -> PathBuf {
        fs::read_link(format!("/proc/{}/{name}", self.pid())).unwrap()
    }

    /// Reads the guest's serial console up to this text.
    fn await_console(&mut self, text: &str) {
        let console = self.child.stdout.as_mut().unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(text.as_bytes()) {
            let mut byte = [0];
            assert_eq!(console.read(&mut byte).unwrap(), 1, "{text:?} not in {:?}", String::from_utf8_lossy(&seen));
            seen.extend(byte);
        }
    }

    fn exit(mut self) -> ExitMeaning {
        let status = self.child.wait().unwrap();
        ExitMeaning::from(status.code().unwrap_or_default(), status.signal())
    }
}

/// Asks again and again until there is an answer.
async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn state(guest: &dyn Guest) -> RunState {
    guest.info().await.unwrap().state
}

#[tokio::test]
async fn the_launcher_becomes_an_engine_that_runs_pauses_and_stops() {
    let (mut running, guest) = Running::launch(&[&say("guest up\n"), IDLE].concat()).await;
    let mut events = guest.events();

    // Nothing of the launcher is left, and the descriptors are where the arguments say.
    assert!(running.link("exe").to_str().unwrap().contains("qemu-system"));
    assert!(running.link("fd/10").to_str().unwrap().contains("kernel"));
    assert!(running.link("fd/11").to_str().unwrap().contains("initramfs"));
    assert!(!running.dir.path().join("launch.sock").exists());

    // It comes up paused, so that its threads can be pinned first.
    assert_eq!(state(&*guest).await, RunState::Prelaunch);
    let vcpus = guest.vcpu_threads().await.unwrap();
    let threads = threads(Path::new("/proc"), running.pid(), &vcpus).unwrap();
    assert_eq!(threads.vcpus.iter().map(|(vcpu, _)| *vcpu).collect::<Vec<_>>(), [0, 1]);
    assert!(threads.emulator.contains(&running.pid()));

    guest.resume().await.unwrap();
    assert_eq!(events.next().await, Some(Event::Resumed));
    running.await_console("guest up\n");
    assert_eq!(state(&*guest).await, RunState::Running);
    guest.pause().await.unwrap();
    assert_eq!(events.next().await, Some(Event::Paused));
    assert_eq!(state(&*guest).await, RunState::Paused);
    guest.resume().await.unwrap();
    guest.power_button().await.unwrap();
    assert!(!guest.info().await.unwrap().agent_connected);

    guest.stop().await.unwrap();
    let ended = events.find(|event| matches!(event, Event::Shutdown { .. })).await;
    assert_eq!(ended, Some(Event::Shutdown { by_guest: false, cause: ShutdownCause::Stopped }));
    assert_eq!(events.next().await, Some(Event::MonitorClosed));
    assert_eq!(events.next().await, None);
    assert_eq!(running.exit(), ExitMeaning::PoweredOff);
}

#[tokio::test]
async fn termination_does_not_reach_the_guest() {
    let (running, guest) = Running::launch(IDLE).await;
    guest.resume().await.unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        kill(Pid::from_raw(running.pid()), signal).unwrap();
    }
    assert_eq!(state(&*guest).await, RunState::Running);
    let pending = |status: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap().trim();
        u64::from_str_radix(mask, 16).unwrap()
    };
    // Every thread blocks it: it stays pending for the process.
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    assert_ne!(pending(&status) & (1 << (Signal::SIGTERM as u32 - 1)), 0, "{status}");
}

#[tokio::test]
async fn a_running_engine_is_adopted() {
    let (mut running, guest) = Running::launch(IDLE).await;
    guest.resume().await.unwrap();
    drop(guest);
    let adopted = running.connect().await;
    assert_eq!(state(&*adopted).await, RunState::Running);
    let vcpus = adopted.vcpu_threads().await.unwrap();
    assert_eq!(threads(Path::new("/proc"), running.pid(), &vcpus).unwrap().vcpus.len(), 2);
}

#[tokio::test]
async fn memory_is_touched_before_the_guest_runs() {
    let (mut running, guest) = Running::launch_as(placed_guest, &[&say("guest up\n"), IDLE].concat()).await;
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let anonymous: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(anonymous > 64 << 10, "{anonymous} KiB");
    guest.resume().await.unwrap();
    running.await_console("guest up\n");
}

#[tokio::test]
async fn a_killed_engine_is_noticed() {
    let (running, guest) = Running::launch(IDLE).await;
    let mut events = guest.events();
    kill(Pid::from_raw(running.pid()), Signal::SIGKILL).unwrap();
    assert_eq!(events.next().await, Some(Event::MonitorClosed));
    assert!(guest.pause().await.is_err());
    assert_eq!(running.exit(), ExitMeaning::Killed { signal: 9 });
}

#[tokio::test]
async fn a_guest_that_powers_off_is_a_success() {
    let (running, guest) = Running::launch(&[POWER_OFF, IDLE].concat()).await;
    let mut events = guest.events();
    guest.resume().await.unwrap();
    let ended = events.find(|event| matches!(event, Event::Shutdown { .. })).await;
    assert_eq!(ended, Some(Event::Shutdown { by_guest: true, cause: ShutdownCause::PowerOff }));
    assert_eq!(running.exit(), ExitMeaning::PoweredOff);
}

#[tokio::test]
async fn a_guest_that_reboots_stays_with_its_engine() {
    let (mut running, guest) = Running::launch(&[&say("booted\n"), RESET, IDLE].concat()).await;
    let mut events = guest.events();
    guest.resume().await.unwrap();
    running.await_console("booted\n");
    assert_eq!(events.find(|event| *event != Event::Resumed).await, Some(Event::Reset { by_guest: true }));
    running.await_console("booted\n");
}

#[tokio::test]
async fn a_guest_that_panics_is_a_failure() {
    let (running, guest) = Running::launch(&[PANIC, IDLE].concat()).await;
    let mut events = guest.events();
    guest.resume().await.unwrap();
    assert_eq!(events.find(|event| *event == Event::Panicked).await, Some(Event::Panicked));
    assert_eq!(running.exit(), ExitMeaning::Failed { code: 1 });
}
