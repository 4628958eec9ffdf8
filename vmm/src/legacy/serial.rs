//! The serial port COM1: a 16550A by vm-superio, whose output costs the host one system call a line, and never waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::output::{Output, Sink};
use crate::bus::{BusDevice, Request};
use crate::counters::{Counter, Counts};
use crate::snapshot::{InvalidState, Saved, Unit};

/// The port.
pub struct SerialPort {
    uart: Mutex<Uart>,
    sink: Option<Arc<Sink>>,
    received: Counter,
}

type Uart = Serial<Raise, Wake, Output>;

/// Raises the port's interrupt.
struct Raise(EventFd);

/// Tells the owner to look again: all input was taken, or output waits.
struct Wake(OwnedFd);

/// Interrupt enable register, while the divisor latch is not in its place.
///
/// Linux's driver writes it when it has sent all it had to send, a line of the log or what a program wrote: that, and a
/// line's end, is when output has to be seen.
const INTERRUPT_ENABLE: u8 = 1;

/// How long the end of the output may wait for its reader when the machine goes.
const PATIENCE: Duration = Duration::from_secs(1);

const KIND: &str = "serial-16550";
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    baud_divisor: (u8, u8),
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
}

impl SerialPort {
    /// A port whose output goes to `output`, or nowhere. Writing to `interrupt` raises its interrupt; `wake` (an eventfd)
    /// is written to when all input was read, and when output begins to wait ([`SerialPort::blocked`]).
    #[must_use]
    pub fn new(output: Option<OwnedFd>, interrupt: EventFd, wake: OwnedFd) -> Self {
        let sink = output.map(|output| Arc::new(Sink::new(output)));
        let uart = Serial::with_events(Raise(interrupt), Wake(wake), Output::new(sink.clone()));
        Self { uart: Mutex::new(uart), sink, received: Counter::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of input it has room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.lock().fifo_capacity()
    }

    /// Gives the guest input; returns how much of it was taken.
    #[must_use]
    pub fn input(&self, bytes: &[u8]) -> usize {
        let taken = self.lock().enqueue_raw_bytes(bytes).unwrap_or(0);
        self.received.add(taken as u64);
        taken
    }

    /// Passes on what is pending; when the guest will not run for a while, or whoever reads it takes more.
    pub fn flush(&self) {
        self.lock().writer_mut().show();
    }

    /// Where output waits to go, if it does. Call [`SerialPort::flush`] when that can be written to.
    #[must_use]
    pub fn blocked(&self) -> Option<BorrowedFd<'_>> {
        let sink = self.sink.as_ref()?;
        self.lock().writer().is_blocked().then(|| sink.as_fd())
    }

    /// Passes on the end of the output. Whoever has not read it within a second is not there any more.
    pub fn finish(&self) {
        let end = Instant::now() + PATIENCE;
        self.flush();
        while let Some(sink) = self.blocked() {
            let Ok(rest) = Timespec::try_from(end.saturating_duration_since(Instant::now())) else { return };
            if !matches!(poll(&mut [PollFd::from_borrowed_fd(sink, PollFlags::OUT)], Some(&rest)), Ok(1..)) {
                return;
            }
            self.flush();
        }
    }

    /// What went through it. Output is counted when it was taken, or dropped because its reader was too slow or gone.
    #[must_use]
    pub fn counters(&self) -> Counts {
        let (shown, dropped) = self.lock().writer().counts();
        vec![("rx_bytes", self.received.get()), ("tx_bytes", shown), ("dropped_bytes", dropped)]
    }

    /// Back to how it was at power-on.
    pub fn reset(&self) {
        self.flush();
        self.set(&SerialState::default());
    }

    /// Puts registers and input in place, leaving where output goes.
    fn set(&self, state: &SerialState) {
        let mut uart = self.lock();
        let (Ok(interrupt), Ok(wake)) = (uart.interrupt_evt().0.try_clone(), uart.events().0.try_clone()) else {
            return;
        };
        let output = std::mem::take(uart.writer_mut());
        if let Ok(restored) = Serial::from_state(state, Raise(interrupt), Wake(wake), output) {
            *uart = restored;
        }
    }

    /// Its registers, and input that was not read.
    #[must_use]
    pub fn save(&self) -> Saved {
        let state = self.lock().state();
        Saved::State(Unit::encode(
            KIND,
            VERSION,
            &State {
                baud_divisor: (state.baud_divisor_low, state.baud_divisor_high),
                interrupt_enable: state.interrupt_enable,
                interrupt_identification: state.interrupt_identification,
                line_control: state.line_control,
                line_status: state.line_status,
                modem_control: state.modem_control,
                modem_status: state.modem_status,
                scratch: state.scratch,
                input: state.in_buffer,
            },
        ))
    }

    /// Takes over what [`SerialPort::save`] gave.
    ///
    /// # Errors
    /// When it did not.
    pub fn restore(&self, unit: &Unit) -> Result<(), InvalidState> {
        let state: State = unit.decode(KIND, VERSION)?;
        let room = self.room();
        if state.input.len() > room {
            let reason = format!("{} bytes of input, there is room for {room}", state.input.len());
            return Err(InvalidState::Damaged { kind: KIND, reason });
        }
        self.set(&SerialState {
            baud_divisor_low: state.baud_divisor.0,
            baud_divisor_high: state.baud_divisor.1,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input,
        });
        Ok(())
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.lock().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Request {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            let mut uart = self.lock();
            // Output takes everything, and an interrupt that can't be raised has been raised often enough.
            let _ = uart.write(offset, byte);
            let output = uart.writer_mut();
            let is_due = output.is_due() || (offset == INTERRUPT_ENABLE && !output.is_blocked());
            if is_due && output.show() {
                uart.events().wake();
            }
        }
        Request::Nothing
    }
}

impl Wake {
    fn wake(&self) {
        // Fails only when it is full, and then it is readable.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl Trigger for Raise {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl SerialEvents for Wake {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    struct Bed {
        port: SerialPort,
        output: std::io::PipeReader,
        interrupt: EventFd,
        wake: OwnedFd,
    }

    fn bed() -> Bed {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let (output, writer) = std::io::pipe().unwrap();
        let port = SerialPort::new(Some(writer.into()), interrupt.try_clone().unwrap(), wake.try_clone().unwrap());
        Bed { port, output, interrupt, wake }
    }

    fn write(port: &SerialPort, offset: u64, bytes: &[u8]) {
        for byte in bytes {
            assert_eq!(port.write(offset, &[*byte]), Request::Nothing);
        }
    }

    fn shown(bed: &mut Bed) -> String {
        let mut bytes = [0; 1024];
        let count = bed.output.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[test]
    fn lines_are_written_at_once() {
        let mut bed = bed();
        write(&bed.port, 0, b"first\nlogin: ");
        assert_eq!(shown(&mut bed), "first\n");
        // All was sent.
        write(&bed.port, 1, &[0]);
        assert_eq!(shown(&mut bed), "login: ");
        write(&bed.port, 0, &[b'x'; 300]);
        assert_eq!(shown(&mut bed).len(), 256);
        bed.port.flush();
        assert_eq!(shown(&mut bed).len(), 44);
    }

    #[test]
    fn input_interrupts_and_is_read() {
        let bed = bed();
        write(&bed.port, 1, &[1]);
        let room = bed.port.room();
        assert_eq!(bed.port.input(b"ab"), 2);
        assert_eq!(bed.port.room(), room - 2);
        assert!(bed.interrupt.read().is_ok());
        let mut byte = [0];
        bed.port.read(0, &mut byte);
        assert_eq!(byte, *b"a");
        assert!(rustix::io::read(&bed.wake, &mut [0; 8]).is_err());
        bed.port.read(0, &mut byte);
        assert!(rustix::io::read(&bed.wake, &mut [0; 8]).is_ok());
        assert_eq!(bed.port.input(&vec![b'x'; 4096]), room);
    }

    #[test]
    fn registers_and_input_are_saved() {
        let bed = bed();
        write(&bed.port, 7, &[0x5A]);
        assert_eq!(bed.port.input(b"q"), 1);
        let Saved::State(unit) = bed.port.save() else { panic!() };
        let other = self::bed();
        other.port.restore(&unit).unwrap();
        let mut byte = [0];
        other.port.read(7, &mut byte);
        assert_eq!(byte, [0x5A]);
        other.port.read(0, &mut byte);
        assert_eq!(byte, *b"q");
        other.port.reset();
        other.port.read(7, &mut byte);
        assert_eq!(byte, [0]);
        let long: Vec<u8> = String::from_utf8_lossy(&unit.bytes).replace("[113]", &format!("{:?}", [0; 99])).into();
        assert!(other.port.restore(&Unit { bytes: long, ..unit }).is_err());
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let bed = bed();
        for length in [2, 4, 8] {
            assert_eq!(bed.port.write(0, &vec![b'\n'; length]), Request::Nothing);
            let mut data = vec![0xFF; length];
            bed.port.read(0, &mut data);
            assert_eq!(data, vec![0xFF; length]);
        }
    }
}
