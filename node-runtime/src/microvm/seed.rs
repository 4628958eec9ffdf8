//! The cloud-init seed disk: in memory only, so that no secret reaches a host's disk.

use super::pod_process::{self, PodProcess};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use vse_crds::labels::paths;
use vse_crds::{CloudInit, MicroVMSpec};
use vse_engine::{Cache, Disk, DiskSource, Storage};
use vse_system_image::nocloud::{self, SeedMeta};

/// Most user data read; a Secret holds 1 MiB.
const MAX_USER_DATA: u64 = 1 << 20;
/// Key of the user data in its Secret.
const USER_DATA: &str = "userdata";

/// A seed that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Secret's mount in the pod.
    #[error("Secret {secret} has no key {USER_DATA}, or it can't be read")]
    Secret {
        /// The Secret.
        secret: String,
        /// Why.
        source: pod_process::Error,
    },
    /// Reading or writing.
    #[error("cannot {0} the seed")]
    Io(&'static str, #[source] io::Error),
    /// Too much data.
    #[error(transparent)]
    Seed(#[from] vse_system_image::Error),
}

impl Error {
    /// Whether trying again can't help.
    pub fn is_final(&self) -> bool {
        matches!(self, Error::Seed(_) | Error::Secret { .. })
    }
}

/// The disk with the guest's first-boot configuration.
pub(super) fn disk(vm: &MicroVMSpec, cloud_init: &CloudInit, process: &PodProcess) -> Result<Disk, Error> {
    let meta = SeedMeta {
        // The VSE, not its incarnation: a restart on a disk root is no first boot.
        instance_id: vm.vse_uid.clone(),
        hostname: Some(hostname(vm).to_owned()),
        ssh_authorized_keys: cloud_init.ssh_authorized_keys.clone(),
        network_config: None,
    };
    let image = nocloud::seed(&meta, &user_data(cloud_init, process)?)?;
    Ok(Disk {
        serial: "cidata".into(),
        source: DiskSource::Fd(in_memory(&image).map_err(|error| Error::Io("write", error))?),
        storage: Storage::File,
        read_only: true,
        discard: false,
        cache: Cache::Shared,
    })
}

/// The guest's host name: as asked for, or the VSE's name.
pub(super) fn hostname(vm: &MicroVMSpec) -> &str {
    vm.cloud_init.as_ref().and_then(|cloud_init| cloud_init.hostname.as_deref()).unwrap_or(&vm.vse_name)
}

fn user_data(cloud_init: &CloudInit, process: &PodProcess) -> Result<Vec<u8>, Error> {
    if let Some(inline) = &cloud_init.user_data {
        return Ok(inline.clone().into_bytes());
    }
    let Some(secret) = &cloud_init.user_data_secret_ref else {
        return Ok(b"#cloud-config\n{}\n".to_vec());
    };
    // kubelet mounts a Secret's keys as links to files beside them.
    let path = format!("{}/{USER_DATA}", paths::CLOUD_INIT);
    let file = process
        .open_in_root(&path, OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(|source| Error::Secret { secret: secret.name.clone(), source })?;
    let mut data = Vec::new();
    File::from(file).take(MAX_USER_DATA).read_to_end(&mut data).map_err(|error| Error::Io("read", error))?;
    Ok(data)
}

/// A sealed, read-only file that lies in memory and has no name.
fn in_memory(image: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create("cidata", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(image)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_can_be_read_and_not_written() {
        let fd = in_memory(b"data").unwrap();
        let mut file = File::from(fd);
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "data");
        assert!(file.write_all(b"x").is_err());
    }
}
