//! The table of GSIs: which are in use, and which message each stands for.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{IrqChip, Message};
use crate::layout::{FIRST_MSI_GSI, INTX_IRQS};

/// As many GSIs as KVM's table has entries (KVM_MAX_IRQ_ROUTES).
const GSIS: usize = 4096;

/// The guest's interrupts. Whoever wants one has a share of this.
pub struct Interrupts {
    pub(super) chip: Arc<dyn IrqChip>,
    table: Mutex<Table>,
    /// For each INTx interrupt, the lines that hold it high.
    pub(super) high_lines: Mutex<[u32; (INTX_IRQS.end - INTX_IRQS.start) as usize]>,
}

#[derive(Default)]
struct Table {
    /// By GSI from [`FIRST_MSI_GSI`] on.
    is_claimed: Vec<bool>,
    messages: BTreeMap<u32, Message>,
}

impl Interrupts {
    /// The interrupts of a guest whose controllers exist already.
    #[must_use]
    pub fn new(chip: Arc<dyn IrqChip>) -> Arc<Self> {
        Arc::new(Self { chip, table: Mutex::default(), high_lines: Mutex::default() })
    }

    /// Takes a free GSI; `None` when there is none.
    pub(super) fn claim(&self) -> Option<u32> {
        let mut table = self.table();
        let limit = GSIS - FIRST_MSI_GSI as usize;
        let index = match table.is_claimed.iter().position(|is_claimed| !is_claimed) {
            Some(index) => index,
            None if table.is_claimed.len() < limit => {
                table.is_claimed.push(false);
                table.is_claimed.len() - 1
            }
            None => return None,
        };
        table.is_claimed[index] = true;
        Some(FIRST_MSI_GSI + index as u32)
    }

    /// Gives a GSI back. Nothing is connected to it any more, so that its route may stay until the next change.
    pub(super) fn release(&self, gsi: u32) {
        let mut table = self.table();
        table.messages.remove(&gsi);
        if let Some(is_claimed) = table.is_claimed.get_mut((gsi - FIRST_MSI_GSI) as usize) {
            *is_claimed = false;
        }
    }

    /// Changes what GSIs stand for, all at once: the kernel waits for every reader of the table each time.
    ///
    /// # Errors
    /// When the kernel refuses one of them; none is changed then.
    pub(super) fn route(&self, changes: &[(u32, Message)]) -> io::Result<()> {
        let mut table = self.table();
        if changes.iter().all(|(gsi, message)| table.messages.get(gsi) == Some(message)) {
            return Ok(());
        }
        let mut messages = table.messages.clone();
        messages.extend(changes.iter().copied());
        let routes: Vec<_> = messages.iter().map(|(&gsi, &message)| (gsi, message)).collect();
        self.chip.set_routes(&routes)?;
        table.messages = messages;
        Ok(())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupts::Recorder;
    use crate::interrupts::chip::recorder::REFUSED;

    const MESSAGE: Message = Message { address: 0xFEE0_1000, data: 0x41 };

    #[test]
    fn gsis_are_taken_once_and_are_bounded() {
        let interrupts = Interrupts::new(Arc::new(Recorder::default()));
        let taken: Vec<_> = std::iter::from_fn(|| interrupts.claim()).collect();
        assert_eq!(taken, (24..4096).collect::<Vec<_>>());
        interrupts.release(100);
        interrupts.release(24);
        assert_eq!([interrupts.claim(), interrupts.claim(), interrupts.claim()], [Some(24), Some(100), None]);
    }

    #[test]
    fn an_unchanged_table_is_not_set_again() {
        let chip = Arc::new(Recorder::default());
        let interrupts = Interrupts::new(chip.clone());
        let claimed = [interrupts.claim(), interrupts.claim(), interrupts.claim()];
        assert_eq!(claimed, [Some(24), Some(25), Some(26)]);
        interrupts.route(&[(24, MESSAGE), (25, MESSAGE)]).unwrap();
        interrupts.route(&[(25, MESSAGE)]).unwrap();
        assert_eq!(*chip.tables_set.lock().unwrap(), 1);
        interrupts.release(24);
        interrupts.route(&[(26, MESSAGE)]).unwrap();
        assert_eq!(*chip.routes.lock().unwrap(), [(25, MESSAGE), (26, MESSAGE)]);
    }

    #[test]
    fn a_message_the_kernel_refuses_does_not_spoil_those_of_others() {
        let chip = Arc::new(Recorder::default());
        let interrupts = Interrupts::new(chip.clone());
        interrupts.route(&[(24, Message { address: REFUSED, data: 0 })]).unwrap_err();
        interrupts.route(&[(25, MESSAGE)]).unwrap();
        assert_eq!(*chip.routes.lock().unwrap(), [(25, MESSAGE)]);
    }
}
