//! Which functions are of a class, and which guests can have.

use super::class::{makers, members};
use super::fixture::{at, card, machine, maker};
use super::function::{Function, Group, Machine, Sriov};
use super::host_use::HostUse;
use super::verdict::{units, verdict};
use proptest::prelude::*;
use vse_crds::{DeviceClass, PciSelector, VerdictReason};

fn class(name: &str, selector: PciSelector, virtual_functions: Option<u32>) -> DeviceClass {
    DeviceClass { name: name.into(), selector, virtual_functions, migration: Default::default() }
}

fn by_id(id: &str) -> PciSelector {
    PciSelector { vendor_device: Some(id.into()), ..PciSelector::default() }
}

fn reason(machine: &Machine, classes: &[DeviceClass]) -> (VerdictReason, String) {
    let verdict = verdict(machine, &members(machine, classes), at(1));
    (verdict.reason, verdict.message)
}

#[test]
fn all_that_a_selector_gives_must_hold_and_the_first_class_counts() {
    let host = machine([(at(1), card(1)), (at(2), card(2)), (at(4), maker(4, 2))]);
    let one = PciSelector { class: Some("0200".into()), addresses: vec!["0000:01:02.0".into()], ..by_id("8086:10d3") };
    let classes = [
        class("one", one, None),
        class("nic", PciSelector { class: Some("02".into()), ..PciSelector::default() }, None),
    ];
    let members = members(&host, &classes);
    assert_eq!([at(1), at(2), at(4)].map(|address| members[&address]), ["nic", "one", "nic"]);
    let nothing = [class("all", PciSelector::default(), None)];
    assert!(super::class::members(&host, &nothing).is_empty(), "a selector without anything selects nothing");
}

#[test]
fn a_units_functions_are_found_again() {
    let host = machine([(at(1), card(1)), (at(2), card(2)), (at(3), card(2))]);
    let all = PciSelector { class: Some("02".into()), ..PciSelector::default() };
    let classes = [class("nic", all, None)];
    for unit in units(&host, &members(&host, &classes)) {
        assert_eq!(host.together(unit.id().unwrap()), unit.functions);
    }
    assert_eq!(host.together(at(9)), [at(9)]);
}

#[test]
fn a_class_of_virtual_functions_has_these_and_not_their_maker() {
    let function = Function { physical_function: Some(at(4)), sriov: None, ..maker(7, 1) };
    let host = machine([(at(4), maker(4, 2)), (at(5), maker(5, 2)), (at(6), function)]);
    let selector = PciSelector { interfaces: vec!["ens1".into()], ..PciSelector::default() };
    let classes = [class("vf", selector, Some(2))];
    assert_eq!(members(&host, &classes), [(at(6), "vf")].into());
    assert_eq!(makers(&host, &classes).into_iter().collect::<Vec<_>>(), [(at(4), 2), (at(5), 2)]);
}

#[test]
fn a_bridge_is_in_no_class() {
    let bridge = Function { class: "060400".into(), ..card(1) };
    let host = machine([(at(1), bridge)]);
    assert!(members(&host, &[class("all", by_id("8086:10d3"), None)]).is_empty());
    assert_eq!(reason(&host, &[]).0, VerdictReason::Bridge);
}

#[test]
fn what_is_in_the_way_is_said() {
    let alone = |change: fn(&mut Function)| {
        let mut f = card(1);
        change(&mut f);
        machine([(at(1), f)])
    };
    let classes = [class("nic", by_id("8086:10d3"), None)];
    let refused = |host: Machine, expected, word: &str| {
        let (reason, message) = reason(&host, &classes);
        assert!(reason == expected && message.contains(word), "{reason:?} {message}");
    };
    refused(alone(|_| {}), VerdictReason::Usable, "");
    refused(alone(|f| f.group = None), VerdictReason::NoIommu, "intel_iommu=on");
    let fake = alone(|f| f.group = Some(Group { number: 0, no_iommu: true }));
    refused(fake, VerdictReason::NoIommu, "no-IOMMU mode");
    refused(alone(|f| f.host_use = Some(HostUse::Up("eno1".into()))), VerdictReason::InUse, "ip link set eno1 down");
    let parent = alone(|f| f.sriov = Some(Sriov { total: 4, made: 2, autoprobe: true }));
    refused(parent, VerdictReason::HasVirtualFunctions, "virtual functions");
    let mut host = alone(|_| {});
    host.vfio.loaded = false;
    refused(host.clone(), VerdictReason::NoVfio, "modprobe vfio-pci");
    host.vfio.unsafe_interrupts = true;
    refused(host, VerdictReason::UnsafeInterrupts, "allow_unsafe_interrupts");
}

#[test]
fn a_group_goes_as_a_whole_or_not_at_all() {
    let classes = [class("nic", by_id("8086:10d3"), None)];
    let beside = |other: Function| machine([(at(1), card(1)), (at(2), Function { group: card(1).group, ..other })]);
    let bridge = beside(Function { class: "060400".into(), ..card(1) });
    assert_eq!(reason(&bridge, &classes).0, VerdictReason::Usable);
    let twin = beside(card(1));
    assert_eq!(reason(&twin, &classes).0, VerdictReason::Usable);
    let known = units(&twin, &members(&twin, &classes));
    assert_eq!(known.len(), 1, "one guest gets both");
    assert_eq!(known[0].functions, [at(1), at(2)]);
    let stranger = beside(Function { device: "1533".into(), ..card(1) });
    let (why, message) = reason(&stranger, &classes);
    assert_eq!(why, VerdictReason::SharedGroup);
    assert_eq!(message, "its IOMMU group 1 also has 0000:01:02.0: it is not of the same device class");
    let used = beside(Function { host_use: Some(HostUse::Disk("sda".into())), ..card(1) });
    let (why, message) = reason(&used, &classes);
    assert!(why == VerdictReason::SharedGroup && message.contains("sda is mounted"), "{message}");
    assert!(units(&used, &members(&used, &classes)).iter().all(|unit| unit.problem.is_some()));
}

proptest! {
    /// No guest gets a function that shares a group with one that the host uses or that is of another class, and no
    /// function is in two units.
    #[test]
    fn groups_are_never_split(
        cards in proptest::collection::vec((0u32..4, any::<bool>(), 0usize..3), 0..12),
    ) {
        let ids = ["10d3", "1533", "10c9"];
        let functions = cards.iter().enumerate().map(|(slot, (group, used, id))| {
            let host_use = used.then(|| HostUse::Up("eno1".into()));
            (at(slot as u8), Function { device: ids[*id].into(), host_use, ..card(*group) })
        });
        let host = machine(functions);
        let classes = [class("a", by_id("8086:10d3"), None), class("b", by_id("8086:1533"), None)];
        let members = members(&host, &classes);
        let known = units(&host, &members);
        for unit in known.iter().filter(|unit| unit.problem.is_none()) {
            let group: Vec<_> = host.group(unit.group.unwrap().number).collect();
            prop_assert_eq!(group.len(), unit.functions.len());
            prop_assert!(group.iter().all(|(a, f)| f.host_use.is_none() && members[*a] == unit.class));
        }
        let mut all: Vec<_> = known.iter().flat_map(|unit| unit.functions.clone()).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        prop_assert_eq!((all.len(), count), (members.len(), members.len()));
    }
}
