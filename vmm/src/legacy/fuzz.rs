//! Hostile guests against what is not on PCI ([`crate::fuzzing`]): serial port, platform registers, reset line and panic
//! port, at the addresses where a guest finds them.
//!
//! Whatever a guest does, nothing may panic, only those who may ask for something do, all that was sent is seen and
//! nothing else, and what is saved can be restored.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use vmm_sys_util::eventfd::EventFd;

use super::keyboard::{self, ResetLine};
use super::platform::Platform;
use super::pvpanic::{self, PanicPort};
use super::serial::SerialPort;
use crate::bus::{Bus, Request};
use crate::fuzzing::{Shape, fuzz};
use crate::layout::{PLATFORM, SERIAL};
use crate::pci::{PciRoot, Windows};
use crate::snapshot::Saved;

/// What, where, log2 of the size, a byte that is not used, a value.
const SHAPE: Shape = Shape::steps(8, 128);

/// Registers of the serial port, and what of them decides where a byte that is written to the first goes.
const LINE_CONTROL: u64 = 3;
const DIVISOR_LATCH: u8 = 1 << 7;
const MODEM_CONTROL: u64 = 4;
const LOOP: u8 = 1 << 4;
/// Bytes of a 16550's FIFO.
const FIFO: usize = 64;

struct Guest {
    ports: Bus,
    memory: Bus,
    serial: Arc<SerialPort>,
    platform: Arc<Platform>,
    output: File,
    sent: Vec<u8>,
}

impl Guest {
    fn new() -> Self {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let output = File::from(memfd_create("output", MemfdFlags::CLOEXEC).unwrap());
        let drained = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let serial = Arc::new(SerialPort::new(Some(output.try_clone().unwrap().into()), event(), drained));
        let root = PciRoot::new(&Arc::default(), Windows { low: 0..0, high: 0..0 });
        let platform = Arc::new(Platform::new(root, event()));
        let (ports, memory) = (Bus::default(), Bus::default());
        let panic_port = u64::from(pvpanic::PORT);
        ports.insert(SERIAL.0..SERIAL.0 + 8, serial.clone()).unwrap();
        ports.insert(keyboard::PORT..keyboard::PORT + 1, Arc::new(ResetLine)).unwrap();
        ports.insert(panic_port..panic_port + 1, Arc::new(PanicPort)).unwrap();
        memory.insert(PLATFORM, platform.clone()).unwrap();
        Self { ports, memory, serial, platform, output, sent: Vec::new() }
    }

    fn step(&mut self, step: &[u8; 8]) {
        let [what, place, size, _, a, b, c, d] = *step;
        let mut data = [a, b, c, d, a, b, c, d];
        let data = &mut data[..1 << (size % 4)];
        let port = match place % 11 {
            8 => keyboard::PORT,
            9 => pvpanic::PORT.into(),
            10 => u16::from_le_bytes([a, b]).into(),
            register => SERIAL.0 + u64::from(register),
        };
        let register = PLATFORM.start + u64::from(place % 24);
        match what % 8 {
            0 | 1 => self.write_port(port, data),
            2 => self.ports.read(port, data),
            3 => match self.memory.write(register, data) {
                Request::Panicked => panic!("no panic port"),
                Request::Eject { slot } => assert!(slot < 32),
                Request::Nothing | Request::Reset | Request::PowerOff => {}
            },
            4 => self.memory.read(register, data),
            5 => assert!(self.serial.input(&vec![a; place.into()]) <= FIFO),
            6 => self.platform.notify(1 << (place % 32)),
            _ => self.move_to_another_process(),
        }
        assert!(self.serial.room() <= FIFO);
    }

    fn write_port(&mut self, port: u64, data: &[u8]) {
        let register = |offset| {
            let mut value = [0];
            self.ports.read(SERIAL.0 + offset, &mut value);
            value[0]
        };
        if let (true, &[byte]) = (port == SERIAL.0, data)
            && register(LINE_CONTROL) & DIVISOR_LATCH == 0
            && register(MODEM_CONTROL) & LOOP == 0
        {
            self.sent.push(byte);
        }
        match self.ports.write(port, data) {
            Request::Nothing => {}
            Request::Reset => assert_eq!(port, keyboard::PORT),
            Request::Panicked => assert_eq!(port, u64::from(pvpanic::PORT)),
            other => panic!("{other:?} by a port"),
        }
    }

    /// Whatever state a guest has brought the devices into can be saved, and restored.
    fn move_to_another_process(&self) {
        let (Saved::State(serial), Saved::State(platform)) = (self.serial.save(), self.platform.save()) else {
            panic!("they can be saved")
        };
        self.serial.reset();
        self.platform.reset();
        self.serial.restore(&serial).unwrap();
        self.platform.restore(&platform).unwrap();
        assert_eq!((self.serial.save(), self.platform.save()), (Saved::State(serial), Saved::State(platform)));
    }
}

#[test]
fn ports() {
    fuzz("legacy/ports", SHAPE, |script| {
        let mut guest = Guest::new();
        script.as_chunks().0.iter().for_each(|step| guest.step(step));
        guest.serial.flush();
        let mut seen = vec![0; guest.output.metadata().unwrap().len() as usize];
        guest.output.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, guest.sent);
    });
}
