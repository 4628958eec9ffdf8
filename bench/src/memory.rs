//! Memory of a VMM, from `/proc/PID/smaps` (proc_pid_smaps(5)).

use std::fs;

use anyhow::{Context, Result};

/// Resident KiB of process `pid` beside guest RAM: of every mapping but those of at least `ram` MiB / 2, which are the
/// guest's RAM. What the host shares between processes (program text, libraries) counts in full.
pub fn beside_ram(pid: u32, ram: u32) -> Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("reading the VMM's memory map")?;
    Ok(sum(&smaps, u64::from(ram) * 1024 / 2))
}

/// Sums `Rss` of mappings smaller than `largest` KiB.
fn sum(smaps: &str, largest: u64) -> u64 {
    let value = |line: &str, name: &str| -> Option<u64> {
        line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok()
    };
    let mut size = 0;
    let mut resident = 0;
    for line in smaps.lines() {
        if let Some(kib) = value(line, "Size:") {
            size = kib;
        } else if let Some(kib) = value(line, "Rss:").filter(|_| size < largest) {
            resident += kib;
        }
    }
    resident
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_does_not_count() {
        let smaps = "7f00-7f10 rw-p 0 00:00 0\nSize:  64 kB\nRss:   12 kB\nPss:  12 kB\n\
                     8000-9000 rw-s 0 00:01 9 /memfd:ram\nSize:  262144 kB\nRss:  99000 kB\n\
                     9000-9100 r-xp 0 00:01 9 /vse-vmm\nSize:  700 kB\nRss:  500 kB\n";
        assert_eq!(sum(smaps, 131_072), 512);
    }
}
