//! The launch order: what a node runtime tells the launcher of a VM pod to become.
//!
//! Owns the wire format, the sending and receiving of descriptors, and the safe way to a socket that lies in a
//! directory of an untrusted pod. It decides nothing: what to run is the node runtime's business, how to become it
//! the launcher's.
//!
//! ```text
//!  node runtime                                     launcher
//!      │ header: magic "VSEL", version u16, 0 u16, length of the body u32   (little endian)
//!      │ body: the order as JSON, at most 256 KiB
//!      │ per 253 descriptors: one byte carrying them as SCM_RIGHTS
//!      ├──────────────────────────────────────────────►│ checks, places the descriptors
//!      │◄──────────────────────────────────────────────┤ "+"  (about to execve)
//!      │◄──────────────────────────────────────────────┤ end of file: the execve closed the socket
//!      │                                               │ or "-" and the error as text
//! ```
//!
//! An end of file without a `+` is a launcher that died; an end of file after it is success.

mod connect;
mod order;
mod peer;
mod receive;
mod send;
mod wire;

pub use connect::{ConnectError, Connection, connect_beneath};
pub use order::{Descriptor, InvalidOrder, LaunchOrder, MAX_DESCRIPTORS, TARGETS};
pub use peer::{Peer, peer};
pub use receive::{Patience, ReceiveError, Received, answer_accepted, answer_refused, receive};
pub use send::{SendError, send};
pub use wire::InvalidHeader;
