//! Random reads of 4 KiB from a virtio disk, 32 in flight: exits for each, and how many in a second.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};

use super::boot::MEMORY;
use super::flow::{self, Flow};
use crate::contender::{Contender, Disk, Machine};
use crate::guest::{Assets, Guest, command_line};
use crate::table::Table;

/// Size of the disk, MiB: in the host's page cache it stays there, so that the VMM is measured and not the storage.
const DISK: usize = 256;
/// Reads of one run.
const READS: u32 = 20_000;

pub fn run(assets: &Assets, contenders: &[Contender], tries: usize, cpu: u32, is_direct: bool) -> Result<Table> {
    let path = assets.directory.path().join("disk");
    let mut disk = File::create(&path)?;
    let block = vec![0x5A; 1 << 20];
    (0..DISK).try_for_each(|_| disk.write_all(&block)).context("writing the disk")?;
    disk.sync_all()?;

    let (name, way) = if is_direct { ("direct", ", around the page cache, without io_uring") } else { ("block", "") };
    let title = format!("virtio-blk: {READS} random reads of 4 KiB, 32 in flight{way}");
    flow::table(name, title, "read", contenders, tries, |contender| {
        let machine = Machine {
            vcpus: 1,
            memory: MEMORY,
            command_line: command_line("quiet", &format!("block={READS}")),
            disk: Some(Disk { path: path.clone(), is_direct }),
            ..Machine::default()
        };
        Flow::of(Guest::start(contender, assets, &machine)?, READS, cpu)
    })
}
