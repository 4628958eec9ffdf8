//! Running one scenario: its world, its story, its end.

use crate::{World, report};
use anyhow::{Result, anyhow};
use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

/// Runs a scenario in a world of its own. In the end nothing of its VSEs may be left anywhere; when it fails, what the
/// cluster has to say is printed first.
///
/// # Panics
/// When the story or its end fails: this is the body of a test.
pub fn scenario(name: &str, story: impl AsyncFnOnce(&World) -> Result<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(name, story)));
    if let Err(error) = result {
        panic!("{name}: {error:#}");
    }
}

async fn run(name: &str, story: impl AsyncFnOnce(&World) -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let world = World::new(name).await?;
    eprintln!("{name}, in namespace {}", world.namespace);
    let mut result = AssertUnwindSafe(story(&world)).catch_unwind().await.unwrap_or_else(|panic| Err(said(&*panic)));
    if result.is_err() {
        report::print(&world).await;
    }
    let end = world.finish().await;
    if result.is_ok() && end.is_err() {
        report::print(&world).await;
        result = end;
    }
    let removed = world.remove().await;
    eprintln!("{name}: {:.1} s", start.elapsed().as_secs_f32());
    result.and(removed)
}

/// What a failed assertion said.
fn said(panic: &(dyn std::any::Any + Send)) -> anyhow::Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    anyhow!("{}", text.unwrap_or("panicked"))
}
