//! A disk (section 5.2): raw, with several queues, asynchronous where the kernel allows it.
//!
//! What is offered is what the file behind it can do: a flush reaches stable storage, and blocks can be discarded or
//! zeroed only where holes can be made. Nothing of a disk outlives a pause but what is in its queues.

mod aio;
mod disk;
mod handler;
mod patience;
mod request;
mod ring;
mod uring;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;

use self::disk::Disk;
use self::handler::BlockHandler;
use self::request::{MOST_CLEARED, SECTOR, SERIAL};
pub use self::ring::Kinds;
use super::config::{self, ConfigSpace};
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{DeviceQueue, RING_FEATURES};
use super::worker::{Filter, Life};
use crate::counters::{Counts, Traffic};
use crate::snapshot::{InvalidState, Saved, Unit};

/// How a disk is shown to the guest.
#[derive(Debug, Clone)]
pub struct BlockOptions {
    /// The guest can't write.
    pub read_only: bool,
    /// Around the host's page cache.
    pub direct: bool,
    /// The guest may give space back.
    pub discard: bool,
    /// How it may be asynchronous.
    pub kinds: Kinds,
    /// What the guest sees as its serial number, cut at 20 bytes.
    pub serial: String,
    /// Queues.
    pub queues: u16,
    /// Descriptors of each, a power of two.
    pub queue_size: u16,
}

/// A disk.
pub struct Block {
    disk: Arc<Disk>,
    serial: [u8; SERIAL],
    kinds: Kinds,
    queue_sizes: Vec<u16>,
    features: u64,
    config: ConfigSpace<60>,
    traffic: Arc<Traffic>,
    life: Life<BlockHandler>,
}

/// Its thread's name.
const NAME: &str = "vse-block";

impl Block {
    /// A disk of what is in `file`. Its thread is confined by `filter`.
    ///
    /// # Errors
    /// When the file isn't open for what is wanted, or can't be used with `O_DIRECT`.
    pub fn new(file: File, options: &BlockOptions, filter: Filter) -> io::Result<Self> {
        let disk = Disk::new(file, !options.read_only, options.direct, options.discard)?;
        let mut features =
            RING_FEATURES | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_TOPOLOGY | 1 << VIRTIO_BLK_F_SEG_MAX;
        let mut offer = |feature: u32, is_there: bool| features |= u64::from(is_there) << feature;
        offer(VIRTIO_BLK_F_RO, options.read_only);
        offer(VIRTIO_BLK_F_FLUSH, !options.read_only);
        offer(VIRTIO_BLK_F_MQ, options.queues > 1);
        offer(VIRTIO_BLK_F_WRITE_ZEROES, disk.rules.can_clear);
        offer(VIRTIO_BLK_F_DISCARD, disk.rules.can_clear && disk.rules.may_unmap);
        let mut serial = [0; SERIAL];
        serial.iter_mut().zip(options.serial.bytes()).for_each(|(to, from)| *to = from);
        Ok(Self {
            config: config_space(&disk, options),
            disk: Arc::new(disk),
            serial,
            kinds: options.kinds,
            queue_sizes: vec![options.queue_size; usize::from(options.queues)],
            features,
            traffic: Arc::default(),
            life: Life::new(NAME, filter)?,
        })
    }
}

/// `struct virtio_blk_config` (5.2.4), up to `write_zeroes_may_unmap`.
fn config_space(disk: &Disk, options: &BlockOptions) -> ConfigSpace<60> {
    let block = disk.rules.block as u32;
    let blocks = disk.rules.block / SECTOR;
    let mut config = ConfigSpace::default();
    config.put(0, &disk.rules.sectors.to_le_bytes());
    // A chain also has a header and a status.
    config.put(12, &u32::from(options.queue_size.saturating_sub(2).max(1)).to_le_bytes());
    config.put(20, &block.to_le_bytes());
    config.put(24, &[(disk.physical_block / block).ilog2() as u8]);
    config.put(26, &1_u16.to_le_bytes());
    config.put(34, &options.queues.to_le_bytes());
    config.put(36, &MOST_CLEARED.to_le_bytes());
    config.put(40, &1_u32.to_le_bytes());
    config.put(44, &(blocks as u32).to_le_bytes());
    config.put(48, &MOST_CLEARED.to_le_bytes());
    config.put(52, &1_u32.to_le_bytes());
    config.put(56, &[u8::from(disk.rules.may_unmap)]);
    config
}

impl VirtioDevice for Block {
    fn id(&self) -> u16 {
        VIRTIO_ID_BLOCK as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        // A driver that doesn't flush relies on every write being durable (5.2.6.2).
        let knows_flush = activation.features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        let write_flags = if knows_flush { 0 } else { libc::RWF_DSYNC };
        let (memory, queues) = DeviceQueue::take(activation, 1)?;
        let (disk, traffic) = (self.disk.clone(), self.traffic.clone());
        let handler = BlockHandler::new(disk, self.serial, memory, queues, write_flags, self.kinds, traffic);
        self.life.activate(handler)
    }

    fn pause(&mut self) {
        self.life.pause();
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        self.life.resume()
    }

    fn reset(&mut self) {
        self.life.reset();
    }

    fn queue_states(&self) -> Vec<Option<QueueState>> {
        self.life.queue_states()
    }

    fn counters(&self) -> Counts {
        self.traffic.of_storage()
    }

    fn save(&self) -> Saved {
        Saved::Stateless
    }

    fn restore(&mut self, unit: &Unit) -> Result<(), InvalidState> {
        config::no_state("virtio-block", unit)
    }
}
