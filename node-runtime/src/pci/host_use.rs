//! What the host does with a PCI function: network interfaces, disks, the console. What is in use is never taken.
//!
//! The host's own routes and mounts are those of process 1, not of this process's namespaces.

use super::address::Address;
use super::function::DEVICES;
use crate::sysfs::{Error, Root};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// `IFF_UP` of an interface's flags (netdevice(7)).
const UP: u32 = 1;

/// A use the host makes of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostUse {
    /// A network interface is up.
    Up(String),
    /// A network interface has a route.
    Routed(String),
    /// A network interface is part of a bond, bridge or VLAN.
    Stacked(String),
    /// Its network interface is in another network namespace.
    Elsewhere,
    /// A disk is mounted, swapped to, part of a volume, or a pod's.
    Disk(String),
    /// The firmware's console is on it.
    Console,
}

impl fmt::Display for HostUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(name) => write!(f, "its network interface {name} is up; ip link set {name} down"),
            Self::Routed(name) => write!(f, "its network interface {name} has a route; remove it"),
            Self::Stacked(name) => {
                write!(f, "its network interface {name} is part of another one; take it out of that")
            }
            Self::Elsewhere => f.write_str("its network interface is in a container's network namespace"),
            Self::Disk(name) => write!(f, "its disk {name} is mounted, swapped to, part of a volume, or a pod's"),
            Self::Console => f.write_str("the host's console is on it"),
        }
    }
}

/// Of one function.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Network interfaces.
    pub interfaces: Vec<String>,
    /// Disks.
    pub disks: Vec<String>,
    /// The first use found.
    pub host_use: Option<HostUse>,
}

/// Of all functions.
pub(super) struct Uses<'a> {
    root: &'a Root,
    interfaces: BTreeMap<Address, Vec<String>>,
    routed: BTreeSet<String>,
    disks: Disks,
}

/// Disks by function.
#[derive(Default)]
struct Disks {
    all: BTreeMap<Address, Vec<String>>,
    /// One that is in use, where there is any.
    used: BTreeMap<Address, String>,
}

/// Looks at interfaces and disks.
pub(super) fn observe(root: &Root) -> Result<Uses<'_>, Error> {
    let mut interfaces = BTreeMap::<_, Vec<String>>::new();
    for name in root.names("sys/class/net") {
        if let Some(address) = function_of(root, &format!("sys/class/net/{name}")) {
            interfaces.entry(address).or_default().push(name);
        }
    }
    Ok(Uses { interfaces, routed: routed(root), disks: disks(root)?, root })
}

impl Uses<'_> {
    pub(super) fn of(&self, address: Address) -> Seen {
        let interfaces = self.interfaces.get(&address).cloned().unwrap_or_default();
        let host_use = interfaces
            .iter()
            .find_map(|name| self.interface(name))
            .or_else(|| (interfaces.is_empty() && self.has_hidden_interface(address)).then_some(HostUse::Elsewhere))
            .or_else(|| self.disks.used.get(&address).cloned().map(HostUse::Disk))
            .or_else(|| self.is_console(address).then_some(HostUse::Console));
        Seen { interfaces, disks: self.disks.all.get(&address).cloned().unwrap_or_default(), host_use }
    }

    fn interface(&self, name: &str) -> Option<HostUse> {
        let directory = format!("sys/class/net/{name}");
        let flags = self.root.optional(&format!("{directory}/flags")).unwrap_or_default();
        let flags = flags.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        if self.root.names(&directory).iter().any(|entry| entry == "master" || entry.starts_with("upper_")) {
            Some(HostUse::Stacked(name.to_owned()))
        } else if flags.is_none_or(|flags| flags & UP != 0) {
            Some(HostUse::Up(name.to_owned()))
        } else if self.routed.contains(name) {
            Some(HostUse::Routed(name.to_owned()))
        } else {
            None
        }
    }

    /// An interface that was moved into a network namespace leaves its directory behind; virtio's is one level deeper.
    fn has_hidden_interface(&self, address: Address) -> bool {
        let directory = format!("{DEVICES}/{address}");
        let below = self.root.names(&directory).into_iter().filter(|name| name.starts_with("virtio"));
        let mut places = below.map(|name| format!("{directory}/{name}/net")).chain([format!("{directory}/net")]);
        places.any(|place| self.root.exists(&place))
    }

    fn is_console(&self, address: Address) -> bool {
        self.root.optional(&format!("{DEVICES}/{address}/boot_vga")).as_deref() == Some("1")
    }
}

/// The function a class device hangs on: the last address in its path.
fn function_of(root: &Root, link: &str) -> Option<Address> {
    last_address(&root.link_target(link)?)
}

fn last_address(path: &Path) -> Option<Address> {
    path.components().rev().find_map(|part| part.as_os_str().to_str()?.parse().ok())
}

/// Interfaces with a route. A file that is not there has none: IPv6 may be off.
fn routed(root: &Root) -> BTreeSet<String> {
    let column = |file: &str, last: bool| {
        let text = root.optional(file).unwrap_or_default();
        let names = text.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            if last { words.next_back() } else { words.next() }
        });
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    [column("proc/1/net/route", false), column("proc/1/net/ipv6_route", true)].concat().into_iter().collect()
}

/// Whether somebody has claimed a disk, or nobody can tell.
pub(super) fn claimed(root: &Root, disk: &str) -> Option<HostUse> {
    match root.open_unclaimed(&node(disk)) {
        Ok(_) => None,
        // A drive without anything in it.
        Err(error) if error.raw_os_error() == Some(Errno::NOMEDIUM.raw_os_error()) => None,
        Err(_) => Some(HostUse::Disk(disk.to_owned())),
    }
}

/// A disk's file. sysfs has `!` where names under /dev have a slash.
fn node(disk: &str) -> String {
    format!("/dev/{}", disk.replace('!', "/"))
}

/// Disks, and which of them are in use as far as files tell.
///
/// Not every pod claims a disk that is one of its volumes. But kubelet mounts the disk's file in a directory of its own and
/// puts a loop device on it, for as long as the pod is there (MapBlockVolume, pkg/volume/util/volume_path_handler.go).
fn disks(root: &Root) -> Result<Disks, Error> {
    let mounts = root.text("proc/1/mountinfo")?;
    let swaps = root.optional("proc/swaps").unwrap_or_default();
    let mut used = loops(root);
    used.extend(swaps.lines().filter_map(|line| line.split_ascii_whitespace().next()).map(str::to_owned));
    used.extend(mounts.lines().flat_map(mounted));
    let mut disks = Disks::default();
    for name in root.names("sys/class/block") {
        let directory = format!("sys/class/block/{name}");
        let number = root.optional(&format!("{directory}/dev")).unwrap_or_default();
        let is_used = used.contains(&number)
            || used.contains(&node(&name))
            || !root.names(&format!("{directory}/holders")).is_empty();
        for address in functions_behind(root, &directory) {
            if is_used {
                disks.used.insert(address, name.clone());
            }
            if !root.exists(&format!("{directory}/partition")) {
                disks.all.entry(address).or_default().push(name.clone());
            }
        }
    }
    Ok(disks)
}

/// What a line of mountinfo has in use: a device's number and its file. Of a mounted file of a device, that one.
fn mounted(line: &str) -> impl Iterator<Item = String> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue (proc_pid_mountinfo(5))
    let (place, system) = line.split_once(" - ").unwrap_or((line, ""));
    let mut place = place.split_ascii_whitespace().skip(2);
    let (number, part) = (place.next(), place.next());
    let mut system = system.split_ascii_whitespace();
    let (kind, source) = (system.next(), system.next());
    let device = part.filter(|_| kind == Some("devtmpfs")).map(|part| format!("/dev{part}"));
    [number, source].into_iter().flatten().map(str::to_owned).chain(device)
}

/// What loop devices lie on.
fn loops(root: &Root) -> BTreeSet<String> {
    let loops = root.names("sys/block").into_iter().filter(|name| name.starts_with("loop"));
    loops.filter_map(|name| root.optional(&format!("sys/block/{name}/loop/backing_file"))).collect()
}

/// The functions a disk hangs on. A disk of an NVMe subsystem belongs to the functions of all its controllers.
fn functions_behind(root: &Root, block: &str) -> Vec<Address> {
    let Some(path) = root.link_target(block) else { return Vec::new() };
    if let Some(address) = last_address(&path) {
        return vec![address];
    }
    let mut parts = path.components().filter_map(|part| part.as_os_str().to_str());
    let subsystem = parts.rfind(|part| part.starts_with("nvme-subsys") && *part != "nvme-subsystem");
    let Some(subsystem) = subsystem else { return Vec::new() };
    let directory = format!("sys/class/nvme-subsystem/{subsystem}");
    root.names(&directory).iter().filter_map(|entry| function_of(root, &format!("{directory}/{entry}"))).collect()
}
