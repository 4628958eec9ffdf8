//! What to change on the host so that guests have their PCI functions and nobody else loses one. Pure.
//!
//! A plan is made from what is seen, not from what was done: after a crash between any two steps the next plan goes on
//! from there. Every change is in the ledger before it is made, and undone before it is crossed out.
//!
//! ```text
//! own driver ──Remember──Override(vfio-pci)──Unbind──Probe──► vfio-pci
//!     ▲                                                          │ group closed by its guest
//!     └──Forget──Probe──Unbind──Override(as before)──────────────┘
//! ```

use super::address::Address;
use super::function::{Function, Machine, Sriov, VFIO};
use super::ledger::{Bound, Ledger, Made};
use std::collections::{BTreeMap, BTreeSet};

/// How things are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The host.
    pub machine: Machine,
    /// What was changed on it.
    pub ledger: Ledger,
    /// IOMMU groups that somebody has open.
    pub busy: BTreeSet<u32>,
}

/// How they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Functions for guests, with the UID of the guest's pod.
    pub held: BTreeMap<Address, String>,
    /// Functions with so many virtual functions.
    pub made: BTreeMap<Address, u32>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write down how a function is bound, and for which pod that changes.
    Remember(Address, Bound),
    /// Let only this driver bind to a function; any, when none.
    Override(Address, Option<String>),
    /// Take a function from its driver.
    Unbind(Address),
    /// Let a driver bind to a function.
    Probe(Address),
    /// A function is as it was.
    Forget(Address),
    /// Write down that a function gets virtual functions.
    RememberMade(Address, Made),
    /// Whether drivers bind to new virtual functions by themselves.
    Autoprobe(Address, bool),
    /// Have so many virtual functions.
    Make(Address, u32),
    /// A function is as it was.
    ForgetMade(Address),
}

impl Step {
    /// The function it is about.
    pub fn address(&self) -> Address {
        match self {
            Step::Remember(address, _) | Step::Override(address, _) | Step::Unbind(address) | Step::Probe(address) => {
                *address
            }
            Step::Forget(address) | Step::RememberMade(address, _) | Step::Autoprobe(address, _) => *address,
            Step::Make(address, _) | Step::ForgetMade(address) => *address,
        }
    }
}

/// What is not done, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The function.
    pub address: Address,
    /// Why, and what would help.
    pub why: String,
}

/// What to do. When all of it is done, the next plan may say more; one without steps is settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order; after one that fails the function's other steps are not done.
    pub steps: Vec<Step>,
    /// What is not done.
    pub waits: Vec<Wait>,
}

/// Plans: what guests no longer have goes back first, then virtual functions, then what guests are to have.
pub fn plan(seen: &Seen, wanted: &Wanted) -> Plan {
    let mut plan = Plan::default();
    for (&address, bound) in &seen.ledger.bound {
        if !wanted.held.contains_key(&address) {
            give_back(&mut plan, seen, address, bound);
        }
    }
    for (&address, &made) in &seen.ledger.made {
        if !wanted.made.contains_key(&address) {
            unmake(&mut plan, seen, wanted, address, made);
        }
    }
    for (&address, &count) in &wanted.made {
        make(&mut plan, seen, wanted, address, count);
    }
    for (&address, pod) in &wanted.held {
        match seen.machine.functions.get(&address) {
            Some(f) => plan.steps.extend(bind(address, f, seen.ledger.bound.get(&address), pod)),
            None => plan.wait(address, "there is no such PCI function"),
        }
    }
    plan
}

impl Plan {
    fn wait(&mut self, address: Address, why: impl Into<String>) {
        self.waits.push(Wait { address, why: why.into() });
    }
}

fn bind(address: Address, f: &Function, known: Option<&Bound>, pod: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    match known {
        // Somebody else bound it, and it stays so.
        None if f.is_on_vfio() => return steps,
        None => {
            let (driver, driver_override) = (f.driver.clone(), f.driver_override.clone());
            steps.push(Step::Remember(address, Bound { pod: pod.to_owned(), driver, driver_override }));
        }
        Some(known) if known.pod != pod => {
            steps.push(Step::Remember(address, Bound { pod: pod.to_owned(), ..known.clone() }));
        }
        Some(_) => {}
    }
    if f.is_on_vfio() {
        return steps;
    }
    if f.driver_override.as_deref() != Some(VFIO) {
        steps.push(Step::Override(address, Some(VFIO.to_owned())));
    }
    if f.driver.is_some() {
        steps.push(Step::Unbind(address));
    }
    steps.push(Step::Probe(address));
    steps
}

fn give_back(plan: &mut Plan, seen: &Seen, address: Address, was: &Bound) {
    let Some(f) = seen.machine.functions.get(&address) else {
        plan.steps.push(Step::Forget(address));
        return;
    };
    // Unbinding would wait, in the kernel, until whoever has the group open has closed it.
    if f.is_on_vfio() && f.group.is_some_and(|group| seen.busy.contains(&group.number)) {
        plan.wait(address, "its IOMMU group is still open in some process");
        return;
    }
    let restored = f.driver_override == was.driver_override;
    if !restored {
        plan.steps.push(Step::Override(address, was.driver_override.clone()));
    }
    let on_vfio = f.is_on_vfio() && was.driver.as_deref() != Some(VFIO);
    if on_vfio {
        plan.steps.push(Step::Unbind(address));
    }
    if (on_vfio || f.driver.is_none()) && was.driver.is_some() {
        plan.steps.push(Step::Probe(address));
    } else if restored && !on_vfio {
        plan.steps.push(Step::Forget(address));
    }
}

fn make(plan: &mut Plan, seen: &Seen, wanted: &Wanted, address: Address, count: u32) {
    let Some(sriov) = sriov(seen, address) else {
        return plan.wait(address, "it can't make virtual functions (SR-IOV is missing, or off in firmware)");
    };
    if count > sriov.total {
        return plan.wait(address, format!("it can make {} virtual functions, not {count}", sriov.total));
    }
    let known = seen.ledger.made.get(&address);
    if known.is_none() && sriov.made > 0 {
        if sriov.made != count {
            let why = format!("it has {} virtual functions that somebody else made, not {count}", sriov.made);
            plan.wait(address, why);
        }
        return;
    }
    if sriov.made != 0 && sriov.made != count {
        // From one number to another there is only the way by none.
        return match virtual_function_in_use(seen, wanted, address) {
            Some(used) => plan.wait(address, format!("{used} of it is in use: {count} are made when it is free")),
            None => plan.steps.push(Step::Make(address, 0)),
        };
    }
    let made = Made { count, autoprobe: known.map_or(sriov.autoprobe, |known| known.autoprobe) };
    if known != Some(&made) {
        plan.steps.push(Step::RememberMade(address, made));
    }
    if sriov.made == 0 {
        if sriov.autoprobe {
            plan.steps.push(Step::Autoprobe(address, false));
        }
        plan.steps.push(Step::Make(address, count));
    }
}

fn unmake(plan: &mut Plan, seen: &Seen, wanted: &Wanted, address: Address, made: Made) {
    let Some(sriov) = sriov(seen, address) else {
        plan.steps.push(Step::ForgetMade(address));
        return;
    };
    if sriov.made > 0 {
        return match virtual_function_in_use(seen, wanted, address) {
            Some(used) => {
                plan.wait(address, format!("{used} of it is in use: its virtual functions go when it is free"))
            }
            None => plan.steps.push(Step::Make(address, 0)),
        };
    }
    if sriov.autoprobe != made.autoprobe {
        plan.steps.push(Step::Autoprobe(address, made.autoprobe));
    }
    plan.steps.push(Step::ForgetMade(address));
}

fn sriov(seen: &Seen, address: Address) -> Option<Sriov> {
    seen.machine.functions.get(&address)?.sriov
}

/// A virtual function that can't go: a guest's, somebody's on vfio-pci, or the host's own.
fn virtual_function_in_use(seen: &Seen, wanted: &Wanted, of: Address) -> Option<Address> {
    let used = |address: &Address, f: &Function| {
        wanted.held.contains_key(address)
            || seen.ledger.bound.contains_key(address)
            || f.is_on_vfio()
            || f.host_use.is_some()
    };
    seen.machine.virtual_functions(of).find(|(address, f)| used(address, f)).map(|(address, _)| *address)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
