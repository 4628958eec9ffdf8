//! Conditions: setting them so that times move only when a status flips, and reading them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The condition holds.
    True,
    /// It does not.
    False,
    /// Not known yet.
    Unknown,
}

impl Status {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::True => "True",
            Status::False => "False",
            Status::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Status::True } else { Status::False }
    }
}

/// Longest message kept in a condition, in bytes (metav1.Condition allows 32768; nobody reads that much).
const MAX_MESSAGE: usize = 4096;

/// A new condition, its transition time taken from `previous` when the status did not flip.
pub fn condition(
    previous: &[Condition],
    type_: &str,
    status: Status,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let last_transition_time = find(previous, type_)
        .filter(|was| was.status == status.as_str())
        .map_or(Time(whole_second(now)), |was| was.last_transition_time.clone());
    let mut message = message.into();
    if message.len() > MAX_MESSAGE {
        let cut = (0..=MAX_MESSAGE).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
        message.truncate(cut);
    }
    Condition {
        type_: type_.into(),
        status: status.as_str().into(),
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time,
    }
}

/// metav1.Time carries whole seconds: anything finer would differ from what is read back.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// The condition of that type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of that type is there and `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_moves_only_when_the_status_flips() {
        let first = condition(&[], "Ready", Status::False, "Starting", "", Some(1), at(1));
        let same = condition(std::slice::from_ref(&first), "Ready", Status::False, "Pulling", "x", Some(1), at(2));
        assert_eq!(same.last_transition_time.0, at(1));
        let flipped = condition(&[same], "Ready", Status::True, "Running", "", Some(1), at(3));
        assert_eq!(flipped.last_transition_time.0, at(3));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let long = "ü".repeat(MAX_MESSAGE);
        assert!(condition(&[], "Ready", Status::False, "R", long, None, at(1)).message.len() <= MAX_MESSAGE);
    }
}
