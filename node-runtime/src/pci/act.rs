//! Carries out the steps of a plan: one write to sysfs or to the ledger for each. Makes no choices.

use super::address::Address;
use super::function::DEVICES;
use super::ledger::{Ledger, LedgerFile};
use super::plan::Step;
use crate::sysfs::{self, Root};

/// A step that did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel did not do it.
    #[error(transparent)]
    Sysfs(#[from] sysfs::Error),
    /// It could not be written down, so it was not done.
    #[error("cannot write the ledger of devices")]
    Ledger(#[source] std::io::Error),
}

/// Carries out one step. The ledger's file says the same as `ledger` when this returns.
pub fn execute(root: &Root, file: &LedgerFile, ledger: &mut Ledger, step: &Step) -> Result<(), Error> {
    tracing::info!(?step, "device");
    let attribute = |address: &Address, name: &str| format!("{DEVICES}/{address}/{name}");
    let written = match step {
        Step::Remember(address, bound) => {
            return write_down(file, ledger, |ledger| _ = ledger.bound.insert(*address, bound.clone()));
        }
        Step::Forget(address) => return write_down(file, ledger, |ledger| _ = ledger.bound.remove(address)),
        Step::RememberMade(address, made) => {
            return write_down(file, ledger, |ledger| _ = ledger.made.insert(*address, *made));
        }
        Step::ForgetMade(address) => return write_down(file, ledger, |ledger| _ = ledger.made.remove(address)),
        // A line without a name clears it.
        Step::Override(address, driver) => {
            root.write(&attribute(address, "driver_override"), &format!("{}\n", driver.as_deref().unwrap_or_default()))
        }
        Step::Unbind(address) => root.write(&attribute(address, "driver/unbind"), &address.to_string()),
        Step::Probe(address) => root.write("sys/bus/pci/drivers_probe", &address.to_string()),
        Step::Autoprobe(address, on) => {
            root.write(&attribute(address, "sriov_drivers_autoprobe"), if *on { "1" } else { "0" })
        }
        Step::Make(address, count) => root.write(&attribute(address, "sriov_numvfs"), &count.to_string()),
    };
    written.map_err(Error::Sysfs)
}

fn write_down(file: &LedgerFile, ledger: &mut Ledger, change: impl FnOnce(&mut Ledger)) -> Result<(), Error> {
    let mut changed = ledger.clone();
    change(&mut changed);
    file.store(&changed).map_err(Error::Ledger)?;
    *ledger = changed;
    Ok(())
}
