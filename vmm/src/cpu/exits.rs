//! What a guest's exits mean: one `match`.

use std::sync::Arc;

use kvm_ioctls::VcpuExit;

use crate::bus::{Bus, Request};
use crate::counters::{Counter, Counts};

/// Who answers the guest.
#[derive(Default)]
pub struct Buses {
    /// Ports.
    pub ports: Bus,
    /// Memory-mapped registers.
    pub memory: Arc<Bus>,
}

/// What follows from an exit.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest goes on.
    Continue,
    /// Somebody asked for something.
    Request(Request),
    /// The vCPU can't go on; why.
    Failed(String),
}

impl Outcome {
    /// Whether the vCPU waits until the machine's owner has done something about it.
    #[must_use]
    pub fn stops(&self) -> bool {
        !matches!(self, Self::Continue | Self::Request(Request::Eject { .. }))
    }
}

impl From<Request> for Outcome {
    fn from(request: Request) -> Self {
        match request {
            Request::Nothing => Self::Continue,
            request => Self::Request(request),
        }
    }
}

/// How often a vCPU left the guest for this process, by why. What KVM does by itself is not among it.
#[derive(Debug, Default)]
pub struct ExitCounters {
    io: Counter,
    mmio: Counter,
    signal: Counter,
    other: Counter,
}

impl ExitCounters {
    /// It left like this.
    pub(super) fn add(&self, exit: &VcpuExit<'_>) {
        match exit {
            VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => &self.io,
            VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..) => &self.mmio,
            VcpuExit::Intr => &self.signal,
            _ => &self.other,
        }
        .add(1);
    }

    /// It came back without having left for anything: by a signal of this process's, or to be started by another vCPU.
    pub(super) fn add_signal(&self) {
        self.signal.add(1);
    }

    /// By name, as KVM's own statistics have them (`Documentation/virt/kvm/api.rst`, KVM_GET_STATS_FD).
    #[must_use]
    pub fn counts(&self) -> Counts {
        let Self { io, mmio, signal, other } = self;
        let named = [("io_exits", io), ("mmio_exits", mmio), ("signal_exits", signal), ("other_exits", other)];
        named.map(|(name, counter)| (name, counter.get())).into()
    }
}

/// Does what the guest wanted when it left.
pub fn handle(buses: &Buses, exit: VcpuExit<'_>) -> Outcome {
    match exit {
        VcpuExit::IoOut(port, data) => {
            let mut requests = accesses(data).map(|data| buses.ports.write(port.into(), data));
            // Nothing a device asks for after the first request would be heard: the machine stops for that.
            requests.find(|request| *request != Request::Nothing).unwrap_or_default().into()
        }
        VcpuExit::IoIn(port, data) => {
            let length = access_length(data.len());
            data.chunks_mut(length).for_each(|data| buses.ports.read(port.into(), data));
            Outcome::Continue
        }
        VcpuExit::MmioRead(address, data) => {
            buses.memory.read(address, data);
            Outcome::Continue
        }
        VcpuExit::MmioWrite(address, data) => buses.memory.write(address, data).into(),
        // Triple fault.
        VcpuExit::Shutdown => Outcome::Request(Request::Reset),
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _) => Outcome::Request(Request::PowerOff),
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _) => Outcome::Request(Request::Reset),
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_CRASH, _) => Outcome::Request(Request::Panicked),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => Outcome::Continue,
        other => Outcome::Failed(format!("the guest left in a way that is not known: {other:?}")),
    }
}

/// Length of each access of a port instruction. All that are repeated (`rep outs`, `rep ins`) come at once; ports that
/// are used like that here are bytes.
fn access_length(total: usize) -> usize {
    if matches!(total, 2 | 4) { total } else { 1 }
}

fn accesses(data: &[u8]) -> std::slice::Chunks<'_, u8> {
    data.chunks(access_length(data.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Vec<u8>>>);

    impl BusDevice for Recorder {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(data.len() as u8);
        }

        fn write(&self, _: u64, data: &[u8]) -> Request {
            self.0.lock().unwrap().push(data.to_vec());
            if data[0] == 0xFF { Request::PowerOff } else { Request::Nothing }
        }
    }

    fn buses() -> (Buses, Arc<Recorder>) {
        let (buses, device) = (Buses::default(), Arc::new(Recorder::default()));
        buses.ports.insert(0x10..0x18, device.clone()).unwrap();
        (buses, device)
    }

    #[test]
    fn repeated_accesses_come_one_by_one() {
        let (buses, device) = buses();
        assert_eq!(handle(&buses, VcpuExit::IoOut(0x10, &[1, 2, 3])), Outcome::Continue);
        assert_eq!(handle(&buses, VcpuExit::IoOut(0x10, &[4, 5])), Outcome::Continue);
        assert_eq!(*device.0.lock().unwrap(), [vec![1], vec![2], vec![3], vec![4, 5]]);
        let mut data = [0; 3];
        assert_eq!(handle(&buses, VcpuExit::IoIn(0x10, &mut data)), Outcome::Continue);
        assert_eq!(data, [1, 1, 1]);
    }

    #[test]
    fn requests_are_passed_on() {
        let (buses, _) = buses();
        assert_eq!(handle(&buses, VcpuExit::IoOut(0x10, &[1, 0xFF, 1])), Outcome::Request(Request::PowerOff));
        assert_eq!(handle(&buses, VcpuExit::Shutdown), Outcome::Request(Request::Reset));
        assert!(matches!(handle(&buses, VcpuExit::FailEntry(1, 0)), Outcome::Failed(_)));
    }
}
