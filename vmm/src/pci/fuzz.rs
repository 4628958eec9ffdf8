//! Hostile guests against the bus ([`crate::fuzzing`]): configuration space, hot plug, BARs, MSI-X, virtio's registers,
//! pauses and snapshots in between.
//!
//! Whatever a guest does, nothing may panic, what is saved can be restored, and after a reset a driver can begin.

use std::sync::Arc;

use vm_memory::GuestAddress;

use super::{Ecam, PciFunction, PciRoot, Windows};
use crate::bus::{Bus, BusDevice};
use crate::fuzzing::{Shape, fuzz};
use crate::interrupts::{Interrupts, Recorder};
use crate::layout;
use crate::memory::GuestMemory;
use crate::snapshot::Saved;
use crate::virtio::rng::Rng;
use crate::virtio::transport::{Doorbells, VirtioPci, Wiring};

/// What, slot, log2 of the size, a byte that is not used; where; a value.
const SHAPE: Shape = Shape::steps(16, 64);

struct Guest {
    bus: Arc<Bus>,
    root: Arc<PciRoot>,
    ecam: Ecam,
    chip: Arc<Recorder>,
    wiring: Wiring,
}

impl Guest {
    /// Two functions with a small device each, their memory decoded.
    fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let (bus, chip) = (Arc::new(Bus::default()), Arc::new(Recorder::default()));
        let root = PciRoot::new(&bus, Windows { low: layout::PCI_WINDOW_32, high: 0..0 });
        let vm: Arc<dyn Doorbells> = Arc::new(kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap());
        let wiring = Wiring { memory, interrupts: Interrupts::new(chip.clone()), doorbells: vm, slot: 0 };
        let ecam = Ecam(root.clone());
        let guest = Self { bus, root, ecam, chip, wiring };
        for slot in [1, 2] {
            let function = VirtioPci::new(Box::new(Rng::new(None).unwrap()), guest.wiring(slot)).unwrap();
            guest.root.add(slot, Arc::new(function)).unwrap();
        }
        guest.decode_memory();
        guest
    }

    fn wiring(&self, slot: u8) -> Wiring {
        Wiring { slot, ..self.wiring.clone() }
    }

    fn decode_memory(&self) {
        for slot in [1, 2] {
            self.root.write_config(slot, 4, &[6, 0]);
        }
    }

    fn step(&self, step: &[u8; 16]) {
        let [what, slot, size, _, ..] = *step;
        let slot = slot % 4;
        let place = u64::from(u32::from_le_bytes([step[4], step[5], step[6], step[7]]));
        let mut data = [step[8], step[9], step[10], step[11], step[12], step[13], step[14], step[15]];
        let data = &mut data[..1 << (size % 4)];
        let in_ecam = u64::from(slot) << 15 | place & 0x7FFF;
        match what % 10 {
            0 => drop(self.ecam.write(in_ecam, data)),
            1 => self.ecam.read(in_ecam, data),
            2 => drop(self.root.unplug(slot)),
            3 => drop((self.root.take_plugged(), self.root.take_unplugging())),
            4 => drop(self.bus.write(self.in_bar(slot, place), data)),
            5 => self.bus.read(self.in_bar(slot, place), data),
            6 => drop(self.bus.write(place, data)),
            7 => self.bus.read(place, data),
            8 => self.move_to_another_process(slot),
            _ => self.root.reset(),
        }
    }

    fn in_bar(&self, slot: u8, offset: u64) -> u64 {
        let range = self.root.function(slot).and_then(|function| function.bars().range(0));
        range.unwrap_or(0..1).start + offset % 0x9000
    }

    /// Whatever state a guest has brought a function into can be saved, and restored.
    fn move_to_another_process(&self, slot: u8) {
        let Some(function) = self.root.function(slot) else { return };
        function.pause();
        let Saved::State(unit) = function.save() else { panic!("it can be saved") };
        drop((function, self.root.eject(slot)));
        let device = Box::new(Rng::new(None).unwrap());
        let function = Arc::new(VirtioPci::restore(device, self.wiring(slot), &unit).unwrap());
        self.root.add_restored(slot, function.clone()).unwrap();
        function.resume().unwrap();
    }
}

#[test]
fn bus() {
    let guest = Guest::new();
    fuzz("pci/bus", SHAPE, |script| {
        script.as_chunks().0.iter().for_each(|step| guest.step(step));
        guest.root.reset();
        assert!(guest.chip.connected.lock().unwrap().is_empty() && guest.chip.high.lock().unwrap().is_empty());
        guest.decode_memory();
        for slot in [1, 2] {
            let status = guest.in_bar(slot, 0x14);
            for (offset, data) in [(0x14, &[3][..]), (0x08, &[1, 0, 0, 0]), (0x0C, &[1, 0, 0, 0]), (0x14, &[11])] {
                guest.bus.write(guest.in_bar(slot, offset), data);
            }
            let mut data = [0];
            guest.bus.read(status, &mut data);
            assert_eq!(data, [11], "a driver can begin");
        }
    });
}
