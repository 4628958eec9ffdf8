//! The way from a pod's UID to the sockets in its `run` volume.
//!
//! kubelet puts an emptyDir at `<root>/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>`. What lies in it is the
//! pod's: untrusted.

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use vse_crds::labels::paths;

/// kubelet's directory of pods, opened once.
#[derive(Debug)]
pub struct PodDirectories {
    pods: OwnedFd,
}

impl PodDirectories {
    /// Opens `<kubelet root>/pods`.
    pub fn open(kubelet_root: &std::path::Path) -> std::io::Result<Self> {
        Ok(Self { pods: std::fs::File::open(kubelet_root.join("pods"))?.into() })
    }

    /// The `run` volume of a pod; nothing when kubelet has not made it, or has removed it.
    pub fn run(&self, pod_uid: &str) -> Result<Option<OwnedFd>, Errno> {
        if !is_uid(pod_uid) {
            return Err(Errno::INVAL);
        }
        let path = format!("{pod_uid}/volumes/kubernetes.io~empty-dir/{}", paths::RUN_VOLUME);
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.pods, path, flags, Mode::empty(), resolve) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Kubernetes UIDs are UUIDs; static pods have a hash.
fn is_uid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_real_run_volumes_are_found() {
        let root = tempfile::tempdir().unwrap();
        let volumes = |uid: &str| root.path().join(format!("pods/{uid}/volumes/kubernetes.io~empty-dir"));
        fs::create_dir_all(volumes("aa-1").join("run")).unwrap();
        fs::create_dir_all(volumes("bb-2")).unwrap();
        symlink("/", volumes("bb-2").join("run")).unwrap();
        let pods = PodDirectories::open(root.path()).unwrap();
        assert!(pods.run("aa-1").unwrap().is_some());
        assert!(pods.run("cc-3").unwrap().is_none());
        assert!(pods.run("bb-2").is_err(), "a link was followed");
        assert!(pods.run("../pods/aa-1").is_err());
        assert!(pods.run("").is_err());
    }
}
