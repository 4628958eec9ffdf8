//! What of a configuration belongs to the guest, and what to the host it is on.
//!
//! A snapshot has the guest's part only: no path, no descriptor, no host CPU, cell or device address. The host's part
//! is given anew wherever the guest goes on, and must show the guest what it saw before.

use std::path::PathBuf;

use serde_json::Value;

use crate::config::VmConfig;
use crate::console::ConsoleMode;
use crate::memory::{MemoryConfig, MemoryZoneConfig};
use crate::messages::MemoryZoneUpdate;

/// The host's part shows the guest something else than it saw before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: the guest in the snapshot has {then}, not {now}")]
pub struct Differs {
    /// Where.
    pub path: String,
    /// What it was.
    pub then: String,
    /// What it would be.
    pub now: String,
}

impl VmConfig {
    /// The guest's part.
    #[must_use]
    pub fn portable(&self) -> Self {
        let mut config = self.clone();
        config.cpus.affinity.clear();
        config.memory = portable_memory(&self.memory);
        config.payload.kernel = None;
        config.payload.kernel_fd = None;
        config.payload.initramfs = None;
        config.payload.initramfs_fd = None;
        for disk in &mut config.disks {
            disk.path = None;
            disk.fd = None;
            disk.direct = false;
            disk.disable_io_uring = false;
            disk.disable_aio = false;
            disk.discard = Some(disk.may_discard());
            disk.sparse = true;
        }
        for net in &mut config.net {
            net.tap = None;
            net.fds.clear();
            net.vhost_fds.clear();
        }
        for fs in &mut config.fs {
            fs.socket = PathBuf::new();
            fs.socket_fd = None;
        }
        for pmem in &mut config.pmem {
            pmem.file = PathBuf::new();
            pmem.fd = None;
        }
        for function in &mut config.devices {
            function.path = PathBuf::new();
            function.vfio_group_fd = None;
            function.host_address = None;
        }
        if let Some(vsock) = &mut config.vsock {
            vsock.socket = PathBuf::new();
            vsock.socket_fd = None;
            vsock.vhost_fd = None;
        }
        if let Some(agent) = &mut config.agent {
            agent.socket = PathBuf::new();
            agent.socket_fd = None;
        }
        // Whether there is one is the guest's; what is on its other side isn't.
        config.serial.fd = None;
        config.console.fd = None;
        for (mode, file) in
            [(&mut config.serial.mode, &mut config.serial.file), (&mut config.console.mode, &mut config.console.file)]
        {
            *file = None;
            if *mode != ConsoleMode::Off {
                *mode = ConsoleMode::Null;
            }
        }
        if !config.rng.src.as_os_str().is_empty() {
            config.rng.src = PathBuf::from("/dev/urandom");
        }
        config.kvm_fd = None;
        config.vfio_container_fd = None;
        config
    }

    /// Whether this, on its host, is the guest that a snapshot is of.
    ///
    /// # Errors
    /// With the first field that differs.
    pub fn is_guest_of(&self, snapshot: &Self) -> Result<(), Differs> {
        let to_value = |config: &Self| serde_json::to_value(config.portable()).unwrap_or_default();
        match difference(&to_value(snapshot), &to_value(self), String::new()) {
            Some(differs) => Err(differs),
            None => Ok(()),
        }
    }

    /// Moves zones to other host cells.
    ///
    /// # Errors
    /// With the name of a zone that isn't there.
    pub fn place_zones<'a>(&mut self, updates: &'a [MemoryZoneUpdate]) -> Result<(), &'a str> {
        for update in updates {
            let zone = self.memory.zones.iter_mut().find(|zone| zone.id == update.id).ok_or(update.id.as_str())?;
            zone.host_numa_node = Some(update.host_numa_node);
            zone.prefault = true;
        }
        Ok(())
    }
}

fn portable_memory(memory: &MemoryConfig) -> MemoryConfig {
    let zones = memory.zones.iter();
    let zones = zones.map(|zone| MemoryZoneConfig { id: zone.id.clone(), size: zone.size, ..Default::default() });
    MemoryConfig { size: memory.size, zones: zones.collect(), ..Default::default() }
}

fn difference(then: &Value, now: &Value, path: String) -> Option<Differs> {
    let differs = |path: String| Differs { path, then: shown(then), now: shown(now) };
    match (then, now) {
        (Value::Object(a), Value::Object(b)) => {
            let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
            names.into_iter().find_map(|name| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                difference(a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null), path)
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(at, (a, b))| difference(a, b, format!("{path}[{at}]")))
        }
        _ => (then != now).then(|| differs(path)),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Array(list) => format!("{} of them", list.len()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn config() -> VmConfig {
        let text = include_str!("../tests/golden/node-runtime.json");
        json::read::<VmConfig>(text.as_bytes()).unwrap().validate().unwrap()
    }

    /// Invariant: nothing of the host's is in a snapshot.
    #[test]
    fn no_path_descriptor_cpu_or_cell_is_left() {
        let mut config = config();
        config.vsock = json::read(br#"{"cid": 3, "socket": "/run/vsock", "socket_fd": 70}"#).unwrap();
        config.agent = json::read(br#"{"socket_fd": 71}"#).unwrap();
        config.serial = json::read(br#"{"mode": "File", "fd": 72}"#).unwrap();
        config.console = json::read(br#"{"mode": "File", "fd": 73}"#).unwrap();
        let text = serde_json::to_string(&config.portable()).unwrap();
        for word in ["fd", "/vse", "/run", "host_cpus", "host_numa_node", "0000:65", "hugepage_size", "tap"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
        assert!(text.contains("\"mac\":\"02:00:00:00:00:01\""), "{text}");
    }

    #[test]
    fn the_same_guest_on_another_host() {
        let then = config().portable();
        let mut now = config();
        now.disks[0].fd = Some(77);
        now.cpus.affinity.clear();
        now.memory.zones[0].host_numa_node = Some(3);
        assert_eq!(now.is_guest_of(&then), Ok(()));
        now.disks[1].num_queues = 2;
        let differs = now.is_guest_of(&then).unwrap_err();
        assert_eq!(differs.to_string(), "disks[1].num_queues: the guest in the snapshot has 4, not 2");
        now.disks.pop();
        assert_eq!(now.is_guest_of(&then).unwrap_err().path, "disks");
    }

    #[test]
    fn zones_move_by_name() {
        let mut config = config();
        let update = |id: &str| [MemoryZoneUpdate { id: id.into(), host_numa_node: 5 }];
        assert_eq!(config.place_zones(&update("cell1")), Ok(()));
        assert_eq!(config.memory.zones[1].host_numa_node, Some(5));
        assert_eq!(config.place_zones(&update("x")), Err("x"));
    }
}
