//! A file that the guest finds as memory (section 5.19): no copy, no request, and guests of a host share its pages.
//!
//! The machine puts [`Pmem::mapping`] into the guest's address space and says where by [`Pmem::place`]; this device
//! tells the guest, and brings what it wrote to stable storage when it asks for that.
#![allow(unsafe_code, reason = "a file is mapped over a part of a larger mapping")]

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap};
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use virtio_queue::QueueState;
use vm_memory::MmapRegion;
use vmm_sys_util::epoll::EventSet;

use super::chain::Chain;
use super::config::{self, ConfigSpace};
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{DeviceQueue, RING_FEATURES};
use super::worker::{Filter, Handler, Life, Poll};
use crate::counters::{Counter, Counts};
use crate::snapshot::{InvalidState, Saved, Unit};

/// Bytes that address and size are a multiple of, so that the guest can map it with large pages.
pub const ALIGNMENT: u64 = 2 << 20;

/// Bytes of a page of the host's.
const PAGE: u64 = 4096;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`, the only request there is.
const FLUSH: u32 = 0;

/// Requests in a row before a pause may come.
const TURN: usize = 64;

const QUEUE_SIZES: [u16; 1] = [64];
const NAME: &str = "vse-pmem";

/// What the guest may do with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PmemMode {
    /// Read it.
    ReadOnly,
    /// Write to it, seen by nobody else and lost at the end. Each page that it writes takes memory.
    Private,
    /// Write to it.
    Shared,
}

/// A file as memory.
pub struct Pmem {
    file: Arc<File>,
    mode: PmemMode,
    mapping: Arc<MmapRegion>,
    config: ConfigSpace<16>,
    flushes: Arc<Counter>,
    life: Life<PmemHandler>,
}

impl Pmem {
    /// Maps `file` as `size` bytes, or as many as it has, rounded up. Nothing may shorten it from now on: whoever reads
    /// what is gone ends. What is behind its end reads as zeroes. Its thread is confined by `filter`.
    ///
    /// # Errors
    /// When the size does not fit, or the kernel refuses.
    pub fn new(file: File, mode: PmemMode, size: Option<u64>, filter: Filter) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let length = file.metadata()?.len();
        let size = size.unwrap_or(length.next_multiple_of(ALIGNMENT));
        if length == 0 || size < length || !size.is_multiple_of(ALIGNMENT) {
            return Err(invalid("persistent memory is not empty, not smaller than its file, and a multiple of 2 MiB"));
        }
        if mode == PmemMode::Shared && length != size {
            // What is written behind the file's end would be lost silently.
            return Err(invalid("a file that is written to as persistent memory is as large as that"));
        }
        Ok(Self {
            mapping: Arc::new(map(&file, mode, length, size)?),
            file: Arc::new(file),
            mode,
            config: ConfigSpace::default(),
            flushes: Arc::default(),
            life: Life::new(NAME, filter)?,
        })
    }

    /// What the guest finds.
    #[must_use]
    pub fn mapping(&self) -> &Arc<MmapRegion> {
        &self.mapping
    }

    /// Whether it has to be put into the guest's address space for reading only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.mode == PmemMode::ReadOnly
    }

    /// Where it is in the guest's address space, a multiple of [`ALIGNMENT`]. Before the driver looks.
    pub fn place(&mut self, address: u64) {
        self.config.put(0, &address.to_le_bytes());
        self.config.put(8, &(self.mapping.size() as u64).to_le_bytes());
    }
}

/// Maps `length` bytes of a file, and zeroes up to `size`.
fn map(file: &File, mode: PmemMode, length: u64, size: u64) -> io::Result<MmapRegion> {
    let (protection, sharing) = match mode {
        PmemMode::ReadOnly => (ProtFlags::READ, MapFlags::SHARED),
        PmemMode::Private => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE),
        PmemMode::Shared => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
    };
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (size, length) = (usize::try_from(size).map_err(too_large)?, length.next_multiple_of(PAGE));
    let all = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let flags = all.bits() as i32 | libc::MAP_ANONYMOUS;
    let region = MmapRegion::build(None, size, protection.bits() as i32, flags).map_err(io::Error::other)?;
    let length = usize::try_from(length).map_err(too_large)?;
    let flags = sharing | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the range is the start of `region`, which nobody has used yet and which unmaps all of it in the end.
    unsafe { mmap(region.as_ptr().cast(), length, protection, flags, file, 0) }?;
    Ok(region)
}

impl VirtioDevice for Pmem {
    fn id(&self) -> u16 {
        VIRTIO_ID_PMEM as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (_, mut queues) = DeviceQueue::take(activation, 1)?;
        let queue = queues.swap_remove(0).ok_or(ActivateError::QueueMissing(0))?;
        let file = (self.mode == PmemMode::Shared).then(|| self.file.clone());
        self.life.activate(PmemHandler { file, queue, flushes: self.flushes.clone() })
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
        vec![("flush_ops", self.flushes.get())]
    }

    fn save(&self) -> Saved {
        match self.mode {
            PmemMode::ReadOnly | PmemMode::Shared => Saved::Stateless,
            PmemMode::Private => Saved::Unsupported("what the guest wrote to private persistent memory is not saved"),
        }
    }

    fn restore(&mut self, unit: &Unit) -> Result<(), InvalidState> {
        config::no_state("virtio-pmem", unit)
    }
}

struct PmemHandler {
    /// What has to be flushed, if anything can be written.
    file: Option<Arc<File>>,
    queue: DeviceQueue,
    flushes: Arc<Counter>,
}

impl PmemHandler {
    fn serve(&mut self) {
        let mut chain = Chain::default();
        let mut left = TURN;
        loop {
            self.queue.suppress_notifications();
            while left > 0 && self.queue.pop(&mut chain) {
                left -= 1;
                let is_done = self.obey(&chain);
                self.flushes.add(is_done.into());
                let answer = u32::from(!is_done).to_le_bytes();
                let written = chain.writable().write(self.queue.memory(), &answer);
                self.queue.complete(chain.head(), written as u32);
                // One flush may take long; who asked for it needn't wait for the others.
                self.queue.signal();
            }
            if left == 0 {
                return self.queue.notify_self();
            }
            if !self.queue.enable_notifications() {
                return;
            }
        }
    }

    fn obey(&self, chain: &Chain) -> bool {
        let mut request = [0; 4];
        let is_whole = chain.readable().read(self.queue.memory(), &mut request) == request.len();
        let flushed = self.file.as_ref().map_or(Ok(()), |file| file.sync_data());
        is_whole && u32::from_le_bytes(request) == FLUSH && flushed.is_ok()
    }
}

impl Handler for PmemHandler {
    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        poll.add_queues([&self.queue])?;
        self.serve();
        Ok(())
    }

    fn ready(&mut self, _token: u64, _events: EventSet, _poll: &Poll) {
        // Readable means that it has a count; it is not of interest.
        let _ = self.queue.notified().read();
        self.serve();
    }

    fn stop(&mut self) {}

    fn queues(&self) -> Vec<Option<&DeviceQueue>> {
        vec![Some(&self.queue)]
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, VolatileMemory};

    use super::*;
    use crate::virtio::testing::{BUFFERS, Bench, input, output};

    fn file(length: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; length]).unwrap();
        file
    }

    fn read(pmem: &Pmem, offset: usize) -> u8 {
        pmem.mapping().get_slice(offset, 1).unwrap().read_obj(0).unwrap()
    }

    #[test]
    fn a_file_is_mapped_and_zeroes_follow() {
        let length = 3 << 20 | 5;
        let mut pmem = Pmem::new(file(length), PmemMode::ReadOnly, None, None).unwrap();
        assert!(pmem.is_read_only());
        assert_eq!(pmem.mapping().size(), 4 << 20);
        assert_eq!([0, length - 1, length, (4 << 20) - 1].map(|at| read(&pmem, at)), [7, 7, 0, 0]);
        pmem.place(0x1_4000_0000);
        let mut config = [0xff; 18];
        pmem.read_config(0, &mut config);
        assert_eq!(config, [0, 0, 0, 0x40, 1, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0xff, 0xff]);
    }

    #[test]
    fn what_is_written_goes_where_the_mode_says() {
        for (mode, expected) in [(PmemMode::Shared, 9), (PmemMode::Private, 7)] {
            let file = file(2 << 20);
            let pmem = Pmem::new(file.try_clone().unwrap(), mode, None, None).unwrap();
            pmem.mapping().get_slice(100, 1).unwrap().write_obj(9_u8, 0).unwrap();
            let mut bench = Bench::new(pmem, 0);
            bench.rings[0].put(BUFFERS, &[0; 4]);
            bench.rings[0].put(BUFFERS + 8, &[0xee; 4]);
            assert_eq!(bench.exchange(0, &[input(BUFFERS, 4), output(BUFFERS + 8, 4)]), 4);
            assert_eq!(bench.rings[0].get::<4>(BUFFERS + 8), [0; 4]);
            // Another request, and half of one.
            bench.rings[0].put(BUFFERS, &[1; 4]);
            bench.exchange(0, &[input(BUFFERS, 4), output(BUFFERS + 8, 4)]);
            assert_eq!(bench.rings[0].get::<4>(BUFFERS + 8), [1, 0, 0, 0]);
            bench.device.pause();
            bench.device.resume().unwrap();
            bench.exchange(0, &[input(BUFFERS + 0x100, 2), output(BUFFERS + 8, 4)]);
            assert_eq!(bench.rings[0].get::<4>(BUFFERS + 8), [1, 0, 0, 0]);
            assert_eq!(bench.device.counters(), [("flush_ops", 1)]);
            let mut byte = [0];
            file.read_exact_at(&mut byte, 100).unwrap();
            assert_eq!(byte, [expected]);
            assert_eq!(matches!(bench.device.save(), Saved::Unsupported(_)), mode == PmemMode::Private);
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let new = |length, mode, size| Pmem::new(file(length), mode, size, None);
        assert!(new(0, PmemMode::ReadOnly, None).is_err());
        assert!(new(4096, PmemMode::ReadOnly, Some(3 << 20)).is_err());
        assert!(new(3 << 20, PmemMode::ReadOnly, Some(2 << 20)).is_err());
        assert!(new(4096, PmemMode::Shared, None).is_err());
        assert!(new(4096, PmemMode::Private, Some(8 << 20)).is_ok());
    }
}
