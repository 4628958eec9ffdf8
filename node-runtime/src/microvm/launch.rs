//! Launching: everything a guest needs is made ready on the host, then the launcher becomes the engine.
//!
//! Each step may be repeated, and may be the last one before this process is killed: what was made is found again
//! (image, network, disks), and a launcher that got no complete order goes on waiting.

use super::placement::{self, NotExclusive};
use super::pod_process::{self, PodProcess};
use super::{Context, cells, disks, host_devices, huge_pages, image_identity, images, network, numa_maps, seed};
use crate::cpu_list::CpuList;
use crate::engines::OWN_DISKS;
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat2};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use vse_crds::labels::{self, paths};
use vse_crds::{Accelerator, CellPlacement, CpuPlacement, GuestDevice, MicroVMSpec, PageSize, Root, quantity};
use vse_engine as engine;
use vse_guest_network::{Attached, Tap};
use vse_launch::{Descriptor, LaunchOrder};
use vse_node_runtime::crash_point::Step;
use vse_system_image::{Key, SystemImage};

/// What a launch leaves behind for the node runtime to keep.
pub(super) struct Launched {
    /// DHCP and address of the guest, if it has a network.
    pub network: Option<Attached>,
    /// CPUs the guest's threads are to be pinned to.
    pub cpus: CpuPlacement,
    /// Host devices the guest has.
    pub devices: Vec<GuestDevice>,
    /// Release of the booted kernel.
    pub kernel: String,
    /// When everything was ready.
    pub prepared: Timestamp,
    /// When the launcher had become the engine.
    pub engine_started: Timestamp,
}

/// Why a guest was not launched. Nothing runs after any of them.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("system image {image} is not mounted in the pod")]
    NoImage { image: String },
    #[error("cannot boot from system image {image}")]
    Image { image: String, source: images::Error },
    #[error(transparent)]
    Placement(#[from] NotExclusive),
    #[error("the guest's cells do not fit this host")]
    Cells(#[from] cells::Error),
    #[error(transparent)]
    HugePages(#[from] huge_pages::Short),
    #[error(transparent)]
    Misplaced(#[from] numa_maps::Misplaced),
    #[error("this host can't run the guest: {0}")]
    Mismatch(String),
    #[error(transparent)]
    Disk(#[from] disks::Error),
    #[error("cannot make the cloud-init seed")]
    Seed(#[from] seed::Error),
    #[error("cannot set up the guest's network")]
    Network(#[from] vse_guest_network::Error),
    #[error(transparent)]
    HostDevices(#[from] host_devices::Error),
    #[error("cannot look into the pod")]
    Pod(#[from] pod_process::Error),
    #[error("the guest's description is not one engine {engine} takes")]
    Config { engine: &'static str, source: engine::ConfigError },
    #[error("cannot open {path}")]
    Device { path: String, source: std::io::Error },
    #[error("cannot reach the launcher")]
    Launcher(#[from] vse_launch::ConnectError),
    #[error("the launch order was not carried out")]
    Send(#[from] vse_launch::SendError),
    #[error("a part of the launch was cut short")]
    Cancelled(#[from] tokio::task::JoinError),
}

impl Error {
    /// Whether trying again can't help: the order itself, or what it refers to, is wrong.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Error::NoImage { .. }
            | Error::Placement(_)
            | Error::Cells(_)
            | Error::Misplaced(_)
            | Error::Mismatch(_)
            | Error::Config { .. } => true,
            Error::HugePages(short) => !short.for_now,
            Error::Image { source, .. } => source.is_final(),
            Error::Disk(error) => error.is_final(),
            Error::Seed(error) => error.is_final(),
            Error::HostDevices(error) => error.is_final(),
            Error::Send(error) => {
                matches!(error, vse_launch::SendError::Refused(_) | vse_launch::SendError::Invalid(_))
            }
            Error::Network(_) | Error::Pod(_) | Error::Device { .. } | Error::Launcher(_) | Error::Cancelled(_) => {
                false
            }
        }
    }
}

/// Launches the guest in its pod, whose first process is the waiting launcher.
pub(super) async fn launch(
    context: &Context,
    vm: &MicroVMSpec,
    namespace: &str,
    process: &PodProcess,
    run: &OwnedFd,
) -> Result<Launched, Error> {
    let driver = driver(context, vm)?;
    let placed = place(context, vm, process)?;
    context.crash_points.after(Step::Placed);
    let image = system_image(context, vm, process).await?;
    context.crash_points.after(Step::ImageReady);
    let disks = all_disks(vm, &image, process)?;
    context.crash_points.after(Step::DisksOpen);
    let accelerator = match vm.accelerator {
        Accelerator::Kvm => engine::Accelerator::Kvm(open_device(&context.kvm_device)?),
        Accelerator::Tcg => engine::Accelerator::Emulation,
    };
    let (passthrough, devices) = match host_devices::take(context, vm, namespace, memory(vm), process).await? {
        Some(given) => (Some(given.passthrough), given.devices),
        None => (None, Vec::new()),
    };
    let mut network = network::attach(vm, process).await?;
    context.crash_points.after(Step::NetworkAttached);
    let kernel = image.kernel_version.clone();
    let guest = engine::GuestConfig {
        name: guest_name(namespace, vm),
        uuid: vm.vse_uid.clone(),
        runtime_dir: paths::RUN.into(),
        cpu: topology(vm),
        memory: engine::Memory { bytes: memory(vm), pages: pages(vm) },
        cells: placed.cells.clone(),
        placement: engine::Placement { pinned: placed.cpus.pinned.clone() },
        boot: engine::Boot {
            kernel: image.kernel.into(),
            initramfs: Some(image.initramfs.into()),
            command_line: command_line(vm),
        },
        disks,
        nics: network.as_mut().map(nic).into_iter().collect(),
        accelerator,
        passthrough,
    };
    let command = driver.command(&guest).map_err(|source| Error::Config { engine: driver.name(), source })?;
    promise_huge_pages(context, vm, &placed.cells)?;
    let prepared = Timestamp::now();
    if let Err(error) = send(run, command) {
        context.huge_pages.settle(&vm.pod_uid);
        return Err(error);
    }
    context.crash_points.after(Step::OrderSent);
    Ok(Launched { network, cpus: placed.cpus, devices, kernel, prepared, engine_started: Timestamp::now() })
}

/// The engine that was ordered, if it has all the guest needs; the operator chose from what the host had published.
fn driver<'a>(context: &'a Context, vm: &MicroVMSpec) -> Result<&'a dyn engine::Engine, Error> {
    let (disks, nics) = (vm.disks.len() + OWN_DISKS, usize::from(vm.network.is_some()));
    let needs = engine::Needs {
        engine: Some(vm.engine.clone()),
        accelerator: match vm.accelerator {
            Accelerator::Kvm => engine::AcceleratorKind::Kvm,
            Accelerator::Tcg => engine::AcceleratorKind::Emulation,
        },
        vcpus: topology(vm).vcpus(),
        disks,
        nics,
        devices: disks + nics + vm.machine.devices.host_devices.len(),
        pages: pages(vm),
        features: features(vm),
    };
    let driver = context.engines.get(&vm.engine);
    let info = driver
        .map(|driver| engine::EngineInfo { name: driver.name().into(), capabilities: driver.capabilities().clone() });
    match (driver, engine::choose(&needs, info.as_slice())) {
        (Some(driver), Ok(_)) => Ok(driver),
        (None, Ok(_)) => Err(Error::Mismatch(format!("spec.engine: {} is not known here", vm.engine))),
        (_, Err(against)) => {
            let reasons: Vec<String> = against.iter().map(ToString::to_string).collect();
            Err(Error::Mismatch(reasons.join("; ")))
        }
    }
}

/// What the guest needs that not every engine can do.
fn features(vm: &MicroVMSpec) -> BTreeSet<engine::Feature> {
    let cells = is_mirrored(vm).then_some(engine::Feature::GuestCells);
    let devices = (!vm.machine.devices.is_empty()).then_some(engine::Feature::Passthrough);
    cells.into_iter().chain(devices).collect()
}

/// Where a guest lies on its host.
pub(super) struct Placed {
    /// CPUs.
    pub cpus: CpuPlacement,
    /// Memory, and what the guest is shown of it.
    pub cells: Vec<engine::GuestCell>,
}

/// Deals the pod's CPUs out to the guest's threads, and its memory to their cells. The same at any time in the pod's life.
pub(super) fn place(context: &Context, vm: &MicroVMSpec, process: &PodProcess) -> Result<Placed, Error> {
    let cpu = &vm.machine.cpu;
    let request = placement::Request {
        vcpus: topology(vm).vcpus(),
        dedicated: cpu.dedicated_cpu_placement.unwrap_or(false),
        isolate_emulator: cpu.isolate_emulator_thread.unwrap_or(false),
    };
    let mut cpus = placement::place(request, &process.allowed_cpus()?, &context.topology)?;
    let request =
        cells::Request { pinned: &cpus.pinned, bytes: memory(vm), page: pages(vm).bytes(), mirror: is_mirrored(vm) };
    let cells = cells::cells(request, &context.topology, &context.cells, &process.allowed_cells()?)?;
    let cell = |cell: &engine::GuestCell| CellPlacement {
        vcpus: cell.vcpus.iter().copied().collect::<CpuList>().to_string(),
        memory: quantity::from_bytes(cell.bytes),
        host_cells: cell.host_cells.iter().copied().collect::<CpuList>().to_string(),
    };
    cpus.cells = cells.iter().map(cell).collect();
    Ok(Placed { cpus, cells })
}

fn is_mirrored(vm: &MicroVMSpec) -> bool {
    vm.machine.cpu.numa.as_ref().is_some_and(|numa| numa.guest_mapping_passthrough.is_some())
}

/// Makes sure of the huge pages of each cell. The promise holds until [`huge_pages::HugePages::settle`].
fn promise_huge_pages(context: &Context, vm: &MicroVMSpec, cells: &[engine::GuestCell]) -> Result<(), Error> {
    let Some(size) = vm.machine.memory.hugepages.as_ref().map(|pages| pages.page_size) else { return Ok(()) };
    let mut needed = huge_pages::Pages::new();
    for (cell, bytes) in cells.iter().flat_map(|cell| cell.parts(size.bytes())) {
        *needed.entry(cell).or_default() += bytes / size.bytes();
    }
    Ok(context.huge_pages.promise(&vm.pod_uid, size, needed)?)
}

/// Whether a started engine has its huge pages where they should be. Engines place them by first use, and another
/// process may have been faster.
pub(super) fn check_huge_pages(
    vm: &MicroVMSpec,
    cells: &[engine::GuestCell],
    process: &PodProcess,
) -> Result<(), Error> {
    if vm.machine.memory.hugepages.is_none() || cells.is_empty() {
        return Ok(());
    }
    let mut wanted = numa_maps::Wanted::new();
    for cell in cells {
        match cell.host_cells.as_slice() {
            [one] => {
                let bytes = wanted.entry(*one).or_insert(Some(0));
                *bytes = bytes.map(|bytes| bytes + cell.bytes);
            }
            several => wanted.extend(several.iter().map(|cell| (*cell, None))),
        }
    }
    // QEMU touches the first page of each cell from its main thread, to see whether the kernel can do the rest at once
    // (madv_populate_write_possible, util/oslib-posix.c).
    let tolerated = if cells.len() > 1 { cells.len() as u64 * pages(vm).bytes() } else { 0 };
    Ok(numa_maps::check(&process.numa_maps()?, &wanted, tolerated)?)
}

/// Kernel, initramfs and root of the image mounted in the pod, made once for each image on this host.
async fn system_image(context: &Context, vm: &MicroVMSpec, process: &PodProcess) -> Result<SystemImage, Error> {
    let reference = vm.boot.image.clone();
    let no_image = || Error::NoImage { image: reference.clone() };
    let tree = process.open_in_root(paths::SYSTEM, OFlags::DIRECTORY | OFlags::RDONLY)?;
    let mounts = process.mounts()?;
    let identity = image_identity::image_identity(&image_identity::MountedImage {
        reference: &reference,
        mounts: &mounts,
        mount_point: paths::SYSTEM,
        witness: witness(&tree),
    })
    .ok_or_else(no_image)?;
    let kernel = vm.boot.kernel_path.clone();
    let images = context.images.clone();
    let made = tokio::task::spawn_blocking(move || {
        let kernel = kernel.as_deref().map(Path::new);
        images.prepare(Key::new(&identity, kernel), &tree, kernel)
    });
    made.await?.map_err(|source| Error::Image { image: vm.boot.image.clone(), source })
}

/// Release of the kernel that a launched guest has booted.
pub(super) async fn kernel(context: &Context, vm: &MicroVMSpec, process: &PodProcess) -> Result<String, Error> {
    Ok(system_image(context, vm, process).await?.kernel_version)
}

/// What tells two unpackings of an image apart: see [`image_identity`]. A tree without these has no kernel either.
fn witness(tree: &OwnedFd) -> (u64, i64, i64) {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let stat = ["usr", "boot"]
        .into_iter()
        .find_map(|directory| fstat(openat2(tree, directory, flags, Mode::empty(), resolve).ok()?).ok());
    stat.map_or((0, 0, 0), |stat| (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec as i64))
}

/// The system's own disk first, then the guest's, then the cloud-init seed.
fn all_disks(vm: &MicroVMSpec, image: &SystemImage, process: &PodProcess) -> Result<Vec<engine::Disk>, Error> {
    let root = image.root.try_clone().map_err(|source| Error::Device { path: "root.erofs".into(), source })?;
    let mut all = vec![engine::Disk {
        serial: "vse-system".into(),
        source: engine::DiskSource::Fd(root.into()),
        storage: engine::Storage::File,
        read_only: true,
        discard: false,
        cache: engine::Cache::Shared,
    }];
    for disk in &vm.disks {
        let mut opened = disks::open(process, disk)?;
        if vm.boot.root_disk.as_ref() == Some(&disk.name) {
            opened.serial = "vse-root".into();
        }
        all.push(opened);
    }
    if let Some(cloud_init) = &vm.cloud_init {
        all.push(seed::disk(vm, cloud_init, process)?);
    }
    Ok(all)
}

fn nic(network: &mut Attached) -> engine::Nic {
    let taps = match &mut network.tap {
        Tap::Created(taps) => std::mem::take(taps),
        // Only an engine holds a tap open, and there is none yet; the engine's own check refuses a card without tap.
        Tap::InUse => Vec::new(),
    };
    engine::Nic { taps, vhosts: Vec::new(), mac: network.mac.0 }
}

fn topology(vm: &MicroVMSpec) -> engine::CpuTopology {
    let cpu = &vm.machine.cpu;
    engine::CpuTopology {
        sockets: cpu.sockets.unwrap_or(1),
        cores: cpu.cores.unwrap_or(1),
        threads: cpu.threads.unwrap_or(1),
    }
}

fn memory(vm: &MicroVMSpec) -> u64 {
    let guest = vm.machine.memory.guest.as_ref();
    guest.and_then(|guest| quantity::bytes(guest).ok()).unwrap_or(0)
}

fn pages(vm: &MicroVMSpec) -> engine::PageSize {
    match vm.machine.memory.hugepages.as_ref().map(|pages| pages.page_size) {
        None => engine::PageSize::Default,
        Some(PageSize::TwoMi) => engine::PageSize::Huge2M,
        Some(PageSize::OneGi) => engine::PageSize::Huge1G,
    }
}

/// The serial console, an end instead of a standstill after a panic, where `vse-init` finds the root, the host name
/// (systemd's, others pass it by); then the user's.
fn command_line(vm: &MicroVMSpec) -> String {
    let root = match vm.boot.root {
        Root::Diskless => "vse.root=diskless",
        Root::Disk => "vse.root=disk",
    };
    let hostname = format!("systemd.hostname={}", seed::hostname(vm));
    let mut arguments = vec!["console=ttyS0", "panic=1", root, &hostname];
    arguments.extend(vm.boot.kernel_arguments.iter().map(String::as_str));
    arguments.join(" ")
}

fn open_device(path: &Path) -> Result<OwnedFd, Error> {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|source| Error::Device { path: path.display().to_string(), source })
}

fn send(run: &OwnedFd, command: engine::Command<'_>) -> Result<(), Error> {
    let connection = vse_launch::connect_beneath(std::os::fd::AsFd::as_fd(run), paths::LAUNCH_SOCKET)?;
    let (descriptors, fds): (Vec<Descriptor>, Vec<BorrowedFd<'_>>) = command
        .descriptors
        .into_iter()
        .map(|handed| (Descriptor { name: handed.name, target: handed.target }, handed.fd))
        .unzip();
    let order = LaunchOrder {
        program: command.program,
        args: command.args,
        env: BTreeMap::from_iter(command.env),
        descriptors,
    };
    Ok(vse_launch::send(&connection.stream, &order, &fds)?)
}

/// Name of a guest as engines and logs show it.
fn guest_name(namespace: &str, vm: &MicroVMSpec) -> String {
    format!("{namespace}/{}", labels::incarnation_name(&vm.vse_name, vm.incarnation))
}
