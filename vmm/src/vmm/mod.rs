//! The owner of the one guest, and the only one who changes its state.
//!
//! ```text
//!               vm.create                 vm.boot               vm.pause
//!   (nothing) ────────────► Created ────────────────► Running ◄──────────► Paused
//!     ▲  │                                             │  ▲     vm.resume  ▲  │
//!     │  │  vm.restore                     vm.shutdown │  │ vm.boot        │  │ vm.shutdown
//!     │  └─────────────────────────────────────────────┼──┼────────────────┘  │
//!     │                                                ▼  │                   │
//!     └──────── vm.delete (from anywhere) ─────────── Shutdown ◄──────────────┘
//! ```
//!
//! What the guest does (reset, power off, panic) comes before what callers ask for; see [`run`].

mod along;
pub mod guest;
mod machines;
pub mod refusal;
pub mod run;

use std::os::fd::OwnedFd;

use vse_vmm_api::{
    MacAddr, MemoryRestoreMode, NewDevice, PciDeviceInfo, RestoreConfig, RestoredNetConfig, SnapshotPlace, VmConfig,
    VmInfo, VmResize, VmSnapshotConfig, VmState, VmmPingResponse,
};

use crate::api::{Command, Response};
use crate::bus;
use crate::machine::descriptors::{self, Received};
use crate::monitor::{By, Happened, Monitor};
use crate::snapshot::Directory;

pub use guest::{Builder, Guest, Outcome};
pub use machines::{MachineSignals, Machines};
pub use refusal::Refusal;

/// Why the VMM ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest has powered itself off.
    PoweredOff,
    /// `vmm.shutdown`.
    Ordered,
    /// The guest's kernel has panicked.
    Panicked,
    /// The machine can't go on.
    Failed(String),
}

impl End {
    /// The process' exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PoweredOff | Self::Ordered => 0,
            Self::Failed(_) => 1,
            Self::Panicked => 3,
        }
    }
}

/// The guest, as far as it is there.
struct Vm {
    config: VmConfig,
    state: VmState,
    /// `None` after `vm.shutdown`.
    guest: Option<Box<dyn Guest>>,
    /// Whether a program in the guest has the agent's port open.
    agent_connected: bool,
}

impl Vm {
    /// Ends the guest. What it has said or asked to be written is finished first.
    fn stop(&mut self) {
        if let (VmState::Running, Some(guest)) = (self.state, &mut self.guest) {
            // There is nobody to tell: it ends anyway.
            let _ = guest.pause();
        }
        self.guest = None;
        self.agent_connected = false;
    }
}

/// The owner.
pub struct Vmm {
    builder: Box<dyn Builder>,
    monitor: Monitor,
    vm: Option<Vm>,
    end: Option<End>,
}

impl Vmm {
    /// An owner of no guest yet.
    #[must_use]
    pub fn new(builder: Box<dyn Builder>, monitor: Monitor) -> Self {
        Self { builder, monitor, vm: None, end: None }
    }

    /// Tells what happens from now on to `monitor`.
    pub fn listen(&mut self, monitor: Monitor) {
        self.monitor = monitor;
    }

    /// Why it ends, once it does.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Carries out a command. `fds` are the descriptors that came with it.
    pub fn command(&mut self, command: Command, fds: Vec<OwnedFd>) -> Response {
        self.act(command, fds).unwrap_or_else(|refusal| refusal.response())
    }

    /// Does what the guest asks for. [`bus::Request::Nothing`] is nothing.
    pub fn request(&mut self, request: bus::Request) {
        let Some(Vm { guest: Some(guest), config, state, .. }) = &mut self.vm else { return };
        match request {
            bus::Request::Nothing => {}
            // A guest that was paused while it asked stays so.
            bus::Request::Reset => match start_over(guest.as_mut(), *state) {
                Ok(()) => self.monitor.tell(Happened::Reset(By::Guest)),
                Err(error) => self.failed(&format!("the guest can't start over: {}", chain(error.as_ref()))),
            },
            bus::Request::PowerOff => self.finish(End::PoweredOff),
            bus::Request::Panicked => self.finish(End::Panicked),
            bus::Request::Eject { slot } => {
                if let Some(id) = guest.eject(slot) {
                    let before = config.descriptors();
                    config.remove(&id);
                    let left = config.descriptors();
                    before.into_iter().filter(|number| !left.contains(number)).for_each(descriptors::close);
                }
            }
        }
    }

    /// A program in the guest has opened or closed the agent's port.
    pub fn agent(&mut self, connected: bool) {
        if let Some(vm) = &mut self.vm {
            vm.agent_connected = connected;
        }
        self.monitor.tell(Happened::Agent { connected });
    }

    /// The machine can't go on.
    pub fn failed(&mut self, reason: &str) {
        self.finish(End::Failed(reason.to_owned()));
    }

    fn finish(&mut self, end: End) {
        match &end {
            End::PoweredOff => self.monitor.tell(Happened::Shutdown(By::Guest)),
            End::Ordered if self.vm.is_some() => self.monitor.tell(Happened::Shutdown(By::Api)),
            End::Panicked => self.monitor.tell(Happened::Panicked),
            End::Ordered | End::Failed(_) => {}
        }
        // The first reason is the one.
        self.end.get_or_insert(end);
    }

    fn act(&mut self, mut command: Command, fds: Vec<OwnedFd>) -> Result<Response, Refusal> {
        let received = Received::new(fds);
        along::bring(&mut command, received.numbers())?;
        match command {
            Command::Ping => return Ok(ping()),
            Command::VmmShutdown => self.finish(End::Ordered),
            Command::Create(config) => self.create(*config)?,
            Command::Restore(restore) => self.restore(restore, received)?,
            Command::Delete => self.delete(),
            Command::Boot => self.boot()?,
            Command::Pause => self.pause()?,
            Command::Resume => self.resume()?,
            Command::Shutdown => self.shutdown()?,
            Command::Reboot => self.reboot()?,
            Command::PowerButton => self.running("only a running VM has a power button")?.power_button(),
            Command::Info => return Ok(Response::json(&self.info()?)),
            Command::Counters => {
                let guest = self.vm.as_ref().ok_or(Refusal::NotCreated)?.guest.as_ref();
                return Ok(Response::json(&guest.map(|guest| guest.counters()).unwrap_or_default()));
            }
            Command::Add(device) => return self.add(*device, received),
            Command::Remove(remove) => self.remove(&remove.id)?,
            Command::Resize(resize) => self.resize(resize)?,
            Command::Snapshot(snapshot) => self.snapshot(&snapshot)?,
        }
        Ok(Response::DONE)
    }

    /// `vm.create`.
    ///
    /// # Errors
    /// When there is a guest, or the host can't have this one.
    pub fn create(&mut self, config: VmConfig) -> Result<(), Refusal> {
        if self.vm.is_some() {
            return Err(Refusal::AlreadyCreated);
        }
        let mut config = config.validate()?;
        fill_addresses(&mut config);
        let guest = self.builder.create(&config).map_err(machine("vm.create"))?;
        self.vm = Some(Vm { config, state: VmState::Created, guest: Some(guest), agent_connected: false });
        self.monitor.tell(Happened::Created);
        Ok(())
    }

    /// `vm.restore`. What it has `received` is named in it.
    ///
    /// # Errors
    /// When there is a guest, the snapshot is damaged or of another guest, or the host can't have it.
    pub fn restore(&mut self, restore: RestoreConfig, received: Received) -> Result<(), Refusal> {
        if self.vm.is_some() {
            return Err(Refusal::NothingToRestoreInto);
        }
        if restore.memory_restore_mode == MemoryRestoreMode::OnDemand {
            let reason = "memory is read before the guest goes on";
            return Err(Refusal::NotSupported { field: "memory_restore_mode", reason });
        }
        let snapshot = directory(restore.source()?, "source_fd")?.load()?;
        let mut config = restore.config.map_or_else(|| snapshot.config.clone(), |config| *config);
        config.place_zones(&restore.zone_updates).map_err(|zone| Refusal::NoSuchZone(zone.to_owned()))?;
        give_taps(&mut config, &restore.net_fds)?;
        if restore.prefault {
            config.memory.prefault = true;
            config.memory.zones.iter_mut().for_each(|zone| zone.prefault = true);
        }
        adopt_addresses(&mut config, &snapshot.config);
        let config = config.validate_restored()?;
        config.is_guest_of(&snapshot.config)?;
        let guest = self.builder.restore(&config, &snapshot, restore.keep_clock).map_err(machine("vm.restore"))?;
        received.keep();
        self.vm = Some(Vm { config, state: VmState::Paused, guest: Some(guest), agent_connected: false });
        restore.source_fd.into_iter().for_each(descriptors::close);
        self.monitor.tell(Happened::Restored);
        if restore.resume { self.resume() } else { Ok(()) }
    }

    /// `vm.boot`.
    ///
    /// # Errors
    /// When there is no guest, it runs, or the machine can't.
    pub fn boot(&mut self) -> Result<(), Refusal> {
        let vm = self.vm.as_mut().ok_or(Refusal::NotCreated)?;
        match vm.state {
            VmState::Created => {}
            VmState::Shutdown => vm.guest = Some(self.builder.create(&vm.config).map_err(machine("vm.boot"))?),
            state => return Err(Refusal::State { state, wanted: "it was booted before" }),
        }
        if let Some(guest) = &mut vm.guest {
            guest.boot().map_err(machine("vm.boot"))?;
        }
        vm.state = VmState::Running;
        self.monitor.tell(Happened::Booted);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Refusal> {
        self.running("only a running VM can be paused")?.pause().map_err(machine("vm.pause"))?;
        self.enter(VmState::Paused, Happened::Paused);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Refusal> {
        self.in_state(VmState::Paused, "only a paused VM can be resumed")?.resume().map_err(machine("vm.resume"))?;
        self.enter(VmState::Running, Happened::Resumed);
        Ok(())
    }

    fn reboot(&mut self) -> Result<(), Refusal> {
        let has_kernel = self.vm.as_ref().is_some_and(|vm| vm.config.payload.has_kernel());
        let guest = self.running("only a running VM can start over")?;
        if !has_kernel {
            return Err(Refusal::NoKernel);
        }
        if let Err(error) = start_over(guest, VmState::Running) {
            // What is left of it is neither the old guest nor a new one.
            self.failed(&format!("the guest can't start over: {}", chain(error.as_ref())));
            return Err(machine("vm.reboot")(error));
        }
        self.monitor.tell(Happened::Reset(By::Api));
        Ok(())
    }

    fn shutdown(&mut self) -> Result<(), Refusal> {
        let vm = self.vm.as_mut().ok_or(Refusal::NotCreated)?;
        if !matches!(vm.state, VmState::Running | VmState::Paused) {
            return Err(Refusal::State { state: vm.state, wanted: "only a booted VM can be shut down" });
        }
        vm.stop();
        self.enter(VmState::Shutdown, Happened::Shutdown(By::Api));
        Ok(())
    }

    /// `vm.delete`, and what is done before the process ends.
    pub fn delete(&mut self) {
        if let Some(mut vm) = self.vm.take() {
            vm.stop();
            // Until now it could have booted again.
            vm.config.descriptors().into_iter().for_each(descriptors::close);
            self.monitor.tell(Happened::Deleted);
        }
    }

    fn info(&self) -> Result<VmInfo, Refusal> {
        let vm = self.vm.as_ref().ok_or(Refusal::NotCreated)?;
        let guest = vm.guest.as_deref();
        Ok(VmInfo {
            config: vm.config.clone(),
            state: vm.state,
            memory_actual_size: vm.config.memory.total(),
            vcpu_threads: guest.map(Guest::vcpu_threads).unwrap_or_default(),
            agent_connected: vm.agent_connected,
        })
    }

    fn add(&mut self, device: NewDevice, received: Received) -> Result<Response, Refusal> {
        let vm = self.vm.as_mut().ok_or(Refusal::NotCreated)?;
        // What it boots is known to be right already, or, once restored, not there.
        let mut config = vm.config.with(device.clone())?.validate_restored()?;
        fill_addresses(&mut config);
        let device = config.newest_like(&device).unwrap_or(device);
        let address = vm.guest.as_mut().map(|guest| guest.add(&device)).transpose();
        let address = address.map_err(machine("adding the device"))?;
        received.keep();
        vm.config = config;
        match (address, device.id()) {
            (Some(bdf), Some(id)) if matches!(vm.state, VmState::Running | VmState::Paused) => {
                Ok(Response::json(&PciDeviceInfo { id: id.to_owned(), bdf }))
            }
            _ => Ok(Response::DONE),
        }
    }

    fn remove(&mut self, id: &str) -> Result<(), Refusal> {
        let vm = self.vm.as_ref().ok_or(Refusal::NotCreated)?;
        if !vm.config.has(id) {
            return Err(Refusal::NoSuchDevice(id.to_owned()));
        }
        let guest = self.running("only a running guest can let go of a device")?;
        guest.remove(id).map_err(machine("vm.remove-device"))
    }

    fn resize(&self, resize: VmResize) -> Result<(), Refusal> {
        let config = &self.vm.as_ref().ok_or(Refusal::NotCreated)?.config;
        let asked = [
            ("desired_vcpus", resize.desired_vcpus.map(u64::from), u64::from(config.cpus.boot_vcpus)),
            ("desired_ram", resize.desired_ram, config.memory.total()),
        ];
        match asked.into_iter().find_map(|(field, asked, is)| Some((field, asked.filter(|asked| *asked != is)?, is))) {
            Some((field, asked, is)) => Err(Refusal::Resize { field, is, asked }),
            None => Ok(()),
        }
    }

    fn snapshot(&mut self, snapshot: &VmSnapshotConfig) -> Result<(), Refusal> {
        let directory = directory(snapshot.destination()?, "destination_fd")?;
        let guest = self.in_state(VmState::Paused, "only a paused VM can be saved")?;
        let units = guest.save().map_err(machine("vm.snapshot"))?;
        let Some(Vm { config, guest: Some(guest), .. }) = &self.vm else { return Err(Refusal::NotCreated) };
        directory.save(config, &units, guest.memory())?;
        snapshot.destination_fd.into_iter().for_each(descriptors::close);
        self.monitor.tell(Happened::Snapshotted);
        Ok(())
    }

    fn guest(&self) -> Option<&dyn Guest> {
        self.vm.as_ref()?.guest.as_deref()
    }

    fn guest_mut(&mut self) -> Option<&mut Box<dyn Guest>> {
        self.vm.as_mut()?.guest.as_mut()
    }

    fn running(&mut self, wanted: &'static str) -> Result<&mut dyn Guest, Refusal> {
        self.in_state(VmState::Running, wanted)
    }

    fn in_state(&mut self, needed: VmState, wanted: &'static str) -> Result<&mut dyn Guest, Refusal> {
        let vm = self.vm.as_mut().ok_or(Refusal::NotCreated)?;
        match &mut vm.guest {
            Some(guest) if vm.state == needed => Ok(guest.as_mut()),
            _ => Err(Refusal::State { state: vm.state, wanted }),
        }
    }

    fn enter(&mut self, state: VmState, happened: Happened) {
        if let Some(vm) = &mut self.vm {
            vm.state = state;
        }
        self.monitor.tell(happened);
    }
}

fn machine(verb: &'static str) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Refusal {
    move |source| Refusal::Machine { verb, source }
}

/// Opens where a snapshot is. A descriptor stays open for another try; when all is done, it is closed.
fn directory(place: SnapshotPlace<'_>, field: &'static str) -> Result<Directory, Refusal> {
    match place {
        SnapshotPlace::Url(url) => Ok(Directory::open(url)?),
        SnapshotPlace::Fd(number) => Ok(Directory::of(descriptors::directory(field, number)?, number)),
    }
}

/// Resets a guest, and lets it run if it ran.
fn start_over(guest: &mut dyn Guest, state: VmState) -> guest::Outcome<()> {
    guest.reset()?;
    if state == VmState::Running { guest.resume() } else { Ok(()) }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    refusal::chain(error).join(": ")
}

fn ping() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    Response::json(&VmmPingResponse {
        build_version: format!("vse-vmm {version}"),
        version: version.to_owned(),
        pid: std::process::id().into(),
        features: Vec::new(),
    })
}

/// Gives network devices that have no address a random one (locally administered), so that it is known and kept.
fn fill_addresses(config: &mut VmConfig) {
    for net in config.net.iter_mut().filter(|net| net.mac.is_none()) {
        let mut bytes = [0; 6];
        // Without randomness, every guest would have this address; the kernel always has some.
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        bytes[0] = bytes[0] & 0xFC | 0x02;
        net.mac = Some(MacAddr(bytes));
    }
}

/// Gives network devices the taps that came along.
fn give_taps(config: &mut VmConfig, given: &[RestoredNetConfig]) -> Result<(), Refusal> {
    for RestoredNetConfig { id, taps, .. } in given {
        let net = config.net.iter_mut().find(|net| net.id.as_ref() == Some(id));
        let net = net.ok_or_else(|| Refusal::NoSuchNet(id.clone()))?;
        net.tap = None;
        net.fds.clone_from(taps);
    }
    Ok(())
}

/// Lets network devices keep the address from the snapshot where none is given.
fn adopt_addresses(config: &mut VmConfig, snapshot: &VmConfig) {
    for (net, then) in config.net.iter_mut().zip(&snapshot.net) {
        net.mac = net.mac.or(then.mac);
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
