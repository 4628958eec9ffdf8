//! Instructions of the VMM's own code from `exec` to the guest's first instruction.

use anyhow::Result;

use super::{in_turn, start};
use crate::contender::Contender;
use crate::guest::Assets;
use crate::steps::{Steps, to_first_entry};
use crate::table::{Table, ratio};

pub fn run(assets: &Assets, contenders: &[Contender], limit: u64) -> Result<Table> {
    let title = "Instructions in user space from exec to the guest's first instruction, counted by single steps";
    let mut table = Table::new(title, &["", "instructions", "ratio to the least"]);
    let one = |contender: Contender| to_first_entry(&contender.command(assets, &start::machine()), limit);
    let runs = in_turn("instructions", contenders, 1, one, Steps::to_string)?;
    let counted: Vec<_> =
        runs.into_iter().flat_map(|(who, runs)| runs.into_iter().map(move |run| (who, run))).collect();
    // Not to the first contender: of who takes most it may only be known that they are more than `limit`.
    let least = counted.iter().map(|(_, steps)| steps.count()).min().unwrap_or(0);
    for (contender, steps) in counted {
        let ratio = ratio(steps.count() as f64, least as f64);
        table.row([contender.to_string(), steps.to_string(), format!("{}{ratio}", steps.sign())]);
    }
    Ok(table)
}
