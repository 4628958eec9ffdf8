//! Making the tap: the one place that talks to `/dev/net/tun` (Linux `Documentation/networking/tuntap.rst`).
#![allow(unsafe_code)] // TUNSETIFF has no safe wrapper in the libraries at hand

use crate::error::{Context, Error};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Name of the tap in the pod's network namespace.
pub const TAP_NAME: &str = "vse0";

/// Makes the tap, down and without address, in the calling thread's network namespace; one descriptor per queue.
///
/// Frames carry a virtio-net header. The tap is gone when the last descriptor is closed. `EBUSY` if it exists.
pub(crate) fn create(queues: u16) -> Result<Vec<OwnedFd>, Error> {
    let multi = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi;
    // The first queue must make the device (IFF_TUN_EXCL), so that nobody else's is ever joined.
    (0..queues).map(|queue| open_queue(if queue == 0 { flags | libc::IFF_TUN_EXCL } else { flags })).collect()
}

fn open_queue(flags: i32) -> Result<OwnedFd, Error> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context(|| "open /dev/net/tun (is the tun module loaded?)".into())?;
    // SAFETY: `ifreq` is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP_NAME.bytes()) {
        *to = from as libc::c_char;
    }
    // All flags are below 1 << 16; the field is a C short holding the bits.
    request.ifr_ifru.ifru_flags = flags as u16 as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on this stack frame; the descriptor is open.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context(|| format!("make the tap {TAP_NAME}"));
    }
    Ok(tun.into())
}
