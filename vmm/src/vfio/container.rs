//! Containers (what functions can reach of memory) and groups (functions that can't be told apart by the IOMMU).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};
use vfio_bindings::bindings::vfio::{VFIO_API_VERSION, VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::ioctls;
use crate::memory::GuestMemory;

/// A host function can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// The descriptor is something else.
    #[error("the descriptor given as VFIO container is none")]
    NotAContainer,
    /// No IOMMU, or one of another kind.
    #[error("the VFIO container has no IOMMU of type 1, so functions could not be kept from the host's memory")]
    NoIommu,
    /// The group is not whole.
    #[error("functions of the IOMMU group are not bound to vfio-pci, so that the host still uses the group")]
    NotViable,
    /// The function is no PCI function.
    #[error("{0} is no PCI function")]
    NotPci(String),
    /// What the function says of itself makes no sense.
    #[error("configuration space of {address}: {reason}")]
    Unusable {
        /// Which function.
        address: String,
        /// Why.
        reason: &'static str,
    },
    /// The kernel refused.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> VfioError {
    let what = what.into();
    move |source| VfioError::Host { what, source }
}

/// A container: its functions reach all of guest RAM, at the addresses the guest has it at, and nothing else.
pub struct Container {
    file: File,
    memory: GuestMemory,
    /// KVM's notion of VFIO, by which it learns whether functions bypass caches.
    kvm: DeviceFd,
    /// Groups in it. The first brings the IOMMU and all mappings, the last takes them along.
    groups: Mutex<usize>,
}

impl Container {
    /// A container that no group is in, and no kind of IOMMU was chosen for.
    ///
    /// # Errors
    /// When the descriptor is none, or the host has no IOMMU.
    pub fn new(container: OwnedFd, memory: GuestMemory, vm: &VmFd) -> Result<Arc<Self>, VfioError> {
        let file = File::from(container);
        if ioctls::api_version(&file).ok() != Some(VFIO_API_VERSION as i32) {
            return Err(VfioError::NotAContainer);
        }
        if !ioctls::has_extension(&file, VFIO_TYPE1v2_IOMMU) {
            return Err(VfioError::NoIommu);
        }
        let mut device = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        let kvm = vm.create_device(&mut device).map_err(|error| failed("making KVM's VFIO device")(error.into()))?;
        Ok(Arc::new(Self { file, memory, kvm, groups: Mutex::new(0) }))
    }

    /// Maps RAM, for the first group.
    fn map_memory(&self) -> Result<(), VfioError> {
        ioctls::set_iommu(&self.file, VFIO_TYPE1v2_IOMMU).map_err(failed("choosing the IOMMU"))?;
        for region in self.memory.iter() {
            map_region(&self.file, region).map_err(failed(format!(
                "mapping {} MiB of RAM at {:#x} for functions (locked memory is limited by RLIMIT_MEMLOCK)",
                region.len() >> 20,
                region.start_addr().0
            )))?;
        }
        Ok(())
    }

    fn groups(&self) -> MutexGuard<'_, usize> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_kvm(&self, what: u32, group: &File) -> Result<(), kvm_ioctls::Error> {
        let descriptor = group.as_raw_fd();
        self.kvm.set_device_attr(&kvm_device_attr {
            flags: 0,
            group: KVM_DEV_VFIO_FILE,
            attr: what.into(),
            addr: &raw const descriptor as u64,
        })
    }
}

#[allow(unsafe_code, reason = "functions reach guest RAM by themselves")]
fn map_region(container: &File, region: &vm_memory::GuestRegionMmap) -> io::Result<()> {
    // SAFETY: the container's owner holds guest RAM, and drops it after the container (fields are dropped in order).
    // Nothing holds references into guest RAM, which the guest may change at any time anyway.
    unsafe { ioctls::map_dma(container, region.start_addr().0, region.as_ptr(), region.len()) }
}

/// A group in a container, until it is dropped.
pub struct Group {
    pub(super) file: File,
    container: Arc<Container>,
}

impl Group {
    /// Puts a group, by its descriptor, into a container.
    ///
    /// # Errors
    /// When the group is not whole, or the kernel refuses, for example because RAM can't be locked.
    pub fn new(container: Arc<Container>, group: OwnedFd) -> Result<Arc<Self>, VfioError> {
        let file = File::from(group);
        let flags = ioctls::group_flags(&file).map_err(failed("looking at the VFIO group"))?;
        if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(VfioError::NotViable);
        }
        let mut groups = container.groups();
        ioctls::set_container(&file, &container.file).map_err(failed("putting the VFIO group into the container"))?;
        *groups += 1;
        let is_first = *groups == 1;
        drop(groups);
        // From here on dropping it takes it out again.
        let group = Self { file, container };
        if is_first {
            group.container.map_memory()?;
        }
        let told = group.container.tell_kvm(KVM_DEV_VFIO_FILE_ADD, &group.file);
        told.map_err(|error| failed("telling KVM of the VFIO group")(error.into()))?;
        Ok(Arc::new(group))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut groups = self.container.groups();
        // Both fail only if it is not in there.
        let _ = self.container.tell_kvm(KVM_DEV_VFIO_FILE_DEL, &self.file);
        let _ = ioctls::unset_container(&self.file);
        *groups -= 1;
    }
}

/// For hosts where paths may be opened: the device node of a function's group, and the function's address. The path is an
/// absolute one of sysfs, `/sys/bus/pci/devices/0000:65:00.1`.
///
/// # Errors
/// When there is no such function, or it has no group.
pub fn locate(path: &Path) -> Result<(PathBuf, String), VfioError> {
    let shown = path.display();
    let group =
        path.join("iommu_group").canonicalize().map_err(failed(format!("finding the IOMMU group of {shown}")))?;
    let function = path.canonicalize().map_err(failed(format!("finding {shown}")))?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((Path::new("/dev/vfio").join(name(&group)), name(&function)))
}

/// Opens a group's device node, which only one can have open.
///
/// # Errors
/// When it can't be opened.
pub fn open_group(node: &Path) -> Result<OwnedFd, VfioError> {
    let file = File::options().read(true).write(true).open(node);
    Ok(file.map_err(failed(format!("opening {}", node.display())))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_descriptors_are_refused() {
        let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let null = || File::open("/dev/null").unwrap().into();
        assert!(matches!(Container::new(null(), GuestMemory::default(), &vm), Err(VfioError::NotAContainer)));
        assert!(matches!(open_group(Path::new("/dev/vfio/nothing")), Err(VfioError::Host { .. })));
    }

    #[test]
    fn functions_of_a_group_have_one_node() {
        let sysfs = tempfile::tempdir().unwrap();
        let groups = sysfs.path().join("kernel/iommu_groups/26");
        std::fs::create_dir_all(&groups).unwrap();
        for name in ["0000:65:00.0", "0000:65:00.1"] {
            // As there, the function is found by a link.
            let (function, link) = (sysfs.path().join("devices").join(name), sysfs.path().join(format!("link-{name}")));
            std::fs::create_dir_all(&function).unwrap();
            std::os::unix::fs::symlink(&groups, function.join("iommu_group")).unwrap();
            std::os::unix::fs::symlink(&function, &link).unwrap();
            assert_eq!(locate(&link).unwrap(), (PathBuf::from("/dev/vfio/26"), name.to_owned()));
        }
        assert!(matches!(locate(Path::new("/sys/nothing")), Err(VfioError::Host { .. })));
    }
}
