//! Who is at the other end of a socket.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The process at the other end when the connection was made (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process id; `None` when it is not visible in our pid namespace.
    pub pid: Option<i32>,
    /// Its effective user id as our user namespace maps it; an unmapped user shows as the overflow id (65534).
    pub uid: u32,
}

/// Asks the kernel for the peer of a connected unix socket. For a connection that was made with `connect`, that is
/// the process which called `listen`.
///
/// # Errors
/// Whatever `getsockopt` returns, for example when it is no socket.
pub fn peer(socket: &impl AsFd) -> io::Result<Peer> {
    let credentials = getsockopt(&socket.as_fd(), PeerCredentials)?;
    Ok(Peer { pid: Some(credentials.pid()).filter(|&pid| pid > 0), uid: credentials.uid() })
}
