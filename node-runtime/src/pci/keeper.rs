//! Looks at the host's functions, plans, acts, until there is nothing to do. Blocks: drivers take their time.

use super::act;
use super::address::Address;
use super::class::{makers, members};
use super::function::Machine;
use super::group_file;
use super::ledger::{Ledger, LedgerFile};
use super::plan::{Plan, Seen, Wait, Wanted, plan};
use super::report::{Report, report};
use super::verdict::{Unit, units};
use crate::sysfs::{self, Root};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use tokio::sync::watch;
use vse_crds::DeviceClass;

/// Plans are settled in three rounds or four; more than this means that the kernel does not do as told.
const MAX_ROUNDS: usize = 8;

/// Keeps the functions of this host as its policy and its guests want them.
pub struct Keeper {
    root: Root,
    file: LedgerFile,
    ledger: Ledger,
    /// Classes in force; until they are known, virtual functions stay as they are.
    classes: Option<Vec<DeviceClass>>,
    /// UIDs of pods whose guests are here; until they are known, all are.
    guests: watch::Receiver<Option<BTreeSet<String>>>,
    report: watch::Sender<Option<Report>>,
}

/// How things are when there is nothing left to do.
struct Settled {
    machine: Machine,
    /// What has to wait.
    waits: Vec<Wait>,
    /// What did not work.
    failed: BTreeMap<Address, String>,
}

/// Functions for a guest, bound to vfio-pci.
#[derive(Debug)]
pub struct Taken {
    /// The container they share.
    pub container: OwnedFd,
    /// For each unit asked for, its functions and its group's open file.
    pub units: Vec<(Vec<Address>, OwnedFd)>,
}

/// Why a guest does not get its functions.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The host's policy has not been read yet.
    #[error("which device classes this host has is not known yet")]
    NotKnown,
    /// What kubelet allocated is not in the class, or not in a state to be given.
    #[error("device {id} can't be passed through: {why}")]
    Unusable {
        /// The device.
        id: String,
        /// Why.
        why: String,
    },
    /// The host has taken what kubelet allocated into use, perhaps only for now.
    #[error("device {id} can't be passed through now: {why}")]
    InUse {
        /// The device.
        id: String,
        /// Why.
        why: String,
    },
    /// The kernel did not bind a function.
    #[error("{address} was not bound to vfio-pci; the kernel's log may say more: {why}")]
    NotBound {
        /// The function.
        address: Address,
        /// What is known of it.
        why: String,
    },
    /// What there is could not be seen.
    #[error(transparent)]
    Sysfs(#[from] sysfs::Error),
    /// A file of VFIO.
    #[error("cannot take a device")]
    Open(#[from] group_file::Error),
}

impl TakeError {
    /// Whether trying again can't help.
    pub fn is_final(&self) -> bool {
        matches!(self, TakeError::Unusable { .. })
    }
}

/// A device is still open in some process.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {why}")]
pub struct StillOpen {
    address: Address,
    why: String,
}

impl Keeper {
    /// Of the host at `root`, with the ledger's file at `ledger`. What is seen is told to `report`.
    pub fn open(
        root: Root,
        ledger: PathBuf,
        guests: watch::Receiver<Option<BTreeSet<String>>>,
        report: watch::Sender<Option<Report>>,
    ) -> Result<Self, sysfs::Error> {
        let file = LedgerFile::new(ledger);
        let ledger = file.load(&root.text("proc/sys/kernel/random/boot_id")?);
        Ok(Self { root, file, ledger, classes: None, guests, report })
    }

    /// Holds these classes in force: virtual functions are made and removed, and what guests that are gone have left
    /// behind is given back.
    pub fn keep(&mut self, classes: Vec<DeviceClass>) {
        self.classes = Some(classes);
        if let Err(error) = self.settle(self.held()) {
            tracing::error!(error = %crate::report(&error), "what this host does with its devices can't be seen");
            self.report.send_replace(Some(Report::default()));
        }
    }

    /// Takes units of these classes (class and unit's name) for a guest. To be repeated when it fails; what was bound by
    /// then is given back with the guest's end.
    pub fn take(&mut self, pod: &str, wanted: &[(String, String)]) -> Result<Taken, TakeError> {
        let classes = self.classes.as_ref().ok_or(TakeError::NotKnown)?;
        let machine = self.look()?;
        let known = units(&machine, &members(&machine, classes));
        let units = wanted.iter().map(|(class, id)| usable(&known, class, id)).collect::<Result<Vec<_>, _>>()?;
        let functions = || units.iter().flat_map(|unit| &unit.functions);
        let mut held = self.held();
        held.extend(functions().map(|address| (*address, pod.to_owned())));
        let Settled { machine, mut failed, .. } = self.settle(held)?;
        let is_bound = |address: &&Address| machine.functions.get(address).is_some_and(|f| f.is_on_vfio());
        if let Some(address) = functions().find(|address| !is_bound(address)) {
            return Err(TakeError::NotBound { address: *address, why: failed.remove(address).unwrap_or_default() });
        }
        let open = |unit: &Unit| {
            let group = unit.functions.first().and_then(|first| machine.functions.get(first)?.group);
            let group = group.map_or(0, |group| group.number);
            Ok((unit.functions.clone(), group_file::group(&self.root, group)?))
        };
        Ok(Taken {
            container: group_file::container(&self.root)?,
            units: units.into_iter().map(open).collect::<Result<_, group_file::Error>>()?,
        })
    }

    /// Gives back what a guest had. Repeated while a process has it open.
    pub fn give_back(&mut self, pod: &str) -> Result<(), StillOpen> {
        let had: BTreeSet<Address> =
            self.ledger.bound.iter().filter(|(_, bound)| bound.pod == pod).map(|(address, _)| *address).collect();
        if had.is_empty() {
            return Ok(());
        }
        let mut held = self.held();
        held.retain(|address, _| !had.contains(address));
        match self.settle(held) {
            Ok(settled) => match settled.waits.into_iter().find(|wait| had.contains(&wait.address)) {
                Some(Wait { address, why }) => Err(StillOpen { address, why }),
                // The guest is gone; that a driver does not come back is the host's trouble, told of in its device
                // classes and tried again.
                None => Ok(()),
            },
            Err(error) => {
                tracing::error!(error = %crate::report(&error), "device not given back yet");
                Ok(())
            }
        }
    }

    /// The functions of each of these units, whose guest has them.
    pub fn functions(&self, units: &[String]) -> Result<Vec<Vec<Address>>, TakeError> {
        let machine = Machine::observe(&self.root)?;
        units.iter().map(|id| Ok(machine.together(address(id)?))).collect()
    }

    /// What there is, with a closer look at what classes would give away.
    fn look(&self) -> Result<Machine, sysfs::Error> {
        let mut machine = Machine::observe(&self.root)?;
        let classes = self.classes.as_deref().unwrap_or_default();
        let offered: Vec<Address> = members(&machine, classes).into_keys().collect();
        machine.probe_disks(&self.root, &offered);
        Ok(machine)
    }

    /// What guests that are here have.
    fn held(&self) -> BTreeMap<Address, String> {
        let guests = self.guests.borrow();
        let is_here = |pod: &String| guests.as_ref().is_none_or(|guests| guests.contains(pod));
        let bound = self.ledger.bound.iter().filter(|(_, bound)| is_here(&bound.pod));
        bound.map(|(address, bound)| (*address, bound.pod.clone())).collect()
    }

    /// How many virtual functions there should be.
    fn made(&self, machine: &Machine) -> BTreeMap<Address, u32> {
        match &self.classes {
            Some(classes) => makers(machine, classes),
            None => self.ledger.made.iter().map(|(address, made)| (*address, made.count)).collect(),
        }
    }

    /// Acts until there is nothing to do, and publishes what is seen then. A function that does not do as told is left
    /// alone until the next time.
    fn settle(&mut self, held: BTreeMap<Address, String>) -> Result<Settled, sysfs::Error> {
        let mut failed = BTreeMap::<Address, String>::new();
        let mut last = Vec::new();
        let mut round = 0;
        loop {
            round += 1;
            let machine = self.look()?;
            let wanted = Wanted { made: self.made(&machine), held: held.clone() };
            let busy = self.busy(&machine, &wanted);
            let seen = Seen { machine, ledger: self.ledger.clone(), busy };
            let Plan { mut steps, waits } = plan(&seen, &wanted);
            if steps == last || round > MAX_ROUNDS {
                let stuck =
                    steps.iter().map(|step| (step.address(), format!("the kernel did not do as told ({step:?})")));
                failed.extend(stuck);
            }
            steps.retain(|step| !failed.contains_key(&step.address()));
            if steps.is_empty() {
                let settled = Settled { machine: seen.machine, waits, failed };
                self.publish(&settled);
                return Ok(settled);
            }
            for step in &steps {
                if failed.contains_key(&step.address()) {
                    continue;
                }
                if let Err(error) = act::execute(&self.root, &self.file, &mut self.ledger, step) {
                    tracing::error!(?step, error = %crate::report(&error), "device");
                    failed.insert(step.address(), crate::report(&error));
                }
            }
            last = steps;
        }
    }

    /// Groups that somebody has open, of those to be given back.
    fn busy(&self, machine: &Machine, wanted: &Wanted) -> BTreeSet<u32> {
        let leaving = self.ledger.bound.keys().filter(|address| !wanted.held.contains_key(address));
        let bound = leaving.filter_map(|address| machine.functions.get(address)).filter(|f| f.is_on_vfio());
        bound.filter_map(|f| f.group).map(|g| g.number).filter(|n| group_file::is_open(&self.root, *n)).collect()
    }

    fn publish(&self, settled: &Settled) {
        let Some(classes) = &self.classes else { return };
        let Settled { machine, waits, failed } = settled;
        let members = members(machine, classes);
        let units = units(machine, &members);
        let failed = failed.iter().map(|(address, why)| Wait { address: *address, why: why.clone() });
        let waits: Vec<Wait> = waits.iter().cloned().chain(failed).collect();
        let report = report(machine, classes, &members, units, &waits);
        let report = Some(report);
        self.report.send_if_modified(|published| std::mem::replace(published, report.clone()) != report);
    }
}

fn unusable(id: &str, why: &str) -> TakeError {
    TakeError::Unusable { id: id.to_owned(), why: why.to_owned() }
}

fn address(id: &str) -> Result<Address, TakeError> {
    id.parse().map_err(|_| unusable(id, "it is not a PCI address"))
}

fn usable<'a>(units: &'a [Unit], class: &str, id: &str) -> Result<&'a Unit, TakeError> {
    let unusable = |why: &str| unusable(id, why);
    let address = address(id)?;
    let found = units.iter().find(|unit| unit.class == class && unit.id() == Some(address));
    let unit = found.ok_or_else(|| unusable(&format!("it is not of device class {class} any more")))?;
    match &unit.problem {
        None => Ok(unit),
        Some(problem) if problem.passes => Err(TakeError::InUse { id: id.to_owned(), why: problem.message.clone() }),
        Some(problem) => Err(unusable(&problem.message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::fixture::{at, card, machine};
    use crate::pci::function::Function;
    use crate::pci::host_use::HostUse;
    use vse_crds::PciSelector;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let selector = PciSelector { vendor_device: Some("8086:10d3".into()), ..PciSelector::default() };
        let class =
            DeviceClass { name: "nic".into(), selector, virtual_functions: None, migration: Default::default() };
        let used = |of: Function| Function { host_use: Some(HostUse::Up("ens1".into())), ..of };
        let foreign = Function { device: "1521".into(), ..card(4) };
        let host = machine([
            (at(1), card(1)),
            (at(2), used(card(2))),
            (at(3), card(3)),
            (at(4), used(Function { device: "1521".into(), ..card(3) })),
            (at(5), card(4)),
            (at(6), foreign),
        ]);
        let classes = [class];
        let known = units(&host, &members(&host, &classes));
        let is_final = |id: &str| usable(&known, "nic", id).err().map(|error| error.is_final());
        assert_eq!(is_final(&at(1).to_string()), None);
        assert_eq!(is_final(&at(2).to_string()), Some(false));
        assert_eq!(is_final(&at(3).to_string()), Some(false), "another of its group is in use");
        assert_eq!(is_final(&at(5).to_string()), Some(true), "another of its group is of no class");
        assert_eq!(is_final(&at(7).to_string()), Some(true));
        assert_eq!(is_final("card"), Some(true));
    }
}
