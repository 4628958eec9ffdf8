//! Why something that was asked for is not done, and what a client is told.

use std::error::Error;

use vse_vmm_api::{VmState, portable, validate};

use crate::api::{Response, Status};
use crate::machine::descriptors::DescriptorError;
use crate::snapshot::SnapshotError;

/// Why a command is not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no guest.
    #[error("the VM is not created")]
    NotCreated,
    /// There is one.
    #[error("the VM is created already")]
    AlreadyCreated,
    /// There is one, and `vm.restore` says this in its own way.
    #[error("the VM is created already; delete it before another is restored")]
    NothingToRestoreInto,
    /// It is not the time.
    #[error("the VM is {state:?}; {wanted}")]
    State {
        /// Where it is.
        state: VmState,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// It was restored without one, and would end here.
    #[error("the VM was restored without a kernel to start over with")]
    NoKernel,
    /// The configuration is wrong.
    #[error(transparent)]
    Invalid(#[from] validate::Refused),
    /// There can be only one.
    #[error(transparent)]
    OnlyOne(#[from] vse_vmm_api::hot_plug::OnlyOne),
    /// Nothing has that name.
    #[error("id: there is no device {0:?} that can be removed")]
    NoSuchDevice(String),
    /// Descriptors came with a request that takes none.
    #[error("descriptors came along, but only vm.add-…, vm.snapshot and vm.restore take any")]
    UnexpectedDescriptors,
    /// More came than there is a field for.
    #[error("{0} descriptors came along, and there is use for one")]
    TooManyDescriptors(usize),
    /// A descriptor that is named is none, or none of the kind that is needed.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// Nothing can be resized.
    #[error("{field}: not supported by this VMM: it is {is} and can't be {asked}")]
    Resize {
        /// Which field.
        field: &'static str,
        /// What is.
        is: u64,
        /// What was asked for.
        asked: u64,
    },
    /// Snapshots can't have it.
    #[error("{field}: not supported by this VMM: {reason}")]
    NotSupported {
        /// Which field.
        field: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// No zone has that name.
    #[error("zone_updates: there is no zone {0:?}")]
    NoSuchZone(String),
    /// No network device has that name.
    #[error("net_fds: there is no network device {0:?}")]
    NoSuchNet(String),
    /// Fewer taps came along than are named, or more.
    #[error("net_fds: {came} descriptors came along, not {expected}")]
    OtherTaps {
        /// How many are named.
        expected: usize,
        /// How many there are.
        came: usize,
    },
    /// The snapshot is of another guest.
    #[error(transparent)]
    Differs(#[from] portable::Differs),
    /// The snapshot's files.
    #[error("the snapshot failed")]
    Snapshot(#[from] SnapshotError),
    /// The machine.
    #[error("{verb} failed")]
    Machine {
        /// What was tried.
        verb: &'static str,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl Refusal {
    /// The status code of the published description.
    fn status(&self) -> Status {
        match self {
            Self::NotCreated | Self::NothingToRestoreInto | Self::NoSuchDevice(_) => Status::NotFound,
            Self::AlreadyCreated | Self::OnlyOne(_) => Status::Conflict,
            Self::Invalid(refused) if refused.is_conflict() => Status::Conflict,
            Self::State { .. } | Self::NoKernel => Status::MethodNotAllowed,
            Self::Invalid(_)
            | Self::UnexpectedDescriptors
            | Self::TooManyDescriptors(_)
            | Self::Descriptor(_)
            | Self::Resize { .. }
            | Self::NotSupported { .. }
            | Self::NoSuchZone(_)
            | Self::NoSuchNet(_)
            | Self::OtherTaps { .. }
            | Self::Differs(_)
            | Self::Snapshot(SnapshotError::Url(_) | SnapshotError::Damaged(_)) => Status::BadRequest,
            Self::Snapshot(SnapshotError::Exists(_)) => Status::Conflict,
            Self::Snapshot(_) | Self::Machine { .. } => Status::InternalServerError,
        }
    }

    /// What the client is told: each thing that is wrong, or the chain of causes.
    #[must_use]
    pub fn response(&self) -> Response {
        let messages = match self {
            Self::Invalid(refused) => refused.0.iter().map(ToString::to_string).collect(),
            other => chain(other),
        };
        Response::error(self.status(), messages)
    }
}

/// An error and its causes.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    std::iter::successors(Some(error), |error| (*error).source()).map(ToString::to_string).collect()
}
