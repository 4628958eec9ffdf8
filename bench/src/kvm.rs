//! KVM's own counters of one VM (Linux, `virt/kvm/kvm_main.c`: debugfs `kvm/<pid>-<fd>/`), and exits to user space by
//! a histogram on the tracepoint `kvm:kvm_userspace_exit` (`Documentation/trace/histogram.rst`).

use std::collections::BTreeMap;
use std::fs;
use std::ops::Sub;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const DEBUGFS: &str = "/sys/kernel/debug/kvm";
const EVENT: &str = "/sys/kernel/tracing/events/kvm/kvm_userspace_exit";

/// Counters by name, for example `exits`, `io_exits`, `mmio_exits`, `halt_exits`. Sums over the VM's vCPUs.
#[derive(Debug, Clone, Default)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Of the VM that process `pid` made.
    pub fn read(pid: u32) -> Result<Self> {
        let directory = directory(pid)?;
        let mut counters = BTreeMap::new();
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            // Each is a file with one number; directories are vCPUs.
            if let Some(value) = fs::read_to_string(entry.path()).ok().and_then(|text| text.trim().parse().ok()) {
                counters.insert(entry.file_name().to_string_lossy().into_owned(), value);
            }
        }
        Ok(Self(counters))
    }

    /// One of them; one that this kernel does not count is 0.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All exits.
    pub fn exits(&self) -> u64 {
        self.get("exits")
    }
}

impl Sub for &Counters {
    type Output = Counters;

    fn sub(self, before: &Counters) -> Counters {
        Counters(self.0.iter().map(|(name, after)| (name.clone(), after.saturating_sub(before.get(name)))).collect())
    }
}

/// debugfs names a VM by the thread that made it, which need not be the process's first.
fn directory(pid: u32) -> Result<PathBuf> {
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the VMM has ended")? {
        let prefix = format!("{}-", thread?.file_name().to_string_lossy());
        let vms = fs::read_dir(DEBUGFS).with_context(|| format!("reading {DEBUGFS}: is debugfs mounted?"))?;
        for vm in vms {
            let vm = vm?;
            if vm.file_name().to_string_lossy().starts_with(&prefix) {
                return Ok(vm.path());
            }
        }
    }
    bail!("process {pid} has no VM in {DEBUGFS}")
}

/// Counts exits to user space of every VM, by thread, from when it is made until it is dropped.
pub struct UserExits(());

impl UserExits {
    /// Starts counting.
    pub fn start() -> Result<Self> {
        trigger("hist:keys=common_pid")?;
        Ok(Self(()))
    }

    /// Those of the threads of process `pid` so far.
    pub fn of(&self, pid: u32) -> Result<u64> {
        let histogram = fs::read_to_string(Path::new(EVENT).join("hist"))?;
        let counts = parse(&histogram);
        let mut sum = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread: u32 = thread?.file_name().to_string_lossy().parse()?;
            sum += counts.get(&thread).copied().unwrap_or(0);
        }
        Ok(sum)
    }
}

impl Drop for UserExits {
    fn drop(&mut self) {
        // Nothing can be done about a trigger that does not go.
        let _ = trigger("!hist:keys=common_pid");
    }
}

fn trigger(words: &str) -> Result<()> {
    let path = Path::new(EVENT).join("trigger");
    fs::write(&path, words).with_context(|| format!("writing {words} to {}", path.display()))
}

/// Lines like `{ common_pid:        812 } hitcount:          3`.
fn parse(histogram: &str) -> BTreeMap<u32, u64> {
    let entry = |line: &str| {
        let (key, count) = line.strip_prefix("{ common_pid:")?.split_once('}')?;
        let count = count.trim().strip_prefix("hitcount:")?.trim();
        Some((key.trim().parse().ok()?, count.parse().ok()?))
    };
    histogram.lines().filter_map(|line| entry(line.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_read() {
        let text = "# event histogram\n#\n\n{ common_pid:        812 } hitcount:          3\n\
                    { common_pid:       1000 } hitcount:        517\n\nTotals:\n    Hits: 520\n";
        assert_eq!(parse(text), BTreeMap::from([(812, 3), (1000, 517)]));
    }
}
