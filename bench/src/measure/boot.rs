//! Exits from the first guest instruction until the guest's init runs.

use anyhow::Result;

use crate::contender::{Contender, Machine};
use crate::guest::{Assets, Guest, command_line};
use crate::table::{Table, ratio};

/// RAM of the guests, MiB.
pub const MEMORY: u32 = 256;

/// Boots of each contender; the fewest exits count. The host's ticks and the guest's are exits too, and there are the more
/// of them the longer a boot takes.
const TRIES: usize = 3;

pub fn run(assets: &Assets, contenders: &[Contender]) -> Result<Table> {
    let title =
        format!("Exits until init runs (1 vCPU, {MEMORY} MiB, the same kernel and initramfs), fewest of {TRIES}");
    let mut table = Table::new(title, &["", "verbose console", "ratio", "`quiet`", "ratio"]);
    let mut base = None;
    for &contender in contenders {
        let verbose = exits(assets, contender, "")? as f64;
        let quiet = exits(assets, contender, "quiet")? as f64;
        let (verbose_base, quiet_base) = *base.get_or_insert((verbose, quiet));
        let cells = [verbose.to_string(), ratio(verbose, verbose_base), quiet.to_string(), ratio(quiet, quiet_base)];
        table.row([contender.to_string()].into_iter().chain(cells));
    }
    Ok(table)
}

fn exits(assets: &Assets, contender: Contender, words: &str) -> Result<u64> {
    let machine = Machine { vcpus: 1, memory: MEMORY, command_line: command_line(words, "boot"), ..Machine::default() };
    let mut fewest = u64::MAX;
    for _ in 0..TRIES {
        let mut guest = Guest::start(contender, assets, &machine)?;
        guest.ready()?;
        fewest = fewest.min(guest.counters()?.exits());
    }
    Ok(fewest)
}
