//! The way to configuration space. There are no ports CF8 and CFC: each access by them would cost two exits, and kernels
//! that find them prefer them.

use std::sync::Arc;

use super::PciRoot;
use crate::bus::{BusDevice, Request};

/// Configuration space as memory: 4 KiB for each function, 8 functions for each slot (PCI Express 6, 7.2.2).
pub struct Ecam(pub Arc<PciRoot>);

/// Which function of bus 0 an ECAM offset is in, as slot and register; `None` for functions that can't be.
fn ecam_target(offset: u64) -> Option<(u8, u16)> {
    let (function, slot) = (offset >> 12 & 7, offset >> 15);
    (function == 0 && slot < u64::from(super::SLOTS)).then_some((slot as u8, (offset & 0xFFF) as u16))
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((slot, register)) = ecam_target(offset) {
            self.0.read_config(slot, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Request {
        if let Some((slot, register)) = ecam_target(offset) {
            self.0.write_config(slot, register, data);
        }
        Request::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecam_reaches_function_0_of_each_slot() {
        assert_eq!(ecam_target(0x0000_0004), Some((0, 4)));
        assert_eq!(ecam_target(0x000F_8FFC), Some((31, 0xFFC)));
        assert_eq!(ecam_target(0x0000_9000), None, "slot 1, function 1");
        assert_eq!(ecam_target(0x0010_0000), None, "bus 1");
    }
}
