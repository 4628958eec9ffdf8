//! Few writes until a guest is ready, none when nothing happens.

use std::time::Duration;
use vse_e2e::{audit, ensure, json, scenario, tiny};

/// Writes of ours for one VSE, from create to Ready, Events apart.
const WRITES: usize = 6;
/// How long nothing happens.
const QUIET: Duration = Duration::from_secs(60);

#[test]
fn nobody_writes_when_nothing_happens() {
    scenario("settled", async |world| {
        let created = audit::mark().await?;
        world.apply(&tiny("guest", json!({}))).await?;
        world.ready("guest", 1).await?;
        world.until_booted("guest", 1).await?;
        let writes = audit::writes_since(&created).await?;
        ensure!(writes.len() <= WRITES, "{} writes: {writes:#?}", writes.len());
        ensure!(!writes.is_empty(), "the audit log shows no write of ours");

        let settled = audit::mark().await?;
        // Time itself is the subject here.
        tokio::time::sleep(QUIET).await;
        let writes = audit::writes_since(&settled).await?;
        ensure!(writes.is_empty(), "written while nothing happened: {writes:#?}");
        Ok(())
    });
}
