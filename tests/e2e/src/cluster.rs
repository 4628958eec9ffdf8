//! The cluster under the scenarios, through `hack/cluster`: the same verbs whatever provides it.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;

/// The checkout this was built from.
pub fn checkout() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// Names of the nodes.
pub async fn nodes() -> Result<Vec<String>> {
    Ok(hack(&["nodes"]).await?.lines().map(str::to_owned).collect())
}

/// What a shell script prints as root on a node.
pub async fn node_exec(node: &str, script: &str) -> Result<String> {
    hack(&["node-exec", node, "--", "bash", "-c", script]).await
}

/// Restarts a node's kubelet; its pods go on.
pub async fn restart_kubelet(node: &str) -> Result<()> {
    hack(&["restart-kubelet", node]).await.map(drop)
}

/// Restarts the API server, and waits until it is ready again.
pub async fn restart_apiserver() -> Result<()> {
    hack(&["restart-apiserver"]).await.map(drop)
}

/// The API server's audit log so far.
pub async fn audit_log() -> Result<String> {
    let path = hack(&["audit-log"]).await?;
    let bytes = std::fs::read(path.trim()).with_context(|| format!("can't read {}", path.trim()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What kubectl prints.
pub async fn kubectl(arguments: &[&str]) -> Result<String> {
    output(Command::new("kubectl").args(arguments)).await
}

/// What `hack/cluster` prints.
pub(crate) async fn hack(arguments: &[&str]) -> Result<String> {
    output(Command::new(checkout().join("hack/cluster")).args(arguments)).await
}

/// What a program prints; its failure with what it said.
pub async fn output(command: &mut Command) -> Result<String> {
    let told = format!("{:?}", command.as_std());
    let output =
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.with_context(|| format!("can't run {told}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{told}: {}\n{}{}", output.status, stdout, stderr.trim_end());
    Ok(stdout)
}
