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

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::contender::Contender;

/// Measures all contenders one after the other, and that `tries` times over: what disturbs the host for a while then
/// disturbs all of them. Returns all results of each. `what` and `say` tell of each as it comes, for it takes a while.
fn in_turn<T>(
    what: &str,
    contenders: &[Contender],
    tries: usize,
    mut measure: impl FnMut(Contender) -> Result<T>,
    say: impl Fn(&T) -> String,
) -> Result<Vec<(Contender, Vec<T>)>> {
    let mut results: Vec<_> = contenders.iter().map(|&contender| (contender, Vec::new())).collect();
    for number in 1..=tries {
        for (contender, results) in &mut results {
            let result = measure(*contender).with_context(|| contender.to_string())?;
            writeln!(io::stderr(), "{what} {number}/{tries}: {contender}: {}", say(&result))?;
            results.push(result);
        }
    }
    Ok(results)
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
        let results = in_turn("order", &contenders, 2, measure, usize::to_string).unwrap();
        assert_eq!(results, [(Contender::Q35, vec![1, 3]), (Contender::Vmm, vec![2, 4])]);
        assert_eq!(order, contenders.repeat(2));
    }
}
