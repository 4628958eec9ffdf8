//! Many operations of one kind: how many a guest does in a second, and how many exits each costs.

use anyhow::{Context, Result};

use super::in_turn;
use crate::contender::Contender;
use crate::guest::Guest;
use crate::table::{Table, ratio};

/// What a guest's operations came to.
pub struct Flow {
    /// Exits for each.
    exits: f64,
    /// Operations in a second.
    speed: f64,
}

impl Flow {
    /// Of a guest that was told to do so many: by KVM's account and its own.
    pub fn of(mut guest: Guest, operations: u32) -> Result<Self> {
        guest.begun()?;
        let before = guest.counters()?;
        let result = guest.result()?;
        let exits = (&guest.counters()? - &before).exits() as f64 / f64::from(operations);
        let speed = result["per_second"].as_f64().context("the guest told its speed")?;
        Ok(Self { exits, speed })
    }
}

/// The fastest run of each contender. `what` is an operation: "read", "MiB".
pub fn table(
    title: String,
    what: &str,
    contenders: &[Contender],
    run: impl FnMut(Contender) -> Result<Flow>,
) -> Result<Table> {
    let (exits, speed) = (format!("exits a {what}"), format!("{what}s a second"));
    let mut table = Table::new(title, &["", &exits, "ratio", &speed, "ratio"]);
    let fastest = |one: Flow, other: Flow| if one.speed > other.speed { one } else { other };
    let mut base = None;
    for (contender, Flow { exits, speed }) in in_turn(contenders, run, fastest)? {
        let (exits_base, speed_base) = *base.get_or_insert((exits, speed));
        let cells = [format!("{exits:.2}"), ratio(exits, exits_base), format!("{speed:.0}"), ratio(speed, speed_base)];
        table.row([contender.to_string()].into_iter().chain(cells));
    }
    Ok(table)
}
