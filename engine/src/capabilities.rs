//! What an engine can do. What is not said is not there.

use std::collections::BTreeSet;
use std::fmt;

/// What runs the vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AcceleratorKind {
    /// Hardware virtualization.
    Kvm,
    /// Translation in software.
    Emulation,
}

/// The host pages that back a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// The host's usual ones, transparent huge pages where the host has them.
    Default,
    /// Reserved huge pages of 2 MiB.
    Huge2M,
    /// Reserved huge pages of 1 GiB.
    Huge1G,
}

impl PageSize {
    /// One page, in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Default => 4 << 10,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }
}

/// Something not every engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// Being complete before the first instruction of its guest runs, so that threads are pinned by then.
    Prelaunch,
    /// Stopping and going on with all vCPUs.
    Pause,
    /// The ACPI power button.
    PowerButton,
    /// A channel to an agent in the guest.
    GuestAgent,
    /// Saving a guest with its memory, to go on from later.
    Snapshot,
    /// Moving a running guest to another host.
    Migration,
    /// Host devices in the guest's hands.
    Passthrough,
    /// Several NUMA cells, each on host cells of its own.
    GuestCells,
}

/// What an engine can do. The default can nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What can run its vCPUs.
    pub accelerators: BTreeSet<AcceleratorKind>,
    /// Most vCPUs of one guest.
    pub max_vcpus: u32,
    /// Most disks of one guest.
    pub max_disks: usize,
    /// Most network cards of one guest.
    pub max_nics: usize,
    /// Most disks, network cards and host devices of one guest together.
    pub max_devices: usize,
    /// What can back a guest's memory.
    pub page_sizes: BTreeSet<PageSize>,
    /// The rest.
    pub features: BTreeSet<Feature>,
}

impl fmt::Display for AcceleratorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Emulation => "emulation",
        })
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Huge2M => "2Mi",
            Self::Huge1G => "1Gi",
        })
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prelaunch => "waiting before the first instruction",
            Self::Pause => "pausing",
            Self::PowerButton => "a power button",
            Self::GuestAgent => "a guest agent",
            Self::Snapshot => "snapshots",
            Self::Migration => "migration",
            Self::Passthrough => "device passthrough",
            Self::GuestCells => "NUMA cells of the guest on cells of the host",
        })
    }
}
