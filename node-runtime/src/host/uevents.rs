//! Word from the kernel that the hardware changed: uevents, by netlink (netlink(7), NETLINK_KOBJECT_UEVENT;
//! lib/kobject_uevent.c has the messages' form).

#![allow(unsafe_code, reason = "tokio's safe constructors of AsyncFd are deprecated")]

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// The kernel's own messages; udev's are in group 2.
const KERNEL_GROUP: u32 = 1;
/// Longest message: the kernel's environment of one event is 2 KiB (UEVENT_BUFFER_SIZE), its head a path.
const MAX_MESSAGE: usize = 8 << 10;

/// The kernel's uevents, from the moment this was made.
pub struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Listens.
    pub fn listen() -> std::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::KOBJECT_UEVENT);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        // SAFETY: an `OwnedFd` is one open descriptor, the same for all its life, and nothing takes it out again.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// Until something changed that a Host shows. Safe to cancel.
    pub async fn hardware_changed(&self) -> std::io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| Ok(next_matters(socket.get_ref())?)) {
                Ok(Ok(true)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(false)) | Err(_) => {}
            }
        }
    }
}

fn next_matters(socket: &OwnedFd) -> rustix::io::Result<bool> {
    let mut buffer = [0; MAX_MESSAGE];
    match recvfrom(socket, &mut buffer[..], RecvFlags::empty()) {
        Ok((length, _, from)) => {
            // Others may send to this socket too; the kernel is port 0.
            let by_kernel = from.and_then(|from| SocketAddrNetlink::try_from(from).ok()).is_some_and(|a| a.pid() == 0);
            Ok(by_kernel && matters(&buffer[..length]))
        }
        // Messages were lost; any of them may have mattered.
        Err(Errno::NOBUFS) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether a message (`ACTION@DEVPATH`, then `KEY=VALUE`s, each ended by a zero byte) is of something a Host shows: PCI
/// functions and their drivers, CPUs, memory, or /dev/kvm.
fn matters(message: &[u8]) -> bool {
    let value = |key: &[u8]| message.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(key));
    match value(b"SUBSYSTEM=") {
        Some(b"pci" | b"cpu" | b"memory" | b"node") => true,
        Some(b"misc") => value(b"DEVNAME=") == Some(b"kvm"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_host_shows_matters() {
        let bound = b"bind@/devices/pci0000:00/0000:00:04.0\0ACTION=bind\0DEVPATH=/devices/pci0000:00/0000:00:04.0\0\
            SUBSYSTEM=pci\0DRIVER=vfio-pci\0PCI_SLOT_NAME=0000:00:04.0\0SEQNUM=4711\0";
        assert!(matters(bound));
        assert!(matters(b"offline@/devices/system/cpu/cpu3\0ACTION=offline\0SUBSYSTEM=cpu\0"));
        assert!(matters(b"add@/devices/virtual/misc/kvm\0SUBSYSTEM=misc\0MAJOR=10\0DEVNAME=kvm\0"));
        assert!(!matters(b"add@/devices/virtual/misc/fuse\0SUBSYSTEM=misc\0DEVNAME=fuse\0"));
        assert!(!matters(b"add@/devices/virtual/net/veth1\0SUBSYSTEM=net\0INTERFACE=veth1\0"));
        for nonsense in [&b""[..], b"\0\0\0", b"SUBSYSTEM", b"SUBSYSTEM=", &[0xff; 100]] {
            assert!(!matters(nonsense));
        }
    }

    /// Writing to a device's `uevent` file has the kernel say an event of it again (sysfs-uevent), changing nothing.
    #[tokio::test]
    async fn a_real_event_is_heard() {
        let uevents = Uevents::listen().unwrap();
        if std::fs::write("/sys/devices/system/cpu/cpu0/uevent", "change").is_err() {
            eprintln!("not root, or /sys is read-only: no event can be made");
            return;
        }
        let heard = tokio::time::timeout(std::time::Duration::from_secs(10), uevents.hardware_changed()).await;
        heard.expect("an event of a CPU is heard").unwrap();
    }
}
