use super::*;
use crate::golden;

fn running() -> VSE {
    golden::fixture("running").vse
}

fn halted(previous: Option<&str>) -> VSE {
    let mut vse = running();
    vse.spec.run_strategy = RunStrategy::Halted;
    let status = vse.status.as_mut().unwrap();
    status.phase = Some(VSEPhase::Halted);
    status.conditions.clear();
    if let Some(previous) = previous {
        vse.annotations_mut().insert(PREVIOUS_RUN_STRATEGY.into(), previous.into());
    }
    vse
}

fn patched(action: Action, vse: &VSE) -> Value {
    match change(action, vse, now()) {
        Change::Patch(patch) => patch,
        other => panic!("{action:?} gave {other:?}"),
    }
}

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

#[test]
fn stop_remembers_what_start_puts_back() {
    let mut vse = running();
    vse.spec.run_strategy = RunStrategy::RerunOnFailure;
    assert_eq!(
        patched(Action::Stop, &vse),
        json!({
            "metadata": {"resourceVersion": "120", "annotations": {PREVIOUS_RUN_STRATEGY: "RerunOnFailure"}},
            "spec": {"runStrategy": "Halted"},
        })
    );
    let start = patched(Action::Start, &halted(Some("RerunOnFailure")));
    assert_eq!(start["spec"]["runStrategy"], "RerunOnFailure");
    assert_eq!(start["metadata"]["annotations"], json!({PREVIOUS_RUN_STRATEGY: null}));
}

#[test]
fn start_takes_always_when_it_knows_nothing_better() {
    for previous in [None, Some("Halted"), Some("Sometimes")] {
        assert_eq!(patched(Action::Start, &halted(previous))["spec"]["runStrategy"], "Always");
    }
}

#[test]
fn what_holds_already_is_not_written() {
    for (action, vse) in [(Action::Start, running()), (Action::Resume, running()), (Action::Stop, halted(None))] {
        assert_eq!(change(action, &vse, now()), Change::None, "{action:?}");
    }
}

#[test]
fn a_stopped_vse_can_only_be_started() {
    for action in [Action::Restart, Action::Pause] {
        let Change::Refused(why) = change(action, &halted(None), now()) else { panic!("{action:?} was not refused") };
        assert!(why.contains("kubectl vse start hello"), "{why}");
    }
}

#[test]
fn an_ended_vse_gets_one_more_life() {
    let mut vse = running();
    vse.spec.run_strategy = RunStrategy::Once;
    vse.status.as_mut().unwrap().phase = Some(VSEPhase::Succeeded);
    let patch = patched(Action::Start, &vse);
    assert_eq!(patch["metadata"]["annotations"][RESTARTED_AT], "2026-11-23T12:00:00Z");
    assert!(matches!(goal(Action::Start, &vse), Goal::Running(2)));
}

#[test]
fn a_restart_is_done_when_the_next_incarnation_runs() {
    let mut vse = running();
    let goal = goal(Action::Restart, &vse);
    assert!(matches!(reached(&goal, &vse), ControlFlow::Continue(_)));
    vse.status.as_mut().unwrap().incarnation = 2;
    assert_eq!(reached(&goal, &vse), ControlFlow::Break(Ok(())));
}

#[test]
fn an_old_status_is_not_believed() {
    let mut vse = running();
    vse.metadata.generation = Some(2);
    assert!(matches!(reached(&Goal::Running(1), &vse), ControlFlow::Continue(_)));
}

#[test]
fn waiting_ends_when_the_spec_can_not_be_met() {
    let mut vse = running();
    let status = vse.status.as_mut().unwrap();
    status.conditions.retain(|c| c.type_ == vse_conditions::STALLED);
    status.conditions[0].status = "True".into();
    status.conditions[0].message = "profile p does not exist".into();
    let ControlFlow::Break(Err(why)) = reached(&Goal::Running(1), &vse) else { panic!("still waiting") };
    assert!(why.contains("profile p does not exist"), "{why}");
}
