//! The HostPolicy controller: says for how many hosts a policy holds. Which one holds for a host its node runtime
//! decides, and says so in the Host.

use crate::cache;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::reason::Reason;
use crate::vse::execute::params;
use futures::StreamExt;
use jiff::Timestamp;
use kube::api::Patch;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use std::sync::Arc;
use vse_crds::condition::{Status, condition};
use vse_crds::{GROUP, Host, HostPolicy, HostPolicyStatus, HostStatus, VERSION};

struct Context {
    policies: Api<HostPolicy>,
    hosts: Store<Host>,
    metrics: Metrics,
}

/// Runs the controller until `stop` resolves.
pub async fn run(client: Client, metrics: Metrics, stop: impl Future<Output = ()> + Send + Sync + 'static) {
    let (hosts, touched) = cache::watch(&client, watcher::Config::default(), strip);
    let policies = Api::all(client);
    let context = Arc::new(Context { policies: policies.clone(), hosts, metrics });
    let controller = Controller::new(policies, watcher::Config::default());
    let all = controller.store();
    controller
        .watches_stream(touched, move |_: Host| {
            let policies = all.state();
            policies.iter().map(|policy| ObjectRef::from_obj(policy.as_ref())).collect::<Vec<_>>()
        })
        .graceful_shutdown_on(stop)
        .run(reconcile, failed, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

/// Keeps of a host which policy holds for it.
fn strip(host: &mut Host) {
    host.status =
        host.status.take().map(|status| HostStatus { host_policy: status.host_policy, ..HostStatus::default() });
}

/// For how many hosts a policy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// For none yet: there is no host, or one that has not chosen its policy.
    Undecided,
    /// For so many; each host has its policy.
    Hosts(u32),
}

/// Over the hosts that there are, by the policy of each.
fn held<'a>(policy: &str, hosts: impl Iterator<Item = Option<&'a str>>) -> Held {
    let (mut any, mut undecided, mut count) = (false, false, 0);
    hosts.for_each(|of_host| {
        any = true;
        undecided |= of_host.is_none();
        count += u32::from(of_host == Some(policy));
    });
    if count == 0 && (undecided || !any) { Held::Undecided } else { Held::Hosts(count) }
}

/// The status a policy should have.
pub fn status(policy: &HostPolicy, held: Held, now: Timestamp) -> HostPolicyStatus {
    let was = policy.status.clone().unwrap_or_default();
    let (hosts, ready, reason, message) = match held {
        Held::Undecided => (0, Status::False, Reason::NoHosts, "no host has chosen this policy yet"),
        // As it should be, for a policy that another one overrides.
        Held::Hosts(0) => (
            0,
            Status::True,
            Reason::NoHosts,
            "holds for no host: spec.nodeSelector selects none, or a policy of higher priority does",
        ),
        Held::Hosts(hosts) => (hosts, Status::True, Reason::InForce, ""),
    };
    let generation = policy.metadata.generation;
    let reason = reason.as_str();
    HostPolicyStatus {
        observed_generation: generation,
        hosts,
        conditions: vec![condition(&was.conditions, "Ready", ready, reason, message, generation, now)],
    }
}

async fn reconcile(policy: Arc<HostPolicy>, context: Arc<Context>) -> Result<Action, Error> {
    let timer = context.metrics.start("HostPolicy");
    let outcome = pass(&policy, &context).await;
    timer.finish(outcome.as_ref().err().map(Error::reason));
    outcome.map(|()| Action::await_change())
}

async fn pass(policy: &HostPolicy, context: &Context) -> Result<(), Error> {
    let name = policy.name_any();
    let hosts = context.hosts.state();
    let held = held(&name, hosts.iter().map(|host| host.status.as_ref()?.host_policy.as_deref()));
    let status = status(policy, held, Timestamp::now());
    if policy.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "HostPolicy",
        "status": status,
    });
    context
        .policies
        .patch_status(&name, &params().force(), &Patch::Apply(patch))
        .await
        .map(drop)
        .map_err(Error::api(format!("write status of HostPolicy {name}")))
}

fn failed(_: Arc<HostPolicy>, error: &Error, _: Arc<Context>) -> Action {
    tracing::warn!(detail = error.explain(), "call failed");
    Action::requeue(error.retry_after())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vse_crds::condition::is_true;

    #[test]
    fn in_force_with_the_first_host_and_silent_while_nothing_changes() {
        let mut policy = HostPolicy::new("p", Default::default());
        assert!(!is_true(&status(&policy, Held::Undecided, Timestamp::UNIX_EPOCH).conditions, "Ready"));
        let one = status(&policy, Held::Hosts(1), Timestamp::UNIX_EPOCH);
        assert!(is_true(&one.conditions, "Ready"));
        policy.status = Some(one.clone());
        assert_eq!(status(&policy, Held::Hosts(1), Timestamp::MAX), one);
    }

    #[test]
    fn one_that_another_overrides_everywhere_is_settled() {
        assert_eq!(held("p", [].into_iter()), Held::Undecided);
        assert_eq!(held("p", [Some("q"), None].into_iter()), Held::Undecided);
        assert_eq!(held("p", [Some("p"), None].into_iter()), Held::Hosts(1));
        let overridden = held("p", [Some("q"), Some("q")].into_iter());
        let status = status(&HostPolicy::new("p", Default::default()), overridden, Timestamp::UNIX_EPOCH);
        assert!(is_true(&status.conditions, "Ready") && status.conditions[0].reason == "NoHosts");
    }
}
