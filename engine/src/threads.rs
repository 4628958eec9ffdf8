//! The threads of an engine as the host sees them.
//!
//! An engine names its vCPU threads by their ids in its own pid namespace; who pins them needs the host's ids.
//! `/proc/PID/task/TID/status` has both (`NSpid`, proc_pid_status(5)).

use std::io;
use std::path::Path;

use crate::guest::VcpuThread;

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
pub fn threads(proc: &Path, pid: i32, vcpus: &[VcpuThread]) -> io::Result<Threads> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(proc.join(pid.to_string()).join("task"))?.take(MAX_THREADS) {
        let entry = entry?;
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        if let Some(inner) = innermost_id(&status) {
            ids.push((tid, inner));
        }
    }
    Ok(sort(&ids, vcpus))
}

/// Sorts pairs of (id here, id in the engine's namespace).
fn sort(ids: &[(i32, i32)], vcpus: &[VcpuThread]) -> Threads {
    let mut sorted = Threads::default();
    for &(tid, inner) in ids {
        match vcpus.iter().find(|vcpu| vcpu.tid == inner) {
            Some(vcpu) => sorted.vcpus.push((vcpu.vcpu, tid)),
            None => sorted.emulator.push(tid),
        }
    }
    sorted.vcpus.sort_unstable();
    sorted.emulator.sort_unstable();
    sorted
}

/// The thread's id in its own pid namespace: the last one of `NSpid`.
fn innermost_id(status: &str) -> Option<i32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_told_from_the_rest() {
        let vcpus = [VcpuThread { vcpu: 1, tid: 4 }, VcpuThread { vcpu: 0, tid: 3 }];
        let sorted = sort(&[(900, 1), (903, 4), (902, 3), (901, 2)], &vcpus);
        assert_eq!(sorted, Threads { vcpus: vec![(0, 902), (1, 903)], emulator: vec![900, 901] });
    }

    #[test]
    fn the_innermost_id_counts() {
        assert_eq!(innermost_id("Name:\tCPU 0/KVM\nNSpid:\t4711\t12\t3\nNSpgid:\t1\n"), Some(3));
        assert_eq!(innermost_id("Name:\tx\nNSpid:\t4711\n"), Some(4711));
        assert_eq!(innermost_id("Name:\tx\n"), None);
    }

    #[test]
    fn our_own_threads_are_found() {
        let pid = std::process::id().cast_signed();
        let found = threads(Path::new("/proc"), pid, &[VcpuThread { vcpu: 0, tid: pid }]).unwrap();
        assert_eq!(found.vcpus, [(0, pid)]);
    }
}
