//! The virtual machine as KVM has it.
#![allow(unsafe_code, reason = "kvm-ioctls takes /dev/kvm by raw descriptor only")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_X2APIC_API, KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, KVM_X86_DISABLE_EXITS_HLT,
    KVM_X86_DISABLE_EXITS_MWAIT, KVM_X86_DISABLE_EXITS_PAUSE, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VmFd};

use super::Slots;
use crate::layout::{KVM_IDENTITY_MAP, KVM_TSS};

/// What KVM is asked for, before there are vCPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmOptions {
    /// Each vCPU has a host CPU for itself: halting, pausing and waiting don't leave the guest. (Otherwise KVM polls a
    /// while before a halted vCPU's thread sleeps, which it does unasked.)
    pub dedicated: bool,
    /// APIC IDs beyond 254 are in use.
    pub wide_apic_ids: bool,
}

/// KVM, and one VM of it.
#[derive(Debug)]
pub struct Hypervisor {
    /// The system interface.
    pub kvm: Kvm,
    /// The VM, with interrupt controllers.
    pub vm: Arc<VmFd>,
    /// Its memory slots.
    pub slots: Slots,
}

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HypervisorError {
    /// Not the KVM this program was written for.
    #[error("KVM's interface has version {0}, known is 12")]
    Version(i32),
    /// The guest can't have a value in one of its model-specific registers on this host.
    #[error("KVM refuses the value of MSR {index:#x}")]
    Msr {
        /// Its number.
        index: u32,
    },
    /// A call failed.
    #[error("KVM: {what}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: kvm_ioctls::Error,
    },
}

/// For `map_err`: says what was tried.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HypervisorError {
    move |source| HypervisorError::Call { what, source }
}

/// Takes /dev/kvm.
///
/// # Errors
/// When it is of another version, or not KVM's.
pub fn open(kvm: OwnedFd) -> Result<Kvm, HypervisorError> {
    // SAFETY: the descriptor is owned and given away, so nobody else closes it. If it is not KVM's, its calls fail.
    let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION.cast_signed() => Ok(kvm),
        version => Err(HypervisorError::Version(version)),
    }
}

/// What a guest on this host can have of CPUID.
///
/// # Errors
/// What KVM said.
pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, HypervisorError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("read what CPUID can be"))
}

impl Hypervisor {
    /// Makes a VM. It has in-kernel interrupt controllers, and no timer chip (PIT): guests have kvmclock and the
    /// deadline timer of the APIC, and calibrate nothing by it.
    ///
    /// # Errors
    /// What KVM said.
    pub fn new(kvm: Kvm, options: VmOptions) -> Result<Self, HypervisorError> {
        let vm = Arc::new(kvm.create_vm().map_err(failed("create a VM"))?);
        // KVM on Intel wants these in an unused place before there are vCPUs; others don't care.
        vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(failed("place the identity map"))?;
        vm.set_tss_address(KVM_TSS as usize).map_err(failed("place the TSS"))?;
        vm.create_irq_chip().map_err(failed("create interrupt controllers"))?;
        if options.wide_apic_ids {
            let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
            enable(&vm, KVM_CAP_X2APIC_API, u64::from(flags)).map_err(failed("widen APIC IDs"))?;
        }
        if options.dedicated {
            // As much of it as this host can (MWAIT only with a timer that goes on while the CPU sleeps).
            let possible = kvm.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into()).cast_unsigned();
            let wanted = KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_MWAIT;
            enable(&vm, KVM_CAP_X86_DISABLE_EXITS, u64::from(possible & wanted))
                .map_err(failed("let dedicated CPUs halt without leaving the guest"))?;
        }
        let slots = Slots::new(Arc::clone(&vm));
        Ok(Self { kvm, vm, slots })
    }

    /// Makes another VM by the same KVM.
    ///
    /// # Errors
    /// What KVM said.
    pub fn another(&self, options: VmOptions) -> Result<Self, HypervisorError> {
        // SAFETY: the descriptor is open for as long as `self.kvm` is, and is used for this call only.
        let kvm = unsafe { BorrowedFd::borrow_raw(self.kvm.as_raw_fd()) }.try_clone_to_owned();
        let kvm = kvm.map_err(|error| failed("copy its descriptor")(kvm_ioctls::Error::from(error)))?;
        Self::new(open(kvm)?, options)
    }
}

fn enable(vm: &VmFd, capability: u32, argument: u64) -> Result<(), kvm_ioctls::Error> {
    vm.enable_cap(&kvm_enable_cap { cap: capability, args: [argument, 0, 0, 0], ..Default::default() })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::hypervisor) fn kvm() -> Option<OwnedFd> {
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").ok().map(Into::into)
    }

    #[test]
    fn a_file_that_is_not_kvm() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(open(file.into()), Err(HypervisorError::Version(_))));
    }

    #[test]
    fn a_vm_with_everything() {
        let Some(kvm) = kvm() else { return };
        let kvm = open(kvm).unwrap();
        assert!(!supported_cpuid(&kvm).unwrap().as_slice().is_empty());
        Hypervisor::new(kvm, VmOptions { dedicated: true, wide_apic_ids: true }).unwrap();
    }
}
