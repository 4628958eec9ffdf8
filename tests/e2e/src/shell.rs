//! A stock Debian that is logged into by `kubectl vse ssh`.

use crate::{World, cluster, json, wait};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// A user's key, and the state directory of the user's `kubectl vse`.
pub struct Shell<'a> {
    world: &'a World,
    state: PathBuf,
    authorized: String,
}

impl<'a> Shell<'a> {
    /// With a key of its own.
    pub async fn new(world: &'a World) -> Result<Self> {
        let state = std::env::temp_dir().join(&world.namespace);
        std::fs::create_dir_all(&state)?;
        let mut shell = Self { world, state, authorized: String::new() };
        let key = shell.key();
        cluster::output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).await?;
        let public = key.with_extension("pub");
        let text = std::fs::read_to_string(&public).with_context(|| format!("can't read {}", public.display()))?;
        shell.authorized = text.trim().to_owned();
        Ok(shell)
    }

    /// The spec of a Debian that lets this user in as root (a JSON merge patch).
    pub fn debian(&self) -> Value {
        json!({
            "system": {
                "image": "vse.hpc.io/debian-hpc:dev", "imagePullPolicy": "IfNotPresent",
                "cloudInit": {"sshAuthorizedKeys": [self.authorized]},
            },
            "machine": {"memory": {"guest": "768Mi"}},
        })
    }

    /// Waits until a guest lets the user in, and returns what a command prints there.
    pub async fn first(&self, vse: &str, command: &str) -> Result<String> {
        let what = format!("{vse} is logged into");
        wait::until(&what, async || self.run(vse, command).await.map(Some)).await
    }

    /// What a command prints in a guest, without the last line's end.
    pub async fn run(&self, vse: &str, command: &str) -> Result<String> {
        let key = self.key();
        let key = key.to_string_lossy();
        let login = ["ssh", vse, "--", "-o", "BatchMode=yes", "-i", &key, command];
        Ok(self.kubectl_vse(&login).await?.trim_end().to_owned())
    }

    /// What `kubectl vse` prints.
    pub async fn kubectl_vse(&self, arguments: &[&str]) -> Result<String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["run", "--quiet", "--package", "kubectl-vse", "--", "--namespace", &self.world.namespace]);
        let command = command.args(arguments).current_dir(cluster::checkout());
        cluster::output(command.env("XDG_STATE_HOME", &self.state)).await
    }

    fn key(&self) -> PathBuf {
        Path::new(&self.state).join("key")
    }
}

impl Drop for Shell<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state);
    }
}
