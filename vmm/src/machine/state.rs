//! A paused machine's state, as units by place; and how vCPUs are at power-on.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vse_vmm_api::VmConfig;

use super::chips::{Chips, Clock};
use super::devices::{self, Arrival};
use super::error::MachineError;
use super::parts::{self, Parts};
use super::{Events, Host, Machine};
use crate::cpu::Vcpus;
use crate::cpu::cpuid::{self, Cpuid};
use crate::cpu::state::{self, Extent, VcpuState};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::vm::{VmOptions, failed};
use crate::legacy::platform::event;
use crate::memory::GuestMemory;
use crate::snapshot::{InvalidState, Saved, Unit};

/// Units of state by the place they belong to.
pub type SavedMachine = BTreeMap<String, Unit>;

/// Places that every machine has.
mod place {
    pub const SLOTS: &str = "machine/slots";
    pub const CHIPS: &str = "machine/interrupt-controllers";
    pub const CLOCK: &str = "machine/clock";
    pub const PLATFORM: &str = "machine/platform";
    pub const SERIAL: &str = "machine/serial";
    pub const PCI: &str = "machine/pci";

    pub fn vcpu(number: u32) -> String {
        format!("vcpu/{number}")
    }

    pub fn device(id: &str) -> String {
        format!("device/{id}")
    }
}

/// Version of the units that are legible.
const VERSION: u16 = 1;
/// Version of those that are packed.
const PACKED_VERSION: u16 = 3;
const VCPU: &str = "kvm-vcpu";
const CHIPS: &str = "kvm-interrupt-controllers";
const CLOCK: &str = "kvm-clock";
const SLOTS: &str = "pci-slots";

/// Which slot each device is in, and which may leave.
#[derive(Serialize, Deserialize)]
struct Slots(BTreeMap<String, u8>);

impl Machine {
    /// All state but RAM's contents. The machine has to be paused.
    ///
    /// # Errors
    /// When a device's state can't be saved, or KVM refuses.
    pub fn save(&self) -> Result<SavedMachine, MachineError> {
        let mut saved = SavedMachine::new();
        let slots = self.attached.iter().map(|attached| (attached.id.clone(), attached.slot)).collect();
        saved.insert(place::SLOTS.to_owned(), Unit::encode(SLOTS, VERSION, &Slots(slots)));
        let platform = &self.platform;
        let mut keep = |place: String, state: Saved| {
            match state {
                Saved::Stateless => {}
                Saved::State(unit) => drop(saved.insert(place, unit)),
                Saved::Unsupported(reason) => return Err(MachineError::NotSavable { place, reason }),
            }
            Ok(())
        };
        for attached in &self.attached {
            if let Some(function) = self.workshop.pci.function(attached.slot) {
                keep(place::device(&attached.id), function.save())?;
            }
        }
        keep(place::PCI.to_owned(), self.workshop.pci.save())?;
        keep(place::PLATFORM.to_owned(), platform.registers().save())?;
        if let Some(serial) = platform.serial() {
            keep(place::SERIAL.to_owned(), serial.save())?;
        }
        let extent = Extent::of(&self.hypervisor)?;
        for (number, vcpu) in (0..).zip(self.vcpus.lock()) {
            let state = state::save(&vcpu, &extent)?;
            saved.insert(place::vcpu(number), Unit::pack(VCPU, PACKED_VERSION, &state));
        }
        let vm = &self.hypervisor.vm;
        saved.insert(place::CHIPS.to_owned(), Unit::pack(CHIPS, PACKED_VERSION, &Chips::save(vm)?));
        saved.insert(place::CLOCK.to_owned(), Unit::encode(CLOCK, VERSION, &Clock::save(vm)?));
        Ok(saved)
    }

    /// Makes a machine in a saved state, paused. `fill` reads RAM's contents; `keep_clock` lets the guest's time go on
    /// where it stopped, instead of with real time.
    ///
    /// # Errors
    /// As [`Machine::new`]; also when the state is damaged, of another release, or not of this configuration.
    pub fn restore(
        config: &VmConfig,
        host: Host,
        events: Arc<Events>,
        saved: &SavedMachine,
        keep_clock: bool,
        fill: &mut dyn FnMut(&GuestMemory) -> io::Result<()>,
    ) -> Result<Self, MachineError> {
        let mut units = Units { saved, used: Vec::new() };
        let mut machine = Parts::new(config, host.kvm, host.hot_plug)?.assemble(config, host.filters, events)?;
        fill(&machine.memory).map_err(super::host("RAM can't be read from the snapshot"))?;
        let Slots(slots) = units.decode(place::SLOTS, SLOTS)?;
        for wanted in devices::wanted(config) {
            let id = wanted.id();
            let missing = || MachineError::Unit { place: place::device(&id), what: "missing" };
            let slot = *slots.get(&id).ok_or_else(missing)?;
            let arrival = Arrival::Restored(slot, units.get(&place::device(&id))?);
            machine.attached.push(machine.workshop.attach(&wanted, arrival)?);
        }
        let platform = &machine.platform;
        units.take(place::PCI, |unit| machine.workshop.pci.restore(unit))?;
        units.take(place::PLATFORM, |unit| platform.registers().restore(unit))?;
        if let Some(serial) = platform.serial() {
            units.take(place::SERIAL, |unit| serial.restore(unit))?;
        }
        let vm = &machine.hypervisor.vm;
        let clock: Clock = units.decode(place::CLOCK, CLOCK)?;
        let extent = Extent::of(&machine.hypervisor)?;
        for (number, vcpu) in (0..).zip(machine.vcpus.lock()) {
            let state: VcpuState = units.unpack(&place::vcpu(number), VCPU)?;
            let missing = cpuid::missing(&state.cpuid, &state::get_cpuid(&vcpu)?);
            if !missing.is_empty() {
                return Err(MachineError::PoorerCpu { missing });
            }
            let ticks = if keep_clock { 0 } else { ticks(&clock, state.tsc_khz) };
            state::restore(&vcpu, &state.advanced(ticks), &extent)?;
        }
        units.unpack::<Chips>(place::CHIPS, CHIPS)?.restore(vm)?;
        clock.restore(vm, keep_clock)?;
        machine.excuse_pause();
        units.all_used()?;
        if config.payload.has_kernel() {
            machine.payload = Some(parts::payload(&config.payload)?);
        }
        parts::new_generation(&machine.memory)?;
        machine.platform.notify(event::NEW_GENERATION);
        Ok(machine)
    }
}

/// How far the TSC is on by now.
fn ticks(clock: &Clock, tsc_khz: Option<u32>) -> u64 {
    let ticks = u128::from(clock.age().unwrap_or(0)) * u128::from(tsc_khz.unwrap_or(0)) / 1_000_000;
    u64::try_from(ticks).unwrap_or(0)
}

/// The units of a snapshot, and which were looked at.
struct Units<'a> {
    saved: &'a SavedMachine,
    used: Vec<String>,
}

impl<'a> Units<'a> {
    fn get(&mut self, place: &str) -> Result<&'a Unit, MachineError> {
        self.used.push(place.to_owned());
        self.saved.get(place).ok_or_else(|| MachineError::Unit { place: place.to_owned(), what: "missing" })
    }

    fn take<T>(&mut self, place: &str, read: impl FnOnce(&Unit) -> Result<T, InvalidState>) -> Result<T, MachineError> {
        let invalid = |source| MachineError::State { place: place.to_owned(), source };
        read(self.get(place)?).map_err(invalid)
    }

    fn decode<T: for<'b> Deserialize<'b>>(&mut self, place: &str, kind: &'static str) -> Result<T, MachineError> {
        self.take(place, |unit| unit.decode(kind, VERSION))
    }

    fn unpack<T: for<'b> Deserialize<'b>>(&mut self, place: &str, kind: &'static str) -> Result<T, MachineError> {
        self.take(place, |unit| unit.unpack(kind, PACKED_VERSION))
    }

    /// A unit that nobody knows is state that would be lost.
    fn all_used(&self) -> Result<(), MachineError> {
        match self.saved.keys().find(|place| !self.used.contains(place)) {
            Some(place) => Err(MachineError::Unit { place: place.clone(), what: "unknown" }),
            None => Ok(()),
        }
    }
}

/// Puts all vCPUs and interrupt controllers of a stopped machine where they are at power-on: into the state that those of
/// a machine made just now are in.
pub(super) fn power_on(hypervisor: &Hypervisor, cpuid: &Cpuid, vcpus: &Vcpus) -> Result<(), MachineError> {
    let extent = Extent::of(hypervisor)?;
    let topology = cpuid.topology();
    let highest = topology.apic_id(topology.vcpus().saturating_sub(1));
    let fresh = hypervisor.another(VmOptions { dedicated: false, wide_apic_ids: highest > 254 })?;
    for (number, vcpu) in (0..).zip(vcpus.lock()) {
        let other = fresh.vm.create_vcpu(topology.apic_id(number).into()).map_err(failed("create a vCPU"))?;
        state::initialize(&other, &cpuid.of(number))?;
        let begin = state::save(&other, &extent)?;
        state::reset(&vcpu, &begin, &extent)?;
    }
    Ok(Chips::save(&fresh.vm)?.restore(&hypervisor.vm)?)
}
