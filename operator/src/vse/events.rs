//! Events of a VSE: one at each transition of its status, pure.

use kube::runtime::events::{Event, EventType};
use vse_crds::{VSEStatus, condition, vse_conditions};

/// What to tell of the step from one status to the next.
pub fn events(was: &VSEStatus, is: &VSEStatus) -> Vec<Event> {
    let mut events = Vec::new();
    if is.last_exit != was.last_exit
        && let Some(exit) = &is.last_exit
    {
        let type_ = if exit.reason.is_failure() { EventType::Warning } else { EventType::Normal };
        let note = format!("incarnation {} ended: {:?} {}", exit.incarnation, exit.reason, exit.message);
        events.push(event(type_, "Exited", "Stop", note.trim_end()));
    }
    if is.incarnation > was.incarnation {
        let note = format!("incarnation {} is being started", is.incarnation);
        events.push(event(EventType::Normal, "Claimed", "Start", &note));
    }
    for (type_, action, when) in TOLD {
        if let Some((reason, message)) = became(was, is, type_, when) {
            let normal =
                matches!(*type_, vse_conditions::PAUSED) || (*type_ == vse_conditions::READY && *when == "True");
            let severity = if normal || matches!(reason, "Stopping" | "Preparing") {
                EventType::Normal
            } else {
                EventType::Warning
            };
            if reason != "Starting" {
                events.push(event(severity, reason, action, message));
            }
        }
    }
    events
}

/// Conditions whose flips are told: type, what the operator was doing, status.
const TOLD: &[(&str, &str, &str)] = &[
    (vse_conditions::READY, "Start", "True"),
    (vse_conditions::READY, "Start", "False"),
    (vse_conditions::READY, "Watch", "Unknown"),
    (vse_conditions::PAUSED, "Pause", "True"),
    (vse_conditions::RESTART_REQUIRED, "Update", "True"),
];

/// Reason and message of a condition that got that status, or a new reason for it.
fn became<'a>(was: &VSEStatus, is: &'a VSEStatus, type_: &str, status: &str) -> Option<(&'a str, &'a str)> {
    let now = condition::find(&is.conditions, type_).filter(|c| c.status == status)?;
    let same = condition::find(&was.conditions, type_)
        .is_some_and(|before| before.status == now.status && before.reason == now.reason);
    (!same).then_some((now.reason.as_str(), now.message.as_str()))
}

fn event(type_: EventType, reason: &str, action: &str, note: &str) -> Event {
    Event {
        type_,
        reason: reason.into(),
        note: (!note.is_empty()).then(|| note.chars().take(1024).collect()),
        action: action.into(),
        secondary: None,
    }
}
