use super::*;
use crate::pci::{Bar, Bars, ConfigSpace, Ecam, Identity};
use proptest::prelude::*;

/// One BAR, whose every byte reads as `value`.
struct Fake {
    config: Mutex<ConfigSpace>,
    value: u8,
    address: Mutex<Option<u64>>,
}

const SIZE: u64 = 0x1000;
const WINDOWS: Windows = Windows { low: 0xC000_0000..0xE000_0000, high: 0..0 };

impl Fake {
    fn new(value: u8) -> Arc<Self> {
        Arc::new(Self { config: Mutex::new(Self::config()), value, address: Mutex::default() })
    }

    fn config() -> ConfigSpace {
        let identity = Identity { device: [0x1AF4, 0x1044], subsystem: [0; 2], revision: 1, class: [0xFF, 0, 0] };
        let mut config = ConfigSpace::new(&identity);
        config.put_bar(0, Bar { size: SIZE, is_64_bit: false, is_prefetchable: false }).unwrap();
        config
    }
}

impl PciFunction for Fake {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.lock().unwrap().read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> Effect {
        self.config.lock().unwrap().write(offset, data)
    }
    fn bars(&self) -> Bars {
        *self.config.lock().unwrap().bars()
    }
    fn decodes_memory(&self) -> bool {
        self.config.lock().unwrap().decodes_memory()
    }
    fn assign(&self, bar: u8, address: u64) {
        self.config.lock().unwrap().bars_mut().set(bar, address);
    }
    fn moved(&self, _: u8, address: Option<u64>) {
        let before = std::mem::replace(&mut *self.address.lock().unwrap(), address);
        assert_ne!(before.is_some(), address.is_some(), "moves go by nowhere");
    }
    fn read_bar(&self, _: u8, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= SIZE);
        data.fill(self.value);
    }
    fn write_bar(&self, _: u8, _: u64, _: &[u8]) -> Request {
        Request::Nothing
    }
    fn pause(&self) {}
    fn resume(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn reset(&self) {
        *self.config.lock().unwrap() = Self::config();
    }
    fn save(&self) -> Saved {
        Saved::Stateless
    }
}

fn root() -> (Arc<Bus>, Arc<PciRoot>) {
    let bus = Arc::new(Bus::default());
    (bus.clone(), PciRoot::new(&bus, WINDOWS))
}

fn byte_at(bus: &Bus, address: u64) -> u8 {
    let mut data = [0];
    bus.read(address, &mut data);
    data[0]
}

fn write_long(root: &PciRoot, slot: u8, register: u16, value: u32) {
    root.write_config(slot, register, &value.to_le_bytes());
}

#[test]
fn ecam_shows_functions() {
    let (_, root) = root();
    root.add(3, Fake::new(1)).unwrap();
    let ecam = Ecam(root);
    let read = |device: &dyn BusDevice, offset: u64| {
        let mut data = [0xFF; 4];
        device.read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(read(&ecam, 0), !0);
    assert_eq!(read(&ecam, 3 << 15), 0x1044_1AF4);
    assert_eq!(read(&ecam, 4 << 15), !0);
}

#[test]
fn bars_are_on_the_bus_while_decoded() {
    let (bus, root) = root();
    let function = Fake::new(7);
    root.add(1, function.clone()).unwrap();
    let first = function.bars().range(0).unwrap().start;
    assert_eq!(first, WINDOWS.low.start);
    assert_eq!(byte_at(&bus, first), 0xFF);
    root.write_config(1, 4, &[2, 0]);
    assert_eq!((byte_at(&bus, first), *function.address.lock().unwrap()), (7, Some(first)));
    write_long(&root, 1, 0x10, 0xC123_4000);
    assert_eq!((byte_at(&bus, first), byte_at(&bus, 0xC123_4FFF)), (0xFF, 7));
    root.write_config(1, 4, &[0, 0]);
    assert_eq!((byte_at(&bus, 0xC123_4000), *function.address.lock().unwrap()), (0xFF, None));
}

#[test]
fn who_lets_go_of_bus_and_root_lets_go_of_all() {
    let (bus, root) = root();
    let function = Fake::new(7);
    root.add(1, function.clone()).unwrap();
    root.write_config(1, 4, &[2, 0]);
    bus.insert(0..1 << 28, Arc::new(Ecam(root.clone()))).unwrap();
    let (bus_left, root_left) = (Arc::downgrade(&bus), Arc::downgrade(&root));
    drop((bus, root));
    assert_eq!([bus_left.strong_count(), root_left.strong_count(), Arc::strong_count(&function)], [0, 0, 1]);
}

#[test]
fn bars_outside_the_windows_are_nowhere() {
    let (bus, root) = root();
    let function = Fake::new(7);
    root.add(1, function.clone()).unwrap();
    root.write_config(1, 4, &[2, 0]);
    for address in [0, 0xBFFF_F000, 0xE000_0000, 0xFEE0_0000, 0xFFFF_F000] {
        write_long(&root, 1, 0x10, address);
        assert_eq!(*function.address.lock().unwrap(), None, "{address:#x}");
        assert_eq!(byte_at(&bus, address.into()), 0xFF);
    }
    write_long(&root, 1, 0x10, 0xDFFF_F000);
    assert_eq!(byte_at(&bus, 0xDFFF_FFFF), 7);
}

#[test]
fn of_two_at_one_place_the_first_wins_until_it_leaves() {
    let (bus, root) = root();
    for slot in [1, 2] {
        root.add(slot, Fake::new(slot)).unwrap();
        root.write_config(slot, 4, &[2, 0]);
    }
    write_long(&root, 1, 0x10, 0xC800_0000);
    write_long(&root, 2, 0x10, 0xC800_0000);
    assert_eq!(byte_at(&bus, 0xC800_0000), 1);
    write_long(&root, 1, 0x10, 0xC900_0000);
    assert_eq!([byte_at(&bus, 0xC800_0000), byte_at(&bus, 0xC900_0000)], [2, 1]);
}

#[test]
fn functions_come_and_go() {
    let (bus, root) = root();
    root.add(1, Fake::new(1)).unwrap();
    root.plug(5, Fake::new(5)).unwrap();
    assert_eq!([root.take_plugged(), root.take_plugged()], [1 << 5, 0]);
    root.write_config(5, 4, &[2, 0]);
    let address = root.function(5).unwrap().bars().range(0).unwrap().start;
    assert_eq!(byte_at(&bus, address), 5);
    assert!(root.unplug(5) && !root.unplug(6) && !root.unplug(0) && !root.unplug(200));
    assert_eq!([root.take_unplugging(), root.take_unplugging()], [1 << 5, 0]);
    assert!(root.eject(5).is_some() && root.eject(5).is_none() && root.eject(0).is_none() && root.eject(99).is_none());
    assert_eq!(byte_at(&bus, address), 0xFF);
    assert_eq!(root.free_slot(None, 0..SLOTS), Ok(2));
    assert_eq!(root.free_slot(None, 24..SLOTS), Ok(24));
    assert_eq!(root.free_slot(None, 0..2), Err(PlugError::Full));
    assert_eq!(root.free_slot(Some(1), 0..SLOTS), Err(PlugError::Taken(1)));
    assert_eq!(root.free_slot(Some(32), 0..SLOTS), Err(PlugError::Taken(32)));
    assert_eq!(root.add(0, Fake::new(0)), Err(PlugError::Taken(0)));
}

#[test]
fn what_is_full_says_so() {
    let bus = Arc::new(Bus::default());
    let root = PciRoot::new(&bus, Windows { low: 0xC000_0000..0xC000_1000, high: 0..0 });
    root.add(1, Fake::new(1)).unwrap();
    assert_eq!(root.add(2, Fake::new(2)), Err(PlugError::NoRoom { size: SIZE }));
    assert_eq!(root.free_slot(Some(2), 0..SLOTS), Ok(2));
}

#[test]
fn reset_gives_bars_their_first_addresses() {
    let (bus, root) = root();
    let function = Fake::new(9);
    root.add(1, function.clone()).unwrap();
    root.write_config(1, 4, &[2, 0]);
    write_long(&root, 1, 0x10, 0xC800_0000);
    root.reset();
    assert_eq!(byte_at(&bus, 0xC800_0000), 0xFF);
    assert_eq!(function.bars().range(0).unwrap().start, WINDOWS.low.start);
    assert!(!function.decodes_memory());
}

#[test]
fn the_root_has_state_of_its_own() {
    let (_, root) = root();
    root.plug(4, Fake::new(4)).unwrap();
    let Saved::State(unit) = root.save() else { panic!("it has state") };
    let (_, other) = super::tests::root();
    other.restore(&unit).unwrap();
    assert_eq!(other.take_plugged(), 1 << 4);
    assert!(other.restore(&Unit { version: VERSION + 1, ..unit }).is_err());
}

proptest! {
    #[test]
    fn whatever_a_guest_writes_what_is_on_the_bus_is_what_functions_were_told(
        writes in proptest::collection::vec((1u8..4, prop_oneof![Just(4u64), Just(0x10u64), 0u64..0x1000], any::<u32>(), 1usize..5), 0..80)
    ) {
        let (bus, root) = root();
        let functions: Vec<_> = (1u8..4).map(|slot| (slot, Fake::new(slot))).collect();
        for (slot, function) in &functions {
            root.add(*slot, function.clone()).unwrap();
        }
        let ecam = Ecam(root);
        for (slot, register, value, length) in writes {
            // Mostly addresses that collide.
            let value = if value % 4 == 0 { value } else { 0xC000_0002 | (value & 0x3000) };
            ecam.write(u64::from(slot) << 15 | register, &value.to_le_bytes()[..length]);
            for (slot, function) in &functions {
                if let Some(address) = *function.address.lock().unwrap() {
                    prop_assert_eq!(byte_at(&bus, address), *slot);
                    prop_assert!(function.decodes_memory());
                    prop_assert_eq!(function.bars().range(0).unwrap().start, address);
                }
            }
        }
    }
}
