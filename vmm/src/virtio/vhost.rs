//! Queues that somebody else works on: vhost in the kernel, or a vhost-user process. What net, vsock and fs share.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vhost::vhost_kern::VhostKernBackend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::DeviceQueue;
use super::worker::Poll;
use crate::memory::GuestMemory;

/// An open vhost device of the kernel's.
pub struct KernelVhost {
    file: Arc<File>,
    memory: Arc<GuestMemory>,
}

impl KernelVhost {
    /// The device, for this guest's memory.
    #[must_use]
    pub fn new(file: Arc<File>, memory: Arc<GuestMemory>) -> Self {
        Self { file, memory }
    }
}

impl AsRawFd for KernelVhost {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl VhostKernBackend for KernelVhost {
    type AS = Arc<GuestMemory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }
}

/// Makes this process the device's owner. It is already when a guest before this one had the same descriptor.
///
/// # Errors
/// When another process is.
pub fn claim(vhost: &KernelVhost) -> io::Result<()> {
    match vhost.set_owner().map_err(failed) {
        // Nobody but the owner is told that.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => vhost.get_vring_base(0).map(drop).map_err(failed),
        other => other,
    }
}

/// What vhost says, as an error of the system's.
pub fn failed(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::IoctlError(error) | vhost::Error::IOError(error) | vhost::Error::VhostOpen(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// The table of guest RAM, as the kernel takes it.
///
/// # Errors
/// Never, for a guest has RAM.
pub fn set_memory(backend: &impl VhostBackend, memory: &GuestMemory) -> io::Result<()> {
    let region = |region: &<GuestMemory as GuestMemoryBackend>::R| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        mmap_offset: 0,
        mmap_handle: -1,
    };
    let regions: Vec<_> = memory.iter().map(region).collect();
    backend.set_mem_table(&regions).map_err(failed)?;
    Ok(())
}

/// Whether another process can have guest RAM too.
#[must_use]
pub fn is_shared(memory: &GuestMemory) -> bool {
    memory.iter().all(|region| region.file_offset().is_some() && region.flags() & libc::MAP_SHARED != 0)
}

/// The same, for another process: each region's file and where in it. "User addresses", which rings are found by, are
/// guest addresses; what this process has where is nobody's business.
///
/// # Errors
/// When RAM isn't shared.
pub fn share_memory(backend: &impl VhostBackend, memory: &GuestMemory) -> io::Result<()> {
    if !is_shared(memory) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "guest memory is not shared"));
    }
    let regions = memory.iter().map(|region| {
        let info = VhostUserMemoryRegionInfo::from_guest_region(region).map_err(failed)?;
        Ok(VhostUserMemoryRegionInfo { userspace_addr: info.guest_phys_addr, ..info })
    });
    backend.set_mem_table(&regions.collect::<io::Result<Vec<_>>>()?).map_err(failed)?;
    Ok(())
}

/// Interrupts for queues whose driver gave them no vector: they come by this process.
#[derive(Default)]
pub struct Relay(Vec<(u16, EventFd)>);

impl Relay {
    /// The event that `queue` interrupts by.
    fn event(&mut self, queue: &DeviceQueue, poll: &Poll, token: u64) -> io::Result<EventFd> {
        if let Some(event) = queue.interrupt().event(queue.index()) {
            return Ok(event);
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        poll.add(&event, EventSet::IN, token + u64::from(queue.index()))?;
        self.0.push((queue.index(), event.try_clone()?));
        Ok(event)
    }

    /// Interrupts for the queue with this index.
    pub fn relay(&self, index: u64, queue: &DeviceQueue) {
        for (_, event) in self.0.iter().filter(|(of, _)| u64::from(*of) == index) {
            if event.read().is_ok() {
                queue.interrupt().queue(queue.index());
            }
        }
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Gives a queue away, as the back-end's ring `ring`. Interrupts that have no vector come by `relay`, with tokens from
/// `token` on.
///
/// # Errors
/// When the back-end refuses.
pub fn give(
    backend: &impl VhostBackend,
    ring: usize,
    queue: &DeviceQueue,
    poll: &Poll,
    relay: &mut Relay,
    token: u64,
) -> io::Result<()> {
    let rings = queue.rings();
    let config = VringConfigData {
        queue_max_size: rings.max_size(),
        queue_size: rings.size(),
        flags: 0,
        desc_table_addr: rings.desc_table(),
        used_ring_addr: rings.used_ring(),
        avail_ring_addr: rings.avail_ring(),
        log_addr: None,
    };
    let call = relay.event(queue, poll, token)?;
    backend.set_vring_num(ring, rings.size()).map_err(failed)?;
    backend.set_vring_base(ring, rings.next_avail()).map_err(failed)?;
    backend.set_vring_addr(ring, &config).map_err(failed)?;
    backend.set_vring_call(ring, &call).map_err(failed)?;
    backend.set_vring_kick(ring, queue.notified()).map_err(failed)
}

/// Takes a queue back, where the back-end has left off.
///
/// # Errors
/// When the back-end does not say where; the queue is then where it was given away.
pub fn take(backend: &impl VhostBackend, ring: usize, queue: &mut DeviceQueue) -> io::Result<()> {
    let base = backend.get_vring_base(ring).map_err(failed)?;
    queue.set_position(base as u16);
    Ok(())
}
