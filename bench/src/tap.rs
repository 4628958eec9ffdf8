//! A tap with an address of the host's, and the descriptors that a VMM wants of it.
#![allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper in the libraries at hand")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::contender;

/// The host's address on the tap. Of the block that is set aside for benchmarks (RFC 2544).
pub const HOST: &str = "198.18.0.1";

const NAME: &str = "vse-bench0";

/// A tap; gone when dropped.
pub struct Tap {
    tap: File,
    vhost: File,
}

impl Tap {
    /// Makes it, with the header of virtio-net, and inheritable: whoever is started has it at the same number.
    pub fn new() -> Result<Self> {
        let open = |path: &str| -> Result<File> {
            let file =
                OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("opening {path}"))?;
            fcntl_setfd(&file, FdFlags::empty())?;
            Ok(file)
        };
        let tap = Self { tap: open("/dev/net/tun")?, vhost: open("/dev/vhost-net")? };
        name(&tap.tap).context("making a tap")?;
        ip(&["addr", "add", &format!("{HOST}/24"), "dev", NAME])?;
        ip(&["link", "set", NAME, "up"])?;
        Ok(tap)
    }

    /// The numbers of its descriptors.
    pub fn descriptors(&self) -> contender::Tap {
        contender::Tap { tap: self.tap.as_raw_fd(), vhost: self.vhost.as_raw_fd() }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("starting ip")?;
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Linux, `Documentation/networking/tuntap.rst`.
fn name(tun: &File) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on this stack frame; the descriptor is open.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
