//! Tiny guests on the machine's own KVM; where there is none, these tests say nothing.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::bus::{BusDevice, Request};
use crate::hypervisor::vm::VmOptions;
use crate::hypervisor::{Hypervisor, Slot};
use crate::memory::GuestMemory;

const CODE: u64 = 0x1000;

struct Tiny {
    hypervisor: Hypervisor,
    memory: GuestMemory,
    _slots: Vec<Slot>,
}

/// A machine with 64 KiB of RAM and `code` in it.
fn tiny(code: &[u8]) -> Option<Tiny> {
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").ok()?;
    let hypervisor = Hypervisor::new(crate::hypervisor::open(kvm.into()).unwrap(), VmOptions::default()).unwrap();
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    memory.write_slice(code, GuestAddress(CODE)).unwrap();
    let slots = hypervisor.slots.map_ram(&memory).unwrap();
    Some(Tiny { hypervisor, memory, _slots: slots })
}

/// The first vCPU, about to run the code in real mode.
fn vcpu(tiny: &Tiny) -> VcpuFd {
    let vcpu = tiny.hypervisor.vm.create_vcpu(0).unwrap();
    let mut special = vcpu.get_sregs().unwrap();
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special).unwrap();
    let mut registers = vcpu.get_regs().unwrap();
    registers.rip = CODE;
    vcpu.set_regs(&registers).unwrap();
    vcpu
}

struct Told(Mutex<Sender<(u32, Outcome)>>);

impl Listener for Told {
    fn happened(&self, vcpu: u32, outcome: Outcome) {
        self.0.lock().unwrap().send((vcpu, outcome)).unwrap();
    }

    fn confine(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Powers off when 0xFF is written to it, and reads as 7.
#[derive(Default)]
struct Port(Mutex<Vec<u8>>);

impl BusDevice for Port {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(7);
    }

    fn write(&self, _: u64, data: &[u8]) -> Request {
        self.0.lock().unwrap().extend(data);
        if data[0] == 0xFF { Request::PowerOff } else { Request::Nothing }
    }
}

fn start(vcpu: VcpuFd) -> (Vcpus, Arc<Port>, Receiver<(u32, Outcome)>) {
    let (buses, port) = (Arc::new(Buses::default()), Arc::new(Port::default()));
    buses.ports.insert(0x10..0x11, port.clone()).unwrap();
    buses.memory.insert(0xFED0_0000..0xFED0_0010, port.clone()).unwrap();
    let (send, receive) = channel();
    let listener: Arc<dyn Listener> = Arc::new(Told(Mutex::new(send)));
    let vcpus = Starting::new(1, |_| None, &buses, &listener).unwrap().finish(vec![vcpu]).unwrap();
    (vcpus, port, receive)
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_guest_reads_writes_and_asks() {
    // in al, 0x10; out 0x10, al; mov al, 0xFF; out 0x10, al; mov al, 1; out 0x10, al; hlt
    let code = [0xE4, 0x10, 0xE6, 0x10, 0xB0, 0xFF, 0xE6, 0x10, 0xB0, 0x01, 0xE6, 0x10, 0xF4];
    let Some(tiny) = tiny(&code) else { return };
    let (vcpus, port, told) = start(vcpu(&tiny));
    assert_eq!(vcpus.ids().len(), 1);
    vcpus.run();
    assert_eq!(told.recv_timeout(LONG).unwrap(), (0, Outcome::Request(Request::PowerOff)));
    // It waits, however long.
    vcpus.park();
    assert_eq!(*port.0.lock().unwrap(), [7, 0xFF]);
    assert_eq!(vcpus.lock().next().unwrap().get_regs().unwrap().rip, CODE + 8);
    drop(tiny.memory);
}

#[test]
fn a_halted_guest_can_be_stopped() {
    // cli; hlt
    let Some(tiny) = tiny(&[0xFA, 0xF4]) else { return };
    let (vcpus, _, _told) = start(vcpu(&tiny));
    for _ in 0..20 {
        vcpus.run();
        vcpus.park();
    }
    vcpus.run();
    drop(vcpus);
}

#[test]
fn a_spinning_guest_can_be_stopped() {
    // jmp $
    let Some(tiny) = tiny(&[0xEB, 0xFE]) else { return };
    let (vcpus, _, _told) = start(vcpu(&tiny));
    for _ in 0..20 {
        vcpus.run();
        vcpus.park();
    }
    assert_eq!(vcpus.lock().next().unwrap().get_regs().unwrap().rip, CODE);
}

#[test]
fn registers_that_are_not_there_fault_in_the_guest() {
    const TIMES: u64 = 10_000;
    // mov ecx, 0x0BAD0BAD; mov esi, TIMES; again: rdmsr; dec esi; jnz again; mov al, 0xFF; out 0x10, al; hlt
    let mut code = vec![0x66, 0xB9, 0xAD, 0x0B, 0xAD, 0x0B, 0x66, 0xBE];
    code.extend((TIMES as u32).to_le_bytes());
    code.extend([0x0F, 0x32, 0x66, 0x4E, 0x75, 0xFA, 0xB0, 0xFF, 0xE6, 0x10, 0xF4]);
    let Some(tiny) = tiny(&code) else { return };
    // #GP, vector 13, goes on behind the instruction: inc edi; mov bp, sp; add word [bp], 2; iret
    const HANDLER: u16 = 0x2000;
    let handler = [0x66, 0x47, 0x89, 0xE5, 0x83, 0x46, 0x00, 0x02, 0xCF];
    tiny.memory.write_slice(&handler, GuestAddress(HANDLER.into())).unwrap();
    tiny.memory.write_obj(u32::from(HANDLER), GuestAddress(13 * 4)).unwrap();
    let (vcpus, _, told) = start(vcpu(&tiny));
    vcpus.run();
    assert_eq!(told.recv_timeout(LONG).unwrap(), (0, Outcome::Request(Request::PowerOff)));
    let exits = vcpus.exits().next().unwrap();
    vcpus.park();
    let ignored = std::fs::read("/sys/module/kvm/parameters/ignore_msrs").is_ok_and(|value| value.starts_with(b"Y"));
    assert_eq!(vcpus.lock().next().unwrap().get_regs().unwrap().rdi, if ignored { 0 } else { TIMES });
    // Nothing of it came here: only the end did.
    assert_eq!(exits, [("io_exits", 1), ("mmio_exits", 0), ("signal_exits", 0), ("other_exits", 0)]);
}

/// Its threads can't be confined.
struct Unconfined;

impl Listener for Unconfined {
    fn happened(&self, _: u32, _: Outcome) {}

    fn confine(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn threads_that_cannot_start_get_no_vcpu() {
    let Some(tiny) = tiny(&[0xF4]) else { return };
    let buses = Arc::new(Buses::default());
    let unconfined: Arc<dyn Listener> = Arc::new(Unconfined);
    let starting = Starting::new(2, |_| None, &buses, &unconfined).unwrap();
    let error = starting.finish(vec![vcpu(&tiny)]).err().unwrap();
    assert_eq!((error.vcpu, error.source.kind()), (0, io::ErrorKind::Unsupported));

    let told: Arc<dyn Listener> = Arc::new(Told(Mutex::new(channel().0)));
    // No CPU at all.
    let nowhere = |vcpu| (vcpu == 1).then(rustix::thread::CpuSet::new);
    let starting = Starting::new(2, nowhere, &buses, &told).unwrap();
    let vcpus = (1..3).map(|id| tiny.hypervisor.vm.create_vcpu(id).unwrap()).collect();
    assert_eq!(starting.finish(vcpus).err().unwrap().vcpu, 1);

    // They end, too, when there is no vCPU for them after all.
    drop(Starting::new(3, |_| None, &buses, &told).unwrap());
    assert_eq!(Arc::strong_count(&buses), 1);
}

#[test]
fn a_state_can_be_returned_to() {
    // mov ax, 0x1234; mov al, 0xFF; out 0x10, al; hlt
    let Some(tiny) = tiny(&[0xB8, 0x34, 0x12, 0xB0, 0xFF, 0xE6, 0x10, 0xF4]) else { return };
    let extent = state::Extent::of(&tiny.hypervisor).unwrap();
    let first = vcpu(&tiny);
    let cpuid = crate::hypervisor::supported_cpuid(&tiny.hypervisor.kvm).unwrap().as_slice().to_vec();
    state::initialize(&first, &cpuid).unwrap();
    let (vcpus, port, told) = start(first);
    let before = state::save(&vcpus.lock().next().unwrap(), &extent).unwrap();
    for _ in 0..2 {
        vcpus.run();
        assert_eq!(told.recv_timeout(LONG).unwrap().1, Outcome::Request(Request::PowerOff));
        vcpus.park();
        assert_eq!(vcpus.lock().next().unwrap().get_regs().unwrap().rax, 0x12FF);
        state::reset(&vcpus.lock().next().unwrap(), &before, &extent).unwrap();
    }
    assert_eq!(*port.0.lock().unwrap(), [0xFF, 0xFF]);
    // What a file says is taken as it is written, or not at all.
    let json = serde_json::to_vec(&before).unwrap();
    let read: state::VcpuState = serde_json::from_slice(&json).unwrap();
    state::restore(&vcpus.lock().next().unwrap(), &read, &extent).unwrap();
    let after = state::save(&vcpus.lock().next().unwrap(), &extent).unwrap();
    assert_eq!(after.cpuid, before.cpuid);
    assert_eq!(after.nested, before.nested);
    let larger = state::Extent { xsave: extent.xsave + 4096, ..extent };
    assert!(state::restore(&vcpus.lock().next().unwrap(), &read, &larger).is_err());
}
