//! A tap: one queue of a network interface of the host's, packets with a virtio header before them.
#![allow(unsafe_code, reason = "a tap is configured by ioctls")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Bytes of `struct virtio_net_hdr_v1`.
pub const HEADER: usize = 12;

// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// All that a tap may leave to the guest, and without what came in Linux 6.2.
const ALL: u32 = 0x7f;
const WITHOUT_DATAGRAMS: u32 = 0x1f;

/// Begin of `struct ifreq`, up to the flags.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

impl Request {
    fn new(name: &str, flags: u16) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
        let room = libc::IFNAMSIZ - 1;
        request.name[..room].iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        request
    }
}

/// One open queue of a tap.
pub struct Tap {
    file: File,
    /// Packets go through it. One of several queues may rest.
    is_attached: bool,
    is_multi_queue: bool,
    /// Not a tap but a socket that keeps packets apart.
    #[cfg(test)]
    is_socket: bool,
}

impl Tap {
    /// Takes an open tap and prepares it: 12 bytes of header, no waiting.
    ///
    /// # Errors
    /// When it is none, or has no virtio header.
    pub fn new(file: File) -> io::Result<Self> {
        let mut request = Request::new("", 0);
        // SAFETY: TUNGETIFF writes a `struct ifreq`, which `Request` is as large as.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF, &raw mut request) })?;
        if request.flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) != IFF_TAP | IFF_NO_PI | IFF_VNET_HDR {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a tap with virtio headers (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR)",
            ));
        }
        let size = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })?;
        fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
        let is_multi_queue = request.flags & IFF_MULTI_QUEUE != 0;
        Ok(Self {
            file,
            // The guest before may have left it at rest.
            is_attached: request.flags & IFF_DETACH_QUEUE == 0,
            is_multi_queue,
            #[cfg(test)]
            is_socket: false,
        })
    }

    /// Opens queues of the tap with this name, which may be there already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(name: &str, queues: u16) -> io::Result<Vec<Self>> {
        let multi_queue = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | multi_queue;
        let open = |_| {
            let file = File::options().read(true).write(true).open("/dev/net/tun")?;
            let request = Request::new(name, flags);
            // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which `Request` is as large as.
            check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const request) })?;
            Self::new(file)
        };
        (0..queues).map(open).collect()
    }

    /// Whether it can leave segmentation of UDP by datagrams to the guest. It leaves nothing to it afterwards.
    ///
    /// # Errors
    /// When it can't leave the rest either.
    pub fn probe_datagrams(&self) -> io::Result<bool> {
        let knows_datagrams = self.set_offload(ALL).is_ok();
        if !knows_datagrams {
            self.set_offload(WITHOUT_DATAGRAMS)?;
        }
        self.set_offload(0)?;
        Ok(knows_datagrams)
    }

    /// What it may leave to the guest (`TUN_F_*`).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_offload(&self, flags: u32) -> io::Result<()> {
        #[cfg(test)]
        if self.is_socket {
            return Ok(());
        }
        // SAFETY: TUNSETOFFLOAD takes the flags themselves.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    }

    /// Lets packets go through this queue, or through the others only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, attach: bool) -> io::Result<()> {
        if self.is_multi_queue && attach != self.is_attached {
            let request = Request::new("", if attach { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE });
            // SAFETY: TUNSETQUEUE reads a `struct ifreq`, which `Request` is as large as.
            check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETQUEUE, &raw const request) })?;
            self.is_attached = attach;
        }
        Ok(())
    }

    /// The open file, for vhost.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A socket in a tap's place.
    #[cfg(test)]
    pub fn of_socket(socket: std::os::fd::OwnedFd) -> Self {
        Self { file: socket.into(), is_attached: true, is_multi_queue: false, is_socket: true }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
