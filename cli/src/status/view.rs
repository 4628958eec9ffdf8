//! The status of a VSE as text. Pure.

use super::Seen;
use super::timeline::Step;
use crate::find;
use crate::paint::{Paint, plain};
use crate::tree::Node;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use vse_crds::{AddressScope, Host, MicroVM, VSEStatus, vse_conditions};

/// The whole page.
pub fn render(seen: &Seen, steps: &[Step], now: Timestamp, paint: Paint) -> String {
    let mut out = root(seen, now, paint).draw();
    if !steps.is_empty() {
        out.push('\n');
        out.push_str(&table(steps, paint));
    }
    for note in &seen.notes {
        out.push_str(&format!("\n{}\n", paint.dim(&format!("note: {}", plain(note)))));
    }
    out
}

fn root(seen: &Seen, now: Timestamp, paint: Paint) -> Node {
    let mut words = vec![paint.bold(&format!("VSE {}", seen.title()))];
    let mut below = Vec::new();
    match &seen.vse.status {
        None => words.push(paint.warn("not looked at yet")),
        Some(status) => {
            words.extend(status.phase.map(|phase| phase_word(&format!("{phase:?}"), paint)));
            words.extend(up(status, now).map(|up| paint.dim(&up)));
            below.extend(conditions(&status.conditions, paint));
            below.extend(facts(status, now));
        }
    }
    below.extend(incarnation(seen, paint));
    Node { line: words.join("  "), below }
}

/// How long the guest has run, if it runs.
fn up(status: &VSEStatus, now: Timestamp) -> Option<String> {
    let runs = vse_crds::condition::is_true(&status.conditions, vse_conditions::READY);
    let since = status.started_at.filter(|_| runs)?;
    Some(format!("for {}", age(since, now)))
}

fn facts(status: &VSEStatus, now: Timestamp) -> Vec<Node> {
    let mut facts = Vec::new();
    let addresses: Vec<_> = status
        .addresses
        .iter()
        .map(|address| match address.scope {
            AddressScope::Pod => plain(&address.ip),
            AddressScope::Guest => format!("{} (in the guest)", plain(&address.ip)),
        })
        .collect();
    if !addresses.is_empty() {
        facts.push(fact("address", &addresses.join(", ")));
    }
    if let Some(os) = status.guest.as_ref().and_then(|guest| guest.os.as_deref()) {
        facts.push(fact("guest", os));
    }
    if let Some(exit) = &status.last_exit {
        let mut text = format!("incarnation {} ended {} ago: {:?}", exit.incarnation, age(exit.at, now), exit.reason);
        if !exit.message.is_empty() {
            text.push_str(&format!(", {}", exit.message));
        }
        facts.push(fact("last exit", &text));
    }
    facts
}

fn fact(name: &str, value: &str) -> Node {
    Node::leaf(format!("{name:<16} {}", plain(value)))
}

/// MicroVM, pod and host, each below the one that it serves.
fn incarnation(seen: &Seen, paint: Paint) -> Option<Node> {
    let host = seen.host.as_ref().map(|host| host_node(host, paint));
    let pod = seen.pod.as_ref().map(|pod| {
        let mut node = pod_node(pod, paint);
        node.below.extend(host);
        node
    });
    match &seen.microvm {
        Some(vm) => {
            let mut node = microvm_node(vm, paint);
            node.below.extend(pod);
            Some(node)
        }
        None => pod,
    }
}

fn microvm_node(vm: &MicroVM, paint: Paint) -> Node {
    let status = vm.status.clone().unwrap_or_default();
    let accelerator = serde_json::to_value(vm.spec.accelerator)
        .ok()
        .and_then(|name| Some(name.as_str()?.to_owned()))
        .unwrap_or_default();
    let engine = status.engine_version.as_deref().unwrap_or(&vm.spec.engine);
    let mut words = vec![paint.bold(&format!("MicroVM {}", vm.name_any()))];
    words.extend(status.phase.map(|phase| phase_word(&format!("{phase:?}"), paint)));
    let mut below: Vec<_> = conditions(&status.conditions, paint).collect();
    below.push(fact("engine", &format!("{engine}, {accelerator}")));
    if let Some(kernel) = &status.kernel {
        below.push(fact("kernel", kernel));
    }
    if let Some(cpus) = &status.cpus {
        below.push(fact("CPUs", &cpus.summary));
    }
    for device in &status.devices {
        below.push(fact("device", &format!("{} {} {}", device.name, device.device_name, device.addresses.join(", "))));
    }
    Node { line: words.join("  "), below }
}

fn pod_node(pod: &Pod, paint: Paint) -> Node {
    let status = pod.status.clone().unwrap_or_default();
    let mut words = vec![paint.bold(&format!("Pod {}", pod.name_any())), phase_word(find::phase(pod), paint)];
    words.extend(status.pod_ip);
    let mut below = Vec::new();
    for c in status.conditions.unwrap_or_default() {
        // A pod has many conditions; those that hold say nothing.
        if c.status != "True" {
            let (reason, message) = (c.reason.unwrap_or_default(), c.message.unwrap_or_default());
            below.push(condition(&c.type_, &c.status, &reason, &message, paint));
        }
    }
    for container in status.container_statuses.unwrap_or_default() {
        if let Some(waiting) = container.state.and_then(|state| state.waiting) {
            let reason = waiting.reason.unwrap_or_default();
            below.push(fact("waiting", &format!("{reason} {}", waiting.message.unwrap_or_default())));
        }
    }
    Node { line: words.join("  "), below }
}

fn host_node(host: &Host, paint: Paint) -> Node {
    let status = host.status.clone().unwrap_or_default();
    let mut words = vec![paint.bold(&format!("Host {}", host.name_any()))];
    if !status.cpu.model.is_empty() {
        words.push(plain(&status.cpu.model));
    }
    Node { line: words.join("  "), below: conditions(&status.conditions, paint).collect() }
}

fn conditions(all: &[Condition], paint: Paint) -> impl Iterator<Item = Node> {
    all.iter().map(move |c| condition(&c.type_, &c.status, &c.reason, &c.message, paint))
}

fn condition(type_: &str, status: &str, reason: &str, message: &str, paint: Paint) -> Node {
    // `Stalled`, `RestartRequired` and `Paused` are news when they hold, the others when they do not.
    let wanted = match type_ {
        "Stalled" | "RestartRequired" | "Paused" | "Progressing" => "False",
        _ => "True",
    };
    let padded = format!("{status:<7}");
    let status = match status {
        _ if status == wanted => paint.good(&padded),
        "Unknown" => paint.dim(&padded),
        _ if type_ == "Stalled" => paint.bad(&padded),
        _ => paint.warn(&padded),
    };
    let mut line = format!("{:<16} {status} {}", plain(type_), plain(reason));
    if !message.is_empty() {
        line.push_str(&format!(": {}", plain(message)));
    }
    Node::leaf(line.trim_end())
}

fn phase_word(phase: &str, paint: Paint) -> String {
    match phase {
        "Running" | "Succeeded" => paint.good(phase),
        "Failed" | "Refused" | "BackOff" => paint.bad(phase),
        _ => paint.warn(phase),
    }
}

fn table(steps: &[Step], paint: Paint) -> String {
    let mut out = format!("{}\n", paint.bold("Step              took      since start"));
    for step in steps {
        let seconds = |value: Option<f64>| match (value, step.at) {
            (Some(value), _) => format!("{value:.1} s"),
            (None, Some(_)) => String::new(),
            (None, None) => "-".into(),
        };
        let line = format!("{:<16}  {:<8}  {}", step.step, seconds(step.seconds), seconds(step.total_seconds));
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A span of time in its one or two largest units, as kubectl shows ages.
fn age(from: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(from).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m{}s", seconds / 60, seconds % 60),
        7200..172_800 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests;
