//! The one thing of a keyboard controller (8042) that kernels still use: its reset line.

use crate::bus::{BusDevice, Request};

/// Command port.
pub const PORT: u64 = 0x64;

/// "Pulse output line 0", which is wired to reset.
const RESET: u8 = 0xFE;

/// Real-mode code that gives the command: `mov al, 0xFE; out 0x64, al; again: hlt; jmp again`.
pub const RESET_CODE: [u8; 7] = [0xB0, RESET, 0xE6, PORT as u8, 0xF4, 0xEB, 0xFD];

/// Takes the command, and is otherwise not there.
#[derive(Debug, Default)]
pub struct ResetLine;

impl BusDevice for ResetLine {
    fn read(&self, _: u64, data: &mut [u8]) {
        // Ready for a command; a kernel waits for that.
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) -> Request {
        if data == [RESET] { Request::Reset } else { Request::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        assert_eq!(ResetLine.write(0, &[0xFE]), Request::Reset);
        assert_eq!(ResetLine.write(0, &[0xFF]), Request::Nothing);
        assert_eq!(ResetLine.write(0, &[0xFE, 0]), Request::Nothing);
        let mut status = [0xFF];
        ResetLine.read(0, &mut status);
        assert_eq!(status, [0]);
    }
}
