//! What is on the hosts: engines, and what is left of pods that the API server no longer has.

use crate::cluster::node_exec;
use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use std::collections::BTreeSet;
use vse_crds::MicroVM;

/// Prints, one a line and with the pod's UID second: engine and launcher processes, taps, pods' directories and mounts,
/// and what the node runtime keeps besides system images.
const SCRIPT: &str = r#"
pod() { sed -n 's/.*pod\([0-9a-f_-]\{36\}\).*/\1/p' "/proc/$1/cgroup" 2>/dev/null | head -n 1 | tr _ -; }
for directory in /proc/[0-9]*; do
    pid=${directory#/proc/}
    read -r name <"$directory/comm" || continue
    case $name in qemu* | vse-vmm* | cloud-hyper* | vse-launch*) echo "process $(pod "$pid") $pid $name" ;; esac
done 2>/dev/null
for netns in $(cd /run/netns 2>/dev/null && ls); do
    tap=$(ip -n "$netns" -o link show type tun 2>/dev/null) || continue
    [[ -z $tap ]] || echo "tap $(pod "$(ip netns pids "$netns" | head -n 1)") $netns $tap"
done
for directory in /var/lib/kubelet/pods/*; do
    [[ ! -d $directory ]] || echo "directory ${directory##*/} $(find "$directory" -mindepth 1 | tr '\n' ' ')"
done
sed -n 's#^.* \(/var/lib/kubelet/pods/\([^/]*\)/[^ ]*\) .*#mount \2 \1#p' /proc/self/mountinfo
find /var/lib/vse -mindepth 1 -maxdepth 1 ! -name images -printf 'state - %p\n' 2>/dev/null
true
"#;

/// What is left on the nodes of pods that are gone; one line each, for people.
pub(crate) async fn leftovers(client: &Client, nodes: &[String]) -> Result<Vec<String>> {
    let seen = try_join_all(nodes.iter().map(|node| node_exec(node, SCRIPT))).await?;
    let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await?;
    let alive: BTreeSet<String> = pods.iter().filter_map(|pod| pod.uid()).collect();
    let lines = nodes.iter().zip(&seen).flat_map(|(node, seen)| seen.lines().map(move |line| (node, line)));
    let orphaned = lines.filter(|(_, line)| !line.split(' ').nth(1).is_some_and(|uid| alive.contains(uid)));
    Ok(orphaned.map(|(node, line)| format!("{node}: {line}")).collect())
}

/// The process of a guest's engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Its node.
    pub node: String,
    /// Its process id there.
    pub pid: u32,
    /// When it was started, in ticks since boot: tells it from another process that got its id.
    pub started: u64,
}

impl Engine {
    /// Reads a file of its directory in /proc.
    pub async fn proc(&self, file: &str) -> Result<String> {
        node_exec(&self.node, &format!("cat /proc/{}/{file}", self.pid)).await
    }

    /// Ends it without warning.
    pub async fn kill(&self) -> Result<()> {
        node_exec(&self.node, &format!("kill -9 {}", self.pid)).await.map(drop)
    }
}

/// The only process of an incarnation's pod besides the sandbox's: its engine.
///
/// # Errors
/// When there is another number of processes, or a launcher.
pub async fn engine(microvm: &MicroVM) -> Result<Engine> {
    let node = microvm.spec.node_name.clone();
    let lines = node_exec(&node, SCRIPT).await?;
    let of_pod = format!("process {} ", microvm.spec.pod_uid);
    let processes: Vec<&str> = lines.lines().filter_map(|line| line.strip_prefix(&of_pod)).collect();
    let name = microvm.name_any();
    let [process] = processes[..] else { anyhow::bail!("{name} should have one process, an engine: {processes:?}") };
    let (pid, comm) = process.split_once(' ').context("process without a name")?;
    anyhow::ensure!(
        ["qemu", "vse-vmm", "cloud-hyper"].iter().any(|engine| comm.starts_with(engine)),
        "the process of {name} is {comm}, not an engine"
    );
    let pid = pid.parse()?;
    let stat = node_exec(&node, &format!("cat /proc/{pid}/stat")).await?;
    // proc(5): field 22, counted after the name in parentheses.
    let started = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(19)).context("short /proc/PID/stat")?;
    Ok(Engine { node, pid, started: started.parse()? })
}
