//! The node runtime is killed right after each step of a guest's life, once: the guest comes up and goes as if nothing
//! had happened, and no step is lost or done twice.

use futures::future::try_join_all;
use vse_crds::VSEPhase;
use vse_e2e::cluster::{node_exec, nodes};
use vse_e2e::{Conditions, Result, World, ensure, hosts, json, scenario, tiny};
use vse_node_runtime::crash_point::{DIRECTORY, Step};

/// When in a life a step is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Until the guest is ready.
    Start,
    /// While it is paused and let go on.
    Pause,
    /// Until nothing is left.
    End,
}

/// Without a default: a new step does not compile until it has its place here.
fn part(step: Step) -> Part {
    match step {
        Step::Placed
        | Step::ImageReady
        | Step::DisksOpen
        | Step::NetworkAttached
        | Step::OrderSent
        | Step::Pinned
        | Step::Booted
        | Step::RunningSaid => Part::Start,
        Step::Paused | Step::Resumed => Part::Pause,
        Step::PowerButtonPressed | Step::StopSent | Step::Killed | Step::Released | Step::ReleasedSaid => Part::End,
    }
}

fn steps(of: Part) -> impl Iterator<Item = Step> {
    Step::all().filter(move |step| part(*step) == of)
}

/// The steps after which the node runtime of one guest is killed.
struct Life {
    start: Option<Step>,
    pauses: Vec<Step>,
    end: Option<Step>,
}

/// Lives that have all steps between them, each one of each part but the first, which has all of a pause.
fn lives() -> Vec<Life> {
    let (mut starts, mut ends) = (steps(Part::Start), steps(Part::End));
    let mut lives: Vec<Life> = std::iter::from_fn(|| match (starts.next(), ends.next()) {
        (None, None) => None,
        (start, end) => Some(Life { start, pauses: Vec::new(), end }),
    })
    .collect();
    lives[0].pauses = steps(Part::Pause).collect();
    lives
}

#[test]
fn no_step_is_lost_or_doubled() {
    scenario("killed-steps", async |world| {
        let (nodes, lives) = (nodes().await?, lives());
        let each_node = nodes.iter().enumerate().map(|(n, node)| {
            let share = lives.iter().enumerate().skip(n).step_by(nodes.len());
            async move {
                for (i, life) in share {
                    live(world, node, &format!("guest-{i}"), life).await?;
                }
                Ok(())
            }
        });
        let result = try_join_all(each_node).await.map(drop);
        for node in &nodes {
            node_exec(node, &format!("rm -rf {DIRECTORY}")).await?;
        }
        result
    });
}

async fn live(world: &World, node: &str, name: &str, life: &Life) -> Result<()> {
    // Stopped at once is the one way to the engine's own stop.
    let grace = if matches!(life.end, Some(Step::StopSent | Step::Killed)) { 0 } else { 30 };
    let spec = json!({
        "terminationGracePeriodSeconds": grace, "nodeSelector": {"kubernetes.io/hostname": node},
    });
    if let Some(step) = life.start {
        arm(node, step).await?;
    }
    world.apply(&tiny(name, spec)).await?;
    world.ready(name, 1).await?;
    if let Some(step) = life.start {
        fired(world, node, step).await?;
    }
    world.until_booted(name, 1).await?;

    for step in &life.pauses {
        let (pause, phase) = if *step == Step::Paused { (true, VSEPhase::Paused) } else { (false, VSEPhase::Running) };
        arm(node, *step).await?;
        world.patch(name, json!({"spec": {"paused": pause}})).await?;
        world.until_vse(name, &format!("is {phase:?}"), |vse| vse.phase() == Some(phase)).await?;
        fired(world, node, *step).await?;
    }

    let microvm = world.microvm(name, 1).await?;
    let engine = hosts::engine(&microvm).await?;
    ensure!(microvm.status.is_some_and(|status| status.kernel.is_some()), "{name} does not tell its kernel");
    let boots = world.console_log(name, 1).await?.matches("tiny: ready").count();
    ensure!(boots == 1, "{name} was booted {boots} times");
    let vse = world.vse(name).await?.told();
    ensure!(vse.incarnation == 1 && vse.recent_failures == 0, "{name} failed: {vse:?}");

    if let Some(step) = life.end {
        arm(node, step).await?;
        if step == Step::Killed {
            // An engine that answers nothing any more.
            node_exec(node, &format!("kill -STOP {}", engine.pid)).await?;
        }
        world.delete(name).await?;
        fired(world, node, step).await?;
    } else {
        world.delete(name).await?;
    }
    Ok(())
}

/// Has the node runtime of that node die right after the step.
async fn arm(node: &str, step: Step) -> Result<()> {
    node_exec(node, &format!("mkdir -p {DIRECTORY} && touch {DIRECTORY}/{}", step.name())).await.map(drop)
}

/// Waits until it did.
async fn fired(world: &World, node: &str, step: Step) -> Result<()> {
    let file = format!("{DIRECTORY}/{}", step.name());
    world
        .until(&format!("the node runtime of {node} died after {step:?}"), async || {
            Ok(node_exec(node, &format!("ls {file} 2>/dev/null || true")).await?.is_empty().then_some(()))
        })
        .await
}
