//! The host's side of the serial port: standard input and output, or a file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::termios::{self, OptionalActions, Termios};
use vse_vmm_api::{ConsoleMode, SerialConfig};

use super::descriptors::{self, DescriptorError};
use crate::legacy::serial::SerialPort;
use crate::readiness::is_ready;

/// What the port is connected to. The owner polls [`Console::input`] and [`Console::wake`] for reading, [`Console::output`]
/// for writing, and calls [`Console::ready`] when any of them is ready.
pub struct Console {
    port: Arc<SerialPort>,
    input: Option<Input>,
    wake: OwnedFd,
}

/// Standard input; as a terminal it passes every key on until this is dropped.
struct Input {
    descriptor: OwnedFd,
    cooked: Option<Termios>,
}

/// Opens where output goes, and says whether there is input.
pub(super) fn output(config: &SerialConfig) -> Result<(Option<OwnedFd>, bool), DescriptorError> {
    let standard = || DescriptorError::NotFree(libc::STDOUT_FILENO);
    match config.mode {
        ConsoleMode::Tty => {
            let output = io::stdout().as_fd().try_clone_to_owned().map_err(|_| standard())?;
            Ok((Some(output), true))
        }
        ConsoleMode::File => {
            let file = descriptors::output("serial.fd", config.fd, config.file.as_deref())?;
            Ok((Some(file.into()), false))
        }
        _ => Ok((None, false)),
    }
}

impl Console {
    pub(super) fn new(port: Arc<SerialPort>, wake: OwnedFd, has_input: bool) -> Self {
        let input = has_input.then(Input::standard).flatten();
        Self { port, input, wake }
    }

    /// What to poll for input; `None` when there is none, has ended, or the guest takes no more of it now.
    #[must_use]
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        let input = self.input.as_ref()?;
        (self.port.room() > 0).then(|| input.descriptor.as_fd())
    }

    /// Where output waits to be written to; `None` when there is none.
    #[must_use]
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        self.port.blocked()
    }

    /// Readable when the others have to be looked at anew: the guest has taken all input, or output waits.
    #[must_use]
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Passes on what there is, without waiting: as much input as the guest takes, as much output as its reader does.
    pub fn ready(&mut self) {
        if is_ready(&self.wake, PollFlags::IN) {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        if self.output().is_some() {
            self.port.flush();
        }
        self.pass_input();
    }

    fn pass_input(&mut self) {
        // The other one may be what was readable, and a terminal is read without waiting only if it is asked before.
        let Some(input) = self.input.as_ref().filter(|input| is_ready(&input.descriptor, PollFlags::IN)) else {
            return;
        };
        let mut bytes = [0; 64];
        let room = self.port.room().min(bytes.len());
        if room == 0 {
            return;
        }
        match rustix::io::read(&input.descriptor, &mut bytes[..room]) {
            Ok(0) => self.input = None,
            // There is room for all of it: only this thread gives the port input.
            Ok(count) => drop(self.port.input(&bytes[..count])),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => self.input = None,
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.port.finish();
    }
}

impl Input {
    fn standard() -> Option<Self> {
        let descriptor = io::stdin().as_fd().try_clone_to_owned().ok()?;
        let cooked = termios::tcgetattr(&descriptor).ok();
        if let Some(cooked) = &cooked {
            let mut raw = cooked.clone();
            raw.make_raw();
            let _ = termios::tcsetattr(&descriptor, OptionalActions::Now, &raw);
        }
        Some(Self { descriptor, cooked })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(cooked) = &self.cooked {
            let _ = termios::tcsetattr(&self.descriptor, OptionalActions::Now, cooked);
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    #[test]
    fn input_is_never_waited_for() {
        let wake = eventfd(0, EventfdFlags::empty()).unwrap();
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let port = Arc::new(SerialPort::new(None, interrupt, wake.try_clone().unwrap()));
        let (reader, writer) = io::pipe().unwrap();
        let mut console = Console::new(port, wake.try_clone().unwrap(), false);
        console.input = Some(Input { descriptor: reader.into(), cooked: None });
        // Nothing was typed, the guest has only taken what was there: this returns.
        rustix::io::write(&wake, &1_u64.to_ne_bytes()).unwrap();
        console.ready();
        assert!(console.input().is_some());
        drop(writer);
        console.ready();
        assert!(console.input().is_none());
    }
}
