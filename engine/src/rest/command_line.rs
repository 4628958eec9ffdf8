//! A guest in Cloud Hypervisor's words: its command line (docs/device_model.md, `--help` of version 53). Pure.
//!
//! By options and not by `vm.create`, because that takes no descriptors: only started with everything it needs does the
//! engine stay adoptable at any time. It boots at once. Files are named by the paths of their descriptors, so they must
//! be readable by the engine's user.

use std::os::fd::OwnedFd;

use super::{API_SOCKET, DISK_QUEUE, EVENTS_LOG, NET_QUEUE, disk_queues, mac};
use crate::config::{Cache, ConfigError, Disk, DiskSource, GuestConfig, Nic};
use crate::descriptors::Descriptors;
use crate::{Command, PageSize};

/// What to start for this guest.
pub(super) fn command<'a>(program: &str, guest: &'a GuestConfig) -> Result<Command<'a>, ConfigError> {
    let mut line = Line { args: Vec::new(), descriptors: Descriptors::default() };
    let directory = &guest.runtime_dir;
    line.option("api-socket", [format!("path={directory}/{API_SOCKET}")]);
    line.option("event-monitor", [format!("path={directory}/{EVENTS_LOG}")]);
    let kernel = line.path("kernel", &guest.boot.kernel);
    line.option("kernel", [kernel]);
    if let Some(initramfs) = &guest.boot.initramfs {
        let initramfs = line.path("initramfs", initramfs);
        line.option("initramfs", [initramfs]);
    }
    line.option("cmdline", [guest.boot.command_line.clone()]);
    line.option("cpus", [cpus(guest)]);
    line.option("memory", [memory(guest)]);
    line.option("rng", ["src=/dev/urandom".to_owned()]);
    line.option("serial", ["tty".to_owned()]);
    line.option("console", ["off".to_owned()]);
    line.option("platform", [format!("uuid={}", guest.uuid)]);
    line.option("seccomp", ["true".to_owned()]);
    line.args.push("--pvpanic".to_owned());
    let queues = disk_queues(guest);
    let disks = guest.disks.iter().enumerate();
    let disks = disks.map(|(index, one)| disk(&mut line, index, one, queues)).collect::<Result<Vec<_>, _>>()?;
    line.option("disk", disks);
    let nics = guest.nics.iter().enumerate();
    let nics: Vec<_> = nics.map(|(index, nic)| net(&mut line, index, nic)).collect();
    line.option("net", nics);
    Ok(Command { program: program.to_owned(), args: line.args, env: vec![], descriptors: line.descriptors.into_vec() })
}

struct Line<'a> {
    args: Vec<String>,
    descriptors: Descriptors<'a>,
}

impl<'a> Line<'a> {
    /// Hands a descriptor over and returns the path by which the engine opens its file.
    fn path(&mut self, name: impl Into<String>, fd: &'a OwnedFd) -> String {
        format!("/proc/self/fd/{}", self.descriptors.add(name, fd))
    }

    /// An option with its values; without any, no option.
    fn option(&mut self, name: &str, values: impl IntoIterator<Item = String>) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_some() {
            self.args.push(format!("--{name}"));
            self.args.extend(values);
        }
    }
}

fn cpus(guest: &GuestConfig) -> String {
    let cpu = guest.cpu;
    let mut text = format!("boot={},topology={}:{}:1:{}", cpu.vcpus(), cpu.threads, cpu.cores, cpu.sockets);
    if guest.placement.is_dedicated() {
        let pinned = guest.placement.pinned.iter().enumerate();
        let affinity: Vec<String> = pinned.map(|(vcpu, cpu)| format!("{vcpu}@[{cpu}]")).collect();
        text.push_str(&format!(",affinity=[{}]", affinity.join(",")));
    }
    text
}

fn memory(guest: &GuestConfig) -> String {
    let bytes = guest.memory.bytes;
    let prefault = if guest.placement.is_dedicated() { ",prefault=on" } else { "" };
    match guest.memory.pages {
        PageSize::Default => format!("size={bytes}{prefault}"),
        pages => format!("size={bytes},shared=on,hugepages=on,hugepage_size={},prefault=on", pages.bytes()),
    }
}

fn disk<'a>(line: &mut Line<'a>, index: usize, disk: &'a Disk, queues: u32) -> Result<String, ConfigError> {
    let path = match &disk.source {
        DiskSource::Fd(fd) => line.path(format!("disk {}", disk.serial), fd),
        // These have a meaning in an option.
        DiskSource::Path(path) if path.contains([',', '"', '[', ']', '=']) => {
            return Err(ConfigError::Path { field: "disks.source", value: path.clone() });
        }
        DiskSource::Path(path) => path.clone(),
    };
    let on = |is: bool| if is { "on" } else { "off" };
    Ok(format!(
        "path={path},image_type=raw,readonly={},direct={},sparse={},num_queues={queues},queue_size={DISK_QUEUE},\
         id=disk{index},serial={}",
        on(disk.read_only),
        on(disk.cache == Cache::Direct),
        on(disk.discard),
        disk.serial
    ))
}

fn net<'a>(line: &mut Line<'a>, index: usize, nic: &'a Nic) -> String {
    let taps = nic.taps.iter().enumerate();
    let taps: Vec<String> =
        taps.map(|(queue, tap)| line.descriptors.add(format!("tap {index}.{queue}"), tap).to_string()).collect();
    format!(
        "fd=[{}],mac={},num_queues={},queue_size={NET_QUEUE},id=net{index}",
        taps.join(","),
        mac(nic.mac),
        2 * taps.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{guest, null};
    use crate::rest::CloudHypervisor;
    use crate::{Accelerator, Engine as _, Placement};

    #[test]
    fn one_of_everything() {
        let mut guest = guest();
        guest.accelerator = Accelerator::Kvm(null());
        guest.placement = Placement { pinned: vec![2, 10, 3, 11] };
        guest.memory.pages = PageSize::Huge2M;
        guest.disks[1].source = DiskSource::Path("/vse/volumes/scratch/disk.img".into());
        let command = CloudHypervisor::default().command(&guest).unwrap();
        let mut text = command.program;
        for arg in &command.args {
            text.push_str(if arg.starts_with("--") { "\n" } else { " " });
            text.push_str(arg);
        }
        for handed in &command.descriptors {
            text.push_str(&format!("\n# {}: {}", handed.target, handed.name));
        }
        text.push('\n');
        let path = format!("{}/src/rest/golden/cloud-hypervisor.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}; UPDATE_GOLDEN=1 writes it anew");
    }

    #[test]
    fn a_path_that_an_option_would_read_differently_is_refused() {
        let mut guest = guest();
        guest.accelerator = Accelerator::Kvm(null());
        let refused = CloudHypervisor::default().command(&guest).unwrap_err();
        assert!(matches!(refused, ConfigError::Path { field: "disks.source", .. }), "{refused}");
    }
}
