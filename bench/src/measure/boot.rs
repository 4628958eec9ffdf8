//! Exits from the first guest instruction until the guest's init runs.

use anyhow::{Context, Result};

use super::in_turn;
use crate::contender::{Contender, Machine};
use crate::guest::{Assets, Guest, command_line};
use crate::table::{Table, ratio};

/// RAM of the guests, MiB.
pub const MEMORY: u32 = 256;

pub fn run(assets: &Assets, contenders: &[Contender], tries: usize) -> Result<Table> {
    let title =
        format!("Exits until init runs (1 vCPU, {MEMORY} MiB, the same kernel and initramfs), fewest of {tries}");
    let mut table = Table::new(title, &["", "verbose console", "ratio", "`quiet`", "ratio"]);
    // The host's ticks and the guest's are exits too, and there are the more of them the longer a boot takes.
    let fewest = |runs: &[(u64, u64)]| {
        runs.iter().copied().reduce(|one, other| (one.0.min(other.0), one.1.min(other.1))).context("no run")
    };
    let both = |contender| Ok((exits(assets, contender, "")?, exits(assets, contender, "quiet")?));
    let say = |(verbose, quiet): &(u64, u64)| format!("{verbose} exits, {quiet} with `quiet`");
    let mut base = None;
    for (contender, runs) in in_turn("boot", contenders, tries, both, say)? {
        let (verbose, quiet) = fewest(&runs)?;
        let (verbose_base, quiet_base) = *base.get_or_insert((verbose, quiet));
        let cells = [
            verbose.to_string(),
            ratio(verbose as f64, verbose_base as f64),
            quiet.to_string(),
            ratio(quiet as f64, quiet_base as f64),
        ];
        table.row([contender.to_string()].into_iter().chain(cells));
    }
    Ok(table)
}

fn exits(assets: &Assets, contender: Contender, words: &str) -> Result<u64> {
    let machine = Machine { vcpus: 1, memory: MEMORY, command_line: command_line(words, "boot"), ..Machine::default() };
    let mut guest = Guest::start(contender, assets, &machine)?;
    guest.ready()?;
    Ok(guest.counters()?.exits())
}
