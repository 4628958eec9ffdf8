//! A PCI function of the host, by its VFIO descriptor.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP, vfio_region_info,
};
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::container::{Group, VfioError, failed};
use super::ioctls;
use super::{HostFunction, IrqKind, Region};

/// Regions that are BARs.
const BARS: u32 = 6;

/// A function of a group.
pub struct Device {
    file: Arc<File>,
    bars: Vec<Place>,
    config: Place,
    irqs: [u16; 3],
    can_reset: bool,
    /// Left behind when the function's descriptor is closed.
    _group: Arc<Group>,
}

/// A region, and where it begins in the descriptor's address space.
struct Place {
    region: Region,
    offset: u64,
}

impl Device {
    /// The function at `address` (`0000:65:00.1`) of a group, reset.
    ///
    /// # Errors
    /// When the group has no such function, or the kernel refuses.
    pub fn new(group: Arc<Group>, address: &str) -> Result<Self, VfioError> {
        let name = CString::new(address).map_err(|_| VfioError::NotPci(address.to_owned()))?;
        let opened = ioctls::open_device(&group.file, &name);
        let file = opened.map_err(failed(format!("opening {address} of the VFIO group")))?;
        let looking = || failed(format!("looking at {address}"));
        let (flags, regions, kinds) = ioctls::device_info(&file).map_err(looking())?;
        let is_pci = flags & VFIO_DEVICE_FLAGS_PCI != 0;
        if !is_pci || regions <= VFIO_PCI_CONFIG_REGION_INDEX || kinds <= VFIO_PCI_MSIX_IRQ_INDEX {
            return Err(VfioError::NotPci(address.to_owned()));
        }
        let place = |index| -> io::Result<Place> {
            let (info, sparse) = ioctls::region_info(&file, index)?;
            Ok(Place { region: region(&info, sparse), offset: info.offset })
        };
        let bars = (0..BARS).map(place).collect::<io::Result<_>>().map_err(looking())?;
        let config = place(VFIO_PCI_CONFIG_REGION_INDEX).map_err(looking())?;
        let mut irqs = [0; 3];
        for kind in [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix] {
            let count = ioctls::irq_count(&file, index(kind)).map_err(looking())?;
            irqs[index(kind) as usize] = u16::try_from(count).unwrap_or(u16::MAX);
        }
        let can_reset = flags & VFIO_DEVICE_FLAGS_RESET != 0;
        let device = Self { file: Arc::new(file), bars, config, irqs, can_reset, _group: group };
        if can_reset {
            device.reset().map_err(failed(format!("resetting {address}")))?;
        }
        Ok(device)
    }

    /// Where an access is in the descriptor's address space.
    fn position(&self, bar: u8, offset: u64, length: usize) -> io::Result<u64> {
        let place = self.bars.get(usize::from(bar)).ok_or(io::ErrorKind::InvalidInput)?;
        position(place, offset, length)
    }

    fn set(&self, action: u32, kind: IrqKind, events: &[&EventFd]) -> io::Result<()> {
        let descriptors: Vec<_> = events.iter().map(|event| event.as_raw_fd()).collect();
        let data = if events.is_empty() { VFIO_IRQ_SET_DATA_NONE } else { VFIO_IRQ_SET_DATA_EVENTFD };
        ioctls::set_irqs(&self.file, data | action, index(kind), events.len() as u32, &descriptors)
    }
}

fn position(place: &Place, offset: u64, length: usize) -> io::Result<u64> {
    let end = offset.checked_add(length as u64).filter(|end| *end <= place.region.size);
    end.and_then(|_| place.offset.checked_add(offset)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn region(info: &vfio_region_info, sparse: Option<Vec<Range<u64>>>) -> Region {
    let can_map = info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0;
    let whole = || vec![0..info.size];
    Region { size: info.size, mappable: if can_map { sparse.unwrap_or_else(whole) } else { Vec::new() } }
}

fn index(kind: IrqKind) -> u32 {
    match kind {
        IrqKind::Intx => VFIO_PCI_INTX_IRQ_INDEX,
        IrqKind::Msi => VFIO_PCI_MSI_IRQ_INDEX,
        IrqKind::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
    }
}

impl HostFunction for Device {
    fn region(&self, bar: u8) -> Region {
        self.bars.get(usize::from(bar)).map(|place| place.region.clone()).unwrap_or_default()
    }

    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, self.position(bar, offset, data.len())?)
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.position(bar, offset, data.len())?)
    }

    fn map(&self, bar: u8, range: &Range<u64>) -> io::Result<Arc<MmapRegion>> {
        let length = usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::InvalidInput)?;
        let start = self.position(bar, range.start, length)?;
        let mapping = MmapRegion::from_file(FileOffset::from_arc(self.file.clone(), start), length);
        mapping.map(Arc::new).map_err(io::Error::other)
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, position(&self.config, offset.into(), data.len())?)
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, position(&self.config, offset.into(), data.len())?)
    }

    fn irqs(&self, kind: IrqKind) -> u16 {
        self.irqs[index(kind) as usize]
    }

    fn connect(&self, kind: IrqKind, events: &[&EventFd]) -> io::Result<()> {
        self.set(VFIO_IRQ_SET_ACTION_TRIGGER, kind, events)
    }

    fn connect_unmask(&self, event: &EventFd) -> io::Result<()> {
        self.set(VFIO_IRQ_SET_ACTION_UNMASK, IrqKind::Intx, &[event])
    }

    fn disconnect(&self, kind: IrqKind) {
        // Fails only if there are none.
        let _ = self.set(VFIO_IRQ_SET_ACTION_TRIGGER, kind, &[]);
    }

    fn can_reset(&self) -> bool {
        self.can_reset
    }

    fn reset(&self) -> io::Result<()> {
        ioctls::reset(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_mappable_as_the_kernel_says() {
        let info = |flags| vfio_region_info { flags, size: 0x4000, ..Default::default() };
        assert_eq!(region(&info(0), None).mappable, []);
        assert_eq!(region(&info(VFIO_REGION_INFO_FLAG_MMAP), None).mappable, [0..0x4000]);
        assert_eq!(region(&info(VFIO_REGION_INFO_FLAG_MMAP), Some(vec![0..0x1000])).mappable, [0..0x1000]);
    }

    #[test]
    fn accesses_stay_in_their_region() {
        let place = Place { region: Region { size: 0x100, mappable: Vec::new() }, offset: 1 << 40 };
        assert_eq!(position(&place, 0xFC, 4).unwrap(), (1 << 40) + 0xFC);
        for (offset, length) in [(0xFD, 4), (0x100, 1), (u64::MAX, 4)] {
            assert!(position(&place, offset, length).is_err());
        }
    }
}
