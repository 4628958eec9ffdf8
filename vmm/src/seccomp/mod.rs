//! What each thread may ask of the kernel: one filter for each role. A call that isn't on its list kills the process.
//!
//! Filters add up: a thread is confined by those of the thread that made it, too. So the owner, which makes all others
//! when a caller creates a guest, may do what they all may; each of them then confines itself to its own list before it
//! touches anything of the guest's. Nobody may start programs, open network sockets, or map memory to execute.

mod calls;
mod ioctls;
mod program;

use std::sync::{Arc, OnceLock};

use seccompiler::{BpfProgram, SeccompAction};

pub use crate::options::Seccomp;

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The owner: API, state, creation.
    Owner,
    /// Runs a vCPU.
    Vcpu,
    /// virtio disk.
    Block,
    /// virtio network.
    Net,
    /// virtio console and the agent's port.
    Console,
    /// virtio sockets.
    Vsock,
    /// Random numbers.
    Rng,
    /// A file as memory.
    Pmem,
    /// A file system served by another process.
    Fs,
}

impl Role {
    /// All.
    pub const ALL: [Self; 9] =
        [Self::Owner, Self::Vcpu, Self::Block, Self::Net, Self::Console, Self::Vsock, Self::Rng, Self::Pmem, Self::Fs];
}

/// A filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
#[error("the system calls of a thread ({role:?}) can't be filtered")]
pub struct FilterError {
    /// Whose.
    pub role: Role,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The filters, each made when it is first needed and shared by all threads of its role.
#[derive(Debug)]
pub struct Filters {
    mode: Seccomp,
    made: [OnceLock<Arc<BpfProgram>>; Role::ALL.len()],
}

impl Filters {
    /// Filters, or none.
    #[must_use]
    pub fn new(mode: Seccomp) -> Self {
        Self { mode, made: Default::default() }
    }

    /// The filter of a role; `None` when calls aren't filtered.
    ///
    /// # Errors
    /// When it can't be made, which only a mistake in its list can lead to.
    pub fn of(&self, role: Role) -> Result<Option<Arc<BpfProgram>>, FilterError> {
        let otherwise = match self.mode {
            Seccomp::Off => return Ok(None),
            Seccomp::On => SeccompAction::KillProcess,
            Seccomp::Log => SeccompAction::Log,
        };
        let place = &self.made[role as usize];
        if let Some(made) = place.get() {
            return Ok(Some(Arc::clone(made)));
        }
        let made = compile(role, otherwise).map_err(|error| FilterError { role, source: error.into() })?;
        Ok(Some(Arc::clone(place.get_or_init(|| Arc::new(made)))))
    }

    /// Confines the calling thread, and what it makes from then on.
    ///
    /// # Errors
    /// When the kernel doesn't filter.
    pub fn confine(&self, role: Role) -> Result<(), FilterError> {
        match self.of(role)? {
            Some(filter) => {
                seccompiler::apply_filter(&filter).map_err(|error| FilterError { role, source: error.into() })
            }
            None => Ok(()),
        }
    }
}

fn compile(role: Role, otherwise: SeccompAction) -> Result<BpfProgram, program::TooLong> {
    program::compile(&calls::allowed(role), SeccompAction::Allow.into(), otherwise.into())
}

#[cfg(test)]
mod tests;
