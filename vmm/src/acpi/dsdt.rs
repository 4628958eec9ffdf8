//! The table with code: devices that no bus finds, and what the guest has to do when an event comes.
//!
//! In ACPI's source language, for slot 3:
//!
//! ```text
//!  Scope (_SB)
//!    Device (PLAT) { the platform's registers }
//!    Device (GED)  { Method (_EVT) { what happened? Notify (PWRB) | PCI0.PLUG () | Notify (VGEN) } }
//!    Device (PCI0) { windows, interrupts
//!      Device (S03) { _ADR, _SUN, Method (_EJ0) { tell that slot 3 is let go of } }
//!      Method (PLUG) { If (plugged & 8) { Notify (S03, device check) }  If (unplugging & 8) { Notify (S03, eject) } } }
//!    Device (COM1), Device (PWRB), Device (VGEN), Device (PVPN)
//!  Name (_S5)
//! ```

use acpi_tables::Aml;
use acpi_tables::aml::*;
use acpi_tables::sdt::Sdt;

use super::{Description, OEM, OEM_REVISION, OEM_TABLE, VM_GENERATION_ID};
use crate::interrupts::Line;
use crate::layout::{ECAM, EVENTS_IRQ, PCI_WINDOW_32, PLATFORM, SERIAL};
use crate::legacy::platform::{SLEEP_TYPE_OFF, event, register};
use crate::legacy::pvpanic;
use crate::pci::SLOTS;

/// What `Notify` tells a device (5.6.6).
mod notification {
    pub const DEVICE_CHECK: u8 = 1;
    pub const EJECT_REQUEST: u8 = 3;
    /// A button was pressed; a VM generation ID has changed.
    pub const DEVICE_SPECIFIC: u8 = 0x80;
}

pub(super) fn dsdt(description: &Description) -> Sdt {
    let mut code = Vec::new();
    platform().to_aml_bytes(&mut code);
    pci(description, &mut code);
    events(&mut code);
    device("_SB_.PWRB", &"PNP0C0C", vec![]).to_aml_bytes(&mut code);
    generation_id(&mut code);
    if description.has_serial {
        serial(&mut code);
    }
    if description.has_pvpanic {
        panic(&mut code);
    }
    // Sleep type for "off" (S5); there is no other.
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO])).to_aml_bytes(&mut code);
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table
}

/// A device with its children in AML.
struct Described {
    path: String,
    children: Vec<u8>,
}

impl Aml for Described {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        Device::new(self.path.as_str().into(), vec![&Raw(&self.children)]).to_aml_bytes(sink);
    }
}

/// AML that was made already.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0);
    }
}

fn device(path: &str, id: &dyn Aml, children: Vec<&dyn Aml>) -> Described {
    let mut bytes = Vec::new();
    Name::new("_HID".into(), id).to_aml_bytes(&mut bytes);
    children.iter().for_each(|child| child.to_aml_bytes(&mut bytes));
    Described { path: path.to_owned(), children: bytes }
}

/// The registers that the other devices' methods use.
fn platform() -> Described {
    let (base, length) = (PLATFORM.start as u32, register::END as u32);
    let region = OpRegion::new("PREG".into(), OpRegionSpace::SystemMemory, &base, &length);
    let words = |offset: u64| offset as usize * 8;
    let fields = Field::new(
        "PREG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Reserved(words(register::EVENTS)),
            FieldEntry::Named(*b"EVTS", 32),
            FieldEntry::Named(*b"PCIU", 32),
            FieldEntry::Named(*b"PCID", 32),
            FieldEntry::Named(*b"PCIE", 32),
        ],
    );
    let mut children = Vec::new();
    Name::new("_HID".into(), &"VSE00001").to_aml_bytes(&mut children);
    // Nothing that a driver could drive.
    Name::new("_STA".into(), &ZERO).to_aml_bytes(&mut children);
    region.to_aml_bytes(&mut children);
    fields.to_aml_bytes(&mut children);
    Described { path: "_SB_.PLAT".to_owned(), children }
}

/// The generic event device (5.6.9.2): one interrupt, and what it may mean.
fn events(code: &mut Vec<u8>) {
    let if_event = |bit: u32| And::new(&ZERO, &Local(0), &bit).bytes();
    let (button, plug, generation) =
        (if_event(event::POWER_BUTTON), if_event(event::PCI_HOT_PLUG), if_event(event::NEW_GENERATION));
    let (button, plug, generation) = (Raw(&button), Raw(&plug), Raw(&generation));
    let pressed = Notify::new(&Path::new("\\_SB_.PWRB"), &notification::DEVICE_SPECIFIC).bytes();
    let look = MethodCall::new("\\_SB_.PCI0.PLUG".into(), vec![]);
    let changed = Notify::new(&Path::new("\\_SB_.VGEN"), &notification::DEVICE_SPECIFIC).bytes();
    let read = Store::new(&Local(0), &Path::new("\\_SB_.PLAT.EVTS")).bytes();
    let method = Method::new(
        "_EVT".into(),
        1,
        true,
        vec![
            &Raw(&read),
            &If::new(&button, vec![&Raw(&pressed)]),
            &If::new(&plug, vec![&look]),
            &If::new(&generation, vec![&Raw(&changed)]),
        ],
    )
    .bytes();
    let interrupt = Interrupt::new(true, true, false, false, EVENTS_IRQ);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])).bytes();
    device("_SB_.GED_", &"ACPI0013", vec![&Raw(&resources), &Raw(&method)]).to_aml_bytes(code);
}

trait Bytes {
    fn bytes(&self) -> Vec<u8>;
}

impl<T: Aml> Bytes for T {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        bytes
    }
}

/// The PCI root: windows, interrupts, slots whose functions come and go.
fn pci(description: &Description, code: &mut Vec<u8>) {
    let buses = ((ECAM.end - ECAM.start) >> 20) as u16;
    let bus_numbers = AddressSpace::new_bus_number(0_u16, buses - 1);
    let not_cacheable = AddressSpaceCacheable::NotCacheable;
    let (low, high) = (&PCI_WINDOW_32, &description.pci_window_64);
    let low = AddressSpace::new_memory(not_cacheable, true, low.start as u32, (low.end - 1) as u32, None);
    let mut resources: Vec<&dyn Aml> = vec![&bus_numbers, &low];
    let high_window =
        (!high.is_empty()).then(|| AddressSpace::new_memory(not_cacheable, true, high.start, high.end - 1, None));
    resources.extend(high_window.iter().map(|window| window as &dyn Aml));
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources)).bytes();
    let mut children: Vec<u8> = Vec::new();
    for name in ["_UID", "_SEG", "_BBN"] {
        Name::new(name.into(), &ZERO).to_aml_bytes(&mut children);
    }
    children.extend(resources);
    children.extend(interrupt_routes());
    children.extend(keep_addresses());
    for &slot in &description.hot_plug_slots {
        children.extend(hot_plug_slot(slot));
    }
    children.extend(plug_method(&description.hot_plug_slots));
    // A conventional root, although it has ECAM: it has no features of PCI Express that `_OSC` could hand over, and a
    // kernel that finds an Express root asks for them, at length, in its log.
    device("_SB_.PCI0", &EISAName::new("PNP0A03"), vec![&Raw(&children)]).to_aml_bytes(code);
}

/// `_PRT`: where the INTA of each slot goes.
fn interrupt_routes() -> Vec<u8> {
    let mut routes = PackageBuilder::new();
    for slot in 1..SLOTS {
        let address = u32::from(slot) << 16 | 0xFFFF;
        routes.add_element(&Package::new(vec![&address, &ZERO, &ZERO, &Line::irq(slot)]));
    }
    Name::new("_PRT".into(), &routes).bytes()
}

/// `_DSM`, function 5 of PCI Firmware Specification 3.3, 4.6: the addresses that BARs have are to be kept.
fn keep_addresses() -> Vec<u8> {
    const PCI: &str = "E5C937D0-3553-4D7A-9117-EA4D19C3434D";
    const FUNCTIONS: u8 = 1 << 0 | 1 << 5;
    let functions = Return::new(&BufferData::new(vec![FUNCTIONS])).bytes();
    let keep = Return::new(&ZERO).bytes();
    let (is_zero, is_five) = (Equal::new(&Arg(2), &ZERO).bytes(), Equal::new(&Arg(2), &5_u8).bytes());
    let is_pci = Equal::new(&Arg(0), &Uuid::new(PCI)).bytes();
    let ask = If::new(&Raw(&is_zero), vec![&Raw(&functions)]).bytes();
    let answer = If::new(&Raw(&is_five), vec![&Raw(&keep)]).bytes();
    let known = If::new(&Raw(&is_pci), vec![&Raw(&ask), &Raw(&answer)]).bytes();
    let unknown = Return::new(&BufferData::new(vec![0])).bytes();
    Method::new("_DSM".into(), 4, true, vec![&Raw(&known), &Raw(&unknown)]).bytes()
}

fn slot_name(slot: u8) -> String {
    format!("S{slot:03}")
}

fn hot_plug_slot(slot: u8) -> Vec<u8> {
    let address = u32::from(slot) << 16;
    let mut children = Vec::new();
    Name::new("_ADR".into(), &address).to_aml_bytes(&mut children);
    Name::new("_SUN".into(), &slot).to_aml_bytes(&mut children);
    let bit = 1_u32 << slot;
    let eject = Store::new(&Path::new("\\_SB_.PLAT.PCIE"), &bit).bytes();
    children.extend(Method::new("_EJ0".into(), 1, true, vec![&Raw(&eject)]).bytes());
    Device::new(slot_name(slot).as_str().into(), vec![&Raw(&children)]).bytes()
}

/// Tells the slots what has happened to them.
fn plug_method(slots: &[u8]) -> Vec<u8> {
    let mut body = Store::new(&Local(0), &Path::new("\\_SB_.PLAT.PCIU")).bytes();
    body.extend(Store::new(&Local(1), &Path::new("\\_SB_.PLAT.PCID")).bytes());
    for &slot in slots {
        let (bit, name) = (1_u32 << slot, slot_name(slot));
        for (local, notification) in [(0, notification::DEVICE_CHECK), (1, notification::EJECT_REQUEST)] {
            let tell = Notify::new(&Path::new(&name), &notification).bytes();
            let is_meant = And::new(&ZERO, &Local(local), &bit).bytes();
            body.extend(If::new(&Raw(&is_meant), vec![&Raw(&tell)]).bytes());
        }
    }
    Method::new("PLUG".into(), 0, true, vec![&Raw(&body)]).bytes()
}

fn serial(code: &mut Vec<u8>) {
    let (port, irq) = (SERIAL.0 as u16, SERIAL.1);
    let ports = IO::new(port, port, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, irq);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt, &ports])).bytes();
    let unique = Name::new("_UID".into(), &ZERO).bytes();
    device("_SB_.COM1", &EISAName::new("PNP0501"), vec![&Raw(&unique), &Raw(&resources)]).to_aml_bytes(code);
}

/// The VM generation ID ("Virtual Machine Generation ID", Microsoft, 2018).
fn generation_id(code: &mut Vec<u8>) {
    let (low, high) = (VM_GENERATION_ID as u32, (VM_GENERATION_ID >> 32) as u32);
    let name = "VM_Gen_Counter";
    let compatible = Name::new("_CID".into(), &name).bytes();
    let description = Name::new("_DDN".into(), &name).bytes();
    let address = Name::new("ADDR".into(), &Package::new(vec![&low, &high])).bytes();
    device("_SB_.VGEN", &"VSE00002", vec![&Raw(&compatible), &Raw(&description), &Raw(&address)]).to_aml_bytes(code);
}

/// pvpanic, by the ID that QEMU gave it (`docs/specs/pvpanic.rst`).
fn panic(code: &mut Vec<u8>) {
    let ports = IO::new(pvpanic::PORT, pvpanic::PORT, 1, 1);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])).bytes();
    device("_SB_.PVPN", &"QEMU0001", vec![&Raw(&resources)]).to_aml_bytes(code);
}
