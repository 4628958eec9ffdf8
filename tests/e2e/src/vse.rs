//! Reading a VSE's status.

use vse_crds::{VSE, VSEPhase, VSEStatus, condition, vse_conditions};

/// What scenarios ask of a VSE.
pub trait Conditions {
    /// Its status; the default before the first.
    fn told(&self) -> VSEStatus;

    /// Its phase.
    fn phase(&self) -> Option<VSEPhase> {
        self.told().phase
    }

    /// Whether the condition of that type is `True`.
    fn is(&self, type_: &str) -> bool {
        condition::is_true(&self.told().conditions, type_)
    }

    /// Reason and message of the condition of that type; empty when it is not there.
    fn why(&self, type_: &str) -> (String, String) {
        let told = self.told();
        let found = condition::find(&told.conditions, type_).cloned();
        found.map(|condition| (condition.reason, condition.message)).unwrap_or_default()
    }

    /// Whether incarnation `n` is ready.
    fn ready(&self, n: i64) -> bool {
        self.is(vse_conditions::READY) && self.told().incarnation == n
    }
}

impl Conditions for VSE {
    fn told(&self) -> VSEStatus {
        self.status.clone().unwrap_or_default()
    }
}

/// Reason and message of a refusal, once the operator has seen the present spec.
pub fn refusal(vse: &VSE) -> Option<(String, String)> {
    let current = vse.told().observed_generation == vse.metadata.generation;
    (current && vse.phase() == Some(VSEPhase::Refused)).then(|| vse.why(vse_conditions::STALLED))
}
