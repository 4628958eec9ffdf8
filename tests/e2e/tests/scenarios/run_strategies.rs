//! How guests end, and what each runStrategy makes of it.

use vse_crds::{ExitReason, VSE, VSEPhase, labels::RESTARTED_AT};
use vse_e2e::console::Console;
use vse_e2e::{Conditions, Result, World, ensure, hosts, json, scenario, tiny};

#[test]
fn decide_what_follows_an_end() {
    scenario("run-strategies", async |world| {
        let strategies = [("always", "Always"), ("rerun", "RerunOnFailure"), ("once", "Once")];
        for (name, strategy) in strategies {
            world.apply(&tiny(name, json!({"runStrategy": strategy}))).await?;
        }
        for (name, _) in strategies {
            world.ready(name, 1).await?;
        }

        // An engine that is killed: a failure.
        for (name, _) in strategies {
            hosts::engine(&world.microvm(name, 1).await?).await?.kill().await?;
        }
        let failed = world.until_vse("once", "failed", |vse| vse.phase() == Some(VSEPhase::Failed)).await?;
        ensure!(ended(&failed, 1, ExitReason::EngineFailed), "{:?}", failed.told().last_exit);
        for name in ["always", "rerun"] {
            world.until_vse(name, "backs off", |vse| vse.told().recent_failures == 1).await?;
            let status = world.ready(name, 2).await?;
            let exit = status.last_exit.map(|exit| (exit.incarnation, exit.reason));
            assert_eq!(exit, Some((1, ExitReason::EngineFailed)), "{name}");
        }

        // A guest that powers itself off: no failure.
        for name in ["always", "rerun"] {
            Console::login(world, name, 2).await?.run_last("poweroff -f").await?;
        }
        let done = world.until_vse("rerun", "succeeded", |vse| vse.phase() == Some(VSEPhase::Succeeded)).await?;
        ensure!(ended(&done, 2, ExitReason::GuestShutdown), "{:?}", done.told().last_exit);
        world.ready("always", 3).await?;
        let once = world.vse("once").await?.told();
        assert_eq!((once.incarnation, once.phase), (1, Some(VSEPhase::Failed)), "Once was started again");
        Ok(())
    });
}

#[test]
fn halt_start_and_restart() {
    scenario("halt-and-restart", async |world| {
        world.apply(&tiny("guest", json!({"runStrategy": "Halted"}))).await?;
        let halted = |vse: &VSE| vse.phase() == Some(VSEPhase::Halted);
        let status = world.until_vse("guest", "is halted", halted).await?.told();
        assert_eq!(status.incarnation, 0);

        world.patch("guest", json!({"spec": {"runStrategy": "Always"}})).await?;
        world.ready("guest", 1).await?;
        world.until_booted("guest", 1).await?;
        world.patch("guest", json!({"spec": {"runStrategy": "Halted"}})).await?;
        let status = world.until_vse("guest", "is halted", halted).await?;
        ensure!(ended(&status, 1, ExitReason::Stopped), "{:?}", status.told().last_exit);
        no_guest_left(world).await?;

        world.patch("guest", json!({"spec": {"runStrategy": "Always"}})).await?;
        world.ready("guest", 2).await?;
        world.until_booted("guest", 2).await?;
        let now = jiff::Timestamp::now().to_string();
        world.patch("guest", json!({"metadata": {"annotations": {RESTARTED_AT: now}}})).await?;
        let status = world.ready("guest", 3).await?;
        assert_eq!(status.last_exit.map(|exit| exit.reason), Some(ExitReason::Stopped));
        assert_eq!(status.recent_failures, 0);
        Ok(())
    });
}

fn ended(vse: &VSE, incarnation: i64, reason: ExitReason) -> bool {
    vse.told().last_exit.is_some_and(|exit| (exit.incarnation, exit.reason) == (incarnation, reason))
}

/// A halted VSE keeps nothing on its host.
async fn no_guest_left(world: &World) -> Result<()> {
    let what = "the halted guest's pod is gone";
    world
        .until(what, async || Ok(world.all::<k8s_openapi::api::core::v1::Pod>().await?.is_empty().then_some(())))
        .await?;
    world.nothing_left().await
}
