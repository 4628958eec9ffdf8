//! The two ways to configuration space.

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

/// Configuration space by eight ports: an address at the first, then data (PCI Local Bus 3.0, 3.2.2.3.2). Reaches the
/// first 256 bytes of a function. Each access costs the guest two exits, and kernels that find these ports prefer them.
pub struct ConfigPorts(pub Arc<PciRoot>);

/// Set in an address that means something.
const ENABLE: u32 = 1 << 31;

/// Where the data ports begin.
const DATA: u64 = 4;

/// What an address with the data port's offset points to; `None` for other buses and functions.
fn port_target(address: u32, offset: u64) -> Option<(u8, u16)> {
    let (bus, slot, function) = (address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 7);
    let register = (address & 0xFC) as u16 + (offset - DATA) as u16;
    (address & ENABLE != 0 && bus == 0 && function == 0).then_some((slot as u8, register))
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.0.port_address().to_le_bytes()),
            (DATA..8, _) => {
                if let Some((slot, register)) = port_target(self.0.port_address(), offset) {
                    self.0.read_config(slot, register, data);
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Request {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.0.set_port_address(u32::from_le_bytes([a, b, c, d])),
            (DATA..8, _) => {
                if let Some((slot, register)) = port_target(self.0.port_address(), offset) {
                    self.0.write_config(slot, register, data);
                }
            }
            _ => {}
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

    #[test]
    fn ports_reach_bus_0() {
        assert_eq!(port_target(0x8000_1804, 6), Some((3, 6)));
        assert_eq!(port_target(0x0000_1804, 6), None, "not enabled");
        assert_eq!(port_target(0x8001_1804, 4), None, "bus 1");
        assert_eq!(port_target(0x8000_1904, 4), None, "function 1");
    }
}
