//! Volumes as they lie in the pod, and the disks the guest sees of them, pure.

use crate::reason::Reason;
use crate::vse::merge::ResolvedSpec;
use crate::vse::refusal::{Problem, Refusal};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::sync::Arc;
use vse_crds::{Backing, MicroVMDisk, Volume};

/// The claims of a VSE that exist, by name.
pub type Claims = BTreeMap<String, Arc<PersistentVolumeClaim>>;

/// Where a volume's bytes are.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A claim, by name.
    Claim(String),
    /// Scratch space of that size.
    Scratch(Quantity),
}

/// One volume of an incarnation.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Name of the volume and of its disk.
    pub name: String,
    /// Where its bytes are.
    pub source: Source,
    /// How it lies in the pod.
    pub backing: Backing,
    /// Size of the disk, if known.
    pub capacity: Option<Quantity>,
    /// The guest can't write to it.
    pub read_only: bool,
}

impl Storage {
    /// The disk the guest sees.
    pub fn disk(&self) -> MicroVMDisk {
        MicroVMDisk {
            name: self.name.clone(),
            backing: self.backing,
            capacity: self.capacity.clone(),
            read_only: self.read_only,
        }
    }
}

/// The volumes in the order the guest sees them: those with an order first, then as listed.
pub fn storage(spec: &ResolvedSpec, claims: &Claims) -> Result<Vec<Storage>, Refusal> {
    let mut missing = Vec::new();
    let mut ordered = Vec::new();
    for (index, volume) in spec.volumes.iter().enumerate() {
        let disk = spec.disks.iter().find(|disk| disk.name == volume.name);
        let order = disk.and_then(|disk| disk.order).unwrap_or(u32::MAX);
        let read_only = disk.is_some_and(|disk| disk.read_only);
        match one(index, volume, read_only, claims) {
            Ok(storage) => ordered.push((order, storage)),
            Err(problem) => missing.push(problem),
        }
    }
    if !missing.is_empty() {
        return Err(Refusal::new(Reason::VolumeNotFound, missing));
    }
    ordered.sort_by_key(|(order, _)| *order);
    Ok(ordered.into_iter().map(|(_, storage)| storage).collect())
}

fn one(index: usize, volume: &Volume, read_only: bool, claims: &Claims) -> Result<Storage, Problem> {
    let (source, backing, capacity) = match (&volume.persistent_volume_claim, &volume.empty_disk) {
        (Some(claim), _) => {
            let name = &claim.claim_name;
            let found = claims.get(name).ok_or_else(|| {
                Problem::new(
                    format!("spec.volumes[{index}].persistentVolumeClaim.claimName"),
                    format!("there is no PersistentVolumeClaim {name:?} in this namespace; waiting for it"),
                )
            })?;
            (Source::Claim(name.clone()), backing(found), capacity(found))
        }
        (None, Some(scratch)) => {
            let size = scratch.capacity.clone();
            (Source::Scratch(size.clone()), Backing::File, Some(size))
        }
        (None, None) => {
            return Err(Problem::new(
                format!("spec.volumes[{index}]"),
                "give exactly one of persistentVolumeClaim and emptyDisk",
            ));
        }
    };
    Ok(Storage { name: volume.name.clone(), source, backing, capacity, read_only })
}

fn backing(claim: &PersistentVolumeClaim) -> Backing {
    let mode = claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref());
    if mode == Some("Block") { Backing::Block } else { Backing::File }
}

/// What the claim got; before it is bound, what it asks for.
fn capacity(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    let got = claim.status.as_ref().and_then(|s| s.capacity.as_ref());
    let asked = || {
        let resources = claim.spec.as_ref()?.resources.as_ref()?;
        resources.requests.as_ref()
    };
    got.or_else(asked)?.get("storage").cloned()
}
