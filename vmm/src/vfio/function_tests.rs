use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::super::view::tests::{bars as card_bars, e1000e};
use super::*;
use crate::interrupts::Recorder;

/// A network card that is only memory: its BARs, its configuration space, and what it was told.
#[derive(Default)]
struct Card {
    config: Mutex<Vec<u8>>,
    connected: Mutex<Option<(IrqKind, Vec<EventFd>)>>,
    has_unmask: Mutex<bool>,
    refuses_unmask: bool,
    written: Mutex<Vec<(u8, u64)>>,
    resets: AtomicUsize,
}

impl HostFunction for Arc<Card> {
    fn region(&self, bar: u8) -> Region {
        let size = card_bars().iter().find(|(index, _)| *index == bar).map_or(0, |(_, bar)| bar.size);
        Region { size, mappable: std::iter::once(0..size).filter(|range| !range.is_empty()).collect() }
    }
    fn read(&self, _: u8, offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(offset as u8);
        Ok(())
    }
    fn write(&self, bar: u8, offset: u64, _: &[u8]) -> io::Result<()> {
        self.written.lock().unwrap().push((bar, offset));
        Ok(())
    }
    fn map(&self, _: u8, range: &Range<u64>) -> io::Result<Arc<MmapRegion>> {
        MmapRegion::new((range.end - range.start) as usize).map(Arc::new).map_err(io::Error::other)
    }
    fn read_config(&self, offset: u16, data: &mut [u8]) -> io::Result<()> {
        let config = self.config.lock().unwrap();
        data.copy_from_slice(config.get(usize::from(offset)..).and_then(|rest| rest.get(..data.len())).unwrap());
        Ok(())
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> io::Result<()> {
        let offset = usize::from(offset);
        self.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn irqs(&self, kind: IrqKind) -> u16 {
        if kind == IrqKind::Msix { 5 } else { 1 }
    }
    fn connect(&self, kind: IrqKind, events: &[&EventFd]) -> io::Result<()> {
        let events = events.iter().map(|event| event.try_clone().unwrap()).collect();
        let before = self.connected.lock().unwrap().replace((kind, events));
        assert!(before.is_none(), "one kind at a time");
        Ok(())
    }
    fn connect_unmask(&self, _: &EventFd) -> io::Result<()> {
        *self.has_unmask.lock().unwrap() = true;
        if self.refuses_unmask { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
    }
    fn disconnect(&self, kind: IrqKind) {
        let before = self.connected.lock().unwrap().take();
        assert_eq!(before.map(|(kind, _)| kind), Some(kind));
    }
    fn can_reset(&self) -> bool {
        true
    }
    fn reset(&self) -> io::Result<()> {
        self.resets.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct Bench {
    card: Arc<Card>,
    chip: Arc<Recorder>,
    function: VfioPci,
}

impl Bench {
    fn new() -> Self {
        Self::with(Card::default())
    }

    fn with(card: Card) -> Self {
        let card = Arc::new(Card { config: Mutex::new(e1000e()), ..card });
        let chip = Arc::new(Recorder::default());
        let vm = Arc::new(kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap());
        let ports = Ports { interrupts: Interrupts::new(chip.clone()), memory_slots: Slots::new(vm), slot: 2 };
        let function = VfioPci::new(Box::new(card.clone()), "0000:65:00.0", ports).unwrap();
        Self { card, chip, function }
    }

    fn capability(&self, id: u8) -> u16 {
        let byte = |offset: u16| {
            let mut data = [0];
            self.function.read_config(offset, &mut data);
            data[0]
        };
        let mut at = byte(0x34);
        while byte(at.into()) != id {
            at = byte(u16::from(at) + 1);
            assert_ne!(at, 0);
        }
        at.into()
    }

    fn connected(&self) -> Option<(IrqKind, usize)> {
        self.card.connected.lock().unwrap().as_ref().map(|(kind, events)| (*kind, events.len()))
    }

    fn host_word(&self, offset: usize) -> u16 {
        let config = self.card.config.lock().unwrap();
        u16::from_le_bytes([config[offset], config[offset + 1]])
    }
}

#[test]
fn interrupts_are_of_the_kind_the_guest_chose() {
    let bench = Bench::new();
    assert_eq!(bench.connected(), None, "no driver yet");
    bench.function.write_config(4, &[6, 0]);
    assert_eq!(bench.connected(), Some((IrqKind::Intx, 1)));
    assert!(*bench.card.has_unmask.lock().unwrap());
    assert_eq!(bench.chip.connected.lock().unwrap().values().copied().collect::<Vec<_>>(), [18]);

    let msi = bench.capability(5);
    bench.function.write_config(msi + 4, &0xFEE0_0000u32.to_le_bytes());
    bench.function.write_config(msi + 12, &[0x41, 0]);
    bench.function.write_config(msi + 2, &[1, 0]);
    assert_eq!(bench.connected(), Some((IrqKind::Msi, 1)));
    assert_eq!(bench.chip.routes.lock().unwrap()[0].1.data, 0x41);

    bench.function.write_config(msi + 2, &[0, 0]);
    bench.function.write_config(4, &[6, 4]);
    assert_eq!((bench.connected(), bench.chip.connected.lock().unwrap().len()), (None, 0), "INTA disabled");

    bench.function.write_config(bench.capability(0x11) + 2, &0x8000u16.to_le_bytes());
    assert_eq!(bench.connected(), Some((IrqKind::Msix, 5)));
    bench.function.write_bar(3, 16, &0xFEE0_0000u64.to_le_bytes());
    bench.function.write_bar(3, 24, &0x51u64.to_le_bytes());
    assert_eq!(bench.chip.connected.lock().unwrap().len(), 1);
    assert!(bench.card.written.lock().unwrap().is_empty(), "the table is not the card's");
}

#[test]
fn half_an_inta_is_none() {
    let bench = Bench::with(Card { refuses_unmask: true, ..Card::default() });
    bench.function.write_config(4, &[6, 0]);
    assert!(*bench.card.has_unmask.lock().unwrap());
    assert_eq!((bench.connected(), bench.chip.connected.lock().unwrap().len()), (None, 0));
    bench.function.write_config(bench.capability(5) + 2, &[1, 0]);
    assert_eq!(bench.connected(), Some((IrqKind::Msi, 1)));
}

#[test]
fn masked_vectors_of_the_card_are_pending() {
    let bench = Bench::new();
    bench.function.write_config(bench.capability(0x11) + 2, &0x8000u16.to_le_bytes());
    bench.card.connected.lock().unwrap().as_ref().unwrap().1[3].write(1).unwrap();
    let mut pending = [0xFF; 8];
    bench.function.read_bar(3, 0x2000, &mut pending);
    assert_eq!(pending, [0b1000, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn bars_are_slots_of_memory_where_they_are() {
    let bench = Bench::new();
    let slots = |bar| {
        let function = bench.function.function();
        let mapped = function.mapped.iter().filter(|mapped| mapped.bar == bar && mapped.slot.is_some());
        mapped.map(|mapped| (mapped.offset, mapped.memory.size())).collect::<Vec<_>>()
    };
    bench.function.moved(0, Some(0xC000_0000));
    bench.function.moved(3, Some(0xC010_0000));
    assert_eq!(slots(0), [(0, 0x2_0000)]);
    assert_eq!(slots(3), [(0x1000, 0x1000), (0x3000, 0x1000)], "without table and pending bits");
    bench.function.moved(0, None);
    assert_eq!(slots(0), []);
    // KVM has two slots now; one more at the same place is refused, and the BAR is trapped instead.
    bench.function.moved(1, Some(0xC010_0000));
    assert_eq!(slots(1), []);
    let mut data = [0];
    bench.function.read_bar(1, 7, &mut data);
    assert_eq!(data, [7]);
}

#[test]
fn little_reaches_the_card() {
    let bench = Bench::new();
    let before = bench.card.config.lock().unwrap().clone();
    assert_eq!(bench.host_word(4), 2, "it decodes from the beginning");
    for offset in (0..4096).step_by(4).filter(|offset| *offset != usize::from(bench.capability(0x10) + 8)) {
        bench.function.write_config(offset as u16, &[0xFF; 4]);
    }
    let after = bench.card.config.lock().unwrap().clone();
    let changed: Vec<_> = (0..4096).filter(|&offset| before[offset] != after[offset]).collect();
    assert_eq!((changed, after[4]), (vec![4], 6), "bus master");
    bench.function.write_config(4, &[0, 0]);
    assert_eq!(bench.host_word(4), 2, "it decodes whatever the guest says");
    assert!(!bench.function.decodes_memory());
}

#[test]
fn read_requests_are_tuned_and_resets_carried_out() {
    let bench = Bench::new();
    let resets = || bench.card.resets.load(Ordering::Relaxed);
    let control = bench.capability(0x10) + 8;
    bench.function.write_config(control, &0x5010u16.to_le_bytes());
    assert_eq!((bench.host_word(0xE8), resets()), (0x5010, 0));
    bench.function.write_config(control, &0xD01Fu16.to_le_bytes());
    assert_eq!((bench.host_word(0xE8), resets()), (0x5010, 1), "no error reporting");
    bench.card.config.lock().unwrap()[0xEA] = 0x20;
    let mut both = [0; 4];
    bench.function.read_config(control, &mut both);
    assert_eq!(both, [0x10, 0x50, 0x20, 0], "transactions pending");
}

#[test]
fn it_leaves_as_it_came() {
    let Bench { card, chip, function } = Bench::new();
    function.write_config(4, &[6, 0]);
    function.moved(0, Some(0xC000_0000));
    function.reset();
    assert!(!function.decodes_memory() && card.connected.lock().unwrap().is_none());
    function.write_config(4, &[6, 0]);
    drop(function);
    assert!(card.connected.lock().unwrap().is_none() && chip.connected.lock().unwrap().is_empty());
    assert_eq!(card.resets.load(Ordering::Relaxed), 2);
    assert_eq!(card.config.lock().unwrap()[4], 2, "no bus master any more");
}

#[test]
fn kinds_of_bars_are_told_apart() {
    let mut space = vec![0; 256];
    space[0x10] = 0x0C;
    space[0x18] = 0x01;
    space[0x1C] = 0x00;
    let bars = bars(&space, |_| 0x1000).unwrap();
    let found: Vec<_> = bars.iter().map(|(index, bar)| (index, bar.is_64_bit, bar.is_prefetchable)).collect();
    assert_eq!(found, [(0, true, true), (3, false, false), (4, false, false), (5, false, false)]);
    assert!(super::bars(&space, |_| 0x1800).is_none(), "no power of two");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nothing_a_guest_does_breaks_anything(accesses in proptest::collection::vec((0u8..4, prop_oneof![0u16..0x100, any::<u16>()], any::<u64>(), 0usize..4), 0..150)) {
        let bench = Bench::new();
        for (what, offset, value, size) in accesses {
            let data = (if value % 2 == 0 { value } else { value >> 48 }).to_le_bytes();
            let (bar, place) = ((value % 7) as u8, u64::from(offset % 0x4000));
            match what {
                0 => { bench.function.write_config(offset & 0xFFC, &data[..(1 << size).min(4)]); }
                1 => bench.function.read_config(offset & 0xFFC, &mut [0; 4][..(1 << size).min(4)]),
                2 => { bench.function.write_bar(bar, place, &data[..1 << size]); }
                _ => bench.function.read_bar(bar, place, &mut [0; 8][..1 << size]),
            }
            let command = bench.host_word(4);
            prop_assert_eq!(command & !6, 0);
            prop_assert_ne!(command & 2, 0);
        }
        bench.function.reset();
        prop_assert!(bench.chip.connected.lock().unwrap().is_empty());
    }
}
