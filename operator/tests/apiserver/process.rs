//! The operator as it is deployed: its own program, with its own name at the API server.

use crate::server::Server;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running `vse-operator`; it is killed when dropped.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts one, known to the API server and to other operators by that name.
    pub(crate) fn start(server: &Server, name: &str) -> Process {
        let child = Command::new(env!("CARGO_BIN_EXE_vse-operator"))
            .args(["--launcher-image", "example.org/vse/launcher:1"])
            .args(["--engine-qemu-image", "example.org/vse/engine-qemu:1"])
            .args(["--namespace", "default", "--identity", name, "--listen", "127.0.0.1:0", "--log", "warn"])
            .env("KUBECONFIG", server.kubeconfig(name))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Process { child }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "the operator does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
