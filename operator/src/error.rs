//! What can go wrong while observing and executing, and what to do about it.

use crate::reason::Reason;
use std::time::Duration;

/// A call to the API server that did not have its effect.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server answered with an error, or not at all.
    #[error("{call}")]
    Api {
        /// What was tried, for example `create pod demo-1`.
        call: String,
        /// The answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// The object changed since it was observed.
    #[error("{what} changed since it was observed")]
    Stale {
        /// Which object.
        what: String,
    },
    /// Another owner's object has the name.
    #[error("{kind} {name} exists and is not this VSE's; delete or rename it")]
    NameTaken {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Look again at once: the world moved on.
    Wait,
    /// Try the same again after a while.
    Retry,
    /// Trying again is no use until somebody changes something; tell the user.
    Invalid,
}

impl Error {
    /// An API error with what was tried.
    pub fn api(call: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
        let call = call.into();
        move |source| Error::Api { call, source: Box::new(source) }
    }

    /// Word for conditions and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Error::Stale { .. } => Reason::Conflict,
            Error::NameTaken { .. } => Reason::NameTaken,
            Error::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.is_conflict() => Reason::Conflict,
                kube::Error::Api(status) if status.is_forbidden() => Reason::Forbidden,
                kube::Error::Api(status) if status.is_invalid() => Reason::Rejected,
                _ => Reason::Unavailable,
            },
        }
    }

    /// What to do about it.
    pub fn class(&self) -> Class {
        match self.reason() {
            Reason::Conflict => Class::Wait,
            Reason::NameTaken | Reason::Forbidden | Reason::Rejected => Class::Invalid,
            _ => Class::Retry,
        }
    }

    /// Message with its causes, for conditions: the API server's own words without the wrapping.
    pub fn explain(&self) -> String {
        match self {
            Error::Api { call, source } => match source.as_ref() {
                kube::Error::Api(status) => format!("{call}: {}", status.message),
                other => format!("{call}: {other}"),
            },
            Error::Stale { .. } | Error::NameTaken { .. } => self.to_string(),
        }
    }

    /// When to look again.
    pub fn retry_after(&self) -> Duration {
        match self.class() {
            Class::Wait => Duration::from_millis(200),
            Class::Retry => Duration::from_secs(3),
            Class::Invalid => Duration::from_secs(30),
        }
    }
}

/// Whether an API error says that the object is not there.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Whether an API error says that a precondition (UID or resourceVersion) did not hold.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict())
}
