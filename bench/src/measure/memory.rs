//! Resident memory of a VMM beside its guest's RAM, once the guest's init runs.

use anyhow::Result;

use super::boot::MEMORY;
use crate::contender::{Contender, Machine};
use crate::guest::{Assets, Guest, command_line};
use crate::memory::beside_ram;
use crate::table::{Table, ratio};

/// vCPUs of the larger guest, by which a further vCPU's share is found.
const MANY: u32 = 4;

pub fn run(assets: &Assets, contenders: &[Contender]) -> Result<Table> {
    let title = format!("Resident memory beside guest RAM ({MEMORY} MiB), KiB");
    let mut table = Table::new(title, &["", "1 vCPU", "ratio", "each further vCPU"]);
    let mut base = None;
    for &contender in contenders {
        let one = resident(assets, contender, 1)?;
        let many = resident(assets, contender, MANY)?;
        let each = many.saturating_sub(one) / u64::from(MANY - 1);
        let base = *base.get_or_insert(one as f64);
        table.row([contender.to_string(), one.to_string(), ratio(one as f64, base), each.to_string()]);
    }
    Ok(table)
}

fn resident(assets: &Assets, contender: Contender, vcpus: u32) -> Result<u64> {
    let machine = Machine { vcpus, memory: MEMORY, command_line: command_line("quiet", "boot"), ..Machine::default() };
    let mut guest = Guest::start(contender, assets, &machine)?;
    guest.ready()?;
    beside_ram(guest.pid(), MEMORY)
}
