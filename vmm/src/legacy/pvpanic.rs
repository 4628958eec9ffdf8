//! pvpanic: a port by which a guest's kernel says that it has panicked (QEMU's `docs/specs/pvpanic.rst`).

use crate::bus::{BusDevice, Request};

/// Its port, where QEMU has it.
pub const PORT: u16 = 0x505;

/// "Panicked".
const PANICKED: u8 = 1 << 0;

/// The port. It knows panics, and nothing else of what the protocol has (loading a crash kernel is not the end).
#[derive(Debug, Default)]
pub struct PanicPort;

impl BusDevice for PanicPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(events) = data.first_mut() {
            *events = PANICKED;
        }
    }

    fn write(&self, _: u64, data: &[u8]) -> Request {
        match data.first() {
            Some(events) if events & PANICKED != 0 => Request::Panicked,
            _ => Request::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_told() {
        assert_eq!(PanicPort.write(0, &[1]), Request::Panicked);
        assert_eq!(PanicPort.write(0, &[2]), Request::Nothing);
        let mut known = [0xFF];
        PanicPort.read(0, &mut known);
        assert_eq!(known, [1]);
    }
}
