//! The function that the root itself is, in slot 0.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Bars, ConfigSpace, Effect, Identity, PciFunction};
use crate::bus::Request;
use crate::snapshot::Saved;

/// What guests know as the "PCIe host bridge" of a generic machine. It does nothing.
const IDENTITY: Identity = Identity { device: [0x1B36, 0x0008], subsystem: [0, 0], revision: 0, class: [0x06, 0, 0] };

/// The host bridge.
pub struct HostBridge(Mutex<ConfigSpace>);

impl Default for HostBridge {
    fn default() -> Self {
        Self(Mutex::new(ConfigSpace::new(&IDENTITY)))
    }
}

impl HostBridge {
    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Effect {
        self.config().write(offset, data)
    }

    fn bars(&self) -> Bars {
        Bars::default()
    }

    fn decodes_memory(&self) -> bool {
        false
    }

    fn assign(&self, _: u8, _: u64) {}

    fn moved(&self, _: u8, _: Option<u64>) {}

    fn read_bar(&self, _: u8, _: u64, _: &mut [u8]) {}

    fn write_bar(&self, _: u8, _: u64, _: &[u8]) -> Request {
        Request::Nothing
    }

    fn pause(&self) {}

    fn resume(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn reset(&self) {
        *self.config() = ConfigSpace::new(&IDENTITY);
    }

    /// A command register that nothing depends on is not worth a unit.
    fn save(&self) -> Saved {
        Saved::Stateless
    }
}
