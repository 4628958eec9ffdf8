//! The VMMs that are compared, and how each is told to run the same machine.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::guest::Assets;

/// A VMM, and the machine it builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Contender {
    /// QEMU's full PC.
    Q35,
    /// QEMU's machine without PCI.
    Microvm,
    /// Ours.
    Vmm,
}

/// What a guest has, the same for every contender.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// vCPUs.
    pub vcpus: u32,
    /// RAM in MiB.
    pub memory: u32,
    /// The kernel's command line.
    pub command_line: String,
    /// Whether its CPUs are its own: the guest halts and pauses without leaving.
    pub is_dedicated: bool,
    /// A virtio disk.
    pub disk: Option<Disk>,
    /// A virtio network card on this tap.
    pub tap: Option<Tap>,
    /// Where the VMM shall listen for requests, if it can.
    pub api: Option<PathBuf>,
}

/// A raw disk, by path.
#[derive(Debug, Clone)]
pub struct Disk {
    pub path: PathBuf,
    /// Around the host's page cache, and as where io_uring is forbidden: in a pod.
    pub is_direct: bool,
}

/// An open tap and an open /dev/vhost-net, at these numbers in the VMM.
#[derive(Debug, Clone, Copy)]
pub struct Tap {
    pub tap: RawFd,
    pub vhost: RawFd,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Q35 => "QEMU q35",
            Self::Microvm => "QEMU microvm",
            Self::Vmm => "vse-vmm",
        })
    }
}

impl Contender {
    /// The program and its arguments.
    pub fn command(self, assets: &Assets, machine: &Machine) -> Vec<String> {
        match self {
            Self::Q35 => qemu("q35,accel=kvm", "pci", assets, machine),
            Self::Microvm => qemu("microvm,accel=kvm", "device", assets, machine),
            Self::Vmm => vmm(assets, machine),
        }
    }
}

/// `transport` is the ending of the names of virtio devices on this machine.
fn qemu(kind: &str, transport: &str, assets: &Assets, machine: &Machine) -> Vec<String> {
    let mut command = words("qemu-system-x86_64 -nodefaults -no-user-config -display none -serial stdio -no-reboot");
    command.extend(words(&format!("-M {kind} -cpu host -m {} -smp {}", machine.memory, machine.vcpus)));
    for (option, path) in [("-kernel", &assets.kernel), ("-initrd", &assets.initramfs)] {
        command.extend([option.to_owned(), path.display().to_string()]);
    }
    command.extend(["-append".to_owned(), machine.command_line.clone()]);
    if machine.is_dedicated {
        command.extend(words("-overcommit cpu-pm=on"));
    }
    if let Some(Disk { path, is_direct }) = &machine.disk {
        let way = if *is_direct { "aio=native,cache.direct=on" } else { "aio=threads" };
        command.extend(words(&format!(
            "-object iothread,id=io -blockdev driver=file,filename={},{way},node-name=disk",
            path.display()
        )));
        command.extend(words(&format!("-device virtio-blk-{transport},drive=disk,iothread=io,num-queues=1")));
    }
    if let Some(Tap { tap, vhost }) = machine.tap {
        command.extend(words(&format!("-netdev tap,id=net,fd={tap},vhost=on,vhostfd={vhost}")));
        command.extend(words(&format!("-device virtio-net-{transport},netdev=net")));
    }
    command
}

fn vmm(assets: &Assets, machine: &Machine) -> Vec<String> {
    let mut command = vec![assets.vmm.display().to_string()];
    for (option, path) in [("--kernel", &assets.kernel), ("--initramfs", &assets.initramfs)] {
        command.extend([option.to_owned(), path.display().to_string()]);
    }
    command.extend(["--cmdline".to_owned(), machine.command_line.clone()]);
    let dedicated = if machine.is_dedicated { ",dedicated=on" } else { "" };
    command.extend(words(&format!("--cpus boot={}{dedicated} --memory size={}M", machine.vcpus, machine.memory)));
    command.extend(words("--serial tty --console off --rng src="));
    if let Some(api) = &machine.api {
        command.extend(words(&format!("--api-socket path={}", api.display())));
    }
    if let Some(Disk { path, is_direct }) = &machine.disk {
        let way = if *is_direct { ",direct=on,disable_io_uring=on" } else { "" };
        command.extend(words(&format!("--disk path={},num_queues=1{way}", path.display())));
    }
    if let Some(Tap { tap, vhost }) = machine.tap {
        command.extend(words(&format!("--net fd={tap},vhost_fd={vhost}")));
    }
    command
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
