//! Whether /dev/kvm serves guests.

use std::fs::File;
use std::path::Path;
use vse_crds::Kvm;

/// Opens the device. A /dev/kvm on CPUs without `svm` or `vmx` is a software stand-in too slow to boot a
/// distribution's kernel, so it does not count.
pub fn probe(device: &Path, virtualization: Option<&str>) -> Kvm {
    let unusable = |reason: String| Kvm { usable: false, reason };
    if virtualization.is_none() {
        return unusable("the CPU has neither svm nor vmx, or firmware disables it".into());
    }
    match File::options().read(true).write(true).open(device) {
        Ok(_) => Kvm { usable: true, reason: String::new() },
        Err(error) => unusable(format!("{}: {error}; is the kvm_amd or kvm_intel module loaded?", device.display())),
    }
}
