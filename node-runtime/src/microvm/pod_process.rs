//! The process in a VM pod, seen from the host: launcher first, then the engine.
//!
//! Everything is read through a pidfd's process: after each look at /proc/PID the pidfd tells whether PID was still
//! that process. The pod's file system is untrusted: nothing is followed out of it.

use crate::cpu_list::{CpuList, InvalidCpuList};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal, prlimit};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use vse_crds::labels;

/// A process of a VM pod.
#[derive(Debug)]
pub struct PodProcess {
    pid: Pid,
    pidfd: OwnedFd,
}

/// What could not be learnt of the process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It ended.
    #[error("the pod's process {0} has ended")]
    Gone(i32),
    /// It belongs to another pod: somebody put a foreign socket into this pod's directory.
    #[error("process {pid} behind the pod's socket is not of pod {pod_uid}")]
    Foreign {
        /// The process.
        pid: i32,
        /// The pod it should be of.
        pod_uid: String,
    },
    /// /proc or the pod's file system.
    #[error("{what} of the pod's process {pid}")]
    Io {
        /// What was looked at.
        what: String,
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// The kernel's CPU list.
    #[error(transparent)]
    CpuList(#[from] InvalidCpuList),
}

impl PodProcess {
    /// Takes hold of a process, given by the kernel as the peer of a socket in the pod's directory, and checks by its
    /// cgroup that it is of that pod.
    pub fn open(pid: i32, pod_uid: &str) -> Result<Self, Error> {
        let known = (pid > 0).then(|| Pid::from_raw(pid)).flatten().ok_or(Error::Gone(pid))?;
        let pidfd = pidfd_open(known, PidfdFlags::empty()).map_err(|_| Error::Gone(pid))?;
        let process = Self { pid: known, pidfd };
        if is_of_pod(&process.read("cgroup")?, pod_uid) {
            Ok(process)
        } else {
            Err(Error::Foreign { pid, pod_uid: pod_uid.into() })
        }
    }

    /// Every process of a VM pod's container, found without the pod's help. The sandbox's own process is none of them:
    /// it does not have the container's mounts.
    pub fn all_of(pod_uid: &str) -> Vec<Self> {
        let run = format!(" {} ", labels::paths::RUN);
        fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Self::open(pid, pod_uid).ok())
            .filter(|process| process.mounts().is_ok_and(|mounts| mounts.contains(&run)))
            .collect()
    }

    /// Its number, for messages.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    fn io(&self, what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let (what, pid) = (what.into(), self.pid());
        move |source| Error::Io { what, pid, source }
    }

    /// Whether it still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(0))
    }

    fn checked<T>(&self, what: &str, value: io::Result<T>) -> Result<T, Error> {
        if !self.alive() {
            return Err(Error::Gone(self.pid()));
        }
        value.map_err(self.io(format!("cannot read {what}")))
    }

    fn read(&self, file: &str) -> Result<String, Error> {
        self.checked(file, fs::read_to_string(format!("/proc/{}/{file}", self.pid())))
    }

    /// The root directory of its mount namespace.
    pub fn root(&self) -> Result<OwnedFd, Error> {
        let root = File::open(format!("/proc/{}/root", self.pid()));
        self.checked("root", root).map(Into::into)
    }

    /// Its network namespace.
    pub fn network_namespace(&self) -> Result<OwnedFd, Error> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid()));
        self.checked("ns/net", namespace).map(Into::into)
    }

    /// The CPUs it may run on: the pod's effective cpuset. Threads that were pinned have a part of it each.
    pub fn allowed_cpus(&self) -> Result<CpuList, Error> {
        let tasks = format!("/proc/{}/task", self.pid());
        let threads = self.checked("task", fs::read_dir(tasks))?;
        let mut all = CpuList::default();
        for thread in threads.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            // It may end in between.
            if let Ok(status) = self.read(&format!("task/{thread}/status")) {
                all.extend(CpuList::parse(field(&status, "Cpus_allowed_list:"))?.iter());
            }
        }
        Ok(all)
    }

    /// The NUMA cells whose memory it may use.
    pub fn allowed_cells(&self) -> Result<CpuList, Error> {
        Ok(CpuList::parse(field(&self.read("status")?, "Mems_allowed_list:"))?)
    }

    /// Where its memory lies (numa(7)); nothing where the kernel has no NUMA.
    pub fn numa_maps(&self) -> Result<String, Error> {
        self.read("numa_maps")
    }

    /// Its mount table (proc_pid_mountinfo(5)).
    pub fn mounts(&self) -> Result<String, Error> {
        self.read("mountinfo")
    }

    /// Opens a path of the pod's file system. Symbolic links are followed as the pod would, never out of its root.
    pub fn open_in_root(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Error> {
        let root = self.root()?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
            .map_err(|errno| self.io(format!("cannot open {path}"))(errno.into()))
    }

    /// Lets it, and what it becomes, lock so many bytes of memory and no more.
    pub fn limit_memlock(&self, bytes: u64) -> Result<(), Error> {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        let set = prlimit(Some(self.pid), Resource::Memlock, limit);
        self.checked("limits", set.map(drop).map_err(io::Error::from))
    }

    /// Kills it.
    pub fn kill(&self) -> Result<(), Error> {
        pidfd_send_signal(&self.pidfd, Signal::KILL).map_err(|errno| self.io("cannot kill")(errno.into()))
    }
}

/// Value of a field of proc_pid_status(5).
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
}

/// `…/pod<uid>/…` with kubelet's cgroupfs driver, `…-pod<uid with _>.slice/…` with its systemd driver.
fn is_of_pod(cgroup: &str, pod_uid: &str) -> bool {
    let uids = [pod_uid.to_owned(), pod_uid.replace('-', "_")];
    uids.iter().any(|uid| cgroup.contains(&format!("pod{uid}/")) || cgroup.contains(&format!("pod{uid}.slice/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_no_pod_is_foreign() {
        let own = std::process::id() as i32;
        let error = PodProcess::open(own, "0ddba11-0000").unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
    }

    #[test]
    fn a_pod_is_known_by_its_cgroup() {
        let uid = "18a3769c-c0d5-473a-8a00-129ed6a1dcb7";
        let own = "4:memory:/vse-1/kubepods/burstable/pod18a3769c-c0d5-473a-8a00-129ed6a1dcb7/f00\n";
        let slice = "0::/kubepods.slice/kubepods-pod18a3769c_c0d5_473a_8a00_129ed6a1dcb7.slice/cri-f00.scope\n";
        assert!(is_of_pod(own, uid) && is_of_pod(slice, uid));
        assert!(!is_of_pod(own, "18a3769c") && !is_of_pod("0::/init.scope\n", uid));
    }

    #[test]
    fn a_limit_is_set_from_outside() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = PodProcess { pid, pidfd: pidfd_open(pid, PidfdFlags::empty()).unwrap() };
        // Raising it needs a privilege; lowering it shows the same.
        process.limit_memlock(64 << 10).unwrap();
        let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        let locked = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
        assert_eq!(locked.split_ascii_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["65536", "65536"]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(process.limit_memlock(64 << 10), Err(Error::Gone(_) | Error::Io { .. })));
    }

    #[test]
    fn nonsense_is_gone() {
        for pid in [0, -1, i32::MAX] {
            assert!(matches!(PodProcess::open(pid, "x"), Err(Error::Gone(_))));
        }
    }
}
