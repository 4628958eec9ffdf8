//! The operations: what is done in which order.

use crate::config::{GUEST, GuestNetworkConfig, Mac};
use crate::dhcp::Offer;
use crate::links::{Links, Uplink};
use crate::responder::{self, DhcpResponder};
use crate::{Error, netns, nft, rules, sysctl, tap};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};

/// A guest's network, set up. Dropping it ends DHCP, and the tap if this holds its only descriptors.
#[derive(Debug)]
pub struct Attached {
    /// The tap.
    pub tap: Tap,
    /// The MAC address the engine must give the guest's network card: DHCP answers no other.
    pub mac: Mac,
    /// Largest IP packet in bytes, the pod interface's. The guest learns it by DHCP.
    pub mtu: u32,
    /// The guest's own address.
    pub guest_address: Ipv4Addr,
    /// The address the guest is reached at.
    pub pod_address: Ipv4Addr,
    /// Answers the guest's DHCP questions while it lives.
    pub dhcp: DhcpResponder,
}

/// Who holds the tap.
#[derive(Debug)]
pub enum Tap {
    /// Made just now: one descriptor per queue, non-blocking, with virtio-net headers. For the engine.
    Created(Vec<OwnedFd>),
    /// It was there: an engine holds it.
    InUse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Refuse,
}

/// Sets up the guest's network in a pod's network namespace, or verifies and repairs what is there.
///
/// Safe to repeat, also after the caller was killed at any point. Connections of a running guest go on. Needs a
/// tokio runtime with I/O and time, and `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` over the namespace.
pub async fn attach(netns: BorrowedFd<'_>, config: &GuestNetworkConfig) -> Result<Attached, Error> {
    set_up(netns, config, Missing::Create).await
}

/// As [`attach`] for a guest that runs: [`Error::NoTap`] if its tap is gone.
pub async fn adopt(netns: BorrowedFd<'_>, config: &GuestNetworkConfig) -> Result<Attached, Error> {
    set_up(netns, config, Missing::Refuse).await
}

/// Removes tap and rules from a pod's network namespace. Nothing to remove is no error.
pub async fn detach(netns: BorrowedFd<'_>) -> Result<(), Error> {
    netns::inside(netns, || {
        // The tap first: a guest without rules would not be confined.
        Links::open().delete_tap()?;
        nft::remove()
    })
    .await
}

async fn set_up(netns: BorrowedFd<'_>, config: &GuestNetworkConfig, missing: Missing) -> Result<Attached, Error> {
    config.validate()?;
    let mac = Mac::guest(&config.mac_seed);
    // Checked before anything is changed; the MTU is known later.
    let offer = Offer::new(mac, &config.hostname, &config.dns)?;
    let wanted = config.clone();
    let Made { tap, uplink, socket } = netns::inside(netns, move || make(&wanted, missing)).await?;
    let dhcp = responder::start(socket, offer.with_mtu(uplink.mtu))?;
    Ok(Attached { tap, mac, mtu: uplink.mtu, guest_address: GUEST, pod_address: uplink.address, dhcp })
}

struct Made {
    tap: Tap,
    uplink: Uplink,
    socket: UdpSocket,
}

/// Inside the namespace. Rules come before the tap, so that no guest is ever connected without them.
fn make(config: &GuestNetworkConfig, missing: Missing) -> Result<Made, Error> {
    let mut links = Links::open();
    let uplink = links.uplink()?;
    let existing = links.tap()?;
    if existing.is_none() && missing == Missing::Refuse {
        return Err(Error::NoTap);
    }
    nft::replace(&rules::ruleset(&uplink.name, uplink.address, &config.ports))?;
    sysctl::for_namespace()?;
    let tap = match existing {
        Some(_) => Tap::InUse,
        None => Tap::Created(tap::create(config.queues)?),
    };
    let index = links.tap()?.ok_or(Error::NoTap)?;
    // The MTU before the settings: below 1280 the kernel forgets those for IPv6.
    links.shape_tap(index, Mac::gateway(&config.mac_seed), uplink.mtu)?;
    sysctl::for_tap()?;
    links.raise_tap(index)?;
    Ok(Made { tap, uplink, socket: responder::socket()? })
}
