//! Machines on the host's own KVM, with kernels of a few instructions.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::bus::Request;

/// A bzImage whose 64-bit entry is `code`, see the boot protocol.
fn kernel(folder: &std::path::Path, code: &[u8]) -> String {
    let mut image = vec![0; 2 * 512 + 512];
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
    File::create(&path).unwrap().write_all(&image).unwrap();
    path.display().to_string()
}

struct Bed {
    folder: tempfile::TempDir,
    config: VmConfig,
    events: Arc<Events>,
}

fn bed(code: &[u8]) -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(folder.path(), code);
    let output = folder.path().join("serial").display().to_string();
    let config = format!(
        r#"{{"payload": {{"kernel": "{kernel}", "cmdline": "quiet"}}, "memory": {{"size": 33554432}},
             "cpus": {{"boot_vcpus": 2, "max_vcpus": 2}}, "pvpanic": true, "platform": {{"serial_number": "1"}},
             "serial": {{"mode": "File", "file": "{output}"}}}}"#
    );
    let config: VmConfig = serde_json::from_str(&config).unwrap();
    let config = config.validate().unwrap();
    Bed { folder, config, events: Arc::new(Events::new().unwrap()) }
}

impl Bed {
    fn output(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("serial")).unwrap()
    }

    fn host() -> Option<Host> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm").ok()?;
        let filters = Arc::new(Filters::new(crate::options::Seccomp::Off));
        Some(Host { kvm: kvm.into(), filters, hot_plug: true })
    }

    fn machine(&self) -> Option<Machine> {
        Some(Machine::new(&self.config, Self::host()?, Arc::clone(&self.events)).unwrap())
    }

    fn wait(&self) -> Event {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let mut fds = [PollFd::new(&*self.events, PollFlags::IN)];
            let rest = end.saturating_duration_since(Instant::now());
            assert!(!rest.is_zero(), "nothing happened");
            let rest = rustix::event::Timespec::try_from(rest).unwrap();
            rustix::event::poll(&mut fds, Some(&rest)).unwrap();
            if let Some(event) = self.events.take().into_iter().next() {
                return event;
            }
        }
    }
}

/// `mov al, BYTE; mov dx, PORT; out dx, al`
fn out(port: u16, byte: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xB0, byte, 0x66, 0xBA, low, high, 0xEE]
}

const HALT: [u8; 2] = [0xFA, 0xF4];

#[test]
fn a_guest_writes_to_its_serial_port_and_resets_itself_in_place() {
    let code = [out(0x3F8, b'h'), out(0x3F8, b'i'), out(0x3F8, b'\n'), out(0x64, 0xFE), HALT.to_vec()].concat();
    let bed = bed(&code);
    let Some(mut machine) = bed.machine() else { return };
    assert_eq!(machine.vcpu_threads().len(), 2);
    let anchor = machine.memory().read_obj::<[u8; 5]>(GuestAddress(crate::layout::SMBIOS.start)).unwrap();
    assert_eq!(&anchor, b"_SM3_");
    machine.boot().unwrap();
    assert_eq!(bed.wait(), Event::Request(Request::Reset));
    for _ in 0..2 {
        machine.reset().unwrap();
        machine.resume().unwrap();
        assert_eq!(bed.wait(), Event::Request(Request::Reset));
    }
    assert_eq!(bed.output(), b"hi\nhi\nhi\n");
    // Three bytes and the reset, three times; the second vCPU was never started.
    let counters = machine.counters();
    assert_eq!((counters["vcpu0"]["io_exits"], counters["vcpu0"]["mmio_exits"]), (12, 0));
    assert_eq!(counters["vcpu1"]["io_exits"], 0);
    assert_eq!(counters["_rng0"]["read_ops"], 0);
}

#[test]
fn a_guest_that_jumps_to_where_a_bios_begins_is_reset() {
    let bed = bed(&HALT);
    let Some(machine) = bed.machine() else { return };
    let vcpu = machine.vcpus.lock().next().unwrap();
    let mut special = vcpu.get_sregs().unwrap();
    (special.cs.selector, special.cs.base) = (0xF000, 0xF_0000);
    vcpu.set_sregs(&special).unwrap();
    vcpu.set_regs(&kvm_bindings::kvm_regs { rip: 0xFFF0, rflags: 2, ..Default::default() }).unwrap();
    drop(vcpu);
    machine.vcpus.run();
    assert_eq!(bed.wait(), Event::Request(Request::Reset));
}

#[test]
fn a_guest_whose_output_nobody_reads_goes_on_until_it_is_read() {
    // again: mov al, 'x'; mov dx, 0x3F8; out dx, al; jmp again
    let bed = bed(&[&out(0x3F8, b'x')[..], &[0xEB, 0xF7]].concat());
    let path = bed.folder.path().join("serial");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    // Open for both, so that nobody waits for the other end; and full.
    let open = |flags| File::options().read(true).write(true).custom_flags(flags).open(&path).unwrap();
    let (mut reader, mut other) = (open(0), open(libc::O_NONBLOCK));
    let mut full = 0;
    while let Ok(count) = other.write(&[b'-'; 4096]) {
        full += count as u64;
    }
    let Some(mut machine) = bed.machine() else { return };
    machine.boot().unwrap();
    until("the guest goes on", || machine.counters()["vcpu0"]["io_exits"] > 1000);
    machine.pause().unwrap();
    let written = machine.counters()["vcpu0"]["io_exits"];
    assert_eq!(machine.counters()["serial"]["tx_bytes"], 0);
    // All of it comes, by the owner.
    let mut heard = 0;
    while heard < full + written {
        heard += reader.read(&mut [0; 4096]).unwrap() as u64;
        machine.ready();
    }
    let counters = &machine.counters()["serial"];
    assert_eq!((heard, counters["tx_bytes"], counters["dropped_bytes"]), (full + written, written, 0));
    let mut fds = Vec::new();
    machine.watch(&mut fds);
    assert_eq!(fds.len(), 1, "nothing is left to write");
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn panics_and_sleep_are_told() {
    let bed = bed(&[out(0x505, 1), HALT.to_vec()].concat());
    let Some(mut machine) = bed.machine() else { return };
    machine.boot().unwrap();
    assert_eq!(bed.wait(), Event::Request(Request::Panicked));
    // mov edi, PLATFORM; mov byte [rdi], S5 and go
    let off = self::bed(&[&[0xBF, 0, 0, 0xD0, 0xFE, 0xC6, 0x07, 0x34][..], &HALT].concat());
    // The page tables map the first GiB only, so that the access faults: the machine starts over instead.
    let Some(mut machine) = off.machine() else { return };
    machine.boot().unwrap();
    assert_eq!(off.wait(), Event::Request(Request::Reset));
}

#[test]
fn a_restored_guest_goes_on_where_it_was() {
    // mov bl, 'a'; again: mov al, bl; mov dx, 0x3F8; out dx, al; inc bl; jmp again
    let code = [0xB3, b'a', 0x88, 0xD8, 0x66, 0xBA, 0xF8, 0x03, 0xEE, 0xFE, 0xC3, 0xEB, 0xF5];
    let bed = bed(&code);
    let Some(mut machine) = bed.machine() else { return };
    machine.boot().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    machine.pause().unwrap();
    let before = bed.output();
    assert!(before.starts_with(b"abc"), "{before:?}");
    let saved = machine.save().unwrap();
    let ram = tempfile::tempfile().unwrap();
    let image = crate::snapshot::image::write(machine.memory(), &ram).unwrap();
    let generation =
        |machine: &Machine| machine.memory().read_obj::<u128>(GuestAddress(crate::acpi::VM_GENERATION_ID)).unwrap();
    let first_life = generation(&machine);
    drop(machine);

    let mut fill =
        |memory: &GuestMemory| crate::snapshot::image::read(memory, &ram, &image).map_err(std::io::Error::other);
    let restored = |saved: &SavedMachine, fill: &mut dyn FnMut(&GuestMemory) -> std::io::Result<()>| {
        Machine::restore(&bed.config, Bed::host().unwrap(), Arc::clone(&bed.events), saved, false, fill)
    };
    let mut machine = restored(&saved, &mut fill).unwrap();
    assert_ne!(generation(&machine), first_life);
    machine.resume().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    machine.pause().unwrap();
    let all = bed.output();
    assert!(all.len() > before.len());
    // Nothing twice, nothing left out.
    assert!(all.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)));
    drop(machine);

    let mut more = saved.clone();
    more.insert("device/new".to_owned(), saved["machine/pci"].clone());
    assert!(matches!(restored(&more, &mut fill), Err(MachineError::Unit { what: "unknown", .. })));
    let mut older = saved.clone();
    older.get_mut("vcpu/1").unwrap().version = 1;
    let error = restored(&older, &mut fill).err().unwrap();
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(reason, "state of kvm-vcpu has version 1, known is 3");
    let mut less = saved.clone();
    less.remove("vcpu/1");
    assert!(matches!(restored(&less, &mut fill), Err(MachineError::Unit { what: "missing", .. })));
}

/// Bytes that this thread has read until now.
fn bytes_read() -> u64 {
    let counters = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    counters.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap()
}

#[test]
fn a_snapshot_is_as_large_as_what_is_in_ram() {
    use crate::snapshot::Directory;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
    let mut bed = bed(&HALT);
    bed.config.cpus.boot_vcpus = 8;
    bed.config.cpus.max_vcpus = 8;
    let Some(mut machine) = bed.machine() else { return };
    machine.boot().unwrap();
    machine.pause().unwrap();
    let mut page = [0; 4096];
    let used = (0..machine.memory().iter().map(|region| region.len()).sum::<u64>() / 4096).filter(|number| {
        machine.memory().read_slice(&mut page, GuestAddress(number * 4096)).unwrap();
        page != [0; 4096]
    });
    let limit = used.count() as u64 * 4096 * 101 / 100 + (64 << 10);
    let units = machine.save().unwrap();
    for (place, unit) in &units {
        assert!(unit.bytes.len() <= 4096, "{place} has {} bytes", unit.bytes.len());
    }
    let folder = tempfile::tempdir().unwrap();
    let directory = Directory::open(&format!("file://{}", folder.path().display())).unwrap();
    directory.save(&bed.config, &units, machine.memory()).unwrap();
    let files = std::fs::read_dir(folder.path()).unwrap();
    let size: u64 = files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum();
    assert!(size <= limit, "{size} bytes instead of {limit}");

    let other = bed.machine().unwrap();
    let before = bytes_read();
    directory.load().unwrap().fill(other.memory()).unwrap();
    let read = bytes_read() - before;
    assert!(read <= limit, "{read} bytes read instead of {limit}");
}

#[test]
fn what_is_wrong_is_refused_before_it_runs() {
    let mut bed = bed(&HALT);
    let Some(host) = Bed::host() else { return };
    let memory = bed.config.memory.clone();
    bed.config.memory.hugepages = true;
    bed.config.memory.size = 1 << 40;
    let error = Machine::new(&bed.config, host, Arc::clone(&bed.events)).err().unwrap();
    assert!(matches!(error, MachineError::Memory(_) | MachineError::Impossible(_)), "{error}");
    bed.config.memory = memory;
    bed.config.payload.kernel = Some("/nowhere".into());
    let error = Machine::new(&bed.config, Bed::host().unwrap(), Arc::clone(&bed.events)).err().unwrap();
    assert_eq!(error.to_string(), "the kernel");
}
