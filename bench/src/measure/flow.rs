//! Many operations of one kind: how many a guest does in a second, and how many exits each costs.

use anyhow::{Context, Result};

use super::in_turn;
use crate::contender::Contender;
use crate::guest::Guest;
use crate::pin::pin;
use crate::table::{Table, ratio};

/// What a guest's operations came to.
pub struct Flow {
    /// Exits for each.
    exits: f64,
    /// Operations in a second.
    speed: f64,
}

impl Flow {
    /// Of a guest that was told to do so many, by KVM's account and its own, its vCPU on `cpu`.
    pub fn of(mut guest: Guest, operations: u32, cpu: u32) -> Result<Self> {
        guest.begun()?;
        pin(guest.pid(), cpu)?;
        let before = guest.counters()?;
        let result = guest.result()?;
        let exits = (&guest.counters()? - &before).exits() as f64 / f64::from(operations);
        let speed = result["per_second"].as_f64().context("the guest told its speed")?;
        Ok(Self { exits, speed })
    }
}

/// The median run of each contender by speed, and how far its runs lie apart. `what` is an operation: "read", "MiB".
pub fn table(
    name: &str,
    title: String,
    what: &str,
    contenders: &[Contender],
    tries: usize,
    run: impl FnMut(Contender) -> Result<Flow>,
) -> Result<Table> {
    let (exits, speed) = (format!("exits a {what}"), format!("{what}s a second"));
    let columns = ["", &exits, "ratio", &speed, "ratio", "slowest to fastest"];
    let mut table = Table::new(format!("{title}, median of {tries}"), &columns);
    let say = |flow: &Flow| format!("{:.0} {speed}, {:.2} {exits}", flow.speed, flow.exits);
    let mut base = None;
    for (contender, runs) in in_turn(name, contenders, tries, run, say)? {
        let (exits, speed) =
            (Spread::of(runs.iter().map(|run| run.exits)), Spread::of(runs.iter().map(|run| run.speed)));
        let (exits_base, speed_base) = *base.get_or_insert((exits.median, speed.median));
        table.row([
            contender.to_string(),
            format!("{:.2}", exits.median),
            ratio(exits.median, exits_base),
            format!("{:.0}", speed.median),
            ratio(speed.median, speed_base),
            format!("{:.0} to {:.0}", speed.least, speed.most),
        ]);
    }
    Ok(table)
}

/// How several runs of the same came out.
#[derive(Debug, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    /// Zeroes, of no run.
    fn of(runs: impl IntoIterator<Item = f64>) -> Self {
        let mut runs: Vec<f64> = runs.into_iter().collect();
        runs.sort_by(f64::total_cmp);
        let at = |index: usize| runs.get(index).copied().unwrap_or_default();
        let last = runs.len().saturating_sub(1);
        Self { least: at(0), median: f64::midpoint(at(last / 2), at(last.div_ceil(2))), most: at(last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_runs() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { least: 1.0, median: 2.0, most: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Spread { least: 1.0, median: 2.5, most: 4.0 });
        assert_eq!(Spread::of([]), Spread { least: 0.0, median: 0.0, most: 0.0 });
    }
}
