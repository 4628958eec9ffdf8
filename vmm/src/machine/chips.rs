//! State of what KVM emulates beside vCPUs: interrupt controllers and the paravirtual clock.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::hypervisor::HypervisorError;
use crate::hypervisor::vm::failed;

/// The interrupt controllers: two PICs, one IOAPIC.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Chips {
    chips: [kvm_irqchip; 3],
}

impl Chips {
    pub fn save(vm: &VmFd) -> Result<Self, HypervisorError> {
        let mut chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            vm.get_irqchip(chip).map_err(failed("read an interrupt controller"))?;
        }
        Ok(Self { chips })
    }

    pub fn restore(&self, vm: &VmFd) -> Result<(), HypervisorError> {
        self.chips.iter().try_for_each(|chip| vm.set_irqchip(chip).map_err(failed("set an interrupt controller")))
    }
}

/// The guest's clock (kvmclock), and what the host's clocks said at the same moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Clock {
    /// Nanoseconds since the guest began.
    nanoseconds: u64,
    /// The host's real time in nanoseconds: KVM's of the very moment, if it tells, or ours.
    realtime: Option<u64>,
}

impl Clock {
    pub fn save(vm: &VmFd) -> Result<Self, HypervisorError> {
        let clock = vm.get_clock().map_err(failed("read the clock"))?;
        let realtime = if clock.flags & KVM_CLOCK_REALTIME != 0 { Some(clock.realtime) } else { now() };
        Ok(Self { nanoseconds: clock.clock, realtime })
    }

    /// Sets the guest's clock to where it stopped, or, unless `keep`, as much later as real time is.
    pub fn restore(&self, vm: &VmFd, keep: bool) -> Result<(), HypervisorError> {
        let realtime = self.realtime.filter(|_| !keep);
        let flags = if realtime.is_some() { KVM_CLOCK_REALTIME } else { 0 };
        debug_assert_eq!(flags & KVM_CLOCK_HOST_TSC, 0);
        let clock =
            kvm_clock_data { clock: self.nanoseconds, flags, realtime: realtime.unwrap_or(0), ..Default::default() };
        vm.set_clock(&clock).map_err(failed("set the clock"))
    }

    /// How long ago it was saved, in nanoseconds, if that can be told.
    pub fn age(&self) -> Option<u64> {
        now()?.checked_sub(self.realtime?)
    }
}

/// The host's real time in nanoseconds.
fn now() -> Option<u64> {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}
