//! What is measured, one file each. Every measure runs all contenders in turn and makes a table.

pub mod block;
pub mod boot;
pub mod compute;
mod flow;
pub mod instructions;
pub mod memory;
pub mod net;
pub mod snapshot;
pub mod start;

use anyhow::{Context, Result};

use crate::contender::Contender;

/// Runs of each contender, where what is measured depends on what else the host does.
const TRIES: usize = 3;

/// Measures all contenders one after the other, and that [`TRIES`] times over: what disturbs the host for a while then
/// disturbs all of them. `best` makes one of two results of a contender's.
fn in_turn<T>(
    contenders: &[Contender],
    mut measure: impl FnMut(Contender) -> Result<T>,
    best: impl Fn(T, T) -> T,
) -> Result<Vec<(Contender, T)>> {
    let mut results: Vec<Option<T>> = contenders.iter().map(|_| None).collect();
    for _ in 0..TRIES {
        for (&contender, result) in contenders.iter().zip(&mut results) {
            let new = measure(contender).with_context(|| contender.to_string())?;
            *result = Some(match result.take() {
                Some(old) => best(old, new),
                None => new,
            });
        }
    }
    Ok(contenders.iter().copied().zip(results).filter_map(|(contender, result)| Some((contender, result?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_take_turns() {
        let contenders = [Contender::Q35, Contender::Vmm];
        let mut order = Vec::new();
        let measure = |contender| {
            order.push(contender);
            Ok(order.len())
        };
        let results = in_turn(&contenders, measure, usize::max).unwrap();
        assert_eq!(results, [(Contender::Q35, 2 * TRIES - 1), (Contender::Vmm, 2 * TRIES)]);
        assert_eq!(order, contenders.repeat(TRIES));
    }
}
