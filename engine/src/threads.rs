//! The threads of an engine as the host sees them.
//!
//! An engine names its vCPU threads by their ids in its own pid namespace; who pins them needs the host's ids.
//! `/proc/PID/task/TID/status` has both (`NSpid`, proc_pid_status(5)), and the thread's name.

use std::io;
use std::path::Path;

use crate::guest::VcpuThreads;

/// Most threads that are looked at; an engine has vCPUs plus a few.
const MAX_THREADS: usize = 8192;

/// An engine's threads by what they do, with ids in the caller's pid namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Threads {
    /// Number of the vCPU and the thread that runs it, sorted.
    pub vcpus: Vec<(u32, i32)>,
    /// All others: main loop, I/O workers.
    pub emulator: Vec<i32>,
}

/// Sorts the threads of process `pid` by what they do. Threads that end meanwhile are left out.
///
/// `proc` is where procfs of the caller's pid namespace is mounted, usually `/proc`.
///
/// # Errors
/// When the process is gone or its threads cannot be listed.
pub fn threads(proc: &Path, pid: i32, vcpus: &VcpuThreads) -> io::Result<Threads> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(proc.join(pid.to_string()).join("task"))?.take(MAX_THREADS) {
        let entry = entry?;
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Ok(status) = std::fs::read_to_string(entry.path().join("status")) {
            found.extend(Thread::read(tid, &status));
        }
    }
    Ok(sort(&found, vcpus))
}

/// A thread, as its status file has it.
struct Thread {
    /// Its id here.
    tid: i32,
    /// Its id in the engine's pid namespace.
    inner: i32,
    name: String,
}

impl Thread {
    fn read(tid: i32, status: &str) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        // One id for each namespace, the thread's own last.
        let inner = field("NSpid:")?.split_whitespace().next_back()?.parse().ok()?;
        Some(Self { tid, inner, name: field("Name:").unwrap_or_default().trim().to_owned() })
    }

    fn vcpu(&self, vcpus: &VcpuThreads) -> Option<u32> {
        match vcpus {
            VcpuThreads::Ids(ids) => ids.iter().find(|vcpu| vcpu.tid == self.inner).map(|vcpu| vcpu.vcpu),
            VcpuThreads::Named(prefix) => self.name.strip_prefix(prefix)?.parse().ok(),
        }
    }
}

fn sort(threads: &[Thread], vcpus: &VcpuThreads) -> Threads {
    let mut sorted = Threads::default();
    for thread in threads {
        match thread.vcpu(vcpus) {
            Some(vcpu) => sorted.vcpus.push((vcpu, thread.tid)),
            None => sorted.emulator.push(thread.tid),
        }
    }
    sorted.vcpus.sort_unstable();
    sorted.emulator.sort_unstable();
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::VcpuThread;

    fn status(name: &str, ids: &str) -> String {
        format!("Name:\t{name}\nUmask:\t0022\nNSpid:\t{ids}\nNSpgid:\t1\n")
    }

    fn three() -> Vec<Thread> {
        let threads = [(900, "main", "900\t1"), (903, "vcpu1", "903\t9\t4"), (902, "vcpu0", "902\t3")];
        threads.into_iter().filter_map(|(tid, name, ids)| Thread::read(tid, &status(name, ids))).collect()
    }

    #[test]
    fn vcpus_are_told_from_the_rest() {
        let ids = VcpuThreads::Ids(vec![VcpuThread { vcpu: 1, tid: 4 }, VcpuThread { vcpu: 0, tid: 3 }]);
        let expected = Threads { vcpus: vec![(0, 902), (1, 903)], emulator: vec![900] };
        assert_eq!(sort(&three(), &ids), expected);
        assert_eq!(sort(&three(), &VcpuThreads::Named("vcpu")), expected);
        assert_eq!(sort(&three(), &VcpuThreads::Ids(vec![])).emulator, [900, 902, 903]);
    }

    #[test]
    fn what_is_no_status_is_no_thread() {
        assert!(Thread::read(1, "Name:\tx\n").is_none());
        assert!(Thread::read(1, &status("x", "")).is_none());
    }

    #[test]
    fn our_own_threads_are_found() {
        let pid = std::process::id().cast_signed();
        let ids = VcpuThreads::Ids(vec![VcpuThread { vcpu: 0, tid: pid }]);
        let found = threads(Path::new("/proc"), pid, &ids).unwrap();
        assert_eq!(found.vcpus, [(0, pid)]);
    }
}
