//! A VSE is deleted in each phase of its life; the end of the scenario proves that nothing is left of any.

use kube::api::DeleteParams;
use vse_crds::{MicroVM, VSE, VSEPhase, vse_conditions::PAUSED};
use vse_e2e::{Conditions, Result, World, json, scenario, tiny};

#[test]
fn leaves_nothing_in_any_phase() {
    scenario("deletion", async |world| {
        // Never scheduled, refused, halted.
        world.apply(&tiny("unscheduled", json!({"nodeSelector": {"there-is": "no-such-node"}}))).await?;
        world.apply(&tiny("refused", json!({"profileName": "there-is-none"}))).await?;
        world.apply(&tiny("halted", json!({"runStrategy": "Halted"}))).await?;
        for (name, phase) in
            [("unscheduled", VSEPhase::Scheduling), ("refused", VSEPhase::Refused), ("halted", VSEPhase::Halted)]
        {
            world.until_vse(name, &format!("is {phase:?}"), |vse| vse.phase() == Some(phase)).await?;
            world.delete(name).await?;
        }

        // At several moments of a launch.
        for (name, has_come) in LAUNCH {
            world.apply(&tiny(name, json!({}))).await?;
            world.until(name, async || has_come.seen(world, name).await).await?;
            delete(world, name).await?;
        }

        // Paused, stopping, and while its engine is gone.
        for name in ["paused", "stopping", "killed"] {
            world.apply(&tiny(name, json!({}))).await?;
        }
        for name in ["paused", "stopping", "killed"] {
            world.ready(name, 1).await?;
        }
        world.patch("paused", json!({"spec": {"paused": true}})).await?;
        world.until_vse("paused", "is paused", |vse| vse.is(PAUSED)).await?;
        delete(world, "paused").await?;
        world.patch("stopping", json!({"spec": {"runStrategy": "Halted"}})).await?;
        world.until_vse("stopping", "is stopping", |vse| vse.phase() == Some(VSEPhase::Stopping)).await?;
        delete(world, "stopping").await?;
        vse_e2e::hosts::engine(&world.microvm("killed", 1).await?).await?.kill().await?;
        delete(world, "killed").await
    });
}

/// A moment of a launch.
#[derive(Clone, Copy)]
enum Moment {
    Applied,
    Claimed,
    Ordered,
    Ready,
    Booted,
}

const LAUNCH: [(&str, Moment); 5] = [
    ("applied", Moment::Applied),
    ("claimed", Moment::Claimed),
    ("ordered", Moment::Ordered),
    ("ready", Moment::Ready),
    ("booted", Moment::Booted),
];

impl Moment {
    async fn seen(self, world: &World, name: &str) -> Result<Option<()>> {
        let come = match self {
            Moment::Applied => true,
            Moment::Claimed => world.vse(name).await?.told().incarnation == 1,
            Moment::Ordered => !world.all::<MicroVM>().await?.iter().all(|vm| vm.spec.vse_name != name),
            Moment::Ready => world.vse(name).await?.ready(1),
            Moment::Booted => world.console_log(name, 1).await?.contains("tiny: ready"),
        };
        Ok(come.then_some(()))
    }
}

/// Asks for the deletion and does not wait for its end: the scenario's end does, for all together.
async fn delete(world: &World, name: &str) -> Result<()> {
    world.api::<VSE>().delete(name, &DeleteParams::default()).await?;
    Ok(())
}
