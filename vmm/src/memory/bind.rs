//! Where the pages of a mapping lie: binds them to a host cell, takes them ahead of time.
#![allow(
    unsafe_code,
    reason = "mbind and madvise act on raw addresses; both change where pages lie, never what is in them"
)]

use std::ffi::c_void;
use std::fs;
use std::io;
use std::thread;

use rustix::mm::Advice;
use rustix::thread::CpuSet;
use vm_memory::MmapRegion;

/// A mapping that lives as long as this does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area<'a> {
    mapping: &'a MmapRegion,
}

/// How pages come to lie on the cell they should.
#[derive(Debug)]
pub(super) enum Placement {
    /// They may lie anywhere.
    Anywhere,
    /// The kernel sees to it.
    Bound,
    /// The kernel does not let us bind (a container's seccomp filter gates `mbind`); pages touched first by these CPUs
    /// lie on their cell.
    FirstTouch(CpuSet),
}

/// At least so much for each thread that takes pages: below, starting threads takes longer than the pages.
const SHARE: usize = 512 << 20;

impl<'a> Area<'a> {
    pub(super) fn of(mapping: &'a MmapRegion) -> Self {
        Self { mapping }
    }

    /// Asks for transparent huge pages, or for none.
    pub(super) fn advise_huge_pages(self, wanted: bool) {
        let advice = if wanted { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        let _ = self.advise(0, self.mapping.size(), advice);
    }

    /// Binds all pages to `cell`.
    pub(super) fn bind(self, cell: u32) -> io::Result<Placement> {
        const BITS: usize = u64::BITS as usize;
        let cell = cell as usize;
        let mut mask = vec![0_u64; cell / BITS + 1];
        mask[cell / BITS] = 1 << (cell % BITS);
        // SAFETY: the address range is that of a mapping that `self` borrows, the mask is as long as said (its last bit
        // is not looked at, hence one more); the policy changes nothing that memory safety depends on.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.mapping.as_ptr(),
                self.mapping.size(),
                libc::MPOL_BIND,
                mask.as_ptr(),
                mask.len() * BITS + 1,
                0,
            )
        };
        if result == 0 {
            return Ok(Placement::Bound);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOSYS) => cpus_of(cell).map(Placement::FirstTouch),
            _ => Err(error),
        }
    }

    /// Takes all pages, by up to `threads` threads.
    pub(super) fn prefault(self, page: u64, placement: &Placement, threads: usize) -> io::Result<()> {
        let page = usize::try_from(page).unwrap_or(usize::MAX);
        let size = self.mapping.size();
        let threads = (size / SHARE).clamp(1, threads.clamp(1, 16));
        let share = (size / threads).next_multiple_of(page);
        let populate = |start: usize| {
            if let Placement::FirstTouch(cpus) = placement {
                rustix::thread::sched_setaffinity(None, cpus)?;
            }
            self.advise(start, share.min(size - start), Advice::LinuxPopulateWrite)
        };
        // Always in other threads when their affinity is changed: this one keeps its own.
        if threads == 1 && !matches!(placement, Placement::FirstTouch(_)) {
            return populate(0);
        }
        thread::scope(|scope| {
            let workers: Vec<_> = (0..size).step_by(share).map(|start| scope.spawn(move || populate(start))).collect();
            workers.into_iter().try_for_each(|worker| {
                worker.join().unwrap_or_else(|_| Err(io::Error::other("a thread that took pages ended")))
            })
        })
    }

    fn advise(self, offset: usize, length: usize, advice: Advice) -> io::Result<()> {
        debug_assert!(offset + length <= self.mapping.size());
        let start = self.mapping.as_ptr().wrapping_add(offset).cast::<c_void>();
        // SAFETY: the range lies in a mapping that `self` borrows (callers take offset and length from its size), and the
        // advice used here never discards contents.
        unsafe { rustix::mm::madvise(start, length, advice)? };
        Ok(())
    }
}

/// The CPUs of a host cell.
fn cpus_of(cell: usize) -> io::Result<CpuSet> {
    let list = fs::read_to_string(format!("/sys/devices/system/node/node{cell}/cpulist"))?;
    let mut cpus = CpuSet::new();
    for cpu in parse_list(&list) {
        if cpu < CpuSet::MAX_CPU {
            cpus.set(cpu);
        }
    }
    Ok(cpus)
}

/// Numbers of a list such as `0-3,8`.
fn parse_list(list: &str) -> impl Iterator<Item = usize> + '_ {
    list.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_list("0-2,8\n").collect::<Vec<_>>(), [0, 1, 2, 8]);
        assert_eq!(parse_list("\n").count(), 0);
    }

    #[test]
    fn pages_are_taken() {
        let mapping = MmapRegion::<()>::new(1 << 20).unwrap();
        let area = Area::of(&mapping);
        area.prefault(4096, &Placement::Anywhere, 4).unwrap();
        let cpus = rustix::thread::sched_getaffinity(None).unwrap();
        area.prefault(4096, &Placement::FirstTouch(cpus), 4).unwrap();
    }
}
