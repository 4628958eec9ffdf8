//! Waiting for a VSE to become something, by watching it.

use anyhow::{Result, bail};
use futures::StreamExt;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;
use vse_crds::VSE;

/// Watches the VSE until `judge` breaks, telling on standard error whatever new it says meanwhile.
pub async fn until(
    api: &Api<VSE>,
    name: &str,
    timeout: Duration,
    judge: impl Fn(&VSE) -> ControlFlow<Result<(), String>, String>,
) -> Result<VSE> {
    let mut last = String::new();
    let watch = async {
        let mut states = pin!(watcher::watch_object(api.clone(), name).default_backoff());
        while let Some(state) = states.next().await {
            let vse = match state {
                Ok(Some(vse)) => vse,
                Ok(None) => bail!("VSE {name} was deleted"),
                // The watcher tries again by itself.
                Err(error) => {
                    tell(&mut last, format!("{error}"));
                    continue;
                }
            };
            match judge(&vse) {
                ControlFlow::Break(Ok(())) => return Ok(vse),
                ControlFlow::Break(Err(why)) => bail!("{why}"),
                ControlFlow::Continue(progress) => tell(&mut last, progress),
            }
        }
        bail!("the API server ended the watch of VSE {name}")
    };
    let outcome = tokio::time::timeout(timeout, watch).await;
    outcome.unwrap_or_else(|_| bail!("gave up after {} s: {last}", timeout.as_secs()))
}

fn tell(last: &mut String, news: String) {
    if *last != news {
        eprintln!("  {}", crate::paint::plain(&news));
        *last = news;
    }
}
