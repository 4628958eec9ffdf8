//! The common configuration structure (section 4.1.4.3): features, status, and the configuration of queues.

use serde::{Deserialize, Serialize};

/// No vector: no interrupt.
pub const NO_VECTOR: u16 = 0xFFFF;

/// `VIRTIO_F_VERSION_1`: without it this transport can't be used.
const VERSION_1: u64 = 1 << 32;

/// Bits of the device status that mean something to the device (section 2.1).
pub mod status {
    /// The guest has a driver for it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready: queues are in use, and their configuration is frozen.
    pub const DRIVER_OK: u8 = 4;
    /// Both sides agree on features.
    pub const FEATURES_OK: u8 = 8;
    /// The device can't go on.
    pub const NEEDS_RESET: u8 = 0x40;
}

/// Bytes of the structure.
pub const SIZE: usize = 0x38;

/// What has to be done after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Vectors were assigned.
    Vectors,
    /// The driver is ready.
    Activate,
    /// The driver wants the device to start over.
    Reset,
}

/// The registers. Once the driver is ready, only a reset changes anything of the queues: a device may rely on what it was
/// activated with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    offered: u64,
    vectors: u16,
    driver: Driver,
    queues: Vec<QueueRegisters>,
}

/// What the driver has written, apart from queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Driver {
    feature_select: u32,
    driver_feature_select: u32,
    features: u64,
    status: u8,
    queue_select: u16,
    config_vector: u16,
}

/// One queue's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// Largest size.
    pub max_size: u16,
    /// Size that the driver chose.
    pub size: u16,
    /// MSI-X vector.
    pub vector: u16,
    /// In use.
    pub is_enabled: bool,
    /// Guest addresses: descriptor table, available ring, used ring.
    pub rings: [u64; 3],
}

/// Saved [`Registers`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedRegisters {
    driver: Driver,
    queues: Vec<QueueRegisters>,
}

impl Registers {
    /// Registers of a device with these features and largest queue sizes, and so many MSI-X vectors.
    #[must_use]
    pub fn new(offered: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        let queue = |&max_size: &u16| QueueRegisters {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            is_enabled: false,
            rings: [0; 3],
        };
        let driver = Driver {
            feature_select: 0,
            driver_feature_select: 0,
            features: 0,
            status: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
        };
        Self { offered, vectors, driver, queues: queue_sizes.iter().map(queue).collect() }
    }

    /// Back to how they were.
    pub fn reset(&mut self) {
        let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, &sizes, self.vectors);
    }

    /// Features agreed on.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.driver.features & self.offered
    }

    /// Whether the driver is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.driver.status & status::DRIVER_OK != 0
    }

    /// The queues.
    #[must_use]
    pub fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// Vector for changes of configuration.
    #[must_use]
    pub fn config_vector(&self) -> u16 {
        self.driver.config_vector
    }

    /// Reads, given what the device itself says: its configuration's generation, and whether it can't go on.
    pub fn read(&self, offset: u64, data: &mut [u8], generation: u8, needs_reset: bool) {
        let image = self.image(generation, needs_reset);
        let start = usize::try_from(offset).unwrap_or(SIZE);
        if let Some(bytes) = image.get(start..).and_then(|rest| rest.get(..data.len())) {
            data.copy_from_slice(bytes);
        }
    }

    fn image(&self, generation: u8, needs_reset: bool) -> [u8; SIZE] {
        let window = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let driver = &self.driver;
        let mut image = [0; SIZE];
        let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0x00, &driver.feature_select.to_le_bytes());
        put(0x04, &window(self.offered, driver.feature_select).to_le_bytes());
        put(0x08, &driver.driver_feature_select.to_le_bytes());
        put(0x0C, &window(driver.features, driver.driver_feature_select).to_le_bytes());
        put(0x10, &driver.config_vector.to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[driver.status | if needs_reset { status::NEEDS_RESET } else { 0 }, generation]);
        put(0x16, &driver.queue_select.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = self.queues.get(usize::from(driver.queue_select)) {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1A, &queue.vector.to_le_bytes());
            put(0x1C, &u16::from(queue.is_enabled).to_le_bytes());
            put(0x1E, &driver.queue_select.to_le_bytes());
            for (ring, offset) in queue.rings.iter().zip([0x20, 0x28, 0x30]) {
                put(offset, &ring.to_le_bytes());
            }
        }
        image
    }

    /// Writes one field, or half of one of 64 bits; anything else is lost.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        match (offset, data) {
            (0x00, &[a, b, c, d]) => self.driver.feature_select = u32::from_le_bytes([a, b, c, d]),
            (0x08, &[a, b, c, d]) => self.driver.driver_feature_select = u32::from_le_bytes([a, b, c, d]),
            (0x0C, &[a, b, c, d]) => self.write_features(u32::from_le_bytes([a, b, c, d])),
            (0x10, &[a, b]) => {
                self.driver.config_vector = self.existing_vector(u16::from_le_bytes([a, b]));
                return Action::Vectors;
            }
            (0x14, &[value]) => return self.write_status(value),
            (0x16, &[a, b]) => self.driver.queue_select = u16::from_le_bytes([a, b]),
            (0x18.., _) if !self.is_ready() => return self.write_queue(offset, data),
            _ => {}
        }
        Action::Nothing
    }

    /// Features are frozen from `FEATURES_OK` on.
    fn write_features(&mut self, value: u32) {
        if self.driver.status & status::FEATURES_OK == 0 && self.driver.driver_feature_select < 2 {
            let shift = 32 * self.driver.driver_feature_select;
            self.driver.features = self.driver.features & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
        }
    }

    /// Bits only come, and in order; those that can't come yet are lost, and the driver sees that when it reads back.
    fn write_status(&mut self, value: u8) -> Action {
        if value == 0 {
            return Action::Reset;
        }
        let old = self.driver.status;
        let mut new = old | value & !status::NEEDS_RESET;
        let is_acceptable = self.driver.features & !self.offered == 0 && self.driver.features & VERSION_1 != 0;
        if old & status::FEATURES_OK == 0 && (new & status::DRIVER == 0 || !is_acceptable) {
            new &= !status::FEATURES_OK;
        }
        if new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.driver.status = new;
        if new & !old & status::DRIVER_OK != 0 { Action::Activate } else { Action::Nothing }
    }

    fn existing_vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    fn write_queue(&mut self, offset: u64, data: &[u8]) -> Action {
        let vector = |bytes| self.existing_vector(u16::from_le_bytes(bytes));
        let assigned = if let (0x1A, &[a, b]) = (offset, data) { Some(vector([a, b])) } else { None };
        let Some(queue) = self.queues.get_mut(usize::from(self.driver.queue_select)) else { return Action::Nothing };
        if let Some(vector) = assigned {
            queue.vector = vector;
            return Action::Vectors;
        }
        // What an enabled queue is made of stays.
        if queue.is_enabled {
            return Action::Nothing;
        }
        match (offset, data) {
            (0x18, &[a, b]) => {
                let size = u16::from_le_bytes([a, b]);
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            (0x1C, &[1, 0]) => queue.is_enabled = true,
            (0x20..0x38, _) if matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64) => {
                let (ring, at) = ((offset as usize - 0x20) / 8, offset as usize % 8);
                let mut bytes = queue.rings[ring].to_le_bytes();
                bytes[at..at + data.len()].copy_from_slice(data);
                queue.rings[ring] = u64::from_le_bytes(bytes);
            }
            _ => {}
        }
        Action::Nothing
    }

    /// For a snapshot.
    #[must_use]
    pub fn saved(&self) -> SavedRegisters {
        SavedRegisters { driver: self.driver, queues: self.queues.clone() }
    }

    /// Takes over saved registers.
    ///
    /// # Errors
    /// When this device could not have them: what does not fit.
    pub fn restore(&mut self, saved: &SavedRegisters) -> Result<(), &'static str> {
        let SavedRegisters { driver, queues } = saved;
        let is_vector = |vector: u16| vector < self.vectors || vector == NO_VECTOR;
        let is_ready = driver.status & status::DRIVER_OK != 0;
        if driver.status & status::FEATURES_OK != 0 && driver.features & !self.offered != 0 {
            return Err("features that the device does not have");
        }
        if is_ready && driver.status & status::FEATURES_OK == 0 {
            return Err("a driver that is ready without having agreed on features");
        }
        if queues.len() != self.queues.len() {
            return Err("another number of queues");
        }
        for (new, own) in queues.iter().zip(&self.queues) {
            if new.max_size != own.max_size || new.size > new.max_size || !new.size.is_power_of_two() {
                return Err("queues of other sizes");
            }
        }
        if !is_vector(driver.config_vector) || !queues.iter().all(|queue| is_vector(queue.vector)) {
            return Err("vectors that do not exist");
        }
        self.driver = *driver;
        self.queues.clone_from(queues);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFFERED: u64 = VERSION_1 | 0b1011;

    fn registers() -> Registers {
        Registers::new(OFFERED, &[256, 64], 3)
    }

    fn read(registers: &Registers, offset: u64, length: usize) -> u64 {
        let mut data = [0; 8];
        registers.read(offset, &mut data[..length], 0, false);
        u64::from_le_bytes(data)
    }

    fn negotiate(registers: &mut Registers, features: u64) -> u8 {
        registers.write(0x14, &[1]);
        registers.write(0x14, &[1 | status::DRIVER]);
        for (select, half) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            registers.write(0x08, &select.to_le_bytes());
            registers.write(0x0C, &half.to_le_bytes());
        }
        registers.write(0x14, &[1 | status::DRIVER | status::FEATURES_OK]);
        read(registers, 0x14, 1) as u8
    }

    #[test]
    fn features_are_read_by_halves() {
        let mut registers = registers();
        assert_eq!(read(&registers, 4, 4), 0b1011);
        registers.write(0, &[1, 0, 0, 0]);
        assert_eq!(read(&registers, 4, 4), 1);
        registers.write(0, &[2, 0, 0, 0]);
        assert_eq!(read(&registers, 4, 4), 0);
    }

    #[test]
    fn features_that_are_not_offered_are_not_ok() {
        for (features, is_ok) in
            [(VERSION_1 | 1, true), (OFFERED, true), (VERSION_1 | 4, false), (1, false), (VERSION_1 | 1 << 63, false)]
        {
            let status = negotiate(&mut registers(), features);
            assert_eq!(status & status::FEATURES_OK != 0, is_ok, "{features:#x}");
        }
    }

    #[test]
    fn features_do_not_change_once_ok() {
        let mut registers = registers();
        negotiate(&mut registers, VERSION_1 | 1);
        negotiate(&mut registers, VERSION_1 | 3);
        assert_eq!(registers.features(), VERSION_1 | 1);
    }

    #[test]
    fn a_driver_is_not_ready_before_features_are_ok() {
        let mut registers = registers();
        assert_eq!(registers.write(0x14, &[status::DRIVER | status::DRIVER_OK]), Action::Nothing);
        assert!(!registers.is_ready());
        negotiate(&mut registers, OFFERED);
        assert_eq!(registers.write(0x14, &[status::DRIVER_OK]), Action::Activate);
        assert_eq!(registers.write(0x14, &[status::DRIVER_OK]), Action::Nothing, "once");
        assert_eq!(registers.write(0x14, &[0]), Action::Reset);
    }

    #[test]
    fn queues_are_frozen_once_the_driver_is_ready() {
        let mut registers = registers();
        negotiate(&mut registers, OFFERED);
        let configure = |registers: &mut Registers, size: u16, address: u64| {
            registers.write(0x16, &[1, 0]);
            registers.write(0x18, &size.to_le_bytes());
            registers.write(0x1A, &[2, 0]);
            registers.write(0x20, &(address as u32).to_le_bytes());
            registers.write(0x24, &((address >> 32) as u32).to_le_bytes());
            registers.write(0x28, &(address + 1).to_le_bytes());
        };
        configure(&mut registers, 32, 0x1_0000_1000);
        let expected = QueueRegisters {
            max_size: 64,
            size: 32,
            vector: 2,
            is_enabled: false,
            rings: [0x1_0000_1000, 0x1_0000_1001, 0],
        };
        assert_eq!(registers.queues()[1], expected);
        registers.write(0x1C, &[1, 0]);
        configure(&mut registers, 16, 0x2000);
        assert_eq!(registers.queues()[1], QueueRegisters { is_enabled: true, ..expected }, "enabled");
        registers.write(0x14, &[status::DRIVER_OK]);
        registers.write(0x16, &[0, 0]);
        let before = registers.clone();
        for (offset, data) in [(0x18, &[8, 0][..]), (0x1A, &[0, 0]), (0x1C, &[1, 0]), (0x20, &[1; 8]), (0x30, &[1; 4])]
        {
            assert_eq!(registers.write(offset, data), Action::Nothing);
        }
        assert_eq!(registers, before, "ready");
    }

    #[test]
    fn what_does_not_exist_reads_as_nothing() {
        let mut registers = registers();
        registers.write(0x16, &[2, 0]);
        assert_eq!(read(&registers, 0x18, 2), 0);
        registers.write(0x1C, &[1, 0]);
        registers.write(0x16, &[0, 0]);
        registers.write(0x18, &[0xFF, 0]);
        registers.write(0x18, &512u16.to_le_bytes());
        assert_eq!(read(&registers, 0x18, 2), 256);
        registers.write(0x1A, &[3, 0]);
        assert_eq!(read(&registers, 0x1A, 2), u64::from(NO_VECTOR));
        let mut data = [0xFF; 4];
        registers.read(0x36, &mut data, 0, false);
        registers.read(u64::MAX, &mut data, 0, false);
        assert_eq!(data, [0xFF; 4]);
    }

    #[test]
    fn the_device_speaks_through_status_and_generation() {
        let mut data = [0; 2];
        registers().read(0x14, &mut data, 7, true);
        assert_eq!(data, [status::NEEDS_RESET, 7]);
    }

    proptest! {
        #[test]
        fn whatever_is_written_can_be_restored(
            writes in proptest::collection::vec((0u64..0x3C, any::<[u8; 8]>(), prop_oneof![Just(1usize), Just(2), Just(4), Just(8)], any::<bool>()), 0..100)
        ) {
            let mut registers = registers();
            for (offset, mut data, length, is_small) in writes {
                if is_small {
                    data[1..].fill(0);
                    data[0] &= 0xF;
                }
                let was_ready = registers.is_ready();
                let queues = registers.queues().to_vec();
                if registers.write(offset, &data[..length]) == Action::Reset {
                    registers.reset();
                    continue;
                }
                prop_assert!(!was_ready || registers.queues() == queues);
                prop_assert!(registers.queues().iter().all(|queue| queue.size.is_power_of_two() && queue.size <= queue.max_size));
                let mut restored = super::tests::registers();
                prop_assert_eq!(restored.restore(&registers.saved()), Ok(()));
                prop_assert_eq!(&restored, &registers);
            }
        }
    }
}
