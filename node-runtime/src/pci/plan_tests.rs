//! Plans are carried out on a kernel of our own, with crashes anywhere between.

use super::*;
use crate::pci::fixture::{at, card, machine, maker};
use crate::pci::function::Group;
use crate::pci::host_use::HostUse;
use proptest::prelude::*;

/// What the kernel does with a step. The ledger outlives crashes, as the file does.
fn execute(seen: &mut Seen, step: &Step) {
    match step.clone() {
        Step::Remember(address, bound) => {
            seen.ledger.bound.insert(address, bound);
        }
        Step::Forget(address) => {
            seen.ledger.bound.remove(&address);
        }
        Step::RememberMade(address, made) => {
            seen.ledger.made.insert(address, made);
        }
        Step::ForgetMade(address) => {
            seen.ledger.made.remove(&address);
        }
        Step::Override(address, driver) => function(seen, address).driver_override = driver,
        Step::Unbind(address) => {
            let f = function(seen, address);
            let group = f.group.unwrap().number;
            assert!(f.host_use.is_none(), "{address} was taken from the host");
            assert!(f.driver.take().is_some(), "{address} has no driver to be taken from");
            assert!(!seen.busy.contains(&group), "{address} was taken from its guest");
        }
        Step::Probe(address) => {
            let f = function(seen, address);
            f.driver = f.driver_override.clone().or_else(|| Some(native(f).to_owned()));
        }
        Step::Autoprobe(address, on) => function(seen, address).sriov.as_mut().unwrap().autoprobe = on,
        Step::Make(address, count) => make(seen, address, count),
    }
}

fn make(seen: &mut Seen, address: Address, count: u32) {
    let sriov = function(seen, address).sriov.as_mut().unwrap();
    assert!(count <= sriov.total && (count == 0 || sriov.made == 0), "the kernel refuses");
    sriov.made = count;
    let autoprobe = sriov.autoprobe;
    let functions = &mut seen.machine.functions;
    let gone: Vec<_> =
        functions.iter().filter(|(_, f)| f.physical_function == Some(address)).map(|(a, _)| *a).collect();
    for function in gone {
        let f = functions.remove(&function).unwrap();
        assert!(!f.is_on_vfio(), "{function} was removed under its guest");
    }
    for n in 0..count {
        let driver = autoprobe.then(|| "igbvf".to_owned());
        let f = Function { physical_function: Some(address), driver, sriov: None, ..maker(100 + n, 1) };
        let text = address.to_string().replace(":01:", ":02:").replace(".0", &format!(".{n}"));
        functions.insert(text.parse().unwrap(), Function { interfaces: Vec::new(), ..f });
    }
}

fn native(f: &Function) -> &'static str {
    if f.physical_function.is_some() {
        "igbvf"
    } else if f.sriov.is_some() {
        "igb"
    } else {
        "e1000e"
    }
}

fn function(seen: &mut Seen, address: Address) -> &mut Function {
    seen.machine.functions.get_mut(&address).unwrap()
}

/// Every change is in the ledger as long as it is in force.
fn assert_written_down(before: &Machine, seen: &Seen) {
    for (address, f) in &seen.machine.functions {
        let was = before.functions.get(address);
        let driver = was.and_then(|was| was.driver.clone());
        let changed = f.driver != driver || f.driver_override != was.and_then(|was| was.driver_override.clone());
        assert!(!changed || seen.ledger.bound.contains_key(address), "{address} was changed in secret");
        let made = |f: &Function| f.sriov.map(|sriov| (sriov.made, sriov.autoprobe));
        let changed = was.is_some_and(|was| made(was) != made(f));
        assert!(!changed || seen.ledger.made.contains_key(address), "{address} got functions in secret");
    }
}

/// Carries out plans until one is settled; a crash after each number of steps in `crashes`.
fn converge(seen: &mut Seen, wanted: &Wanted, mut crashes: Vec<usize>, before: &Machine) {
    for _ in 0..40 {
        let steps = plan(seen, wanted).steps;
        if steps.is_empty() {
            return;
        }
        for step in steps.iter().take(crashes.pop().unwrap_or(usize::MAX)) {
            execute(seen, step);
            assert_written_down(before, seen);
        }
    }
    panic!("never settled: {:?}", plan(seen, wanted));
}

fn held(addresses: impl IntoIterator<Item = Address>, pod: &str) -> BTreeMap<Address, String> {
    addresses.into_iter().map(|address| (address, pod.to_owned())).collect()
}

fn host() -> Machine {
    let idle = Function { driver: None, ..card(3) };
    machine([(at(1), card(1)), (at(2), card(2)), (at(3), idle), (at(4), maker(4, 7)), (at(5), maker(5, 2))])
}

#[test]
fn a_card_goes_to_a_guest_and_back() {
    let mut seen = Seen { machine: host(), ..Seen::default() };
    let wanted = Wanted { held: held([at(1)], "pod-a"), ..Wanted::default() };
    let bound = Bound { pod: "pod-a".into(), driver: Some("e1000e".into()), driver_override: None };
    assert_eq!(
        plan(&seen, &wanted).steps,
        [
            Step::Remember(at(1), bound),
            Step::Override(at(1), Some("vfio-pci".into())),
            Step::Unbind(at(1)),
            Step::Probe(at(1)),
        ]
    );
    converge(&mut seen, &wanted, Vec::new(), &host());
    assert!(seen.machine.functions[&at(1)].is_on_vfio());
    assert_eq!(
        plan(&seen, &Wanted::default()).steps,
        [Step::Override(at(1), None), Step::Unbind(at(1)), Step::Probe(at(1))]
    );
    converge(&mut seen, &Wanted::default(), Vec::new(), &host());
    assert_eq!(seen, Seen { machine: host(), ..Seen::default() });
}

#[test]
fn a_card_is_not_taken_from_a_process_that_has_it_open() {
    let mut seen = Seen { machine: host(), ..Seen::default() };
    converge(&mut seen, &Wanted { held: held([at(1)], "a"), ..Wanted::default() }, Vec::new(), &host());
    seen.busy.insert(1);
    let waiting = plan(&seen, &Wanted::default());
    assert!(waiting.steps.is_empty() && waiting.waits[0].address == at(1), "{waiting:?}");
}

#[test]
fn what_somebody_else_bound_stays_bound() {
    let mut machine = host();
    let f = machine.functions.get_mut(&at(1)).unwrap();
    (f.driver, f.driver_override) = (Some(VFIO.into()), Some(VFIO.into()));
    let mut seen = Seen { machine: machine.clone(), ..Seen::default() };
    converge(&mut seen, &Wanted { held: held([at(1)], "a"), ..Wanted::default() }, Vec::new(), &machine);
    converge(&mut seen, &Wanted::default(), Vec::new(), &machine);
    assert_eq!(seen, Seen { machine, ..Seen::default() });
}

#[test]
fn virtual_functions_that_somebody_else_made_stay() {
    let mut seen = Seen { machine: host(), ..Seen::default() };
    make(&mut seen, at(4), 3);
    let before = seen.machine.clone();
    let wanted = Wanted { made: [(at(4), 2)].into(), ..Wanted::default() };
    let planned = plan(&seen, &wanted);
    assert!(planned.steps.is_empty() && planned.waits[0].why.contains("somebody else made"), "{planned:?}");
    converge(&mut seen, &Wanted::default(), Vec::new(), &before);
    assert_eq!(seen.machine, before);
}

#[test]
fn virtual_functions_do_not_change_in_number_under_a_guest() {
    let mut seen = Seen { machine: host(), ..Seen::default() };
    let two = Wanted { made: [(at(4), 2)].into(), ..Wanted::default() };
    converge(&mut seen, &two, Vec::new(), &host());
    let function = *seen.machine.virtual_functions(at(4)).next().unwrap().0;
    converge(&mut seen, &Wanted { held: held([function], "a"), ..two.clone() }, Vec::new(), &host());
    let four = Wanted { made: [(at(4), 4)].into(), held: held([function], "a") };
    assert!(plan(&seen, &four).steps.is_empty());
    let none = Wanted { held: held([function], "a"), ..Wanted::default() };
    assert!(plan(&seen, &none).steps.is_empty());
    converge(&mut seen, &Wanted { held: BTreeMap::new(), ..four }, Vec::new(), &host());
    assert_eq!(seen.machine.virtual_functions(at(4)).count(), 4);
}

#[test]
fn what_can_not_be_made_is_said() {
    let seen = Seen { machine: host(), ..Seen::default() };
    for (address, count, why) in [(at(1), 1, "can't make"), (at(5), 3, "can make 2 virtual functions, not 3")] {
        let planned = plan(&seen, &Wanted { made: [(address, count)].into(), ..Wanted::default() });
        assert!(planned.steps.is_empty() && planned.waits[0].why.contains(why), "{planned:?}");
    }
}

#[test]
fn a_virtual_function_the_host_uses_stays() {
    let mut seen = Seen { machine: host(), ..Seen::default() };
    converge(&mut seen, &Wanted { made: [(at(5), 2)].into(), ..Wanted::default() }, Vec::new(), &host());
    let address = *seen.machine.virtual_functions(at(5)).next().unwrap().0;
    function(&mut seen, address).host_use = Some(HostUse::Up("ens1v0".into()));
    assert!(plan(&seen, &Wanted::default()).steps.is_empty());
}

fn wishes() -> impl Strategy<Value = Wanted> {
    let held = proptest::collection::btree_map((1u8..4).prop_map(at), "[ab]", 0..4);
    let made = proptest::collection::btree_map((4u8..6).prop_map(at), 1u32..3, 0..3);
    (held, made).prop_map(|(held, made)| Wanted { held, made })
}

proptest! {
    /// Whatever is wanted in turn and wherever it is cut short, the end is the same; and nothing is left of it.
    #[test]
    fn all_is_reached_and_undone_whatever_comes_between(
        wishes in proptest::collection::vec((wishes(), proptest::collection::vec(0usize..6, 0..6)), 1..5),
    ) {
        let mut seen = Seen { machine: host(), ..Seen::default() };
        for (wanted, crashes) in &wishes {
            converge(&mut seen, wanted, crashes.clone(), &host());
            let mut straight = Seen { machine: host(), ..Seen::default() };
            converge(&mut straight, wanted, Vec::new(), &host());
            prop_assert_eq!(&seen.machine, &straight.machine);
            prop_assert_eq!(seen.ledger.bound.keys().collect::<Vec<_>>(), wanted.held.keys().collect::<Vec<_>>());
        }
        converge(&mut seen, &Wanted::default(), Vec::new(), &host());
        prop_assert_eq!(&seen, &Seen { machine: host(), ..Seen::default() });
    }

    /// A group that is open is never touched, whatever is wanted of it.
    #[test]
    fn an_open_group_stays_where_it_is(first in wishes(), second in wishes(), busy in 1u32..4) {
        let mut seen = Seen { machine: host(), ..Seen::default() };
        converge(&mut seen, &first, Vec::new(), &host());
        let open: BTreeMap<_, _> = seen.machine.functions.clone().into_iter()
            .filter(|(_, f)| f.is_on_vfio() && f.group == Some(Group { number: busy, no_iommu: false }))
            .collect();
        seen.busy = open.values().filter_map(|f| f.group).map(|group| group.number).collect();
        // `execute` refuses to unbind what is open.
        converge(&mut seen, &second, Vec::new(), &host());
        for (address, f) in open {
            prop_assert_eq!(&seen.machine.functions[&address], &f);
        }
    }
}
