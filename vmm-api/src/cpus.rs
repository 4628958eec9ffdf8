//! vCPUs.

use serde::{Deserialize, Serialize};

use crate::json::list;
use crate::unsupported::Unsupported;

/// The guest's CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpusConfig {
    /// How many there are when the guest starts.
    pub boot_vcpus: u32,
    /// How many there can be. CPUs can't be added, so it is `boot_vcpus`.
    pub max_vcpus: u32,
    /// Sockets, dies, cores and threads that the guest sees; without it each vCPU is a core of one socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// Host CPUs that each vCPU's thread may run on.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<CpuAffinity>,
    /// Whether the guest may run guests, where the host can nest.
    pub nested: bool,
    /// At most that many bits of physical address; fewer when the host has fewer.
    pub max_phys_bits: u8,
    /// Ours: each vCPU has a host CPU for itself. HLT, PAUSE and MWAIT then don't leave the guest.
    #[serde(skip_serializing_if = "is_false")]
    pub dedicated: bool,
    /// Ours: named set of CPU features that a guest may rely on wherever it goes on, in place of all of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Core scheduling cookies.
    #[serde(skip_serializing)]
    pub core_scheduling: CoreScheduling,
    /// CPU models by name.
    #[serde(skip_serializing)]
    pub profile: CpuProfile,
    /// Hyper-V's paravirtual interface.
    #[serde(skip_serializing)]
    pub kvm_hyperv: Unsupported,
    /// Features that must be asked for (AMX).
    #[serde(skip_serializing)]
    pub features: Unsupported,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 1,
            topology: None,
            affinity: Vec::new(),
            nested: true,
            max_phys_bits: 46,
            dedicated: false,
            baseline: None,
            core_scheduling: CoreScheduling::default(),
            profile: CpuProfile::default(),
            kvm_hyperv: Unsupported,
            features: Unsupported,
        }
    }
}

/// What the guest sees of sockets and cores; the product of all is the number of vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuTopology {
    /// Hardware threads of a core.
    pub threads_per_core: u16,
    /// Cores of a die.
    pub cores_per_die: u16,
    /// Dies of a socket.
    pub dies_per_package: u16,
    /// Sockets.
    pub packages: u16,
}

/// Where a vCPU's thread may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuAffinity {
    /// Which vCPU.
    pub vcpu: u32,
    /// Host CPU numbers.
    pub host_cpus: Vec<u32>,
}

/// Core scheduling: nothing is asked of the host's scheduler, whichever of these is asked for means the same to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CoreScheduling {
    /// All vCPUs may share cores with each other (Cloud Hypervisor's default).
    #[default]
    Vm,
    /// None.
    Off,
}

/// CPU models by name; there is only the host's own. See [`CpusConfig::baseline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuProfile {
    /// The host's: `host` on Cloud Hypervisor's command line, `Host` in its JSON.
    #[default]
    #[serde(alias = "Host")]
    Host,
}
