//! Verbs and states in the words of Cloud Hypervisor's API.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use super::events::Follower;
use super::http::Client;
use super::{Kind, MAX_VCPUS};
use crate::Channels;
use crate::guest::{Events, Guest, GuestError, Info, RunState, VcpuThread, VcpuThreads};
use crate::json_lines::printable;

/// Most characters of a version.
const VERSION_CHARS: usize = 40;

/// A guest in a running engine.
pub(super) struct RestGuest {
    kind: Kind,
    client: Client,
    events: Follower,
    /// We told the engine to end.
    stopping: Arc<AtomicBool>,
}

impl RestGuest {
    pub(super) async fn connect(kind: Kind, channels: Channels) -> Result<Self, GuestError> {
        let client = Client::connect(channels.monitor).await?;
        let stopping = Arc::new(AtomicBool::new(false));
        let events = Follower::start(channels.events, client.closed(), stopping.clone());
        Ok(Self { kind, client, events, stopping })
    }

    async fn state(&self) -> Result<RunState, GuestError> {
        run_state(&self.client.get("vm.info").await?)
    }
}

impl Guest for RestGuest {
    fn pause(&self) -> BoxFuture<'_, Result<(), GuestError>> {
        self.client.put("vm.pause").boxed()
    }

    /// The first time is its boot.
    fn resume(&self) -> BoxFuture<'_, Result<(), GuestError>> {
        async move {
            match self.state().await? {
                RunState::Prelaunch => self.client.put("vm.boot").await,
                _ => self.client.put("vm.resume").await,
            }
        }
        .boxed()
    }

    fn power_button(&self) -> BoxFuture<'_, Result<(), GuestError>> {
        self.client.put("vm.power-button").boxed()
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), GuestError>> {
        self.stopping.store(true, Ordering::Relaxed);
        async move {
            match self.client.put("vmm.shutdown").await {
                // It may be gone before its answer is out.
                Ok(()) | Err(GuestError::Closed) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn info(&self) -> BoxFuture<'_, Result<Info, GuestError>> {
        async move {
            let info = self.client.get("vm.info").await?;
            Ok(Info { state: run_state(&info)?, agent_connected: info["agent_connected"] == true })
        }
        .boxed()
    }

    fn version(&self) -> BoxFuture<'_, Result<String, GuestError>> {
        async move {
            let ping = self.client.get("vmm.ping").await?;
            let name = match self.kind {
                Kind::Vmm => "VMM",
                Kind::CloudHypervisor => "Cloud Hypervisor",
            };
            let version = printable(ping["version"].as_str().unwrap_or_default(), VERSION_CHARS);
            Ok(format!("{name} {}", version.trim_start_matches('v')))
        }
        .boxed()
    }

    fn vcpu_threads(&self) -> BoxFuture<'_, Result<VcpuThreads, GuestError>> {
        async move {
            match self.kind {
                Kind::Vmm => vcpu_threads(&self.client.get("vm.info").await?).map(VcpuThreads::Ids),
                // It does not tell their ids; its names are stable (vmm/src/cpu.rs).
                Kind::CloudHypervisor => Ok(VcpuThreads::Named("vcpu")),
            }
        }
        .boxed()
    }

    fn events(&self) -> Events {
        Events { receiver: self.events.events(), closed: false }
    }
}

fn run_state(info: &Value) -> Result<RunState, GuestError> {
    let state = info["state"].as_str();
    Ok(match state.ok_or_else(|| GuestError::Protocol("vm.info without a state".into()))? {
        "Created" => RunState::Prelaunch,
        "Running" => RunState::Running,
        "Paused" => RunState::Paused,
        "Shutdown" => RunState::Shutdown,
        _ => RunState::Other,
    })
}

/// Ids of the vCPUs' threads, by number of the vCPU; an engine that has none yet leaves them out.
fn vcpu_threads(info: &Value) -> Result<Vec<VcpuThread>, GuestError> {
    let nonsense = || GuestError::Protocol("vm.info with threads that are none".into());
    let ids = match &info["vcpu_threads"] {
        Value::Null => return Ok(Vec::new()),
        Value::Array(ids) if ids.len() <= MAX_VCPUS as usize => ids,
        _ => return Err(nonsense()),
    };
    let thread = |(vcpu, id): (u32, &Value)| {
        let tid = id.as_i64().and_then(|id| i32::try_from(id).ok()).filter(|id| *id > 0)?;
        Some(VcpuThread { vcpu, tid })
    };
    (0..).zip(ids).map(thread).collect::<Option<Vec<_>>>().ok_or_else(nonsense)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn threads_are_believed_only_if_they_can_be_some() {
        let threads = vcpu_threads(&json!({"vcpu_threads": [12, 13]})).unwrap();
        assert_eq!(threads, [VcpuThread { vcpu: 0, tid: 12 }, VcpuThread { vcpu: 1, tid: 13 }]);
        assert_eq!(vcpu_threads(&json!({})).unwrap(), []);
        for hostile in [json!([0]), json!([-1]), json!([1_u64 << 40]), json!({}), json!(["1"]), json!(vec![1; 5000])] {
            assert!(vcpu_threads(&json!({"vcpu_threads": hostile})).is_err(), "{hostile}");
        }
    }

    #[test]
    fn states_that_are_new_are_other() {
        assert_eq!(run_state(&json!({"state": "Created"})).unwrap(), RunState::Prelaunch);
        assert_eq!(run_state(&json!({"state": "BreakPoint"})).unwrap(), RunState::Other);
        assert!(run_state(&json!([])).is_err());
    }
}
