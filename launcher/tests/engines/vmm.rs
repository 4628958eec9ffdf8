//! Our VMM. Needs KVM, and the program beside this test's own (`cargo build -p vse-vmm`) or where `VSE_VMM` says, so these
//! are run by name: `cargo test -p vse-launcher --test engines -- --ignored vmm`.
//!
//! The guest is a few instructions in the place of a kernel.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vse_engine::rest::{EXIT_PANIC, Vmm};
use vse_engine::threads::threads;
use vse_engine::{
    Accelerator, Event, ExitMeaning, Guest, GuestCell, GuestConfig, Placement, RunState, ShutdownCause, VcpuThreads,
};

use super::running::{Running, file, guest, on_two_cells, program, state};

fn vmm() -> Vmm {
    let program = std::env::var_os("VSE_VMM").map_or_else(|| program("vse-vmm"), PathBuf::from);
    Vmm::new(program.to_str().unwrap())
}

/// Where code is loaded and entered.
const ENTRY: u32 = 0x10_0000;

/// An ELF image with a PVH entry (Xen's docs/misc/pvh.pandoc): 32-bit protected mode, flat segments, no paging.
fn kernel(dir: &Path, code: &[u8]) -> OwnedFd {
    let entry = u64::from(ENTRY);
    let note: Vec<u8> = [4_u32, 4, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .chain(*b"Xen\0")
        .chain(ENTRY.to_le_bytes())
        .collect();
    let (headers, program_header) = (64_u64, 56_u64);
    let note_at = headers + 2 * program_header;
    let code_at = note_at + note.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| image.extend(bytes);
    [2_u16, 62].iter().for_each(|half| put(&half.to_le_bytes()));
    put(&1_u32.to_le_bytes());
    [entry, headers, 0].iter().for_each(|word| put(&word.to_le_bytes()));
    put(&0_u32.to_le_bytes());
    [64_u16, 56, 2, 0, 0, 0].iter().for_each(|half| put(&half.to_le_bytes()));
    for (kind, at, address, size) in [(1_u32, code_at, entry, code.len() as u64), (4, note_at, 0, note.len() as u64)] {
        put(&kind.to_le_bytes());
        put(&7_u32.to_le_bytes());
        [at, address, address, size, size, 4].iter().for_each(|word| put(&word.to_le_bytes()));
    }
    put(&note);
    put(code);
    file(dir, "kernel", &image)
}

/// `mov al, BYTE; mov dx, PORT; out dx, al`
fn out(port: u16, byte: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xb0, byte, 0x66, 0xba, low, high, 0xee]
}

fn say(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out(0x3f8, byte)).collect()
}

/// `hlt` for ever.
const IDLE: &[u8] = &[0xf4, 0xeb, 0xfd];

/// `jmp` to itself.
const SPIN: &[u8] = &[0xeb, 0xfe];

/// `mov edi, PLATFORM; mov byte [edi], S5 and go`: ACPI's sleep control (hardware-reduced).
const POWER_OFF: &[u8] = &[0xbf, 0, 0, 0xd0, 0xfe, 0xc6, 0x07, 0x34];

async fn launch(code: &[u8]) -> (Running, Box<dyn Guest>) {
    launch_with(code, |_| {}).await
}

async fn launch_with(code: &[u8], change: impl FnOnce(&mut GuestConfig)) -> (Running, Box<dyn Guest>) {
    let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    Running::launch(vmm(), |dir| {
        let mut guest = guest(dir, kernel(dir, code));
        guest.accelerator = Accelerator::Kvm(kvm.into());
        guest.boot.initramfs = None;
        change(&mut guest);
        guest
    })
    .await
}

fn vcpus(running: &Running, ids: &VcpuThreads) -> Vec<(u32, i32)> {
    threads(Path::new("/proc"), running.pid(), ids).unwrap().vcpus
}

#[tokio::test]
#[ignore = "needs KVM and vse-vmm"]
async fn it_waits_runs_pauses_and_stops() {
    let (mut running, guest) = launch(&[say("guest up\n"), SPIN.to_vec()].concat()).await;
    let mut events = guest.events();
    assert!(running.link("exe").ends_with("vse-vmm"));
    assert!(guest.version().await.unwrap().starts_with("VMM "));
    assert_eq!(state(&*guest).await, RunState::Prelaunch);

    guest.resume().await.unwrap();
    assert_eq!(events.next().await, Some(Event::Resumed));
    running.await_console("guest up\n");
    assert_eq!(state(&*guest).await, RunState::Running);
    let ids = guest.vcpu_threads().await.unwrap();
    assert_eq!(vcpus(&running, &ids).iter().map(|(vcpu, _)| *vcpu).collect::<Vec<_>>(), [0, 1]);

    guest.pause().await.unwrap();
    assert_eq!(events.next().await, Some(Event::Paused));
    assert_eq!(state(&*guest).await, RunState::Paused);
    guest.resume().await.unwrap();
    assert_eq!(events.next().await, Some(Event::Resumed));
    guest.power_button().await.unwrap();
    assert!(!guest.info().await.unwrap().agent_connected);

    guest.stop().await.unwrap();
    let ended = events.find(|event| matches!(event, Event::Shutdown { .. })).await;
    assert_eq!(ended, Some(Event::Shutdown { by_guest: false, cause: ShutdownCause::Stopped }));
    assert_eq!(events.next().await, Some(Event::MonitorClosed));
    assert_eq!(running.exit(), ExitMeaning::PoweredOff);
}

#[tokio::test]
#[ignore = "needs KVM and vse-vmm"]
async fn vcpus_run_where_they_are_placed_on_memory_that_is_there() {
    let place = |guest: &mut GuestConfig| {
        guest.placement = Placement { pinned: vec![1, 0] };
        guest.cells =
            vec![GuestCell { vcpus: vec![0, 1], bytes: guest.memory.bytes, distances: vec![], host_cells: vec![0] }];
    };
    let (mut running, guest) = launch_with(&[say("guest up\n"), IDLE.to_vec()].concat(), place).await;
    let status = running.status();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(resident > 64 << 10, "{resident} KiB");
    guest.resume().await.unwrap();
    running.await_console("guest up\n");
    let ids = guest.vcpu_threads().await.unwrap();
    for (vcpu, tid) in vcpus(&running, &ids) {
        let status = std::fs::read_to_string(format!("/proc/{}/task/{tid}/status", running.pid())).unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(allowed.trim(), ["1", "0"][vcpu as usize]);
    }
}

#[tokio::test]
#[ignore = "needs KVM and vse-vmm"]
async fn termination_does_not_reach_it() {
    let (running, guest) = launch(IDLE).await;
    guest.resume().await.unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        kill(Pid::from_raw(running.pid()), signal).unwrap();
    }
    assert_eq!(state(&*guest).await, RunState::Running);
}

#[tokio::test]
#[ignore = "needs KVM and vse-vmm"]
async fn it_is_adopted_and_its_end_is_noticed() {
    let (mut running, guest) = launch(IDLE).await;
    guest.resume().await.unwrap();
    drop(guest);
    let adopted = running.connect().await;
    assert_eq!(state(&*adopted).await, RunState::Running);
    let mut events = adopted.events();
    kill(Pid::from_raw(running.pid()), Signal::SIGKILL).unwrap();
    assert_eq!(events.next().await, Some(Event::MonitorClosed));
    assert!(adopted.pause().await.is_err());
    assert_eq!(running.exit(), ExitMeaning::Killed { signal: 9 });
}

#[tokio::test]
#[ignore = "needs KVM and vse-vmm"]
async fn a_guest_that_powers_off_is_a_success() {
    let (running, guest) = launch(&[POWER_OFF, IDLE].concat()).await;
    let mut events = guest.events();
    guest.resume().await.unwrap();
    let ended = events.find(|event| matches!(event, Event::Shutdown { .. })).await;
    assert_eq!(ended, Some(Event::Shutdown { by_guest: true, cause: ShutdownCause::PowerOff }));
    assert_eq!(running.exit(), ExitMeaning::PoweredOff);
}

#[tokio::test]
#[ignore = "needs KVM and vse-vmm"]
async fn a_guest_that_reboots_stays_with_its_engine() {
    let (mut running, guest) = launch(&[say("booted\n"), out(0x64, 0xfe), IDLE.to_vec()].concat()).await;
    let mut events = guest.events();
    guest.resume().await.unwrap();
    running.await_console("booted\n");
    let reset = events.find(|event| matches!(event, Event::Reset { .. })).await;
    assert_eq!(reset, Some(Event::Reset { by_guest: true }));
    running.await_console("booted\n");
}

#[tokio::test]
#[ignore = "needs KVM and vse-vmm"]
async fn a_guest_that_panics_says_so_and_ends() {
    let (running, guest) = launch(&[out(0x505, 1), IDLE.to_vec()].concat()).await;
    let mut events = guest.events();
    guest.resume().await.unwrap();
    assert_eq!(events.find(|event| *event == Event::Panicked).await, Some(Event::Panicked));
    assert_eq!(running.exit(), ExitMeaning::Failed { code: EXIT_PANIC });
}

#[tokio::test]
#[ignore = "needs two NUMA cells with 16 free huge pages each"]
async fn huge_pages_lie_on_their_cells_before_the_guest_runs() {
    let (running, guest) = launch_with(IDLE, on_two_cells).await;
    assert_eq!(state(&*guest).await, RunState::Prelaunch);
    assert_eq!(running.huge_pages_on([0, 1]), ([16, 16], 32));
}

#[tokio::test]
#[ignore = "needs KVM that boots a distribution's kernel, in /boot"]
async fn a_distributions_kernel_boots_on_two_cells() {
    let open = |path: &str| OwnedFd::from(File::open(path).unwrap());
    let (mut running, guest) = launch_with(IDLE, |guest| {
        on_two_cells(guest);
        guest.memory.bytes = 256 << 20;
        guest.cells.iter_mut().for_each(|cell| cell.bytes = 128 << 20);
        guest.boot.kernel = open("/boot/vmlinuz");
        guest.boot.initramfs = Some(open("/boot/initrd.img"));
        guest.boot.command_line = "console=ttyS0 panic=-1".into();
    })
    .await;
    guest.resume().await.unwrap();
    // As the kernel sees the cells of SRAT and SLIT, and their memory.
    running.await_console("Initmem setup node 0");
    running.await_console("Initmem setup node 1");
    running.await_console("Run /init as init process");
    assert_eq!(running.huge_pages_on([0, 1]), ([64, 64], 128));
    guest.stop().await.unwrap();
    assert_eq!(running.exit(), ExitMeaning::PoweredOff);
}
