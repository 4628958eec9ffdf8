//! The guest's side of a pod's network: tap, address translation and DHCP inside the pod's network namespace.
//!
//! ```text
//!        pod's network namespace
//!  ┌──────────────────────────────────────────────┐
//!  │ eth0  pod address          vse0  10.0.2.1/24 ├── tap ── engine ── guest 10.0.2.2/24
//!  │   └────── nf_tables table `vse` ──────┘      │
//!  │           lo 127.0.0.1 (kubectl port-forward)│
//!  └──────────────────────────────────────────────┘
//! ```
//!
//! What the guest sends leaves from the pod's address. The exposed ports of the pod's address and of the pod's
//! loopback reach the guest. The guest reaches nothing of the pod itself but DHCP and ping.
//!
//! [`attach`] may be called at any time and again: it converges, also after its caller was killed between any two
//! of its steps. The tap is not persistent: it lives as long as somebody (in the end the engine) holds it open.
//!
//! IPv4 only. A guest cannot reach other addresses within 10.0.2.0/24: they are its own network.
//!
//! This crate knows nothing of Kubernetes, takes no decision about a guest's life, and runs no programs.

mod attach;
mod config;
mod dhcp;
mod error;
mod links;
mod netns;
mod nft;
mod responder;
mod rules;
mod sysctl;
mod tap;
#[cfg(test)]
mod tests;

pub use attach::{Attached, Tap, adopt, attach, detach};
pub use config::{Dns, GATEWAY, GUEST, GuestNetworkConfig, MAX_PORTS, Mac, PREFIX_LENGTH, PortMapping, Protocol};
pub use error::Error;
pub use responder::DhcpResponder;
pub use tap::TAP_NAME;
