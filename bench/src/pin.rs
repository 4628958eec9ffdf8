//! Where a VMM's threads run: a vCPU on a CPU of its own, as on hosts for HPC. Left to the scheduler, where they happen to
//! meet decides what is measured.

use std::fs;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

/// Puts the only vCPU of a VMM on `cpu` and its other threads, those of the kernel's vhost among them, on the next one.
pub fn pin(pid: u32, cpu: u32) -> Result<()> {
    let mut threads = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?;
        // One that has ended meanwhile needs no CPU.
        let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else { continue };
        threads.push((ticks(&stat), thread.file_name().to_string_lossy().parse::<i32>()?));
    }
    // The vCPU's thread is the one that has used the most time by now.
    threads.sort_unstable();
    let (_, vcpu) = threads.pop().context("a process has threads")?;
    put(vcpu, cpu).context("pinning the vCPU")?;
    threads.into_iter().try_for_each(|(_, thread)| put(thread, cpu + 1)).context("pinning the VMM's other threads")
}

/// Fields 14 and 15 (proc_pid_stat(5)), counted from behind the name, which may hold anything.
fn ticks(stat: &str) -> u64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn put(thread: i32, cpu: u32) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu as usize);
    Ok(sched_setaffinity(Pid::from_raw(thread), &cpus)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_used_is_read() {
        let stat = "812 (CPU 0/KVM) S) R 1 812 812 0 -1 4194304 100 0 0 0 7 5 0 0 20 0";
        assert_eq!(ticks(stat), 12);
        assert_eq!(ticks(""), 0);
    }
}
