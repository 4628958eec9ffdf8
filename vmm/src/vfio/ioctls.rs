//! The kernel's VFIO interface (`linux/vfio.h`), each call as a function.
//!
//! vfio-ioctls opens container and groups by path; here they come in as descriptors.
#![allow(unsafe_code, reason = "ioctl")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_TYPE, vfio_device_info, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_irq_info, vfio_region_info,
};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(GET_API_VERSION, VFIO_TYPE.into(), VFIO_BASE);
ioctl_io_nr!(CHECK_EXTENSION, VFIO_TYPE.into(), VFIO_BASE + 1);
ioctl_io_nr!(SET_IOMMU, VFIO_TYPE.into(), VFIO_BASE + 2);
ioctl_io_nr!(GROUP_GET_STATUS, VFIO_TYPE.into(), VFIO_BASE + 3);
ioctl_io_nr!(GROUP_SET_CONTAINER, VFIO_TYPE.into(), VFIO_BASE + 4);
ioctl_io_nr!(GROUP_UNSET_CONTAINER, VFIO_TYPE.into(), VFIO_BASE + 5);
ioctl_io_nr!(GROUP_GET_DEVICE_FD, VFIO_TYPE.into(), VFIO_BASE + 6);
ioctl_io_nr!(DEVICE_GET_INFO, VFIO_TYPE.into(), VFIO_BASE + 7);
ioctl_io_nr!(DEVICE_GET_REGION_INFO, VFIO_TYPE.into(), VFIO_BASE + 8);
ioctl_io_nr!(DEVICE_GET_IRQ_INFO, VFIO_TYPE.into(), VFIO_BASE + 9);
ioctl_io_nr!(DEVICE_SET_IRQS, VFIO_TYPE.into(), VFIO_BASE + 10);
ioctl_io_nr!(DEVICE_RESET, VFIO_TYPE.into(), VFIO_BASE + 11);
ioctl_io_nr!(IOMMU_MAP_DMA, VFIO_TYPE.into(), VFIO_BASE + 13);

fn result(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// Version of the interface.
pub(super) fn api_version(container: &File) -> io::Result<i32> {
    // SAFETY: takes no argument, and on a descriptor of something else fails.
    result(unsafe { ioctl(container, GET_API_VERSION()) })
}

/// Whether a container can do something.
pub(super) fn has_extension(container: &File, extension: u32) -> bool {
    // SAFETY: the argument is a number.
    unsafe { ioctl_with_val(container, CHECK_EXTENSION(), extension.into()) > 0 }
}

/// Makes the container use this kind of IOMMU.
pub(super) fn set_iommu(container: &File, kind: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    result(unsafe { ioctl_with_val(container, SET_IOMMU(), kind.into()) }).map(drop)
}

/// Flags of a group.
pub(super) fn group_flags(group: &File) -> io::Result<u32> {
    let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
    // SAFETY: the kernel writes no more than `argsz` bytes to `status`.
    result(unsafe { ioctl_with_mut_ref(group, GROUP_GET_STATUS(), &mut status) })?;
    Ok(status.flags)
}

/// Puts a group into a container.
pub(super) fn set_container(group: &File, container: &File) -> io::Result<()> {
    // SAFETY: the kernel reads one descriptor number.
    result(unsafe { ioctl_with_ref(group, GROUP_SET_CONTAINER(), &container.as_raw_fd()) }).map(drop)
}

/// Takes it out.
pub(super) fn unset_container(group: &File) -> io::Result<()> {
    // SAFETY: takes no argument.
    result(unsafe { ioctl(group, GROUP_UNSET_CONTAINER()) }).map(drop)
}

/// Opens a function of the group.
pub(super) fn open_device(group: &File, address: &CStr) -> io::Result<File> {
    // SAFETY: the kernel reads a string that ends with a zero.
    let descriptor = result(unsafe { ioctl_with_ptr(group, GROUP_GET_DEVICE_FD(), address.as_ptr()) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Flags, number of regions, number of interrupt kinds.
pub(super) fn device_info(device: &File) -> io::Result<(u32, u32, u32)> {
    let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..Default::default() };
    // SAFETY: the kernel writes no more than `argsz` bytes to `info`.
    result(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_INFO(), &mut info) })?;
    Ok((info.flags, info.num_regions, info.num_irqs))
}

/// A region, and the parts of it that can be mapped if not all of it can.
pub(super) fn region_info(device: &File, index: u32) -> io::Result<(vfio_region_info, Option<Vec<Range<u64>>>)> {
    let mut info = vfio_region_info { argsz: size_of::<vfio_region_info>() as u32, index, ..Default::default() };
    // SAFETY: the kernel writes no more than `argsz` bytes to `info`.
    result(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_REGION_INFO(), &mut info) })?;
    if info.flags & VFIO_REGION_INFO_FLAG_CAPS == 0 || info.argsz as usize <= size_of::<vfio_region_info>() {
        return Ok((info, None));
    }
    // It wants `argsz` bytes to say all. Words of 8 bytes, for the alignment.
    let mut buffer = vec![0u64; (info.argsz as usize).div_ceil(8)];
    buffer[0] = u64::from(info.argsz);
    buffer[1] = u64::from(index);
    // SAFETY: the kernel writes no more than the `argsz` bytes that `buffer` has.
    result(unsafe { ioctl_with_mut_ptr(device, DEVICE_GET_REGION_INFO(), buffer.as_mut_ptr()) })?;
    let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok((info, sparse_areas(&bytes)))
}

/// The mappable areas in a region's information, if it has such a list.
fn sparse_areas(bytes: &[u8]) -> Option<Vec<Range<u64>>> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let mut at = word(12)? as usize;
    // More capabilities than fit would be a circle.
    for _ in 0..bytes.len() / 8 {
        let id = word(at)? & 0xFFFF;
        if id == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let area = |index: usize| {
                let (offset, size) = (long(at + 16 + 16 * index)?, long(at + 24 + 16 * index)?);
                Some(offset..offset.checked_add(size)?)
            };
            return (0..word(at + 8)? as usize).map(area).collect();
        }
        at = word(at + 4)? as usize;
        if at == 0 {
            return None;
        }
    }
    None
}

/// Number of interrupts of a kind.
pub(super) fn irq_count(device: &File, index: u32) -> io::Result<u32> {
    let mut info = vfio_irq_info { argsz: size_of::<vfio_irq_info>() as u32, index, ..Default::default() };
    // SAFETY: the kernel writes no more than `argsz` bytes to `info`.
    result(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_IRQ_INFO(), &mut info) })?;
    Ok(info.count)
}

/// Does something with interrupts from the first of a kind on; `data` are event descriptors, one for each, or nothing.
pub(super) fn set_irqs(device: &File, flags: u32, index: u32, count: u32, data: &[i32]) -> io::Result<()> {
    let header = 5 * size_of::<u32>();
    let mut request = vec![(header + size_of_val(data)) as u32, flags, index, 0, count];
    request.extend(data.iter().map(|descriptor| *descriptor as u32));
    // SAFETY: the kernel reads the `argsz` bytes that `request` has.
    result(unsafe { ioctl_with_ptr(device, DEVICE_SET_IRQS(), request.as_ptr()) }).map(drop)
}

/// Resets a function.
pub(super) fn reset(device: &File) -> io::Result<()> {
    // SAFETY: takes no argument.
    result(unsafe { ioctl(device, DEVICE_RESET()) }).map(drop)
}

/// Lets functions of a container reach memory of this process at address `iova`.
///
/// # Safety
/// The memory has to stay mapped until the container is closed, and nothing may hold references into it.
pub(super) unsafe fn map_dma(container: &File, iova: u64, memory: *const u8, size: u64) -> io::Result<()> {
    let map = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: memory as u64,
        iova,
        size,
    };
    // SAFETY: the kernel reads `map`; what it then does with the memory is what the caller has seen to.
    result(unsafe { ioctl_with_ref(container, IOMMU_MAP_DMA(), &map) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A region's information with one capability of another kind, then areas.
    fn information(areas: &[[u64; 2]], count: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0u32, 0, 0, 32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend([0; 16]);
        for word in [3u32 | 1 << 16, 40, VFIO_REGION_INFO_CAP_SPARSE_MMAP | 1 << 16, 0, count, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        areas.iter().flatten().for_each(|value| bytes.extend(value.to_ne_bytes()));
        bytes
    }

    #[test]
    fn sparse_areas_are_found() {
        let bytes = information(&[[0, 0x1000], [0x4000, 0x2000]], 2);
        assert_eq!(sparse_areas(&bytes), Some(vec![0..0x1000, 0x4000..0x6000]));
    }

    #[test]
    fn nonsense_is_nothing() {
        assert_eq!(sparse_areas(&information(&[[0, 0x1000]], 2)), None, "fewer than it says");
        assert_eq!(sparse_areas(&information(&[[u64::MAX, 2]], 1)), None, "overflow");
        assert_eq!(sparse_areas(&[]), None);
        let mut circle = information(&[], 0);
        circle[36..40].copy_from_slice(&32u32.to_ne_bytes());
        assert_eq!(sparse_areas(&circle), None);
        circle[36..40].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(sparse_areas(&circle), None);
    }
}
