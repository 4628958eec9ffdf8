//! On a real kernel with an IOMMU: cards of a lab host (hack/lab-host --help) are taken, given back, refused.
//!
//! ```console
//! $ export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$PWD/hack/lab-runner
//! $ cargo test -p vse-node-runtime --bins -- lab_tests --ignored --test-threads 1
//! ```

use super::keeper::{Keeper, TakeError};
use super::report::Report;
use crate::sysfs::Root;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tokio::sync::watch;
use vse_crds::{DeviceClass, PciSelector, VerdictReason};

/// Two e1000e on one wire, nobody's.
const CARD: &str = "0000:00:08.0";
const OTHER_CARD: &str = "0000:00:09.0";
/// igb, makes up to 7 virtual functions.
const MAKER: &str = "0000:00:0a.0";
/// e1000, in a group with a device of the host's own.
const SHARED: &str = "0000:01:01.0";

/// A keeper as the node runtime has one; each is what a restart brings.
struct Runtime {
    keeper: Keeper,
    guests: watch::Sender<Option<BTreeSet<String>>>,
    reports: watch::Receiver<Option<Report>>,
}

fn ledger() -> PathBuf {
    std::env::temp_dir().join("devices-lab.json")
}

impl Runtime {
    fn start() -> Self {
        run("modprobe", &["vfio-pci"]);
        let (report, reports) = watch::channel(None);
        let guests = watch::Sender::new(None);
        let keeper = Keeper::open(Root::new("/"), ledger(), guests.subscribe(), report).unwrap();
        Self { keeper, guests, reports }
    }

    fn keep(&mut self, classes: &[DeviceClass]) -> Report {
        self.keeper.keep(classes.to_vec());
        self.report()
    }

    fn report(&self) -> Report {
        self.reports.borrow().clone().unwrap()
    }
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

fn class(name: &str, address: &str, virtual_functions: Option<u32>) -> DeviceClass {
    let selector = PciSelector { addresses: vec![address.into()], ..PciSelector::default() };
    DeviceClass { name: name.into(), selector, virtual_functions, migration: Default::default() }
}

fn driver(address: &str) -> Option<String> {
    Root::new("/").link_name(&format!("sys/bus/pci/devices/{address}/driver"))
}

fn attribute(address: &str, name: &str) -> String {
    Root::new("/").text(&format!("sys/bus/pci/devices/{address}/{name}")).unwrap()
}

fn interface(address: &str) -> String {
    Root::new("/").names(&format!("sys/bus/pci/devices/{address}/net")).pop().unwrap()
}

fn verdict(report: &Report, address: &str) -> (VerdictReason, String) {
    let device = report.devices.iter().find(|device| device.address == address).unwrap();
    let verdict = device.verdict.clone().unwrap();
    (verdict.reason, verdict.message)
}

fn unit(class: &str, address: &str) -> Vec<(String, String)> {
    vec![(class.into(), address.into())]
}

#[test]
#[ignore = "needs a lab host"]
fn a_card_goes_to_a_guest_and_back() {
    let classes = [class("nic", CARD, None)];
    let mut runtime = Runtime::start();
    let report = runtime.keep(&classes);
    assert_eq!((report.classes[0].devices, report.units.len()), (1, 1), "{report:?}");
    assert_eq!(driver(CARD).as_deref(), Some("e1000e"), "stays with its driver until a guest has it");

    let taken = runtime.keeper.take("pod-a", &unit("nic", CARD)).unwrap();
    assert_eq!(driver(CARD).as_deref(), Some("vfio-pci"));
    assert_eq!(driver(OTHER_CARD).as_deref(), Some("e1000e"));
    assert_eq!(verdict(&runtime.report(), CARD).0, VerdictReason::Usable);
    let error = runtime.keeper.take("pod-b", &unit("nic", CARD)).unwrap_err();
    assert!(matches!(error, TakeError::Open(_)), "nobody else can open the group: {error}");
    // pod-b was allocated it by mistake; it is still open in pod-a's engine.
    assert!(runtime.keeper.give_back("pod-b").is_err());

    // A restart that has not heard of any guest yet leaves everything as it is; so does one that has.
    let mut runtime = Runtime::start();
    runtime.keep(&classes);
    runtime.guests.send_replace(Some(BTreeSet::new()));
    runtime.keep(&classes);
    assert_eq!(driver(CARD).as_deref(), Some("vfio-pci"), "open, so not taken away");
    drop(taken);
    runtime.keep(&classes);
    assert_eq!(driver(CARD).as_deref(), Some("e1000e"));
    assert!(!interface(CARD).is_empty());
    assert_eq!(attribute(CARD, "driver_override"), "(null)");
    assert!(!ledger().exists(), "nothing is in force");
}

#[test]
#[ignore = "needs a lab host"]
fn a_restart_between_binding_and_launch_loses_nothing() {
    let classes = [class("nic", CARD, None)];
    let mut runtime = Runtime::start();
    runtime.keep(&classes);
    drop(runtime.keeper.take("pod-a", &unit("nic", CARD)).unwrap());
    let mut runtime = Runtime::start();
    runtime.keep(&classes);
    assert_eq!(driver(CARD).as_deref(), Some("vfio-pci"), "its guest may still come");
    drop(runtime.keeper.take("pod-a", &unit("nic", CARD)).unwrap());
    runtime.keeper.give_back("pod-a").unwrap();
    assert_eq!(driver(CARD).as_deref(), Some("e1000e"));
}

#[test]
#[ignore = "needs a lab host"]
fn virtual_functions_are_made_given_and_removed() {
    let classes = [class("vf", MAKER, Some(2))];
    let mut runtime = Runtime::start();
    let report = runtime.keep(&classes);
    assert_eq!(report.classes[0].devices, 2, "{report:?}");
    let functions: Vec<_> = report.units.iter().map(|unit| unit.id().unwrap().to_string()).collect();
    let groups: BTreeSet<_> = report.units.iter().map(|unit| unit.group.unwrap().number).collect();
    assert_eq!(groups.len(), 2, "each in a group of its own");
    assert!(functions.iter().all(|function| driver(function).is_none()), "the host makes no interfaces of them");
    assert_eq!(verdict(&report, MAKER).0, VerdictReason::HasVirtualFunctions);

    let taken = runtime.keeper.take("pod-a", &unit("vf", &functions[1])).unwrap();
    assert_eq!(driver(&functions[1]).as_deref(), Some("vfio-pci"));
    runtime.keep(&[]);
    assert_eq!(attribute(MAKER, "sriov_numvfs"), "2", "the policy went, the guest did not");
    drop(taken);
    runtime.keeper.give_back("pod-a").unwrap();
    runtime.keep(&[]);
    assert_eq!(attribute(MAKER, "sriov_numvfs"), "0");
    assert_eq!(attribute(MAKER, "sriov_drivers_autoprobe"), "1");
    assert_eq!(driver(MAKER).as_deref(), Some("igb"));
    assert!(!ledger().exists(), "nothing is in force");
}

#[test]
#[ignore = "needs a lab host"]
fn more_virtual_functions_than_there_are_is_said() {
    let mut runtime = Runtime::start();
    let report = runtime.keep(&[class("vf", MAKER, Some(200))]);
    assert!(report.classes[0].message.contains("can make 7 virtual functions, not 200"), "{report:?}");
    runtime.keep(&[]);
}

#[test]
#[ignore = "needs a lab host"]
fn what_the_host_needs_is_refused() {
    let classes = [class("shared", SHARED, None), class("nic", OTHER_CARD, None)];
    let mut runtime = Runtime::start();
    let report = runtime.keep(&classes);
    let (reason, message) = verdict(&report, SHARED);
    assert!(reason == VerdictReason::SharedGroup && message.contains("also has"), "{reason:?} {message}");
    assert_eq!(report.classes[0].devices, 0);
    let error = runtime.keeper.take("pod-a", &unit("shared", SHARED)).unwrap_err();
    assert!(matches!(error, TakeError::Unusable { .. }) && error.is_final(), "{error}");

    // The root's disk, whose mount is under an overlay where process 1 does not see it.
    let root = PciSelector { vendor_device: Some("1af4:1001".into()), ..PciSelector::default() };
    let report = runtime.keep(&[DeviceClass { selector: root, ..class("disk", CARD, None) }]);
    assert!(report.classes[0].devices == 0 && report.classes[0].message.contains("disk vda"), "{report:?}");

    let name = interface(OTHER_CARD);
    run("ip", &["link", "set", &name, "up"]);
    let report = runtime.keep(&classes);
    assert_eq!(verdict(&report, OTHER_CARD).0, VerdictReason::InUse);
    assert!(runtime.keeper.take("pod-a", &unit("nic", OTHER_CARD)).is_err());
    assert_eq!(driver(OTHER_CARD).as_deref(), Some("e1000e"));
    run("ip", &["link", "set", &name, "down"]);
    assert_eq!(verdict(&runtime.keep(&classes), OTHER_CARD).0, VerdictReason::Usable);

    let parameter = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    run("modprobe", &["vfio_iommu_type1"]);
    fs::write(parameter, "Y").unwrap();
    let (reason, _) = verdict(&runtime.keep(&classes), OTHER_CARD);
    fs::write(parameter, "N").unwrap();
    assert_eq!(reason, VerdictReason::UnsafeInterrupts);
    runtime.keep(&[]);
}
