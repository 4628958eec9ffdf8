//! QEMU. Needs `qemu-system-x86_64`; `QEMU` names another one.
//!
//! The guest is a boot sector's worth of code in the place of a kernel: enough to run, stop and reset.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vse_engine::qemu::Qemu;
use vse_engine::threads::threads;
use vse_engine::{Event, ExitMeaning, Guest, GuestCell, GuestConfig, Placement, RunState, ShutdownCause};

use super::running::{Running, file, guest, on_two_cells, state};

fn qemu() -> Qemu {
    Qemu::new(std::env::var("QEMU").unwrap_or_else(|_| "/usr/bin/qemu-system-x86_64".into()))
}

/// Launches a guest with this code in real mode.
async fn launch(code: &[u8]) -> (Running, Box<dyn Guest>) {
    Running::launch(qemu(), |dir| guest(dir, kernel(dir, code))).await
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

/// The same on the first CPU of this machine, memory from its cell.
fn placed_guest(dir: &Path, code: &[u8]) -> GuestConfig {
    let mut guest = guest(dir, kernel(dir, code));
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

#[tokio::test]
async fn the_launcher_becomes_an_engine_that_runs_pauses_and_stops() {
    let (mut running, guest) = launch(&[&say("guest up\n"), IDLE].concat()).await;
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
    let (running, guest) = launch(IDLE).await;
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
    let status = running.status();
    assert_ne!(pending(&status) & (1 << (Signal::SIGTERM as u32 - 1)), 0, "{status}");
}

#[tokio::test]
async fn a_running_engine_is_adopted() {
    let (mut running, guest) = launch(IDLE).await;
    guest.resume().await.unwrap();
    drop(guest);
    let adopted = running.connect().await;
    assert_eq!(state(&*adopted).await, RunState::Running);
    let vcpus = adopted.vcpu_threads().await.unwrap();
    assert_eq!(threads(Path::new("/proc"), running.pid(), &vcpus).unwrap().vcpus.len(), 2);
}

#[tokio::test]
async fn memory_is_touched_before_the_guest_runs() {
    let (mut running, guest) =
        Running::launch(qemu(), |dir| placed_guest(dir, &[&say("guest up\n"), IDLE].concat())).await;
    let status = running.status();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let anonymous: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(anonymous > 64 << 10, "{anonymous} KiB");
    guest.resume().await.unwrap();
    running.await_console("guest up\n");
}

#[tokio::test]
async fn a_killed_engine_is_noticed() {
    let (running, guest) = launch(IDLE).await;
    let mut events = guest.events();
    kill(Pid::from_raw(running.pid()), Signal::SIGKILL).unwrap();
    assert_eq!(events.next().await, Some(Event::MonitorClosed));
    assert!(guest.pause().await.is_err());
    assert_eq!(running.exit(), ExitMeaning::Killed { signal: 9 });
}

#[tokio::test]
async fn a_guest_that_powers_off_is_a_success() {
    let (running, guest) = launch(&[POWER_OFF, IDLE].concat()).await;
    let mut events = guest.events();
    guest.resume().await.unwrap();
    let ended = events.find(|event| matches!(event, Event::Shutdown { .. })).await;
    assert_eq!(ended, Some(Event::Shutdown { by_guest: true, cause: ShutdownCause::PowerOff }));
    assert_eq!(running.exit(), ExitMeaning::PoweredOff);
}

#[tokio::test]
async fn a_guest_that_reboots_stays_with_its_engine() {
    let (mut running, guest) = launch(&[&say("booted\n"), RESET, IDLE].concat()).await;
    let mut events = guest.events();
    guest.resume().await.unwrap();
    running.await_console("booted\n");
    assert_eq!(events.find(|event| *event != Event::Resumed).await, Some(Event::Reset { by_guest: true }));
    running.await_console("booted\n");
}

#[tokio::test]
async fn a_guest_that_panics_is_a_failure() {
    let (running, guest) = launch(&[PANIC, IDLE].concat()).await;
    let mut events = guest.events();
    guest.resume().await.unwrap();
    assert_eq!(events.find(|event| *event == Event::Panicked).await, Some(Event::Panicked));
    assert_eq!(running.exit(), ExitMeaning::Failed { code: 1 });
}

#[tokio::test]
#[ignore = "needs two NUMA cells with 16 free huge pages each"]
async fn huge_pages_lie_on_their_cells_before_the_guest_runs() {
    let launched = Running::launch(qemu(), |dir| {
        let mut guest = guest(dir, kernel(dir, IDLE));
        on_two_cells(&mut guest);
        guest
    });
    let (running, guest) = launched.await;
    assert_eq!(state(&*guest).await, RunState::Prelaunch);
    let ([first, second], all) = running.huge_pages_on([0, 1]);
    // The first page of a cell is touched by the main thread, wherever that runs.
    assert!(first.abs_diff(16) <= 1 && second.abs_diff(16) <= 1 && all == 32, "{first} and {second} of {all}");
}
