//! Reasons: the words conditions, events and metric labels share.

/// Why a condition holds or an action was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// An incarnation is on its way to run.
    Starting,
    /// kube-scheduler finds no host.
    Unschedulable,
    /// The pod's images can't be pulled or its container can't be made.
    PodNotStarting,
    /// The host's kubelet or node runtime does not answer.
    HostSilent,
    /// The Host object of an incarnation's host is gone.
    HostGone,
    /// The host makes something ready first, for example the system image at its first use there.
    Preparing,
    /// The host can't launch the guest and tries again.
    LaunchDelayed,
    /// The guest runs.
    Running,
    /// The guest's vCPUs are stopped on request.
    Paused,
    /// The incarnation is being ended.
    Stopping,
    /// Not running, as asked for.
    Halted,
    /// Waiting before the next start.
    BackOff,
    /// Ended by itself, not to be started again.
    Succeeded,
    /// Ended by a failure, not to be started again.
    Failed,
    /// The spec is as wished for; nothing is under way.
    AsSpecified,
    /// The spec is fine.
    Accepted,
    /// A change of the spec waits for the next incarnation.
    SpecChanged,
    /// Spec and profile contradict each other.
    ProfileConflict,
    /// The profile does not exist.
    ProfileNotFound,
    /// A claim does not exist.
    VolumeNotFound,
    /// Profile and spec together give something impossible.
    InvalidSpec,
    /// No host has that many huge pages.
    InsufficientHugePages,
    /// No host has that many CPUs.
    InsufficientCPUs,
    /// No host has that much memory.
    InsufficientMemory,
    /// No HostPolicy in force declares the device class.
    DeviceClassNotFound,
    /// No host has that many devices.
    InsufficientDevices,
    /// No host offers the engine.
    NoEngine,
    /// There is no ready host.
    NoHost,
    /// An object of another owner has a name the VSE needs.
    NameTaken,
    /// The API server forbids an object the VSE needs: a quota or an admission policy.
    Forbidden,
    /// The API server finds an object the VSE needs invalid.
    Rejected,
    /// The object changed meanwhile.
    Conflict,
    /// The API server did not answer or failed.
    Unavailable,
    /// The policy holds for at least one host.
    InForce,
    /// No host is under the policy.
    NoHosts,
}

impl Reason {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Starting => "Starting",
            Reason::Unschedulable => "Unschedulable",
            Reason::PodNotStarting => "PodNotStarting",
            Reason::HostSilent => "HostSilent",
            Reason::HostGone => "HostGone",
            Reason::Preparing => "Preparing",
            Reason::LaunchDelayed => "LaunchDelayed",
            Reason::Running => "Running",
            Reason::Paused => "Paused",
            Reason::Stopping => "Stopping",
            Reason::Halted => "Halted",
            Reason::BackOff => "BackOff",
            Reason::Succeeded => "Succeeded",
            Reason::Failed => "Failed",
            Reason::AsSpecified => "AsSpecified",
            Reason::Accepted => "Accepted",
            Reason::SpecChanged => "SpecChanged",
            Reason::ProfileConflict => "ProfileConflict",
            Reason::ProfileNotFound => "ProfileNotFound",
            Reason::VolumeNotFound => "VolumeNotFound",
            Reason::InvalidSpec => "InvalidSpec",
            Reason::InsufficientHugePages => "InsufficientHugePages",
            Reason::InsufficientCPUs => "InsufficientCPUs",
            Reason::InsufficientMemory => "InsufficientMemory",
            Reason::DeviceClassNotFound => "DeviceClassNotFound",
            Reason::InsufficientDevices => "InsufficientDevices",
            Reason::NoEngine => "NoEngine",
            Reason::NoHost => "NoHost",
            Reason::NameTaken => "NameTaken",
            Reason::Forbidden => "Forbidden",
            Reason::Rejected => "Rejected",
            Reason::Conflict => "Conflict",
            Reason::Unavailable => "Unavailable",
            Reason::InForce => "InForce",
            Reason::NoHosts => "NoHosts",
        }
    }
}
