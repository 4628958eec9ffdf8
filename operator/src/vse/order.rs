//! An incarnation's order: everything pod and MicroVM are built from, made from the observed objects, pure.

use crate::reason::Reason;
use crate::vse::choose::{Choice, choose};
use crate::vse::merge::{ResolvedSpec, merge};
use crate::vse::observe::Observed;
use crate::vse::refusal::Refusal;
use crate::vse::shape::{Shape, shape};
use crate::vse::storage::{Storage, storage};

/// Everything pod and MicroVM are built from.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Spec and profile in one.
    pub spec: ResolvedSpec,
    /// Its numbers.
    pub shape: Shape,
    /// Its volumes.
    pub storage: Vec<Storage>,
    /// Engine and accelerator.
    pub choice: Choice,
}

impl Order {
    /// The order as things stand. `placed`: engine and accelerator of a pod that has a host already, which are not
    /// chosen anew.
    pub fn new(seen: &Observed, placed: Option<Choice>) -> Result<Order, Refusal> {
        let spec = resolve(seen)?;
        let shape = shape(&spec.machine)?;
        let storage = storage(&spec, &seen.claims)?;
        let choice = match placed {
            Some(choice) => choice,
            None => choose(&spec, &shape, &seen.hosts, &seen.engines)?,
        };
        Ok(Order { spec, shape, storage, choice })
    }

    /// Name of the Secret with user data.
    pub fn user_data_secret(&self) -> Option<&str> {
        let cloud_init = self.spec.system.cloud_init.as_ref()?;
        let secret = cloud_init.user_data_secret_ref.as_ref()?;
        Some(secret.name.as_str())
    }
}

/// Spec and profile in one.
pub fn resolve(seen: &Observed) -> Result<ResolvedSpec, Refusal> {
    let spec = &seen.vse.spec;
    if let (Some(name), None) = (&spec.profile_name, &seen.profile) {
        return Err(Refusal::one(
            Reason::ProfileNotFound,
            "spec.profileName",
            format!("there is no VSEProfile {name:?}; waiting for it"),
        ));
    }
    merge(spec, seen.profile.as_deref())
}
