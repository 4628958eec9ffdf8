//! The parts that every machine has, before there are devices.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::CpuSet;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vse_vmm_api::{PayloadConfig, VmConfig};

use super::console::{self, Console};
use super::devices::Workshop;
use super::error::{MachineError, descriptor, host};
use super::passthrough::Passthrough;
use super::plan::{HostFacts, Plan};
use super::pmem_area::PmemArea;
use super::{Event, Events, Machine, descriptors};
use crate::acpi::{self, Description};
use crate::boot::Payload;
use crate::cpu::cpuid::{Cpuid, CpuidOptions};
use crate::cpu::{Buses, Listener, Outcome, Starting, host_caches, sharers_of_third_level, state};
use crate::hypervisor::vm::{VmOptions, failed};
use crate::hypervisor::{self, Hypervisor, HypervisorError, limit_banks};
use crate::interrupts::{Interrupts, IrqChip};
use crate::layout::{ECAM, EVENTS_IRQ, PLATFORM, RESET_VECTOR, SERIAL, SMBIOS};
use crate::legacy::keyboard::{self, RESET_CODE, ResetLine};
use crate::legacy::platform::Platform as Registers;
use crate::legacy::pvpanic::{self, PanicPort};
use crate::legacy::serial::SerialPort;
use crate::memory::{self, GuestMemory};
use crate::pci::{Ecam, PciRoot};
use crate::seccomp::{Filters, Role};
use crate::smbios;

/// What a machine begins with: it is known what it shall be, and it has RAM.
pub(super) struct Parts {
    plan: Plan,
    kvm: Kvm,
    supported: CpuId,
    memory: GuestMemory,
}

/// Which cache of the third level each vCPU has; nothing where that is not known of all of them.
fn cache_domains(plan: &Plan) -> Vec<String> {
    let domain = |vcpu| match plan.affinity.get(&vcpu).map(Vec::as_slice) {
        Some([cpu]) => sharers_of_third_level(*cpu),
        _ => None,
    };
    (0..plan.topology.vcpus()).map(domain).collect::<Option<_>>().unwrap_or_default()
}

/// The first of what KVM gives that needs it: bits of physical address (leaf 0x80000008).
fn physical_bits(supported: &[kvm_bindings::kvm_cpuid_entry2]) -> u8 {
    let leaf = supported.iter().find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |leaf| leaf.eax as u8)
}

impl Parts {
    /// Takes from the host what the machine is made of.
    pub fn new(config: &VmConfig, kvm: OwnedFd, hot_plug: bool) -> Result<Self, MachineError> {
        let kvm = hypervisor::open(kvm)?;
        let supported = hypervisor::supported_cpuid(&kvm)?;
        let facts = HostFacts { physical_bits: physical_bits(supported.as_slice()), hot_plug };
        let plan = Plan::new(config, facts)?;
        if let Some(baseline) = plan.baseline {
            let missing = baseline.missing(supported.as_slice());
            if !missing.is_empty() {
                return Err(MachineError::Baseline { missing });
            }
        }
        let memory = memory::allocate(&plan.zones)?;
        Ok(Self { plan, kvm, supported, memory })
    }

    /// RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Puts the machine together: KVM's part of it, processors, buses, interrupts, what is not on PCI, and the vCPUs' threads.
    pub fn assemble(
        self,
        config: &VmConfig,
        filters: Arc<Filters>,
        events: Arc<Events>,
    ) -> Result<Machine, MachineError> {
        let Self { plan, kvm, supported, memory } = self;
        let buses = Arc::new(Buses::default());
        let affinity = |vcpu| plan.affinity.get(&vcpu).map(|cpus| cpu_set(cpus));
        let listener: Arc<dyn Listener> = Arc::new(Told { events: Arc::clone(&events), filters: Arc::clone(&filters) });
        // They confine themselves while KVM makes its VM.
        let starting = Starting::new(plan.topology.vcpus(), affinity, &buses, &listener)?;
        let highest = plan.topology.apic_id(plan.topology.vcpus().saturating_sub(1));
        let options = VmOptions { dedicated: config.cpus.dedicated, wide_apic_ids: highest > 254 };
        let hypervisor = Hypervisor::new(kvm, options)?;
        let ram = hypervisor.slots.map_ram(&memory).map_err(failed("give the guest its RAM"))?;
        let vcpus = create_vcpus(&hypervisor.vm, &plan)?;
        let cpuid = Cpuid::new(
            supported.as_slice(),
            &CpuidOptions {
                topology: plan.topology,
                dedicated: config.cpus.dedicated,
                nested: config.cpus.nested,
                max_physical_bits: plan.physical_bits,
                baseline: plan.baseline,
                tsc_khz: vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()),
                tsc_deadline: hypervisor.kvm.check_extension(Cap::TscDeadlineTimer),
                caches: host_caches(),
                shared_cache_shift: plan.topology.common_shift(&cache_domains(&plan)),
            },
        );
        for (number, vcpu) in (0..).zip(&vcpus) {
            state::initialize(vcpu, &cpuid.of(number))?;
        }
        let vm = &hypervisor.vm;
        let interrupts = Interrupts::new(Arc::clone(vm) as Arc<dyn IrqChip>);
        let pci = PciRoot::new(&buses.memory, plan.windows.clone());
        let platform = Platform::new(config, vm, &buses, &pci, description(config, &plan))?;
        let vcpus = starting.finish(vcpus)?;
        let doorbells = Arc::clone(vm) as _;
        let passthrough = Passthrough::new(Arc::clone(vm), hypervisor.slots.clone(), config.vfio_container_fd);
        let (memory_slots, pmem) = (hypervisor.slots.clone(), PmemArea::new(plan.pmem.clone()));
        let workshop = Workshop {
            memory: memory.clone(),
            interrupts,
            doorbells,
            pci,
            passthrough,
            memory_slots,
            pmem,
            filters,
            events,
        };
        let (attached, payload, entry) = (Vec::new(), None, None);
        Ok(Machine { vcpus, platform, workshop, attached, payload, entry, _ram: ram, hypervisor, cpuid, memory })
    }
}

fn create_vcpus(vm: &VmFd, plan: &Plan) -> Result<Vec<VcpuFd>, HypervisorError> {
    // A vCPU's number is its APIC ID: KVM makes the LAPIC of it.
    let ids = (0..plan.topology.vcpus()).map(|vcpu| plan.topology.apic_id(vcpu));
    ids.map(|id| {
        let vcpu = vm.create_vcpu(id.into()).map_err(failed("create a vCPU"))?;
        limit_banks(vm, &vcpu)?;
        Ok(vcpu)
    })
    .collect()
}

fn cpu_set(cpus: &[u32]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().map(|cpu| *cpu as usize).filter(|cpu| *cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
    set
}

/// Opens what is booted.
pub(super) fn payload(config: &PayloadConfig) -> Result<Payload, MachineError> {
    let kernel = descriptors::file(config.kernel_fd, config.kernel.as_deref(), false);
    let initramfs = match (config.initramfs_fd, config.initramfs.as_deref()) {
        (None, None) => None,
        (number, path) => Some(descriptors::file(number, path, false).map_err(descriptor("the initramfs"))?),
    };
    let command_line = config.cmdline.clone().unwrap_or_default();
    Ok(Payload { kernel: kernel.map_err(descriptor("the kernel"))?, initramfs, command_line })
}

fn description(config: &VmConfig, plan: &Plan) -> Description {
    Description {
        topology: plan.topology,
        cells: plan.cells.clone(),
        pci_window_64: plan.windows.high.clone(),
        hot_plug_slots: plan.hot_plug_slots.clone(),
        has_serial: config.serial.mode != vse_vmm_api::ConsoleMode::Off,
        has_pvpanic: config.pvpanic,
    }
}

/// What is not on PCI.
pub(super) struct Platform {
    registers: Arc<Registers>,
    serial: Option<Arc<SerialPort>>,
    console: Option<Console>,
    description: Description,
    smbios: Vec<u8>,
}

/// An event that interrupts the guest by an edge on a pin of the IOAPIC.
fn edge(vm: &VmFd, gsi: u32) -> Result<EventFd, MachineError> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("an event can't be made"))?;
    vm.register_irqfd(&event, gsi).map_err(failed("connect an interrupt"))?;
    Ok(event)
}

impl Platform {
    fn new(
        config: &VmConfig,
        vm: &VmFd,
        buses: &Buses,
        pci: &Arc<PciRoot>,
        description: Description,
    ) -> Result<Self, MachineError> {
        let registers = Arc::new(Registers::new(Arc::clone(pci), edge(vm, EVENTS_IRQ)?));
        let taken = |_| MachineError::Host { what: "addresses overlap", source: io::ErrorKind::AddrInUse.into() };
        buses.memory.insert(ECAM, Arc::new(Ecam(Arc::clone(pci)))).map_err(taken)?;
        buses.memory.insert(PLATFORM, Arc::clone(&registers) as _).map_err(taken)?;
        buses.ports.insert(keyboard::PORT..keyboard::PORT + 1, Arc::new(ResetLine)).map_err(taken)?;
        if description.has_pvpanic {
            let port = u64::from(pvpanic::PORT);
            buses.ports.insert(port..port + 1, Arc::new(PanicPort)).map_err(taken)?;
        }
        let (mut serial, mut console) = (None, None);
        if description.has_serial {
            let (output, has_input) = console::output(&config.serial).map_err(descriptor("the serial port"))?;
            let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(io::Error::from);
            let wake = wake.map_err(host("an event can't be made"))?;
            let ours = wake.try_clone().map_err(host("an event can't be made"))?;
            let port = Arc::new(SerialPort::new(output, edge(vm, SERIAL.1)?, wake));
            buses.ports.insert(SERIAL.0..SERIAL.0 + 8, Arc::clone(&port) as _).map_err(taken)?;
            console = Some(Console::new(Arc::clone(&port), ours, has_input));
            serial = Some(port);
        }
        Ok(Self { registers, serial, console, description, smbios: smbios::build(&config.platform)? })
    }

    /// Writes what firmware would have left in memory: the ACPI and SMBIOS tables, code that resets, and an ID of this life
    /// of the guest.
    pub fn write_tables(&self, memory: &GuestMemory) -> Result<(), MachineError> {
        let acpi = acpi::build(&self.description)?;
        let parts = [(acpi::TABLES.start, &acpi[..]), (SMBIOS.start, &self.smbios), (RESET_VECTOR, &RESET_CODE)];
        for (start, bytes) in parts {
            memory.write_slice(bytes, GuestAddress(start)).map_err(crate::boot::BootError::from)?;
        }
        new_generation(memory)
    }

    pub fn notify(&self, event: u32) {
        self.registers.notify(event);
    }

    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    pub fn serial(&self) -> Option<&SerialPort> {
        self.serial.as_deref()
    }

    pub fn console(&self) -> Option<&Console> {
        self.console.as_ref()
    }

    pub fn console_mut(&mut self) -> Option<&mut Console> {
        self.console.as_mut()
    }

    pub fn flush(&self) {
        self.serial.iter().for_each(|serial| serial.flush());
    }

    pub fn reset(&self) {
        self.registers.reset();
        self.serial.iter().for_each(|serial| serial.reset());
    }
}

/// Writes a VM generation ID that no other life of a guest has.
pub(super) fn new_generation(memory: &GuestMemory) -> Result<(), MachineError> {
    let mut id = [0_u8; 16];
    let drawn = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty());
    drawn.map_err(|error| host("no random numbers")(error.into()))?;
    let written = memory.write_slice(&id, GuestAddress(acpi::VM_GENERATION_ID));
    Ok(written.map_err(crate::boot::BootError::from)?)
}

/// Passes on what vCPUs' exits lead to.
struct Told {
    events: Arc<Events>,
    filters: Arc<Filters>,
}

impl Listener for Told {
    fn happened(&self, vcpu: u32, outcome: Outcome) {
        match outcome {
            Outcome::Continue => {}
            Outcome::Request(request) => self.events.send(Event::Request(request)),
            Outcome::Failed(why) => self.events.send(Event::VcpuFailed(format!("vCPU {vcpu}: {why}"))),
        }
    }

    fn confine(&self) -> io::Result<()> {
        self.filters.confine(Role::Vcpu).map_err(io::Error::other)
    }
}
