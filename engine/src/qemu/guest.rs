//! Verbs, states and events in QEMU's words.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::args::AGENT;
use super::qmp::Qmp;
use crate::guest::{Event, Events, Guest, GuestError, Info, RunState, ShutdownCause, VcpuThread, VcpuThreads};

/// Most vCPUs that are believed.
const MAX_VCPUS: usize = 4096;

/// A guest in a running QEMU.
pub(super) struct QemuGuest {
    qmp: Qmp,
}

impl QemuGuest {
    pub(super) async fn connect(monitor: UnixStream) -> Result<Self, GuestError> {
        Ok(Self { qmp: Qmp::connect(monitor).await? })
    }

    fn order(&self, command: &'static str) -> BoxFuture<'_, Result<(), GuestError>> {
        async move { self.qmp.execute(command, json!({})).await.map(drop) }.boxed()
    }
}

impl Guest for QemuGuest {
    fn pause(&self) -> BoxFuture<'_, Result<(), GuestError>> {
        self.order("stop")
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), GuestError>> {
        self.order("cont")
    }

    fn power_button(&self) -> BoxFuture<'_, Result<(), GuestError>> {
        self.order("system_powerdown")
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), GuestError>> {
        async move {
            match self.qmp.execute("quit", json!({})).await {
                // It may be gone before its answer is out.
                Ok(_) | Err(GuestError::Closed) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn info(&self) -> BoxFuture<'_, Result<Info, GuestError>> {
        async move {
            let status = self.qmp.execute("query-status", json!({})).await?;
            let chardevs = self.qmp.execute("query-chardev", json!({})).await?;
            Ok(Info { state: run_state(&status)?, agent_connected: agent_connected(&chardevs) })
        }
        .boxed()
    }

    fn version(&self) -> BoxFuture<'_, Result<String, GuestError>> {
        async move {
            let version = self.qmp.execute("query-version", json!({})).await?;
            let part = |name| version.pointer(&format!("/qemu/{name}")).and_then(Value::as_u64).unwrap_or(0);
            Ok(format!("QEMU {}.{}.{}", part("major"), part("minor"), part("micro")))
        }
        .boxed()
    }

    fn vcpu_threads(&self) -> BoxFuture<'_, Result<VcpuThreads, GuestError>> {
        async move { vcpu_threads(&self.qmp.execute("query-cpus-fast", json!({})).await?).map(VcpuThreads::Ids) }
            .boxed()
    }

    fn events(&self) -> Events {
        Events { receiver: self.qmp.events(), closed: false }
    }
}

fn run_state(status: &Value) -> Result<RunState, GuestError> {
    let status = status.get("status").and_then(Value::as_str);
    Ok(match status.ok_or_else(|| GuestError::Protocol("a status without a state".into()))? {
        "prelaunch" => RunState::Prelaunch,
        "running" => RunState::Running,
        "paused" => RunState::Paused,
        "shutdown" => RunState::Shutdown,
        "guest-panicked" => RunState::Panicked,
        "internal-error" | "io-error" => RunState::Failed,
        _ => RunState::Other,
    })
}

fn agent_connected(chardevs: &Value) -> bool {
    let mut chardevs = chardevs.as_array().into_iter().flatten();
    chardevs.any(|chardev| chardev["label"] == AGENT && chardev["frontend-open"] == true)
}

fn vcpu_threads(cpus: &Value) -> Result<Vec<VcpuThread>, GuestError> {
    let number = |cpu: &Value, name| cpu.get(name).and_then(Value::as_u64);
    let thread = |cpu| {
        let vcpu = number(cpu, "cpu-index").and_then(|index| u32::try_from(index).ok());
        let tid = number(cpu, "thread-id").and_then(|tid| i32::try_from(tid).ok());
        Some(VcpuThread { vcpu: vcpu?, tid: tid.filter(|&tid| tid > 0)? })
    };
    let cpus = cpus.as_array().filter(|cpus| cpus.len() <= MAX_VCPUS);
    let threads: Option<Vec<_>> = cpus.and_then(|cpus| cpus.iter().map(thread).collect());
    threads.ok_or_else(|| GuestError::Protocol("a list of vCPUs without their threads".into()))
}

/// The event that this line tells of, if it is one that matters (qapi/run-state.json, qapi/char.json).
pub(super) fn event(line: &Value) -> Option<Event> {
    let data = &line["data"];
    let by_guest = data["guest"] == true;
    match line["event"].as_str()? {
        "SHUTDOWN" => {
            let cause = match data["reason"].as_str().unwrap_or_default() {
                "guest-shutdown" => ShutdownCause::PowerOff,
                "guest-reset" | "host-qmp-system-reset" => ShutdownCause::Reset,
                "guest-panic" => ShutdownCause::Panic,
                "host-qmp-quit" | "host-signal" => ShutdownCause::Stopped,
                _ => ShutdownCause::Other,
            };
            Some(Event::Shutdown { by_guest, cause })
        }
        "RESET" => Some(Event::Reset { by_guest }),
        "GUEST_PANICKED" => Some(Event::Panicked),
        "STOP" => Some(Event::Paused),
        "RESUME" => Some(Event::Resumed),
        "VSERPORT_CHANGE" if data["id"] == AGENT => data["open"].as_bool().map(Event::AgentConnected),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_what_qemu_sends() {
        let shutdown = json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"},
            "timestamp": {"seconds": 1, "microseconds": 2}});
        assert_eq!(event(&shutdown), Some(Event::Shutdown { by_guest: true, cause: ShutdownCause::PowerOff }));
        let agent = |id| json!({"event": "VSERPORT_CHANGE", "data": {"id": id, "open": true}});
        assert_eq!(event(&agent("agent")), Some(Event::AgentConnected(true)));
        assert_eq!(event(&agent("other")), None);
        for hostile in [json!({"event": 1}), json!({"event": "VSERPORT_CHANGE", "data": {"id": "agent"}})] {
            assert_eq!(event(&hostile), None);
        }
    }

    #[test]
    fn threads_are_all_or_nothing() {
        let cpu = |index: u32, tid: u64| json!({"cpu-index": index, "thread-id": tid, "target": "x86_64"});
        let threads = vcpu_threads(&json!([cpu(0, 12), cpu(1, 13)])).unwrap();
        assert_eq!(threads, [VcpuThread { vcpu: 0, tid: 12 }, VcpuThread { vcpu: 1, tid: 13 }]);
        for hostile in [json!({}), json!([cpu(0, 0)]), json!([cpu(0, 1_u64 << 40)]), json!([{}])] {
            assert!(vcpu_threads(&hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn states_that_are_new_are_other() {
        assert_eq!(run_state(&json!({"status": "running", "running": true})).unwrap(), RunState::Running);
        assert_eq!(run_state(&json!({"status": "finish-migrate"})).unwrap(), RunState::Other);
        assert!(run_state(&json!([])).is_err());
    }
}
