//! What each action changes in a VSE, and when it is done. Pure.

use crate::find;
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use vse_crds::labels::{PREVIOUS_RUN_STRATEGY, RESTARTED_AT};
use vse_crds::{RunStrategy, VSE, VSEPhase, condition, vse_conditions};

/// What to do with a VSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start,
    Stop,
    Restart,
    Pause,
    Resume,
}

/// What an action comes to.
#[derive(Debug, PartialEq)]
pub enum Change {
    /// The VSE asks for it already.
    None,
    /// It makes no sense now: why.
    Refused(String),
    /// A merge patch. It carries the resource version it was made from, as it depends on what was read.
    Patch(Value),
}

/// The change an action makes.
pub fn change(action: Action, vse: &VSE, now: Timestamp) -> Change {
    let halted = vse.spec.run_strategy == RunStrategy::Halted;
    match action {
        Action::Start if halted => {
            Change::Patch(patch(vse, json!({ PREVIOUS_RUN_STRATEGY: null }), json!({ "runStrategy": previous(vse) })))
        }
        // Ended by itself, and its run strategy does not start it again: the user asks for one more life.
        Action::Start if ended(vse) => restart(vse, now),
        Action::Start => Change::None,
        Action::Stop if halted => Change::None,
        Action::Stop => Change::Patch(patch(
            vse,
            json!({ PREVIOUS_RUN_STRATEGY: vse.spec.run_strategy }),
            json!({ "runStrategy": RunStrategy::Halted }),
        )),
        Action::Restart if halted => refused(vse, "is stopped", "start"),
        Action::Restart => restart(vse, now),
        Action::Pause if vse.spec.paused => Change::None,
        Action::Pause if halted => refused(vse, "is stopped", "start"),
        Action::Pause => Change::Patch(patch(vse, json!({}), json!({ "paused": true }))),
        Action::Resume if !vse.spec.paused => Change::None,
        Action::Resume => Change::Patch(patch(vse, json!({}), json!({ "paused": false }))),
    }
}

fn restart(vse: &VSE, now: Timestamp) -> Change {
    Change::Patch(patch(vse, json!({ RESTARTED_AT: now.to_string() }), json!({})))
}

fn refused(vse: &VSE, is: &str, command: &str) -> Change {
    let name = vse.name_any();
    Change::Refused(format!("VSE {name} {is}; `kubectl vse {command} {name}` first"))
}

fn patch(vse: &VSE, annotations: Value, spec: Value) -> Value {
    let mut metadata = Map::from_iter([("resourceVersion".into(), json!(vse.resource_version()))]);
    let mut patch = Map::new();
    if annotations.as_object().is_some_and(|map| !map.is_empty()) {
        metadata.insert("annotations".into(), annotations);
    }
    if spec.as_object().is_some_and(|map| !map.is_empty()) {
        patch.insert("spec".into(), spec);
    }
    patch.insert("metadata".into(), Value::Object(metadata));
    Value::Object(patch)
}

/// The run strategy that `stop` replaced; `Always` when it is not known.
fn previous(vse: &VSE) -> RunStrategy {
    vse.annotations()
        .get(PREVIOUS_RUN_STRATEGY)
        .and_then(|name| serde_json::from_value(json!(name)).ok())
        .filter(|strategy| *strategy != RunStrategy::Halted)
        .unwrap_or_default()
}

/// Whether the guest ended and its run strategy does not start it again.
fn ended(vse: &VSE) -> bool {
    let phase = vse.status.as_ref().and_then(|status| status.phase);
    matches!(phase, Some(VSEPhase::Succeeded | VSEPhase::Failed))
}

/// What to wait for.
#[derive(Debug)]
pub enum Goal {
    /// Running, in an incarnation of at least this number.
    Running(i64),
    Halted,
    Paused,
}

/// What to wait for after an action on a VSE that was like this.
pub fn goal(action: Action, before: &VSE) -> Goal {
    let incarnation = before.status.as_ref().map_or(0, |status| status.incarnation);
    match action {
        Action::Restart => Goal::Running(incarnation + 1),
        Action::Start if before.spec.run_strategy == RunStrategy::Halted || ended(before) => {
            Goal::Running(incarnation + 1)
        }
        Action::Start | Action::Resume => Goal::Running(incarnation),
        Action::Stop => Goal::Halted,
        Action::Pause => Goal::Paused,
    }
}

/// Whether it is reached (`Break(Ok)`), can't be (`Break(Err)`), or what is going on (`Continue`).
pub fn reached(goal: &Goal, vse: &VSE) -> ControlFlow<Result<(), String>, String> {
    let Some(status) = &vse.status else {
        return ControlFlow::Continue("no operator has looked at it yet".into());
    };
    if status.observed_generation < vse.metadata.generation {
        return ControlFlow::Continue("the operator has not seen the change yet".into());
    }
    let holds = |type_| condition::is_true(&status.conditions, type_);
    let paused = holds(vse_conditions::PAUSED);
    let done = match goal {
        Goal::Running(least) => holds(vse_conditions::READY) && !paused && status.incarnation >= *least,
        Goal::Halted => status.phase == Some(VSEPhase::Halted),
        Goal::Paused => paused,
    };
    if done {
        return ControlFlow::Break(Ok(()));
    }
    let why = find::why_not_running(vse);
    match goal {
        Goal::Halted => {}
        _ if holds(vse_conditions::STALLED) => return ControlFlow::Break(Err(why)),
        Goal::Paused if ended(vse) => return ControlFlow::Break(Err(why)),
        Goal::Running(least) if ended(vse) && status.incarnation >= *least => {
            return ControlFlow::Break(Err(why));
        }
        _ => {}
    }
    let progress = condition::find(&status.conditions, vse_conditions::PROGRESSING)
        .filter(|c| c.status == "True" && !c.message.is_empty());
    ControlFlow::Continue(progress.map_or(why, |c| c.message.clone()))
}

/// What to say before waiting.
pub fn waiting(action: Action, name: &str) -> String {
    let what = match action {
        Action::Start | Action::Restart | Action::Resume => "run",
        Action::Stop => "be halted",
        Action::Pause => "be paused",
    };
    format!("waiting for vse/{name} to {what}")
}

/// What to say was done.
pub fn said(action: Action, changed: bool, waited: bool) -> &'static str {
    match (action, waited, changed) {
        (Action::Start | Action::Restart, true, _) => "runs",
        (Action::Stop, true, _) => "stopped",
        (Action::Pause, true, _) => "paused",
        (Action::Resume, true, _) => "runs",
        (Action::Start, false, true) => "starts",
        (Action::Start, false, false) => "is started already",
        (Action::Stop, false, true) => "stops",
        (Action::Stop, false, false) => "is stopped already",
        (Action::Restart, false, _) => "restarts",
        (Action::Pause, false, true) => "pauses",
        (Action::Pause, false, false) => "is paused already",
        (Action::Resume, false, true) => "resumes",
        (Action::Resume, false, false) => "is not paused",
    }
}

#[cfg(test)]
mod tests;
