//! Which engine and accelerator a VSE gets, over all ready hosts, pure. kube-scheduler picks the host.

use crate::reason::Reason;
use crate::vse::merge::ResolvedSpec;
use crate::vse::overhead::overhead;
use crate::vse::refusal::{Problem, Refusal};
use crate::vse::shape::{Cpus, Shape};
use std::sync::Arc;
use vse_crds::{Accelerator, EngineName, Host, HostStatus, condition, quantity};

/// Most hosts a message names.
const NAMED_HOSTS: usize = 4;

/// What an incarnation runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The engine.
    pub engine: EngineName,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
}

/// The best engine and accelerator that some host offers and has room for; KVM before TCG. Room means the totals a
/// host has: what is free now is kube-scheduler's to know.
pub fn choose(spec: &ResolvedSpec, shape: &Shape, hosts: &[Arc<Host>]) -> Result<Choice, Refusal> {
    let ready: Vec<Candidate<'_>> = hosts.iter().filter_map(Candidate::ready).collect();
    if ready.is_empty() {
        return Err(Refusal::one(
            Reason::NoHost,
            "spec",
            "no host is Ready; is the node runtime running? (kubectl get hosts)",
        ));
    }
    let wanted = spec.engine.named().map_or_else(|| vec![EngineName::Qemu], |engine| vec![engine]);
    let mut refused = None;
    for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
        for &engine in &wanted {
            let offering: Vec<_> = ready.iter().filter(|host| host.offers(engine, accelerator)).collect();
            if offering.is_empty() {
                continue;
            }
            let choice = Choice { engine, accelerator };
            match room(shape, choice, &offering) {
                Ok(()) => return Ok(choice),
                Err(refusal) => {
                    refused.get_or_insert(refusal);
                }
            }
        }
    }
    Err(refused.unwrap_or_else(|| no_engine(&wanted, &ready)))
}

/// A ready host.
struct Candidate<'a> {
    name: &'a str,
    status: &'a HostStatus,
}

impl<'a> Candidate<'a> {
    fn ready(host: &'a Arc<Host>) -> Option<Self> {
        let status = host.status.as_ref()?;
        condition::is_true(&status.conditions, "Ready")
            .then_some(Candidate { name: host.metadata.name.as_deref().unwrap_or_default(), status })
    }

    fn offers(&self, engine: EngineName, accelerator: Accelerator) -> bool {
        self.status.engines.iter().any(|offer| offer.name == engine && offer.accelerators.contains(&accelerator))
    }

    /// Why none of the engines runs guests here.
    fn mismatch(&self, wanted: &[EngineName]) -> String {
        let offer = self.status.engines.iter().find(|offer| wanted.contains(&offer.name));
        let why = match offer {
            None => "its HostPolicy does not list the engine".to_owned(),
            Some(offer) if !offer.reason.is_empty() => offer.reason.clone(),
            Some(_) => {
                format!("KVM is not usable ({}) and its HostPolicy does not allow emulation", self.status.kvm.reason)
            }
        };
        format!("{}: {why}", self.name)
    }
}

fn no_engine(wanted: &[EngineName], hosts: &[Candidate<'_>]) -> Refusal {
    let names: Vec<_> = wanted.iter().map(|engine| engine.as_str()).collect();
    let mismatches = list(hosts.iter().map(|host| host.mismatch(wanted)));
    Refusal::one(Reason::NoEngine, "spec.engine", format!("no host can run {} ({mismatches})", names.join(" or ")))
}

/// Whether one of the hosts is large enough.
fn room(shape: &Shape, choice: Choice, hosts: &[&Candidate<'_>]) -> Result<(), Refusal> {
    let needs = Needs::of(shape, choice);
    if hosts.iter().any(|host| needs.fit(host.status)) {
        return Ok(());
    }
    let mut problems: Vec<(Reason, Problem)> = Vec::new();
    for resource in &needs.resources {
        if hosts.iter().all(|host| (resource.total)(host.status) < resource.needed) {
            let have = list(
                hosts.iter().map(|host| format!("{}: {}", host.name, (resource.spell)((resource.total)(host.status)))),
            );
            problems.push((
                resource.reason,
                Problem::new(
                    resource.path,
                    format!("no host has {} {} ({have})", (resource.spell)(resource.needed), resource.what),
                ),
            ));
        }
    }
    let reason = problems.first().map_or(Reason::InsufficientMemory, |p| p.0);
    let mut problems: Vec<_> = problems.into_iter().map(|(_, problem)| problem).collect();
    if problems.is_empty() {
        problems.push(Problem::new("spec.machine", "each resource is there on some host, but no host has all of them"));
    }
    Err(Refusal::new(reason, problems))
}

/// Totals a host must have.
struct Needs {
    resources: Vec<Resource>,
}

/// One total.
struct Resource {
    reason: Reason,
    path: &'static str,
    what: String,
    needed: u64,
    total: Box<dyn Fn(&HostStatus) -> u64>,
    spell: fn(u64) -> String,
}

impl Needs {
    fn of(shape: &Shape, choice: Choice) -> Needs {
        let millis = match shape.cpus {
            Cpus::Dedicated(cpus) => u64::from(cpus) * 1000,
            Cpus::Shared => u64::from(shape.vcpus) * 1000,
            Cpus::Overcommitted(millis) => millis,
        };
        let overhead = overhead(choice.engine, choice.accelerator, shape.vcpus, shape.memory);
        let mut resources = vec![
            Resource {
                reason: Reason::InsufficientCPUs,
                path: "spec.machine.cpu",
                what: "CPUs".into(),
                needed: millis,
                total: Box::new(|host| u64::from(host.cpu.count) * 1000),
                spell: |millis| (millis as f64 / 1000.0).to_string(),
            },
            Resource {
                reason: Reason::InsufficientMemory,
                path: "spec.machine.memory.guest",
                what: "of memory (guest and engine)".into(),
                needed: shape.memory + overhead,
                total: Box::new(memory),
                spell: mebibytes,
            },
        ];
        if let Some(size) = shape.huge_pages {
            resources.push(Resource {
                reason: Reason::InsufficientHugePages,
                path: "spec.machine.memory.hugepages",
                what: format!("in huge pages of {}", size.as_str()),
                needed: shape.memory,
                total: Box::new(move |host| {
                    let pools = host.cells.iter().flat_map(|cell| &cell.huge_pages);
                    let pages: u64 =
                        pools.filter(|pool| pool.page_size == size).fold(0, |sum, pool| sum.saturating_add(pool.total));
                    pages.saturating_mul(size.bytes())
                }),
                spell: mebibytes,
            });
        }
        Needs { resources }
    }

    fn fit(&self, host: &HostStatus) -> bool {
        self.resources.iter().all(|resource| (resource.total)(host) >= resource.needed)
    }
}

fn memory(host: &HostStatus) -> u64 {
    host.memory.as_ref().and_then(|q| quantity::bytes(q).ok()).unwrap_or_default()
}

fn mebibytes(bytes: u64) -> String {
    quantity::from_bytes(bytes >> 20 << 20).0
}

/// The first few, and how many more there are.
fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let more = items.len().saturating_sub(NAMED_HOSTS);
    let mut text = items.take(NAMED_HOSTS).collect::<Vec<_>>().join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}
