//! The spec changes while the guest runs: what can change does, what can't says so and waits for the next incarnation.

use vse_crds::{labels::RESTARTED_AT, vse_conditions::RESTART_REQUIRED};
use vse_e2e::{Conditions, ensure, hosts, json, scenario, tiny};

#[test]
fn says_what_waits_for_a_restart() {
    scenario("spec-changed", async |world| {
        world.apply(&tiny("guest", json!({}))).await?;
        world.ready("guest", 1).await?;
        world.until_booted("guest", 1).await?;
        let engine = hosts::engine(&world.microvm("guest", 1).await?).await?;

        let bigger = json!({
            "machine": {"memory": {"guest": "112Mi"}}, "runStrategy": "RerunOnFailure",
            "system": {"kernelArguments": ["e2e.changed=yes"]},
        });
        world.apply(&tiny("guest", bigger)).await?;
        let vse = world.until_vse("guest", "asks for a restart", |vse| vse.is(RESTART_REQUIRED)).await?;
        let (_, message) = vse.why(RESTART_REQUIRED);
        for path in ["spec.machine.memory.guest", "spec.system.kernelArguments"] {
            ensure!(message.contains(path), "{path} is not named: {message}");
        }
        ensure!(!message.contains("runStrategy"), "runStrategy needs no restart: {message}");
        ensure!(vse.ready(1), "not ready any more");
        assert_eq!(hosts::engine(&world.microvm("guest", 1).await?).await?, engine);

        // Taken back, nothing waits.
        world.apply(&tiny("guest", json!({}))).await?;
        world.until_vse("guest", "asks for nothing", |vse| !vse.is(RESTART_REQUIRED)).await?;

        // Restarted, the change is there.
        world.apply(&tiny("guest", json!({"system": {"kernelArguments": ["e2e.changed=yes"]}}))).await?;
        world.until_vse("guest", "asks for a restart", |vse| vse.is(RESTART_REQUIRED)).await?;
        let now = jiff::Timestamp::now().to_string();
        world.patch("guest", json!({"metadata": {"annotations": {RESTARTED_AT: now}}})).await?;
        world.ready("guest", 2).await?;
        world.until_vse("guest", "asks for nothing", |vse| !vse.is(RESTART_REQUIRED)).await?;
        world.until_booted("guest", 2).await?;
        world.until_console("guest", 2, "e2e.changed=yes").await
    });
}
