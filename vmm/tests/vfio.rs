//! A function of a real host, handed over and given back. Needs root, KVM, an IOMMU, and an e1000e card that the host can
//! spare: `hack/lab-test` runs it on a virtual host.

#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not take for tests

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vse_vmm::bus::Bus;
use vse_vmm::hypervisor::Slots;
use vse_vmm::interrupts::Interrupts;
use vse_vmm::layout;
use vse_vmm::pci::{PciFunction, PciRoot, Windows};
use vse_vmm::snapshot::Saved;
use vse_vmm::vfio::{Container, Device, Group, Ports, VfioPci, locate, open_group};

/// Registers of the card (Intel 82574 datasheet, 10.2): control, with its reset; interrupt cause set, mask set, vectors of
/// causes; receive address.
const CTRL: u64 = 0;
const CTRL_RESET: u32 = 1 << 26;
const ICS: u64 = 0xC8;
const IMS: u64 = 0xD0;
const IVAR: u64 = 0xE4;
const RAH: u64 = 0x5404;

const SLOT: u8 = 3;
const MSIX_BAR: u8 = 3;

/// Vendor and device of the card, as sysfs writes them.
const CARD: (&str, &str) = ("0x8086", "0x10d3");

/// A card that vfio-pci drives, until this is dropped.
struct Borrowed(PathBuf);

impl Borrowed {
    fn new() -> Self {
        assert!(Command::new("modprobe").arg("vfio-pci").status().unwrap().success());
        let is_card = |path: &Path| {
            let has = |file: &str, text: &str| fs::read_to_string(path.join(file)).unwrap().trim() == text;
            has("vendor", CARD.0) && has("device", CARD.1)
        };
        let mut functions = fs::read_dir("/sys/bus/pci/devices").unwrap().map(|entry| entry.unwrap().path());
        let card = Self(functions.find(|path| is_card(path)).expect("the host has an e1000e card"));
        card.give_to("vfio-pci");
        card
    }

    /// By `driver_override` (Linux, `Documentation/ABI/testing/sysfs-bus-pci`); no name stands for the usual driver.
    fn give_to(&self, driver: &str) {
        fs::write(self.0.join("driver_override"), format!("{driver}\n")).unwrap();
        let address = self.0.file_name().unwrap().to_str().unwrap();
        if self.0.join("driver").exists() {
            fs::write(self.0.join("driver/unbind"), address).unwrap();
        }
        fs::write("/sys/bus/pci/drivers_probe", address).unwrap();
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.give_to("");
    }
}

struct Guest {
    bus: Arc<Bus>,
    root: Arc<PciRoot>,
    function: Arc<VfioPci>,
}

fn guest(group: &Arc<Group>, address: &str, vm: &Arc<kvm_ioctls::VmFd>) -> Guest {
    let bus = Arc::new(Bus::default());
    let root = PciRoot::new(&bus, Windows { low: layout::PCI_WINDOW_32, high: 0..0 });
    let ports = Ports { interrupts: Interrupts::new(vm.clone()), memory_slots: Slots::new(vm.clone()), slot: SLOT };
    let device = Device::new(group.clone(), address).unwrap();
    let function = Arc::new(VfioPci::new(Box::new(device), address, ports).unwrap());
    root.add(SLOT, function.clone()).unwrap();
    Guest { bus, root, function }
}

impl Guest {
    fn address(&self, bar: u8, offset: u64) -> u64 {
        self.function.bars().range(bar).unwrap().start + offset
    }

    fn read(&self, bar: u8, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.read(self.address(bar, offset), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, bar: u8, offset: u64, value: u32) {
        self.bus.write(self.address(bar, offset), &value.to_le_bytes());
    }

    fn config(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.root.read_config(SLOT, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn capability(&self, id: u32) -> u16 {
        let mut at = self.config(0x34) as u16 & 0xFF;
        while self.config(at) & 0xFF != id {
            at = (self.config(at) >> 8) as u16 & 0xFF;
            assert_ne!(at, 0);
        }
        at
    }
}

#[test]
#[ignore = "needs a bare-metal host with a card to spare: hack/lab-test"]
fn a_card_is_handed_over_and_given_back() {
    let card = Borrowed::new();
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    let vm = Arc::new(kvm.create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20), (GuestAddress(1 << 32), 64 << 20)]).unwrap();
    let container_file = File::options().read(true).write(true).open("/dev/vfio/vfio").unwrap();
    let container = Container::new(container_file.into(), memory, &vm).unwrap();

    // Twice: what was given back can be had again.
    for _ in 0..2 {
        let (node, address) = locate(&card.0).unwrap();
        let descriptor = open_group(&node).unwrap();
        let group = Group::new(container.clone(), descriptor).unwrap();
        let guest = guest(&group, &address, &vm);
        drop(group);
        assert_eq!(guest.config(0), 0x10D3_8086);
        assert!(matches!(guest.function.save(), Saved::Unsupported(_)));

        guest.root.write_config(SLOT, 4, &[6, 0]);
        assert_eq!(guest.read(0, RAH) >> 31, 1, "its own address is valid");

        // As drivers do: an emulated card keeps its registers in a reset by power state.
        guest.write(0, CTRL, CTRL_RESET);
        let msix = guest.capability(0x11);
        guest.root.write_config(SLOT, msix + 2, &0x8000u16.to_le_bytes());
        guest.write(0, IVAR, (8 | 4) << 16);
        guest.write(0, IMS, 1 << 24);
        guest.write(0, ICS, 1 << 24);
        let until = Instant::now() + Duration::from_secs(20);
        while guest.read(MSIX_BAR, 0x2000) & 1 << 4 == 0 {
            assert!(Instant::now() < until, "the interrupt did not come: {:#x}", guest.read(MSIX_BAR, 0x2000));
            std::thread::yield_now();
        }
        // Unmasked, it goes on to KVM.
        for (offset, value) in [(0, 0xFEE0_0000), (4, 0), (8, 0x41), (12, 0)] {
            guest.write(MSIX_BAR, 4 * 16 + offset, value);
        }
        assert_eq!(guest.read(MSIX_BAR, 0x2000), 0);
        drop(guest.root.eject(SLOT));
    }
}
