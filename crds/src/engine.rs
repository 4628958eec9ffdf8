//! The kinds of VMM that run guests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An engine: a kind of VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum EngineName {
    /// This project's own VMM. Hosts with KVM; least memory and time beside the guest.
    #[serde(rename = "vmm")]
    Vmm,
    /// Cloud Hypervisor. Hosts with KVM, when the operator was given an image of it.
    #[serde(rename = "cloud-hypervisor")]
    CloudHypervisor,
    /// QEMU. Hosts with KVM; and the others, emulated, where HostPolicy allows that.
    #[serde(rename = "qemu")]
    Qemu,
}

impl EngineName {
    /// All there are, best first.
    pub const ALL: [EngineName; 3] = [EngineName::Vmm, EngineName::CloudHypervisor, EngineName::Qemu];

    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            EngineName::Vmm => "vmm",
            EngineName::CloudHypervisor => "cloud-hypervisor",
            EngineName::Qemu => "qemu",
        }
    }

    /// The engine of that spelling.
    pub fn parse(text: &str) -> Option<EngineName> {
        EngineName::ALL.into_iter().find(|engine| engine.as_str() == text)
    }

    /// Extended resource of hosts where guests may run under it.
    pub fn resource(self) -> &'static str {
        match self {
            EngineName::Vmm => "vse.hpc.io/engine-vmm",
            EngineName::CloudHypervisor => "vse.hpc.io/engine-cloud-hypervisor",
            EngineName::Qemu => "vse.hpc.io/engine-qemu",
        }
    }
}

/// An engine, or the best there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EngineChoice {
    /// The best that can run the guest on some host: KVM before emulation, then in the order of the hosts' policies.
    #[default]
    Auto,
    /// This project's own VMM.
    #[serde(rename = "vmm")]
    Vmm,
    /// Cloud Hypervisor.
    #[serde(rename = "cloud-hypervisor")]
    CloudHypervisor,
    /// QEMU.
    #[serde(rename = "qemu")]
    Qemu,
}

impl EngineChoice {
    /// The engine it names, if it names one.
    pub fn named(self) -> Option<EngineName> {
        match self {
            EngineChoice::Auto => None,
            EngineChoice::Vmm => Some(EngineName::Vmm),
            EngineChoice::CloudHypervisor => Some(EngineName::CloudHypervisor),
            EngineChoice::Qemu => Some(EngineName::Qemu),
        }
    }
}

/// Names of what an engine can do on a host, as in `Host.status.engines[].capabilities`. What is not named it can't.
pub mod engine_capabilities {
    /// Guest memory in huge pages of 2 MiB.
    pub const HUGE_PAGES_2MI: &str = "HugePages2Mi";
    /// Guest memory in huge pages of 1 GiB.
    pub const HUGE_PAGES_1GI: &str = "HugePages1Gi";
    /// Waiting before the guest's first instruction.
    pub const PRELAUNCH: &str = "Prelaunch";
    /// Stopping and going on with all vCPUs.
    pub const PAUSE: &str = "Pause";
    /// The ACPI power button.
    pub const POWER_BUTTON: &str = "PowerButton";
    /// A channel to an agent in the guest.
    pub const GUEST_AGENT: &str = "GuestAgent";
    /// Saving a guest with its memory.
    pub const SNAPSHOT: &str = "Snapshot";
    /// Moving a running guest.
    pub const MIGRATION: &str = "Migration";
    /// Host devices in the guest's hands.
    pub const PASSTHROUGH: &str = "Passthrough";
    /// Several NUMA cells, each on a host cell of its own.
    pub const GUEST_CELLS: &str = "GuestCells";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_spelling_and_resource() {
        for engine in EngineName::ALL {
            assert_eq!(EngineName::parse(engine.as_str()), Some(engine));
            assert_eq!(serde_json::to_value(engine).unwrap(), engine.as_str());
            assert_eq!(engine.resource(), format!("vse.hpc.io/engine-{}", engine.as_str()));
            let choice: EngineChoice = serde_json::from_value(engine.as_str().into()).unwrap();
            assert_eq!(choice.named(), Some(engine));
        }
        assert_eq!(EngineName::parse("bochs"), None);
        assert_eq!(EngineChoice::Auto.named(), None);
    }
}
