//! What a function of the host's is to the guest's function in front of it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

/// A region of a host function: a BAR, or its configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Region {
    /// Bytes; 0 when there is none.
    pub size: u64,
    /// Parts that can be mapped.
    pub mappable: Vec<Range<u64>>,
}

/// How a function interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqKind {
    /// INTA.
    Intx,
    /// MSI.
    Msi,
    /// MSI-X.
    Msix,
}

/// A function of the host's.
pub trait HostFunction: Send + Sync {
    /// A BAR, by index.
    fn region(&self, bar: u8) -> Region;

    /// Reads a BAR.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes a BAR.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn write(&self, bar: u8, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Maps a mappable part of a BAR.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn map(&self, bar: u8, range: &Range<u64>) -> io::Result<Arc<MmapRegion>>;

    /// Reads configuration space.
    ///
    /// # Errors
    /// When the kernel refuses, or it is shorter.
    fn read_config(&self, offset: u16, data: &mut [u8]) -> io::Result<()>;

    /// Writes configuration space.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn write_config(&self, offset: u16, data: &[u8]) -> io::Result<()>;

    /// Number of interrupts of a kind.
    fn irqs(&self, kind: IrqKind) -> u16;

    /// Makes interrupts of a kind trigger events, in order; all others are off.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn connect(&self, kind: IrqKind, events: &[&EventFd]) -> io::Result<()>;

    /// INTA masks itself when it occurs; makes `event` unmask it.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn connect_unmask(&self, event: &EventFd) -> io::Result<()>;

    /// No interrupts of a kind any more.
    fn disconnect(&self, kind: IrqKind);

    /// Whether it can be reset alone.
    fn can_reset(&self) -> bool;

    /// Resets it.
    ///
    /// # Errors
    /// When the kernel refuses, or it can't be.
    fn reset(&self) -> io::Result<()>;
}
