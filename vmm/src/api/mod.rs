//! Cloud Hypervisor's REST API over a unix socket: HTTP/1.1, JSON.
//!
//! ```text
//!   socket ─► connection ─► http::parse ─► routes::command ─► (vmm decides and acts) ─► http::Response ─► socket
//! ```
//!
//! Nothing here has a thread: whoever owns the guest polls these sockets along with the guest's events, and answers one
//! request after the other. Sizes, counts and descriptors are bounded, whatever a client sends.

pub mod connection;
pub mod http;
pub mod routes;
pub mod server;

pub use http::{Method, Response, Status};
pub use routes::Command;
pub use server::{Call, Server};
