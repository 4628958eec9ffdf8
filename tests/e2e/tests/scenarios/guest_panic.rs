//! A guest whose kernel panics has failed: it is not reset for ever while it looks as if it ran.

use vse_crds::{ExitReason, VSEPhase};
use vse_e2e::{Conditions, ensure, json, scenario, tiny};

#[test]
fn ends_the_incarnation() {
    scenario("guest-panic", async |world| {
        // vse-init finds nothing to hand over to, says so, and ends: PID 1 gone is a panic.
        let system = json!({"kernelArguments": ["vse.init=/nonexistent"]});
        world.apply(&tiny("guest", json!({"runStrategy": "Once", "system": system}))).await?;
        let failed = world.until_vse("guest", "failed", |vse| vse.phase() == Some(VSEPhase::Failed)).await?;
        let exit = failed.told().last_exit;
        ensure!(exit.as_ref().is_some_and(|exit| exit.reason == ExitReason::GuestPanic), "{exit:?}");
        world.until_console("guest", 1, "vse-init: error").await?;
        Ok(())
    });
}
