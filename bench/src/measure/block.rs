//! Random reads of 4 KiB from a virtio disk, 32 in flight: exits for each, and how many in a second.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};

use super::boot::MEMORY;
use crate::contender::{Contender, Machine};
use crate::guest::{Assets, Guest, command_line};
use crate::table::{Table, ratio};

/// Size of the disk, MiB: it stays in the host's page cache, so that the VMM is measured and not the storage.
const DISK: usize = 256;
/// Reads of one run.
const READS: u32 = 20_000;

pub fn run(assets: &Assets, contenders: &[Contender]) -> Result<Table> {
    let path = assets.directory.path().join("disk");
    let mut disk = File::create(&path)?;
    let block = vec![0x5A; 1 << 20];
    (0..DISK).try_for_each(|_| disk.write_all(&block)).context("writing the disk")?;

    let title = format!("virtio-blk: {READS} random reads of 4 KiB, 32 in flight");
    let mut table = Table::new(title, &["", "exits a read", "ratio", "reads a second", "ratio"]);
    let mut base = None;
    for &contender in contenders {
        let machine = Machine {
            vcpus: 1,
            memory: MEMORY,
            command_line: command_line("quiet", &format!("block={READS}")),
            disk: Some(path.clone()),
            ..Machine::default()
        };
        let mut guest = Guest::start(contender, assets, &machine)?;
        guest.begun()?;
        let before = guest.counters()?;
        let result = guest.result()?;
        let exits = (&guest.counters()? - &before).exits() as f64 / f64::from(READS);
        let speed = result["per_second"].as_f64().context("the guest told its speed")?;
        let (exits_base, speed_base) = *base.get_or_insert((exits, speed));
        let cells = [format!("{exits:.2}"), ratio(exits, exits_base), format!("{speed:.0}"), ratio(speed, speed_base)];
        table.row([contender.to_string()].into_iter().chain(cells));
    }
    Ok(table)
}
