//! Which policy holds on a host, and which engines guests may use there. Pure.

use std::collections::BTreeMap;
use vse_crds::{
    Accelerator, EmulationPolicy, EngineName, HostEngine, HostPolicy, HostPolicySpec, Kvm, default_engines,
};
use vse_engine::qemu::Qemu;
use vse_engine::{Capabilities, Engine, Feature, PageSize};

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

/// The engines a host offers under a policy, best first.
pub fn offered(policy: Option<&HostPolicySpec>, kvm: &Kvm) -> Vec<HostEngine> {
    let engines = policy.map_or_else(default_engines, |policy| policy.engines.clone());
    let emulation = policy.is_some_and(|policy| policy.emulation == EmulationPolicy::Allow);
    engines.into_iter().map(|name| offer(name, emulation, kvm)).collect()
}

fn offer(name: EngineName, emulation: bool, kvm: &Kvm) -> HostEngine {
    let EngineName::Qemu = name;
    let mut accelerators = Vec::new();
    if kvm.usable {
        accelerators.push(Accelerator::Kvm);
    } else if emulation {
        accelerators.push(Accelerator::Tcg);
    }
    let reason = if accelerators.is_empty() {
        format!("KVM is not usable ({}), and no HostPolicy allows emulation here", kvm.reason)
    } else {
        String::new()
    };
    HostEngine { name, accelerators, capabilities: capability_names(Qemu::default().capabilities()), reason }
}

/// Stable names of what an engine can do.
fn capability_names(capabilities: &Capabilities) -> Vec<String> {
    let pages = capabilities.page_sizes.iter().filter_map(|size| match size {
        PageSize::Default => None,
        PageSize::Huge2M => Some("HugePages2Mi"),
        PageSize::Huge1G => Some("HugePages1Gi"),
    });
    let features = capabilities.features.iter().filter_map(|feature| match feature {
        Feature::Pause => Some("Pause"),
        Feature::PowerButton => Some("PowerButton"),
        Feature::GuestAgent => Some("GuestAgent"),
        Feature::Snapshot => Some("Snapshot"),
        Feature::Migration => Some("Migration"),
        Feature::Passthrough => Some("Passthrough"),
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
        HostPolicy::new(name, HostPolicySpec { node_selector, priority, engines: default_engines(), emulation })
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
        assert_eq!(offered(Some(&allow), &without)[0].accelerators, [Accelerator::Tcg]);
        assert_eq!(offered(Some(&allow), &with)[0].accelerators, [Accelerator::Kvm]);
        let refused = &offered(None, &without)[0];
        assert!(refused.accelerators.is_empty() && refused.reason.contains("no svm"));
    }
}
