//! Memory slots: which host memory the guest finds at which address.
#![allow(unsafe_code, reason = "a memory slot hands host addresses to KVM")]

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::memory::GuestMemory;

/// Gives out memory slots of one VM.
#[derive(Debug, Clone)]
pub struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    vm: Arc<VmFd>,
    taken: Mutex<Vec<bool>>,
}

/// Host memory in the guest's address space; gone from there when dropped.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    number: u32,
    guest: u64,
    // The memory lives at least as long as KVM may reach it.
    _memory: Backing,
}

/// What keeps a slot's memory mapped in this process.
#[derive(Debug)]
enum Backing {
    Ram { _region: Arc<GuestRegionMmap> },
    Mapping { _mapping: Arc<MmapRegion> },
}

impl Slots {
    /// For a VM that has none yet.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { shared: Arc::new(Shared { vm, taken: Mutex::default() }) }
    }

    /// Puts all of RAM where it belongs.
    ///
    /// # Errors
    /// What KVM said.
    pub fn map_ram(&self, memory: &GuestMemory) -> Result<Vec<Slot>, kvm_ioctls::Error> {
        memory.iter().map(|region| self.map_region(region)).collect()
    }

    fn map_region(&self, region: &GuestRegionMmap) -> Result<Slot, kvm_ioctls::Error> {
        let mapping = region.get_mmap();
        let guest = region.start_addr().0;
        let Some(region) = GuestRegionMmap::with_arc(mapping, region.start_addr()) else {
            return Err(kvm_ioctls::Error::new(libc::EINVAL));
        };
        let (start, size) = (region.as_ptr(), region.size());
        self.map_backing(guest, start, size, false, Backing::Ram { _region: Arc::new(region) })
    }

    /// Puts a mapping (a file's pages, a device's registers) at a guest address.
    ///
    /// # Errors
    /// What KVM said, for example that something is there already.
    pub fn map(&self, guest: u64, mapping: Arc<MmapRegion>, read_only: bool) -> Result<Slot, kvm_ioctls::Error> {
        let (start, size) = (mapping.as_ptr(), mapping.size());
        self.map_backing(guest, start, size, read_only, Backing::Mapping { _mapping: mapping })
    }

    fn map_backing(
        &self,
        guest: u64,
        host: *mut u8,
        size: usize,
        read_only: bool,
        memory: Backing,
    ) -> Result<Slot, kvm_ioctls::Error> {
        let number = self.shared.take();
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: if read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: guest,
            memory_size: size as u64,
            userspace_addr: host as u64,
        };
        // SAFETY: `memory` keeps the range mapped for as long as the slot exists, and `Slot` removes the slot before it
        // lets go of it. What the guest does to it is what guest RAM and devices are for: nothing here holds references.
        let result = unsafe { self.shared.vm.set_user_memory_region(region) };
        let slot = Slot { shared: Arc::clone(&self.shared), number, guest, _memory: memory };
        result.map(|()| slot)
    }
}

impl Shared {
    fn take(&self) -> u32 {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = taken.iter().position(|taken| !taken).unwrap_or_else(|| {
            taken.push(false);
            taken.len() - 1
        });
        taken[free] = true;
        u32::try_from(free).unwrap_or(u32::MAX)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let region =
            kvm_userspace_memory_region { slot: self.number, guest_phys_addr: self.guest, ..Default::default() };
        // SAFETY: a size of zero removes the slot; KVM no longer reaches the memory when this returns.
        let _ = unsafe { self.shared.vm.set_user_memory_region(region) };
        let mut taken = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = taken.get_mut(self.number as usize) {
            *taken = false;
        }
    }
}
