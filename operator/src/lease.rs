//! Leader election by a Lease: one operator acts, others stand by.
//!
//! Owns the Lease. An operator that can't renew it in time stops at once ([`Leadership::lost`]); what it had under way is
//! harmless then, because each call has its preconditions.

use crate::error::{Error, is_conflict, is_not_found};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::time::{Duration, Instant};

/// How long a Lease holds without being renewed. With the other two, the defaults of Kubernetes' own controllers.
pub const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long gives up, before anybody else may take over.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Time between renewals, and between looks of a standby.
const PERIOD: Duration = Duration::from_secs(3);

/// What a candidate should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nobody holds the Lease: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Somebody holds it.
    Wait,
}

/// What a candidate should do, pure. `unchanged`: how long the Lease has not changed by the candidate's own clock; other
/// hosts' clocks are not trusted.
pub fn step(lease: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> Step {
    let holder = lease.and_then(|l| l.holder_identity.as_deref());
    match holder {
        None | Some("") => Step::Take,
        Some(holder) if holder == me => Step::Renew,
        Some(_) => {
            let seconds = lease.and_then(|l| l.lease_duration_seconds);
            let duration = seconds.and_then(|s| u64::try_from(s).ok()).map_or(DURATION, Duration::from_secs);
            if unchanged >= duration { Step::Take } else { Step::Wait }
        }
    }
}

/// The Lease's content after a candidate took or renewed it, pure.
pub fn held(was: Option<&LeaseSpec>, me: &str, now: Timestamp) -> LeaseSpec {
    let was = was.cloned().unwrap_or_default();
    let renews = was.holder_identity.as_deref() == Some(me);
    let transitions = was.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: Some(DURATION.as_secs() as i32),
        renew_time: Some(MicroTime(now)),
        acquire_time: was.acquire_time.filter(|_| renews).or(Some(MicroTime(now))),
        lease_transitions: Some(if renews { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

/// A Lease this process holds.
pub struct Leadership {
    leases: Api<Lease>,
    lease: Lease,
    me: String,
}

/// Waits until this process leads.
pub async fn acquire(client: Client, namespace: &str, name: &str, me: &str) -> Leadership {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let mut seen: Option<(Option<String>, Instant)> = None;
    let mut told = false;
    loop {
        match candidate(&leases, name, me, &mut seen).await {
            Ok(Some(lease)) => {
                return Leadership { leases, lease, me: me.to_owned() };
            }
            Ok(None) if !told => {
                tracing::info!("another operator leads; standing by");
                told = true;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(detail = error.explain(), "no lease yet"),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// One try. `seen`: the resourceVersion last seen, and since when.
async fn candidate(
    leases: &Api<Lease>,
    name: &str,
    me: &str,
    seen: &mut Option<(Option<String>, Instant)>,
) -> Result<Option<Lease>, Error> {
    let call = || format!("get Lease {name}");
    let found = leases.get_opt(name).await.map_err(Error::api(call()))?;
    let version = found.as_ref().and_then(|l| l.metadata.resource_version.clone());
    let since = match seen {
        Some((was, since)) if *was == version => *since,
        _ => {
            let now = Instant::now();
            *seen = Some((version, now));
            now
        }
    };
    let spec = found.as_ref().and_then(|l| l.spec.as_ref());
    if step(spec, me, since.elapsed()) == Step::Wait {
        return Ok(None);
    }
    let lease = Lease {
        spec: Some(held(spec, me, Timestamp::now())),
        metadata: found.map_or_else(
            || ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            |lease| lease.metadata,
        ),
    };
    let params = PostParams::default();
    let written = if lease.metadata.resource_version.is_some() {
        leases.replace(name, &params, &lease).await
    } else {
        leases.create(&params, &lease).await
    };
    match written {
        Ok(lease) => Ok(Some(lease)),
        // Somebody else was faster.
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(None),
        Err(error) => Err(Error::api(format!("write Lease {name}"))(error)),
    }
}

impl Leadership {
    /// Renews until the Lease is lost; returns why.
    pub async fn lost(&mut self) -> String {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(PERIOD).await;
            let spec = held(self.lease.spec.as_ref(), &self.me, Timestamp::now());
            let left = GIVE_UP.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.write(spec)).await {
                Ok(Ok(())) => renewed = Instant::now(),
                Ok(Err(error)) if is_conflict(&error) || is_not_found(&error) => {
                    return "somebody else changed the lease".to_owned();
                }
                Ok(Err(error)) => tracing::warn!(%error, "lease not renewed; trying again"),
                Err(_) => return format!("the lease could not be renewed in {GIVE_UP:?}"),
            }
        }
    }

    /// Gives the Lease back, so that a standby need not wait.
    pub async fn release(mut self) {
        let spec = LeaseSpec {
            holder_identity: None,
            lease_duration_seconds: Some(1),
            ..self.lease.spec.clone().unwrap_or_default()
        };
        if let Err(error) = self.write(spec).await {
            tracing::warn!(%error, "lease not released");
        }
    }

    async fn write(&mut self, spec: LeaseSpec) -> kube::Result<()> {
        let lease = Lease { metadata: self.lease.metadata.clone(), spec: Some(spec) };
        let name = self.lease.metadata.name.clone().unwrap_or_default();
        self.lease = self.leases.replace(&name, &PostParams::default(), &lease).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn takes_what_nobody_holds_or_renews() {
        let second = Duration::from_secs(1);
        assert_eq!(step(None, "a", Duration::ZERO), Step::Take);
        assert_eq!(step(Some(&lease("")), "a", Duration::ZERO), Step::Take);
        assert_eq!(step(Some(&lease("a")), "a", Duration::ZERO), Step::Renew);
        assert_eq!(step(Some(&lease("b")), "a", 14 * second), Step::Wait);
        assert_eq!(step(Some(&lease("b")), "a", 15 * second), Step::Take);
    }

    #[test]
    fn counts_transitions_between_holders_only() {
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(held(Some(&lease("b")), "a", now).lease_transitions, Some(5));
        let renewed = held(Some(&lease("a")), "a", now);
        assert_eq!(renewed.lease_transitions, Some(4));
        assert_eq!(renewed.renew_time, Some(MicroTime(now)));
    }
}
