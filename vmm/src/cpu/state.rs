//! A vCPU's state: at the beginning, saved, restored.
//!
//! Order matters: what is saved early can be changed by saving what comes later, and some of it can only be set once
//! other parts are (see `Documentation/virt/kvm/api.rst` at each call).
#![allow(unsafe_code, reason = "the kernel writes and reads XSAVE areas whose size only it knows")]

use kvm_bindings::{
    CpuId, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, KvmNestedStateBuffer, VcpuFd};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use crate::boot::Entry;
use crate::hypervisor::vm::failed;
use crate::hypervisor::{Hypervisor, HypervisorError};

/// All of a vCPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// What its CPUID says; a host that can't say so can't go on with it.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of its TSC in kHz, when the host knows it.
    pub tsc_khz: Option<u32>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// As long as the host's features make it.
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debug_registers: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Numbers and values.
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    /// What it knows of guests of its own (`struct kvm_nested_state`); none where the host can't nest.
    pub nested: Option<Vec<u8>>,
}

/// `IA32_TSC`.
const MSR_TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`: a time of the TSC, so it is set after that.
const MSR_TSC_DEADLINE: u32 = 0x6E0;
/// `IA32_MISC_ENABLE`.
const MSR_MISC_ENABLE: u32 = 0x1A0;
/// `IA32_MTRR_DEF_TYPE`.
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;

/// KVM reads and writes at most so many at once.
const MSRS_AT_ONCE: usize = 256;
/// A `kvm_xsave` in 32-bit words, what comes beyond it is dynamic.
const XSAVE_WORDS: usize = size_of::<kvm_xsave>() / size_of::<u32>();

/// Sets up a vCPU before it first runs: CPUID, and what firmware would have set of its MSRs.
///
/// # Errors
/// What KVM said.
pub fn initialize(vcpu: &VcpuFd, cpuid: &[kvm_cpuid_entry2]) -> Result<(), HypervisorError> {
    set_cpuid(vcpu, cpuid)?;
    // Fast strings; memory is write-back unless said otherwise.
    let msrs = [(MSR_MISC_ENABLE, 1), (MSR_MTRR_DEF_TYPE, 1 << 11 | 6)];
    set_msrs(vcpu, &msrs)
}

/// Makes the first vCPU enter a kernel.
///
/// # Errors
/// What KVM said.
pub fn enter(vcpu: &VcpuFd, entry: Entry) -> Result<(), HypervisorError> {
    let reset = vcpu.get_sregs().map_err(failed("read special registers"))?;
    vcpu.set_sregs(&entry.special_registers(reset)).map_err(failed("set special registers"))?;
    vcpu.set_regs(&entry.registers()).map_err(failed("set registers"))
}

/// What a vCPU's CPUID says.
///
/// # Errors
/// What KVM said.
pub fn get_cpuid(vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, HypervisorError> {
    let cpuid = vcpu.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(failed("read CPUID"))?;
    Ok(cpuid.as_slice().to_vec())
}

fn set_cpuid(vcpu: &VcpuFd, cpuid: &[kvm_cpuid_entry2]) -> Result<(), HypervisorError> {
    let cpuid = CpuId::from_entries(cpuid).map_err(|_| failed("set CPUID")(kvm_ioctls::Error::new(libc::E2BIG)))?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("set CPUID"))
}

fn set_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), HypervisorError> {
    for chunk in msrs.chunks(MSRS_AT_ONCE) {
        let entries: Vec<_> =
            chunk.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let invalid = |_| failed("set MSRs")(kvm_ioctls::Error::new(libc::E2BIG));
        let list = Msrs::from_entries(&entries).map_err(invalid)?;
        let count = vcpu.set_msrs(&list).map_err(failed("set MSRs"))?;
        // The kernel stops at the first that it refuses.
        if let Some((index, _)) = chunk.get(count) {
            return Err(HypervisorError::Msr { index: *index });
        }
    }
    Ok(())
}

/// Reads those of `indices` that there are: which there are depends on CPUID, and the list says more.
fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, HypervisorError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MSRS_AT_ONCE)];
        let entries: Vec<_> = chunk.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let invalid = |_| failed("read MSRs")(kvm_ioctls::Error::new(libc::E2BIG));
        let mut list = Msrs::from_entries(&entries).map_err(invalid)?;
        let count = vcpu.get_msrs(&mut list).map_err(failed("read MSRs"))?;
        found.extend(list.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
        // The one it stopped at, if it stopped, is not there.
        rest = &rest[(count + 1).min(chunk.len())..];
    }
    Ok(found)
}

/// What reading and writing a vCPU's state takes to know of the host.
#[derive(Debug)]
pub struct Extent {
    /// MSRs that KVM can save.
    pub msrs: Vec<u32>,
    /// Bytes of the XSAVE area (`KVM_CAP_XSAVE2`).
    pub xsave: usize,
    /// Whether guests can have guests of their own (`KVM_CAP_NESTED_STATE`).
    pub can_nest: bool,
}

impl Extent {
    /// Asks KVM.
    ///
    /// # Errors
    /// When it does not say.
    pub fn of(hypervisor: &Hypervisor) -> Result<Self, HypervisorError> {
        let msrs = hypervisor.kvm.get_msr_index_list().map_err(failed("read which MSRs there are"))?;
        let xsave = hypervisor.vm.check_extension_int(Cap::Xsave2);
        let can_nest = hypervisor.kvm.check_extension_int(Cap::NestedState) > 0;
        Ok(Self { msrs: msrs.as_slice().to_vec(), xsave: usize::try_from(xsave).unwrap_or(0), can_nest })
    }
}

/// Reads all of a vCPU that is parked.
///
/// # Errors
/// What KVM said.
pub fn save(vcpu: &VcpuFd, extent: &Extent) -> Result<VcpuState, HypervisorError> {
    let mp_state = vcpu.get_mp_state().map_err(failed("read the vCPU's run state"))?;
    let regs = vcpu.get_regs().map_err(failed("read registers"))?;
    let sregs = vcpu.get_sregs().map_err(failed("read special registers"))?;
    let xsave = get_xsave(vcpu, extent.xsave)?;
    let xcrs = vcpu.get_xcrs().map_err(failed("read extended control registers"))?;
    let debug_registers = vcpu.get_debug_regs().map_err(failed("read debug registers"))?;
    let lapic = vcpu.get_lapic().map_err(failed("read the LAPIC"))?;
    let tsc_khz = vcpu.get_tsc_khz().ok();
    let cpuid = get_cpuid(vcpu)?;
    let msrs = get_msrs(vcpu, &extent.msrs)?;
    let events = vcpu.get_vcpu_events().map_err(failed("read pending events"))?;
    let nested = extent.can_nest.then(|| get_nested(vcpu)).transpose()?;
    Ok(VcpuState { cpuid, tsc_khz, mp_state, regs, sregs, xsave, xcrs, debug_registers, lapic, msrs, events, nested })
}

/// Puts a parked vCPU into a saved state.
///
/// # Errors
/// What KVM said; the vCPU must not run then.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState, extent: &Extent) -> Result<(), HypervisorError> {
    set_cpuid(vcpu, &state.cpuid)?;
    if let Some(khz) = state.tsc_khz
        && vcpu.get_tsc_khz().ok() != Some(khz)
    {
        vcpu.set_tsc_khz(khz).map_err(failed("set the TSC's frequency"))?;
    }
    reset(vcpu, state, extent)
}

/// Puts a parked vCPU into an earlier state of its own.
///
/// # Errors
/// What KVM said; the vCPU must not run then.
pub fn reset(vcpu: &VcpuFd, state: &VcpuState, extent: &Extent) -> Result<(), HypervisorError> {
    vcpu.set_mp_state(state.mp_state).map_err(failed("set the vCPU's run state"))?;
    vcpu.set_sregs(&state.sregs).map_err(failed("set special registers"))?;
    if let Some(nested) = &state.nested {
        // It takes EFER as just set; and a vCPU that leaves a guest of its own has that one's registers no more.
        set_nested(vcpu, nested)?;
        vcpu.set_sregs(&state.sregs).map_err(failed("set special registers"))?;
    }
    vcpu.set_regs(&state.regs).map_err(failed("set registers"))?;
    set_xsave(vcpu, &state.xsave, extent.xsave)?;
    vcpu.set_xcrs(&state.xcrs).map_err(failed("set extended control registers"))?;
    vcpu.set_debug_regs(&state.debug_registers).map_err(failed("set debug registers"))?;
    vcpu.set_lapic(&state.lapic).map_err(failed("set the LAPIC"))?;
    let (deadline, others): (Vec<_>, Vec<_>) =
        state.msrs.iter().copied().partition(|(index, _)| *index == MSR_TSC_DEADLINE);
    set_msrs(vcpu, &others)?;
    set_msrs(vcpu, &deadline)?;
    vcpu.set_vcpu_events(&state.events).map_err(failed("set pending events"))
}

fn get_nested(vcpu: &VcpuFd) -> Result<Vec<u8>, HypervisorError> {
    let mut buffer = KvmNestedStateBuffer::empty();
    vcpu.nested_state(&mut buffer).map_err(failed("read the state of nested guests"))?;
    let size = usize::try_from(buffer.size).unwrap_or(usize::MAX);
    let bytes = buffer.as_bytes();
    Ok(bytes[..size.min(bytes.len())].to_vec())
}

fn set_nested(vcpu: &VcpuFd, state: &[u8]) -> Result<(), HypervisorError> {
    let what = "set the state of nested guests";
    let mut buffer = KvmNestedStateBuffer::empty();
    let bytes = buffer.as_mut_bytes();
    let place = bytes.get_mut(..state.len()).ok_or_else(|| failed(what)(kvm_ioctls::Error::new(libc::E2BIG)))?;
    place.copy_from_slice(state);
    vcpu.set_nested_state(&buffer).map_err(failed(what))
}

fn get_xsave(vcpu: &VcpuFd, size: usize) -> Result<Vec<u32>, HypervisorError> {
    let words = size.div_ceil(size_of::<u32>()).max(XSAVE_WORDS);
    let too_large = |_| failed("read the XSAVE area")(kvm_ioctls::Error::new(libc::E2BIG));
    let mut area = Xsave::new(words - XSAVE_WORDS).map_err(too_large)?;
    // SAFETY: the area is at least as large as KVM_CAP_XSAVE2 says that the kernel writes.
    unsafe { vcpu.get_xsave2(&mut area) }.map_err(failed("read the XSAVE area"))?;
    let mut all = area.as_fam_struct_ref().xsave.region.to_vec();
    all.extend_from_slice(area.as_slice());
    Ok(all)
}

fn set_xsave(vcpu: &VcpuFd, words: &[u32], size: usize) -> Result<(), HypervisorError> {
    let what = "set the XSAVE area";
    let invalid = || failed(what)(kvm_ioctls::Error::new(libc::EINVAL));
    // A saved area of another size is another host's; the part both have would lack what CPUID promises.
    if words.len() != size.div_ceil(size_of::<u32>()).max(XSAVE_WORDS) {
        return Err(invalid());
    }
    let mut area = Xsave::new(words.len() - XSAVE_WORDS).map_err(|_| invalid())?;
    area.as_mut_slice().copy_from_slice(&words[XSAVE_WORDS..]);
    // SAFETY: the array's contents change, its length, which the wrapper keeps elsewhere, does not.
    let head = unsafe { area.as_mut_fam_struct() };
    head.xsave.region.copy_from_slice(&words[..XSAVE_WORDS]);
    // SAFETY: the area is as large as KVM_CAP_XSAVE2 says that the kernel reads, as just checked.
    unsafe { vcpu.set_xsave2(&area) }.map_err(failed(what))
}

impl VcpuState {
    /// The same, with the TSC and what is measured by it as far on as `ticks` say.
    #[must_use]
    pub fn advanced(mut self, ticks: u64) -> Self {
        for (index, value) in &mut self.msrs {
            if *index == MSR_TSC {
                *value = value.wrapping_add(ticks);
            }
        }
        self
    }
}
