//! What is asked of the interrupt controllers, which KVM emulates.

use std::io;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

/// An interrupt message: what a function would write, and where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    /// Where to.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// The interrupt controllers of one guest. KVM has them; tests have others.
pub trait IrqChip: Send + Sync {
    /// Replaces the messages that GSIs stand for. The pins of IOAPIC and PIC stay what they are.
    ///
    /// # Errors
    /// When the kernel refuses; the earlier table is in force then.
    fn set_routes(&self, routes: &[(u32, Message)]) -> io::Result<()>;

    /// Makes `event` interrupt by `gsi`. What it was written before counts.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn connect(&self, event: &EventFd, gsi: u32) -> io::Result<()>;

    /// The same for a level-triggered pin: `event` raises it, the guest's end of interrupt lowers it and writes `resample`.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn connect_level(&self, event: &EventFd, resample: &EventFd, gsi: u32) -> io::Result<()>;

    /// Ends either.
    fn disconnect(&self, event: &EventFd, gsi: u32);

    /// Sets the level of a pin.
    fn set_level(&self, gsi: u32, high: bool);
}

impl IrqChip for VmFd {
    fn set_routes(&self, routes: &[(u32, Message)]) -> io::Result<()> {
        let entries: Vec<_> = pins().chain(routes.iter().map(|&(gsi, message)| message_entry(gsi, message))).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| io::Error::from_raw_os_error(libc::ENOSPC))?;
        Ok(self.set_gsi_routing(&table)?)
    }

    fn connect(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.register_irqfd(event, gsi)?)
    }

    fn connect_level(&self, event: &EventFd, resample: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.register_irqfd_with_resample(event, resample, gsi)?)
    }

    fn disconnect(&self, event: &EventFd, gsi: u32) {
        // Fails only if it is not connected.
        let _ = self.unregister_irqfd(event, gsi);
    }

    fn set_level(&self, gsi: u32, high: bool) {
        // Fails only without an interrupt controller.
        let _ = self.set_irq_line(gsi, high);
    }
}

/// KVM's own routes of pins, which a table that is set has to repeat: GSI n is pin n of the IOAPIC, and of the two PICs
/// while n < 16.
fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pin = |irqchip, gsi, pin| {
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let master = (0..8).map(move |gsi| pin(KVM_IRQCHIP_PIC_MASTER, gsi, gsi));
    let slave = (8..16).map(move |gsi| pin(KVM_IRQCHIP_PIC_SLAVE, gsi, gsi - 8));
    let ioapic = (0..crate::layout::FIRST_MSI_GSI).map(move |gsi| pin(KVM_IRQCHIP_IOAPIC, gsi, gsi));
    master.chain(slave).chain(ioapic)
}

fn message_entry(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}

#[cfg(test)]
pub(crate) mod recorder {
    use std::collections::{BTreeMap, BTreeSet};
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    use super::*;

    /// Interrupt controllers that only remember. Address `REFUSED` makes the table invalid.
    #[derive(Default)]
    pub(crate) struct Recorder {
        pub(crate) routes: Mutex<Vec<(u32, Message)>>,
        pub(crate) tables_set: Mutex<usize>,
        pub(crate) connected: Mutex<BTreeMap<i32, u32>>,
        pub(crate) high: Mutex<BTreeSet<u32>>,
    }

    pub(crate) const REFUSED: u64 = 0xFFFF_FFFF_FFFF_FFFF;

    impl IrqChip for Recorder {
        fn set_routes(&self, routes: &[(u32, Message)]) -> io::Result<()> {
            *self.tables_set.lock().unwrap() += 1;
            if routes.iter().any(|(_, message)| message.address == REFUSED) {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            *self.routes.lock().unwrap() = routes.to_vec();
            Ok(())
        }

        fn connect(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
            let before = self.connected.lock().unwrap().insert(event.as_raw_fd(), gsi);
            assert_eq!(before, None, "connected twice");
            Ok(())
        }

        fn connect_level(&self, event: &EventFd, _: &EventFd, gsi: u32) -> io::Result<()> {
            self.connect(event, gsi)
        }

        fn disconnect(&self, event: &EventFd, gsi: u32) {
            assert_eq!(self.connected.lock().unwrap().remove(&event.as_raw_fd()), Some(gsi));
        }

        fn set_level(&self, gsi: u32, high: bool) {
            let mut levels = self.high.lock().unwrap();
            assert!(if high { levels.insert(gsi) } else { levels.remove(&gsi) }, "level set twice");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_takes_pins_and_messages() {
        let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let chip: &dyn IrqChip = &vm;
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let resample = EventFd::new(libc::EFD_NONBLOCK).unwrap();

        chip.set_routes(&[(24, Message { address: 0xFEE0_0000, data: 0x31 })]).unwrap();
        chip.connect(&event, 24).unwrap();
        event.write(1).unwrap();
        assert!(event.read().is_err(), "KVM has taken what was written");
        chip.disconnect(&event, 24);
        event.write(1).unwrap();
        assert_eq!(event.read().unwrap(), 1, "nobody takes it any more");

        chip.connect_level(&event, &resample, 17).unwrap();
        chip.disconnect(&event, 17);
        chip.set_level(16, true);
        chip.set_level(16, false);
    }
}
