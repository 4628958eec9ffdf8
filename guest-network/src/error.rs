//! Why a guest's network could not be set up.

use std::io;
use std::net::Ipv4Addr;

/// Why a guest's network could not be set up or taken down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for something that does not exist.
    #[error("guest network: {field}: {problem}")]
    Invalid {
        /// The field of [`GuestNetworkConfig`](crate::GuestNetworkConfig).
        field: &'static str,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The pod shares the host's network namespace, whose rules must not be touched.
    #[error("the pod is in the host's network namespace; a VM pod needs its own (hostNetwork: false)")]
    HostNamespace,
    /// The pod has IPv6 only.
    #[error("the pod has IPv6 addresses only; guests need a pod with an IPv4 address (dual stack is enough)")]
    Ipv6Only,
    /// The pod has no IPv4 default route, so its outward interface is unknown.
    #[error("the pod has no IPv4 default route; its network plugin must provide one")]
    NoDefaultRoute,
    /// The pod's outward interface has no IPv4 address.
    #[error("the pod's interface {interface} has no IPv4 address")]
    NoAddress {
        /// Name of the interface.
        interface: String,
    },
    /// The pod's address or its gateway lies in the guest's network, so that the guest could not be told apart.
    #[error("{address} of the pod's network lies in 10.0.2.0/24, which is the guest's; give the pods other addresses")]
    NetworkOverlaps {
        /// The pod's address or gateway.
        address: Ipv4Addr,
    },
    /// Adoption found no tap: nobody holds it open any more.
    #[error("there is no tap {0} in the pod's network namespace; its engine is gone", crate::TAP_NAME)]
    NoTap,
    /// A call to the kernel failed.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Names what a failed system call was for.
pub(crate) trait Context<T> {
    /// Turns the error into [`Error::System`]; `what` completes "cannot …".
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::System { what: what(), source: source.into() })
    }
}
