//! Machine-check banks: the registers in which a CPU tells of failing hardware (Intel SDM volume 3, chapter 17; AMD APM
//! volume 2, chapter 9).
#![allow(unsafe_code, reason = "kvm-ioctls does not wrap KVM_X86_SETUP_MCE")]

use kvm_bindings::KVMIO;
use kvm_ioctls::{Cap, Error, VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::HypervisorError;
use super::vm::failed;

// Documentation/virt/kvm/api.rst, 4.105: takes what the vCPU's MCG_CAP is to say.
ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9C, u64);

/// The least that KVM takes. Its own default is 32, each of which a kernel reads and writes several times on every vCPU
/// it starts: exits for registers that never say anything.
const BANKS: u64 = 1;

/// Gives a vCPU that has not run yet no more banks than it needs, where KVM emulates them.
///
/// # Errors
/// What KVM said.
pub fn limit_banks(vm: &VmFd, vcpu: &VcpuFd) -> Result<(), HypervisorError> {
    if !vm.check_extension(Cap::Mce) {
        return Ok(());
    }
    // SAFETY: the kernel reads one u64.
    match unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &BANKS) } {
        0 => Ok(()),
        _ => Err(failed("limit machine-check banks")(Error::last())),
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{Msrs, kvm_msr_entry};

    use super::*;
    use crate::hypervisor::vm::tests::kvm;
    use crate::hypervisor::{Hypervisor, vm::VmOptions};

    #[test]
    fn vcpus_tell_how_many_they_have() {
        const MCG_CAP: u32 = 0x179;
        let Some(kvm) = kvm() else { return };
        let Hypervisor { vm, .. } =
            Hypervisor::new(crate::hypervisor::open(kvm).unwrap(), VmOptions::default()).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        limit_banks(&vm, &vcpu).unwrap();
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: MCG_CAP, ..Default::default() }]).unwrap();
        assert_eq!(vcpu.get_msrs(&mut msrs).unwrap(), 1);
        assert_eq!(msrs.as_slice()[0].data & 0xFF, BANKS);
    }
}
