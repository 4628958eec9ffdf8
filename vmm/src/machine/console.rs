//! The host's side of the serial port: standard input and output, or a file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{self, OptionalActions, Termios};
use vse_vmm_api::{ConsoleMode, SerialConfig};

use super::descriptors::DescriptorError;
use crate::legacy::serial::SerialPort;

/// What the port is connected to. The owner polls [`Console::input`] and [`Console::drained`], and calls
/// [`Console::pass_input`] when either is readable.
pub struct Console {
    port: Arc<SerialPort>,
    input: Option<Input>,
    drained: OwnedFd,
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
            let path = config.file.as_deref().ok_or(DescriptorError::Neither)?;
            let file = std::fs::File::options().create(true).append(true).open(path);
            let file = file.map_err(|source| DescriptorError::Open { path: path.display().to_string(), source })?;
            Ok((Some(file.into()), false))
        }
        _ => Ok((None, false)),
    }
}

impl Console {
    pub(super) fn new(port: Arc<SerialPort>, drained: OwnedFd, has_input: bool) -> Self {
        let input = has_input.then(Input::standard).flatten();
        Self { port, input, drained }
    }

    /// What to poll for input; `None` when there is none, has ended, or the guest takes no more of it now.
    #[must_use]
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        let input = self.input.as_ref()?;
        (self.port.room() > 0).then(|| input.descriptor.as_fd())
    }

    /// Readable when the guest has taken all input.
    #[must_use]
    pub fn drained(&self) -> BorrowedFd<'_> {
        self.drained.as_fd()
    }

    /// Passes on what input there is, without waiting; as much as the guest takes.
    pub fn pass_input(&mut self) {
        if would_not_wait(&self.drained) {
            let _ = rustix::io::read(&self.drained, &mut [0; 8]);
        }
        // The other one may be what was readable, and a terminal is read without waiting only if it is asked before.
        let Some(input) = self.input.as_ref().filter(|input| would_not_wait(&input.descriptor)) else { return };
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

/// Whether a read returns at once.
fn would_not_wait(descriptor: &OwnedFd) -> bool {
    let mut descriptors = [PollFd::new(descriptor, PollFlags::IN)];
    poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
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
        let drained = eventfd(0, EventfdFlags::empty()).unwrap();
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let port = Arc::new(SerialPort::new(None, interrupt, drained.try_clone().unwrap()));
        let (reader, writer) = io::pipe().unwrap();
        let mut console = Console::new(port, drained.try_clone().unwrap(), false);
        console.input = Some(Input { descriptor: reader.into(), cooked: None });
        // Nothing was typed, the guest has only taken what was there: this returns.
        rustix::io::write(&drained, &1_u64.to_ne_bytes()).unwrap();
        console.pass_input();
        assert!(console.input().is_some());
        drop(writer);
        console.pass_input();
        assert!(console.input().is_none());
    }
}
