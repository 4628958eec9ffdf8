//! Waiting on conditions: never a sleep, never without an end.

use anyhow::{Result, bail};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long anything may take: emulated guests on a loaded machine of two cores.
const PATIENCE: Duration = Duration::from_secs(240);
/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// Looks until the probe has a value. A probe's error counts as "not yet": the API server may be restarting.
pub(crate) async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut error = None;
    while start.elapsed() < PATIENCE {
        match probe().await {
            Ok(Some(value)) => {
                eprintln!("    {what}: {:.1} s", start.elapsed().as_secs_f32());
                return Ok(value);
            }
            Ok(None) => error = None,
            Err(failed) => error = Some(failed),
        }
        sleep(INTERVAL).await;
    }
    match error {
        None => bail!("waited {} s for: {what}", PATIENCE.as_secs()),
        Some(error) => Err(error.context(format!("waited {} s for: {what}", PATIENCE.as_secs()))),
    }
}
