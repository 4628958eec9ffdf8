//! Which policy holds on a host, and which engines guests may use there. Pure.

use crate::engines::{Engines, OWN_DISKS};
use std::collections::BTreeMap;
use vse_crds::{
    Accelerator, EmulationPolicy, EngineLimits, EngineName, HostEngine, HostPolicy, HostPolicySpec, Kvm,
    default_engines, engine_capabilities as names,
};
use vse_engine::{AcceleratorKind, Capabilities, Engine, Feature, PageSize};

/// The policy that holds on a Node with these labels: the highest priority, and among equals the first by name.
pub fn effective_policy<'a>(
    policies: impl IntoIterator<Item = &'a HostPolicy>,
    labels: &BTreeMap<String, String>,
) -> Option<&'a HostPolicy> {
    policies
        .into_iter()
        .filter(|policy| policy.spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
        .min_by(|a, b| b.spec.priority.cmp(&a.spec.priority).then_with(|| a.metadata.name.cmp(&b.metadata.name)))
}

/// The engines a host offers under a policy, best first, each once.
pub fn offered(policy: Option<&HostPolicySpec>, kvm: &Kvm) -> Vec<HostEngine> {
    let listed = policy.map_or_else(default_engines, |policy| policy.engines.clone());
    let emulation = policy.is_some_and(|policy| policy.emulation == EmulationPolicy::Allow);
    let mut engines = Vec::new();
    for name in listed {
        if !engines.contains(&name) {
            engines.push(name);
        }
    }
    let drivers = Engines::default();
    engines.into_iter().filter_map(|name| Some(offer(name, drivers.get(name.as_str())?, emulation, kvm))).collect()
}

fn offer(name: EngineName, driver: &dyn Engine, emulation: bool, kvm: &Kvm) -> HostEngine {
    let can = driver.capabilities();
    let emulates = can.accelerators.contains(&AcceleratorKind::Emulation);
    let mut accelerators = Vec::new();
    if kvm.usable && can.accelerators.contains(&AcceleratorKind::Kvm) {
        accelerators.push(Accelerator::Kvm);
    } else if emulation && emulates {
        accelerators.push(Accelerator::Tcg);
    }
    let reason = match (accelerators.is_empty(), emulates) {
        (false, _) => String::new(),
        (true, true) => format!("KVM is not usable ({}), and no HostPolicy allows emulation here", kvm.reason),
        (true, false) => format!("KVM is not usable ({}), and it can't emulate", kvm.reason),
    };
    HostEngine { name, accelerators, capabilities: capability_names(can), limits: Some(limits(can)), reason }
}

fn limits(can: &Capabilities) -> EngineLimits {
    let less_own = |most: usize| u32::try_from(most.saturating_sub(OWN_DISKS)).unwrap_or(u32::MAX);
    EngineLimits { vcpus: can.max_vcpus, volumes: less_own(can.max_disks), devices: Some(less_own(can.max_devices)) }
}

/// Stable names of what an engine can do.
fn capability_names(capabilities: &Capabilities) -> Vec<String> {
    let pages = capabilities.page_sizes.iter().filter_map(|size| match size {
        PageSize::Default => None,
        PageSize::Huge2M => Some(names::HUGE_PAGES_2MI),
        PageSize::Huge1G => Some(names::HUGE_PAGES_1GI),
    });
    let features = capabilities.features.iter().filter_map(|feature| match feature {
        Feature::Prelaunch => Some(names::PRELAUNCH),
        Feature::Pause => Some(names::PAUSE),
        Feature::PowerButton => Some(names::POWER_BUTTON),
        Feature::GuestAgent => Some(names::GUEST_AGENT),
        Feature::Snapshot => Some(names::SNAPSHOT),
        Feature::Migration => Some(names::MIGRATION),
        Feature::Passthrough => Some(names::PASSTHROUGH),
        Feature::GuestCells => Some(names::GUEST_CELLS),
        _ => None,
    });
    pages.chain(features).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, priority: i32, label: Option<(&str, &str)>) -> HostPolicy {
        let node_selector = label.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        let emulation = EmulationPolicy::Allow;
        HostPolicy::new(
            name,
            HostPolicySpec {
                node_selector,
                priority,
                emulation,
                engines: default_engines(),
                device_classes: Vec::new(),
            },
        )
    }

    #[test]
    fn the_highest_matching_policy_holds() {
        let all = [policy("b", 0, None), policy("a", 0, None), policy("gpu", 9, Some(("gpu", "yes")))];
        let name = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            effective_policy(&all, &labels).and_then(|p| p.metadata.name.clone())
        };
        assert_eq!(name(&[]).as_deref(), Some("a"));
        assert_eq!(name(&[("gpu", "yes")]).as_deref(), Some("gpu"));
        assert_eq!(name(&[("gpu", "no")]).as_deref(), Some("a"));
    }

    #[test]
    fn emulation_is_offered_only_where_allowed_and_needed() {
        let without = Kvm { usable: false, reason: "no svm".into() };
        let with = Kvm { usable: true, reason: String::new() };
        let allow = policy("p", 0, None).spec;
        let accelerators =
            |engines: Vec<HostEngine>| engines.into_iter().map(|engine| (engine.name, engine.accelerators)).collect();
        let emulating: Vec<_> = accelerators(offered(Some(&allow), &without));
        assert_eq!(emulating, [(EngineName::Vmm, vec![]), (EngineName::Qemu, vec![Accelerator::Tcg])]);
        let fast: Vec<_> = accelerators(offered(Some(&allow), &with));
        assert_eq!(fast, [EngineName::Vmm, EngineName::Qemu].map(|name| (name, vec![Accelerator::Kvm])));
        for refused in offered(None, &without) {
            assert!(refused.accelerators.is_empty() && refused.reason.contains("no svm"), "{refused:?}");
        }
    }

    #[test]
    fn engines_are_offered_once_in_the_policys_order() {
        let with = Kvm { usable: true, reason: String::new() };
        let engines = vec![EngineName::Qemu, EngineName::CloudHypervisor, EngineName::Qemu];
        let offered = offered(Some(&HostPolicySpec { engines, ..HostPolicySpec::default() }), &with);
        let names: Vec<_> = offered.iter().map(|engine| engine.name).collect();
        assert_eq!(names, [EngineName::Qemu, EngineName::CloudHypervisor]);
        assert!(offered[0].capabilities.contains(&names::GUEST_CELLS.to_owned()));
        assert!(!offered[1].capabilities.contains(&names::GUEST_CELLS.to_owned()));
        assert!(offered.iter().all(|engine| engine.limits.is_some_and(|most| most.vcpus > 0 && most.volumes > 0)));
    }
}
