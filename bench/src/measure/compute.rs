//! A loop on one pinned vCPU whose CPU is its own: what still takes it away from the guest.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::boot::MEMORY;
use crate::contender::{Contender, Machine};
use crate::guest::{Assets, Guest, command_line};
use crate::kvm::UserExits;
use crate::pin::pin;
use crate::table::{Table, ratio};

pub fn run(assets: &Assets, contenders: &[Contender], seconds: u32, cpu: u32) -> Result<Table> {
    let title = format!("A loop of {seconds} s on a dedicated CPU (host CPU {cpu})");
    let columns = ["", "exits to user space", "in-kernel exits a second", "ratio", "loop's rounds", "ratio"];
    let mut table = Table::new(title, &columns);
    let mut base = None;
    for &contender in contenders {
        let (user, kernel, rounds) = one(assets, contender, seconds, cpu)?;
        let (kernel_base, rounds_base) = *base.get_or_insert((kernel, rounds));
        let cells = [
            user.to_string(),
            format!("{kernel:.1}"),
            ratio(kernel, kernel_base),
            format!("{rounds:.0}"),
            ratio(rounds, rounds_base),
        ];
        table.row([contender.to_string()].into_iter().chain(cells));
    }
    Ok(table)
}

fn one(assets: &Assets, contender: Contender, seconds: u32, cpu: u32) -> Result<(u64, f64, f64)> {
    let machine = Machine {
        vcpus: 1,
        memory: MEMORY,
        command_line: command_line("quiet", &format!("compute={seconds}")),
        is_dedicated: true,
        ..Machine::default()
    };
    let user = UserExits::start()?;
    let mut guest = Guest::start(contender, assets, &machine)?;
    guest.begun()?;
    pin(guest.pid(), cpu)?;
    // Past the beginning and short of the end, where the guest says something.
    thread::sleep(Duration::from_secs(2));
    let (before, user_before) = (guest.counters()?, user.of(guest.pid())?);
    thread::sleep(Duration::from_secs(u64::from(seconds.saturating_sub(4).max(1))));
    let (after, user_after) = (guest.counters()?, user.of(guest.pid())?);
    let span = f64::from(seconds.saturating_sub(4).max(1));
    let rounds = guest.result()?["rounds"].as_f64().context("the guest counted rounds")?;
    Ok((user_after - user_before, (&after - &before).exits() as f64 / span, rounds))
}
