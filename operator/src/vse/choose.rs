//! Which engine and accelerator a VSE gets, over all ready hosts, pure. kube-scheduler picks the host.

use crate::reason::Reason;
use crate::vse::devices;
use crate::vse::merge::ResolvedSpec;
use crate::vse::overhead::overhead;
use crate::vse::refusal::{Problem, Refusal};
use crate::vse::shape::{Cpus, Shape};
use std::collections::BTreeSet;
use std::sync::Arc;
use vse_crds::{
    Accelerator, Devices, EngineLimits, EngineName, Host, HostEngine, HostStatus, PageSize, condition,
    engine_capabilities, quantity,
};

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

/// The best engine and accelerator under which some host can run the guest and has room for it. Better is KVM before TCG;
/// then what stands first in such a host's policy; among equals the order of [`EngineName::ALL`]. Room means the totals a
/// host has: what is free now is kube-scheduler's to know. `images`: engines that VM pods can be made of.
pub fn choose(
    spec: &ResolvedSpec,
    shape: &Shape,
    hosts: &[Arc<Host>],
    images: &BTreeSet<EngineName>,
) -> Result<Choice, Refusal> {
    let ready: Vec<Candidate<'_>> = hosts.iter().filter_map(Candidate::ready).collect();
    if ready.is_empty() {
        return Err(Refusal::one(
            Reason::NoHost,
            "spec",
            "no host is Ready; is the node runtime running? (kubectl get hosts)",
        ));
    }
    let devices = &spec.machine.devices;
    devices::known(devices, ready.iter().map(|host| host.status))?;
    let wanted: Vec<EngineName> = match spec.engine.named() {
        Some(engine) if !images.contains(&engine) => return Err(no_image(engine, images)),
        Some(engine) => vec![engine],
        None => EngineName::ALL.into_iter().filter(|engine| images.contains(engine)).collect(),
    };
    let asked = Asked::of(spec, shape);
    let mut best: Option<(Rank, Choice)> = None;
    let mut refused = None;
    for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
        for &engine in &wanted {
            let choice = Choice { engine, accelerator };
            let offering: Vec<_> = ready.iter().filter(|host| host.against(choice, &asked).is_none()).collect();
            if offering.is_empty() {
                continue;
            }
            match room(shape, devices, choice, &offering) {
                Ok(place) => {
                    let rank = (accelerator, place, engine);
                    if best.is_none_or(|(best, _)| rank < best) {
                        best = Some((rank, choice));
                    }
                }
                Err(refusal) => {
                    refused.get_or_insert(refusal);
                }
            }
        }
    }
    match (best, refused) {
        (Some((_, choice)), _) => Ok(choice),
        (None, Some(refusal)) => Err(refusal),
        (None, None) => Err(no_engine(&wanted, &ready, &asked, |choice| Needs::of(shape, devices, choice))),
    }
}

/// How good a choice is, least first: accelerator, place in the policy of a host, and the project's own order.
type Rank = (Accelerator, usize, EngineName);

/// Something not every engine can do.
struct Capability {
    name: &'static str,
    /// Field that asks for it.
    path: &'static str,
}

/// Something of which engines give a guest only so much.
struct Amount {
    what: &'static str,
    /// Field that asks for it.
    path: &'static str,
    asked: usize,
    most: fn(&EngineLimits) -> Option<u32>,
}

/// What a guest asks of its engine.
struct Asked {
    capabilities: Vec<Capability>,
    amounts: [Amount; 3],
}

impl Asked {
    fn of(spec: &ResolvedSpec, shape: &Shape) -> Self {
        let (vcpus, volumes) = (shape.vcpus as usize, spec.volumes.len());
        let devices = volumes + spec.networks.len() + spec.machine.devices.host_devices.len();
        let amounts = [
            Amount { what: "vCPUs", path: "spec.machine.cpu", asked: vcpus, most: |limits| Some(limits.vcpus) },
            Amount { what: "volumes", path: "spec.volumes", asked: volumes, most: |limits| Some(limits.volumes) },
            Amount {
                what: "devices",
                path: "spec.volumes, spec.networks and spec.machine.devices.hostDevices",
                asked: devices,
                most: |limits| limits.devices,
            },
        ];
        Self { capabilities: needed_capabilities(shape, &spec.machine.devices), amounts }
    }

    /// What the engine can't do, and what it has too little of.
    fn lacking(&self, offer: &HostEngine) -> Vec<String> {
        let lacks = |capability: &&Capability| !offer.capabilities.iter().any(|has| has == capability.name);
        let capabilities = self.capabilities.iter().filter(lacks);
        let capabilities =
            capabilities.map(|capability| format!("lacks {}, which {} needs", capability.name, capability.path));
        let over = |Amount { what, path, asked, most }: &Amount| {
            let most = most(offer.limits.as_ref()?)?;
            (*asked > most as usize)
                .then(|| format!("has at most {most} {what} for a guest, fewer than the {asked} of {path}"))
        };
        capabilities.chain(self.amounts.iter().filter_map(over)).collect()
    }
}

fn needed_capabilities(shape: &Shape, devices: &Devices) -> Vec<Capability> {
    let pages = shape.huge_pages.map(|size| Capability {
        name: match size {
            PageSize::TwoMi => engine_capabilities::HUGE_PAGES_2MI,
            PageSize::OneGi => engine_capabilities::HUGE_PAGES_1GI,
        },
        path: "spec.machine.memory.hugepages.pageSize",
    });
    let cells = shape.mirror_cells.then_some(Capability {
        name: engine_capabilities::GUEST_CELLS,
        path: "spec.machine.cpu.numa.guestMappingPassthrough",
    });
    let passthrough = (!devices.is_empty())
        .then_some(Capability { name: engine_capabilities::PASSTHROUGH, path: "spec.machine.devices.hostDevices" });
    pages.into_iter().chain(cells).chain(passthrough).collect()
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

    /// Where the engine stands in this host's policy, and what the host says of it.
    fn offer(&self, engine: EngineName) -> Option<(usize, &HostEngine)> {
        self.status.engines.iter().enumerate().find(|(_, offer)| offer.name == engine)
    }

    /// Why that choice runs no such guest here; nothing when it does.
    fn against(&self, choice: Choice, asked: &Asked) -> Option<String> {
        let Some((_, offer)) = self.offer(choice.engine) else {
            return Some("its HostPolicy does not list it".to_owned());
        };
        if !offer.accelerators.contains(&choice.accelerator) {
            return Some(match offer.reason.as_str() {
                "" => format!(
                    "KVM is not usable ({}) and its HostPolicy does not allow emulation",
                    self.status.kvm.reason
                ),
                reason => reason.to_owned(),
            });
        }
        let lacking = asked.lacking(offer);
        (!lacking.is_empty()).then(|| lacking.join(" and "))
    }

    /// Why none of the engines runs the guest here: each with its best accelerator.
    fn mismatches(&self, wanted: &[EngineName], asked: &Asked) -> String {
        let why = |engine: &EngineName| {
            let offered = self.offer(*engine).and_then(|(_, offer)| offer.accelerators.first().copied());
            let choice = Choice { engine: *engine, accelerator: offered.unwrap_or(Accelerator::Kvm) };
            Some(format!("{}: {}", engine.as_str(), self.against(choice, asked)?))
        };
        format!("{}: {}", self.name, wanted.iter().filter_map(why).collect::<Vec<_>>().join(", "))
    }
}

/// No engine runs the guest; and if one did, what no host would have enough of, whichever it was.
fn no_engine(
    wanted: &[EngineName],
    hosts: &[Candidate<'_>],
    asked: &Asked,
    needs: impl Fn(Choice) -> Needs,
) -> Refusal {
    let names: Vec<_> = wanted.iter().map(|engine| engine.as_str()).collect();
    let mismatches = list(hosts.iter().map(|host| host.mismatches(wanted, asked)));
    let message = format!("no host can run the guest under {} ({mismatches})", names.join(" or "));
    let hosts: Vec<_> = hosts.iter().collect();
    let choices = wanted.iter().map(|&engine| Choice { engine, accelerator: Accelerator::Kvm });
    let short = choices.map(|choice| needs(choice).short(&hosts)).min_by_key(Vec::len).unwrap_or_default();
    let problems =
        std::iter::once(Problem::new("spec.engine", message)).chain(short.into_iter().map(|(_, short)| short));
    Refusal::new(Reason::NoEngine, problems.collect())
}

fn no_image(engine: EngineName, images: &BTreeSet<EngineName>) -> Refusal {
    let there: Vec<_> = images.iter().map(|engine| engine.as_str()).collect();
    let message = format!(
        "the operator was given no image of engine {} (chart: images.engine…), but of {}",
        engine.as_str(),
        there.join(", ")
    );
    Refusal::one(Reason::NoEngine, "spec.engine", message)
}

/// The best place of the engine in the policy of a host that is large enough, if one of them is.
fn room(shape: &Shape, devices: &Devices, choice: Choice, hosts: &[&Candidate<'_>]) -> Result<usize, Refusal> {
    let needs = Needs::of(shape, devices, choice);
    let fitting = hosts.iter().filter(|host| needs.fit(host.status));
    if let Some(place) = fitting.filter_map(|host| Some(host.offer(choice.engine)?.0)).min() {
        return Ok(place);
    }
    let problems = needs.short(hosts);
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
    path: String,
    what: String,
    needed: u64,
    total: Box<dyn Fn(&HostStatus) -> u64>,
    spell: fn(u64) -> String,
}

impl Needs {
    fn of(shape: &Shape, devices: &Devices, choice: Choice) -> Needs {
        let millis = match shape.cpus {
            Cpus::Dedicated(cpus) => u64::from(cpus) * 1000,
            Cpus::Shared => u64::from(shape.vcpus) * 1000,
            Cpus::Overcommitted(millis) => millis,
        };
        let overhead = overhead(choice.engine, choice.accelerator, shape.vcpus, shape.memory);
        let mut resources = vec![
            Resource {
                reason: Reason::InsufficientCPUs,
                path: "spec.machine.cpu".into(),
                what: "CPUs".into(),
                needed: millis,
                total: Box::new(|host| u64::from(host.cpu.count) * 1000),
                spell: |millis| (millis as f64 / 1000.0).to_string(),
            },
            Resource {
                reason: Reason::InsufficientMemory,
                path: "spec.machine.memory.guest".into(),
                what: "of memory (guest and engine)".into(),
                needed: shape.memory + overhead,
                total: Box::new(memory),
                spell: mebibytes,
            },
        ];
        if let Some(size) = shape.huge_pages {
            resources.push(Resource {
                reason: Reason::InsufficientHugePages,
                path: "spec.machine.memory.hugepages".into(),
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
        resources.extend(devices::counted(devices).into_iter().map(|(device, count)| {
            let (name, path) = (device.to_owned(), devices::path(devices, device));
            Resource {
                reason: Reason::InsufficientDevices,
                path,
                what: format!("of {device}"),
                needed: count,
                total: Box::new(move |host| devices::offered(host, &name)),
                spell: |count| count.to_string(),
            }
        }));
        Needs { resources }
    }

    fn fit(&self, host: &HostStatus) -> bool {
        self.resources.iter().all(|resource| (resource.total)(host) >= resource.needed)
    }

    /// What none of the hosts has enough of.
    fn short(&self, hosts: &[&Candidate<'_>]) -> Vec<(Reason, Problem)> {
        let is_short = |resource: &&Resource| hosts.iter().all(|host| (resource.total)(host.status) < resource.needed);
        let tell = |resource: &Resource| {
            let Resource { total, spell, needed, what, .. } = resource;
            let have = list(hosts.iter().map(|host| format!("{}: {}", host.name, spell(total(host.status)))));
            let message = format!("no host has {} {what} ({have})", spell(*needed));
            (resource.reason, Problem::new(resource.path.clone(), message))
        };
        self.resources.iter().filter(is_short).map(tell).collect()
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
