//! Waiting on conditions: never a sleep, never without an end.

use anyhow::{Result, bail};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long anything may take, in seconds: emulated guests on a loaded machine of two cores. Another number is taken
/// from the environment: where hosts are emulated too, everything takes longer.
const PATIENCE: u64 = 240;
const PATIENCE_VARIABLE: &str = "VSE_E2E_PATIENCE";
/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// Looks until the probe has a value. A probe's error counts as "not yet": the API server may be restarting.
pub(crate) async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let given = std::env::var(PATIENCE_VARIABLE).ok().and_then(|seconds| seconds.parse().ok());
    let patience = Duration::from_secs(given.unwrap_or(PATIENCE));
    let mut error = None;
    while start.elapsed() < patience {
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
        None => bail!("waited {} s for: {what}", patience.as_secs()),
        Some(error) => Err(error.context(format!("waited {} s for: {what}", patience.as_secs()))),
    }
}
