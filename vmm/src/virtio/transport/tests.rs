//! A device that copies, driven as a driver would: by configuration space, BAR and queues in memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::registers::status;
use super::*;
use crate::bus::Bus;
use crate::interrupts::Recorder;
use crate::layout;
use crate::pci::{PciRoot, Windows};
use crate::virtio::block::{Block, BlockOptions, Kinds};
use crate::virtio::{ActivateError, Activation, ReadyQueue};

/// Uses up what is in its queues when it is told to, and remembers how it was treated.
#[derive(Default)]
struct Copier {
    active: Arc<Mutex<Option<Activation>>>,
    is_paused: bool,
    config: [u8; 4],
    refuses: bool,
    resets: Arc<AtomicUsize>,
}

impl VirtioDevice for Copier {
    fn counters(&self) -> Counts {
        Counts::new()
    }

    fn id(&self) -> u16 {
        4
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 16]
    }
    fn features(&self) -> u64 {
        1 << 32 | 1 << 29
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (byte, offset) in data.iter_mut().zip(offset..4) {
            *byte = self.config[offset as usize];
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (byte, offset) in data.iter().zip(offset..4) {
            self.config[offset as usize] = *byte;
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuses {
            return Err(ActivateError::QueueMissing(1));
        }
        let before = self.active.lock().unwrap().replace(activation);
        assert!(before.is_none(), "activated twice");
        Ok(())
    }
    fn pause(&mut self) {
        self.is_paused = true;
    }
    fn resume(&mut self) -> Result<(), ActivateError> {
        assert!(self.is_paused);
        self.is_paused = false;
        Ok(())
    }
    fn reset(&mut self) {
        self.active.lock().unwrap().take();
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
    fn queue_states(&self) -> Vec<Option<QueueState>> {
        let active = self.active.lock().unwrap();
        let queues = active.iter().flat_map(|activation| &activation.queues);
        queues.map(|queue| queue.as_ref().map(|ready| ready.queue.state())).collect()
    }
    fn save(&self) -> Saved {
        Saved::State(Unit::encode("copier", 1, &self.config))
    }
    fn restore(&mut self, unit: &Unit) -> Result<(), InvalidState> {
        self.config = unit.decode("copier", 1)?;
        Ok(())
    }
}

/// Remembers where doorbells are.
#[derive(Default)]
struct Places(Mutex<Vec<u64>>);

impl Doorbells for Places {
    fn connect(&self, _: &EventFd, address: u64) -> io::Result<()> {
        self.0.lock().unwrap().push(address);
        Ok(())
    }
    fn disconnect(&self, _: &EventFd, address: u64) {
        let mut places = self.0.lock().unwrap();
        let index = places.iter().position(|place| *place == address).expect("was connected");
        places.remove(index);
    }
}

/// A guest's view: a bus with one function in slot 1.
struct Bench {
    bus: Arc<Bus>,
    root: Arc<PciRoot>,
    chip: Arc<Recorder>,
    places: Arc<Places>,
    active: Arc<Mutex<Option<Activation>>>,
    resets: Arc<AtomicUsize>,
    wiring: Wiring,
}

const BAR: u64 = layout::PCI_WINDOW_32.start;

impl Bench {
    fn new(device: Copier) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        Self::empty(&device, memory).with(Box::new(device))
    }

    fn with(self, device: Box<dyn VirtioDevice>) -> Self {
        let function = VirtioPci::new(device, self.wiring.clone()).unwrap();
        self.root.add(1, Arc::new(function)).unwrap();
        self
    }

    fn empty(device: &Copier, memory: GuestMemory) -> Self {
        let bus = Arc::new(Bus::default());
        let root = PciRoot::new(&bus, Windows { low: layout::PCI_WINDOW_32, high: 0..0 });
        let (chip, places) = (Arc::new(Recorder::default()), Arc::new(Places::default()));
        let wiring = Wiring { memory, interrupts: Interrupts::new(chip.clone()), doorbells: places.clone(), slot: 1 };
        Self { bus, root, chip, places, active: device.active.clone(), resets: device.resets.clone(), wiring }
    }

    /// The same guest with the function's state brought to a new process.
    fn moved(&self) -> Self {
        let device = Copier::default();
        Self::empty(&device, self.wiring.memory.clone()).restored(Box::new(device), &self.saved())
    }

    fn saved(&self) -> Unit {
        let function = self.root.function(1).unwrap();
        function.pause();
        let Saved::State(unit) = function.save() else { panic!("it can be saved") };
        unit
    }

    fn restored(self, device: Box<dyn VirtioDevice>, unit: &Unit) -> Self {
        let function = VirtioPci::restore(device, self.wiring.clone(), unit).unwrap();
        self.root.add_restored(1, Arc::new(function)).unwrap();
        self
    }

    fn write(&self, offset: u64, data: &[u8]) {
        assert_eq!(self.bus.write(BAR + offset, data), Request::Nothing);
    }

    fn read(&self, offset: u64, length: usize) -> u64 {
        let mut data = [0; 8];
        self.bus.read(BAR + offset, &mut data[..length]);
        u64::from_le_bytes(data)
    }

    fn status(&self) -> u8 {
        self.read(0x14, 1) as u8
    }

    fn enable_memory(&self) {
        self.root.write_config(1, 4, &[6, 0]);
    }

    fn negotiate(&self) {
        for status in [1, 3] {
            self.write(0x14, &[status]);
        }
        for (select, half) in [(0u32, 1u32 << 29), (1, 1)] {
            self.write(0x08, &select.to_le_bytes());
            self.write(0x0C, &half.to_le_bytes());
        }
        self.write(0x14, &[0xB]);
        assert_eq!(self.status(), 0xB);
    }

    fn set_up_queue(&self, index: u16, rings: [u64; 3]) {
        self.write(0x16, &index.to_le_bytes());
        for (offset, address) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            self.write(offset, &(address as u32).to_le_bytes());
            self.write(offset + 4, &((address >> 32) as u32).to_le_bytes());
        }
        self.write(0x1A, &(index + 1).to_le_bytes());
        self.write(0x1C, &[1, 0]);
    }

    fn set_up_msix(&self) {
        for vector in 0..3u64 {
            let entry = 0x4000 + 16 * vector;
            self.write(entry, &0xFEE0_0000u32.to_le_bytes());
            self.write(entry + 8, &(0x40 + vector as u32).to_le_bytes());
            self.write(entry + 12, &[0; 4]);
        }
        let control = self.capability(0x11) + 2;
        self.root.write_config(1, control, &0x8000u16.to_le_bytes());
    }

    fn capability(&self, id: u8) -> u16 {
        let byte = |register: u16| {
            let mut data = [0];
            self.root.read_config(1, register, &mut data);
            data[0]
        };
        let mut at = byte(0x34);
        while byte(at.into()) != id {
            at = byte(u16::from(at) + 1);
            assert_ne!(at, 0, "no such capability");
        }
        at.into()
    }

    /// Queue 0 ready, its rings where `mock` has them.
    fn begin(&self, mock: &MockSplitQueue<'_, GuestMemory>) {
        self.enable_memory();
        self.negotiate();
        let rings = [mock.desc_table_addr(), mock.avail_addr(), mock.used_addr()];
        self.set_up_queue(0, rings.map(|address| address.0));
        self.set_up_msix();
        self.write(0x14, &[0xF]);
    }

    /// What the device's worker would do when notified.
    fn work(&self) -> usize {
        let mut active = self.active.lock().unwrap();
        let Activation { memory, interrupt, queues, .. } = active.as_mut().expect("active");
        let ReadyQueue { queue, .. } = queues[0].as_mut().unwrap();
        let mut used = 0;
        while let Some(chain) = queue.pop_descriptor_chain(&*memory) {
            let head = chain.head_index();
            let parts: Vec<_> = chain.collect();
            let mut data = vec![0; parts[0].len() as usize];
            memory.read_slice(&mut data, parts[0].addr()).unwrap();
            memory.write_slice(&data, parts[1].addr()).unwrap();
            queue.add_used(&*memory, head, data.len() as u32).unwrap();
            used += 1;
        }
        interrupt.queue(0);
        used
    }

    fn is_notified(&self) -> bool {
        let active = self.active.lock().unwrap();
        let queue = active.as_ref().unwrap().queues[0].as_ref().unwrap();
        queue.notified.read().is_ok()
    }
}

fn offer(memory: &GuestMemory, mock: &MockSplitQueue<'_, GuestMemory>, text: &[u8]) {
    memory.write_slice(text, GuestAddress(0x8000)).unwrap();
    let length = text.len() as u32;
    let chain = [Descriptor::new(0x8000, length, 1, 1), Descriptor::new(0x9000, length, 2, 0)];
    mock.add_desc_chains(&chain.map(Into::into), 0).unwrap();
}

#[test]
fn a_driver_and_a_device_exchange_buffers() {
    let bench = Bench::new(Copier::default());
    let memory = bench.wiring.memory.clone();
    let mock = MockSplitQueue::new(&memory, 16);
    bench.begin(&mock);
    assert_eq!(bench.status(), 0xF);
    assert_eq!(*bench.places.0.lock().unwrap(), [BAR + 0x3000], "the one queue in use");
    offer(&memory, &mock, b"hello");
    bench.write(0x3000, &[0, 0]);
    assert!(bench.is_notified());
    assert_eq!(bench.work(), 1);
    let mut copy = [0; 5];
    memory.read_slice(&mut copy, GuestAddress(0x9000)).unwrap();
    assert_eq!(&copy, b"hello");
    let routes: Vec<_> = bench.chip.routes.lock().unwrap().iter().map(|(_, message)| message.data).collect();
    assert_eq!(routes, [0x40, 0x41, 0x42]);
}

#[test]
fn doorbells_follow_the_bar() {
    let bench = Bench::new(Copier::default());
    let memory = bench.wiring.memory.clone();
    bench.begin(&MockSplitQueue::new(&memory, 16));
    bench.root.write_config(1, 0x10, &0xD000_0000u32.to_le_bytes());
    assert_eq!(*bench.places.0.lock().unwrap(), [0xD000_3000]);
    bench.root.write_config(1, 4, &[0, 0]);
    assert!(bench.places.0.lock().unwrap().is_empty());
    bench.root.write_config(1, 4, &[2, 0]);
    assert_eq!(*bench.places.0.lock().unwrap(), [0xD000_3000]);
    drop(bench.root.eject(1));
    assert!(bench.places.0.lock().unwrap().is_empty());
}

#[test]
fn reset_takes_the_queues_back() {
    let bench = Bench::new(Copier::default());
    let memory = bench.wiring.memory.clone();
    let mock = MockSplitQueue::new(&memory, 16);
    bench.begin(&mock);
    bench.write(0x14, &[0]);
    assert_eq!((bench.status(), bench.resets.load(Ordering::Relaxed)), (0, 1));
    assert!(bench.active.lock().unwrap().is_none() && bench.places.0.lock().unwrap().is_empty());
    bench.begin(&mock);
    assert!(bench.active.lock().unwrap().is_some());
    bench.root.reset();
    assert!(bench.active.lock().unwrap().is_none() && bench.chip.connected.lock().unwrap().is_empty());
}

#[test]
fn rings_outside_of_ram_need_a_reset() {
    let bench = Bench::new(Copier::default());
    bench.enable_memory();
    bench.negotiate();
    bench.set_up_queue(0, [0x0F_FFF0, 0x2000, 0x3000]);
    bench.write(0x14, &[0xF]);
    assert_eq!(bench.status(), 0xF | status::NEEDS_RESET);
    assert!(bench.active.lock().unwrap().is_none());
    bench.write(0x14, &[0]);
    assert_eq!(bench.status(), 0);
}

#[test]
fn a_device_that_cannot_begin_needs_a_reset() {
    let bench = Bench::new(Copier { refuses: true, ..Copier::default() });
    let memory = bench.wiring.memory.clone();
    bench.begin(&MockSplitQueue::new(&memory, 16));
    assert_eq!(bench.status(), 0xF | status::NEEDS_RESET);
    assert!(bench.places.0.lock().unwrap().is_empty());
}

#[test]
fn without_msix_a_line_is_held() {
    let bench = Bench::new(Copier::default());
    let memory = bench.wiring.memory.clone();
    bench.begin(&MockSplitQueue::new(&memory, 16));
    bench.root.write_config(1, bench.capability(0x11) + 2, &[0, 0]);
    bench.work();
    assert!(bench.chip.high.lock().unwrap().contains(&17));
    assert_eq!([bench.read(0x1000, 1), bench.read(0x1000, 1)], [1, 0]);
    assert!(bench.chip.high.lock().unwrap().is_empty());
}

#[test]
fn masked_vectors_are_pending() {
    let bench = Bench::new(Copier::default());
    let memory = bench.wiring.memory.clone();
    bench.begin(&MockSplitQueue::new(&memory, 16));
    bench.write(0x4000 + 16 + 12, &[1, 0, 0, 0]);
    bench.work();
    assert_eq!(bench.read(0x5000, 8), 0b10);
}

#[test]
fn the_window_reaches_the_bar() {
    let bench = Bench::new(Copier { config: *b"abcd", ..Copier::default() });
    // The fifth capability, a link back from MSI-X.
    let window = bench.capability(0x11) - 20;
    let set = |offset: u32, length: u32| {
        bench.root.write_config(1, window + 4, &[0]);
        bench.root.write_config(1, window + 8, &offset.to_le_bytes());
        bench.root.write_config(1, window + 12, &length.to_le_bytes());
    };
    let read = |length: usize| {
        let mut data = [0xFF; 4];
        bench.root.read_config(1, window + 16, &mut data[..length]);
        data
    };
    set(0x2000, 4);
    assert_eq!(read(4), *b"abcd");
    set(0x2002, 2);
    bench.root.write_config(1, window + 16, b"xy");
    set(0x2000, 4);
    assert_eq!(read(4), *b"abxy");
    set(0x2001, 2);
    assert_ne!(&read(2)[..2], b"bx", "not aligned");
    set(0x2000, 0);
    read(4);
}

#[test]
fn a_moved_device_goes_on_where_it_was() {
    let before = Bench::new(Copier { config: *b"conf", ..Copier::default() });
    let memory = before.wiring.memory.clone();
    let mock = MockSplitQueue::new(&memory, 16);
    before.begin(&mock);
    offer(&memory, &mock, b"first");
    assert_eq!(before.work(), 1);
    before.write(0x4000 + 16 + 12, &[1, 0, 0, 0]);
    before.active.lock().unwrap().as_ref().unwrap().interrupt.queue(0);

    let after = before.moved();
    assert!(after.active.lock().unwrap().is_none(), "not before it is resumed");
    after.root.function(1).unwrap().resume().unwrap();
    assert_eq!((after.status(), after.read(0x2000, 4)), (0xF, u32::from_le_bytes(*b"conf").into()));
    assert_eq!(*after.places.0.lock().unwrap(), [BAR + 0x3000]);
    assert_eq!(after.read(0x5000, 8), 0b10, "still pending");
    assert_eq!(after.chip.connected.lock().unwrap().len(), 2);
    assert!(after.is_notified(), "it looks at its queues");
    assert_eq!(after.work(), 0, "what was used is not used again");
    let state =
        |bench: &Bench| bench.active.lock().unwrap().as_ref().unwrap().queues[0].as_ref().unwrap().queue.state();
    assert_eq!(state(&before), state(&after));
}

#[test]
fn state_that_fits_nothing_is_refused() {
    let bench = Bench::new(Copier::default());
    let memory = bench.wiring.memory.clone();
    bench.begin(&MockSplitQueue::new(&memory, 16));
    let function = bench.root.function(1).unwrap();
    assert!(matches!(function.save(), Saved::Unsupported(_)), "running");
    function.pause();
    let Saved::State(unit) = function.save() else { panic!("it can be saved") };
    let text = String::from_utf8(unit.unpacked().bytes).unwrap();
    for (from, to) in [
        ("\"device_id\":4", "\"device_id\":5"),
        ("\"size\":16", "\"size\":15"),
        ("\"avail_ring\":", "\"avail_ring\":9"),
        ("\"event_idx\":true", "\"event_idx\":false"),
        ("\"kind\":\"copier\"", "\"kind\":\"block\""),
        ("\"status\":15", "\"status\":3"),
        ("\"vector\":1", "\"vector\":9"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let changed: serde_json::Value = serde_json::from_str(&changed).unwrap();
        let unit = Unit::pack(&unit.kind, unit.version, &changed);
        let result = VirtioPci::restore(Box::new(Copier::default()), bench.wiring.clone(), &unit);
        assert!(result.is_err(), "{to}");
    }
    assert!(VirtioPci::restore(Box::new(Copier::default()), bench.wiring.clone(), &unit).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_a_guest_does_breaks_anything(
        accesses in proptest::collection::vec(
            (any::<bool>(), prop_oneof![0u64..0x40, 0x1000u64..0x1010, 0x2000u64..0x2008, 0x3000u64..0x3010, 0x4000u64..0x4040, 0u64..0x9000], any::<u64>(), 0usize..4, any::<bool>()),
            0..200,
        )
    ) {
        let bench = Bench::new(Copier::default());
        bench.enable_memory();
        for (is_config, offset, value, size, is_read) in accesses {
            // Small values get further than random ones.
            let data = (if value % 2 == 0 { value } else { value >> 60 }).to_le_bytes();
            let data = &data[..1 << size];
            match (is_config, is_read) {
                (false, true) => { bench.read(offset, data.len()); }
                (false, false) => bench.write(offset, data),
                (true, true) => bench.root.read_config(1, (offset % 0x100) as u16, &mut [0; 8][..data.len()]),
                (true, false) => bench.root.write_config(1, (offset % 0x100) as u16, data),
            }
        }
        let is_active = bench.active.lock().unwrap().is_some();
        prop_assert!(is_active || bench.places.0.lock().unwrap().is_empty());
        bench.root.reset();
        prop_assert!(bench.chip.connected.lock().unwrap().is_empty());
        prop_assert!(bench.chip.high.lock().unwrap().is_empty());
    }
}

/// A disk, read before and after it was moved to another process.
#[test]
fn a_disk_works_behind_it() {
    let mut file = tempfile::tempfile().unwrap();
    let sectors: Vec<u8> = (0..8u8).flat_map(|sector| [sector; 512]).collect();
    io::Write::write_all(&mut file, &sectors).unwrap();
    let options = BlockOptions {
        read_only: true,
        direct: false,
        discard: false,
        kinds: Kinds::default(),
        serial: "disk".into(),
        queues: 1,
        queue_size: 16,
    };
    let disk = || Box::new(Block::new(file.try_clone().unwrap(), &options, None).unwrap());
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    let mock = MockSplitQueue::new(&memory, 16);
    let before = Bench::empty(&Copier::default(), memory.clone()).with(disk());
    before.begin(&mock);
    assert_eq!(before.read(0x2000, 8), 8, "sectors");
    assert_eq!(read_sector(&before, &mock, 3), [3; 512]);
    let after = Bench::empty(&Copier::default(), memory.clone()).restored(disk(), &before.saved());
    after.root.function(1).unwrap().resume().unwrap();
    assert_eq!(read_sector(&after, &mock, 5), [5; 512]);
}

fn read_sector(bench: &Bench, mock: &MockSplitQueue<'_, GuestMemory>, sector: u64) -> [u8; 512] {
    let memory = &bench.wiring.memory;
    let used = || memory.read_obj::<u16>(mock.used_addr().unchecked_add(2)).unwrap();
    let before = used();
    memory.write_obj(0u64, GuestAddress(0x8000)).unwrap();
    memory.write_obj(sector, GuestAddress(0x8008)).unwrap();
    let chain =
        [Descriptor::new(0x8000, 16, 1, 1), Descriptor::new(0x9000, 512, 1 | 2, 2), Descriptor::new(0xA000, 1, 2, 0)];
    mock.add_desc_chains(&chain.map(Into::into), 0).unwrap();
    bench.write(0x3000, &[0, 0]);
    let until = Instant::now() + Duration::from_secs(20);
    while used() == before {
        assert!(Instant::now() < until, "no answer");
        std::thread::yield_now();
    }
    let mut data = [0; 512];
    memory.read_slice(&mut data, GuestAddress(0x9000)).unwrap();
    data
}
