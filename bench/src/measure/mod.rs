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
/// disturbs all of them. Returns all results of each. `what` and `say` tell of each as it comes, for it takes a while. A run
/// that fails is told of and left out, as long as each contender has another.
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
            let result = measure(*contender).with_context(|| contender.to_string());
            let said = result.as_ref().map_or_else(|error| format!("failed: {error:#}"), &say);
            writeln!(io::stderr(), "{what} {number}/{tries}: {contender}: {said}")?;
            match result {
                Ok(result) => results.push(result),
                Err(error) if number == tries && results.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_fails_is_left_out_unless_all_do() {
        let ours = [Contender::Vmm];
        let from = |mut runs: Vec<Option<u32>>| {
            let measure = |_| runs.remove(0).context("it hangs");
            in_turn("luck", &ours, 3, measure, u32::to_string).map(|mut all| all.remove(0).1)
        };
        assert_eq!(from(vec![Some(1), None, Some(3)]).unwrap(), [1, 3]);
        assert_eq!(from(vec![None, Some(2), None]).unwrap(), [2]);
        assert!(from(vec![None, None, None]).is_err());
    }

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
