//! Interfaces, addresses and routes of the network namespace the calling thread is in (rtnetlink).

use crate::config::{GATEWAY, GUEST, Mac, PREFIX_LENGTH};
use crate::error::{Context, Error};
use crate::tap::TAP_NAME;
use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, IfinfoFlags, Ifinfomsg};
use netlink_bindings::rt_route::{self, Rtmsg};
use netlink_bindings::traits::NetlinkRequest;
use netlink_socket2::{NetlinkSocket, ReplyError};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// The pod's outward interface: that of its default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    /// Largest IP packet, in bytes.
    pub(crate) mtu: u32,
}

struct DefaultRoute {
    metric: u32,
    interface: u32,
    gateway: Option<IpAddr>,
}

/// One socket for all requests of one thread.
pub(crate) struct Links(NetlinkSocket);

impl Links {
    pub(crate) fn open() -> Self {
        Self(NetlinkSocket::new())
    }

    /// Reads the pod's outward interface.
    pub(crate) fn uplink(&mut self) -> Result<Uplink, Error> {
        let Some(route) = self.default_route(libc::AF_INET).context(|| "read the pod's routes".into())? else {
            let ipv6 = self.default_route(libc::AF_INET6).context(|| "read the pod's IPv6 routes".into())?;
            return Err(if ipv6.is_some() { Error::Ipv6Only } else { Error::NoDefaultRoute });
        };
        let (name, mtu) =
            self.link(route.interface).context(|| format!("read interface {} of the pod", route.interface))?;
        let addresses = self.addresses(route.interface).context(|| format!("read the addresses of {name}"))?;
        let Some(&address) = addresses.first() else {
            return Err(Error::NoAddress { interface: name });
        };
        let gateway = match route.gateway {
            Some(IpAddr::V4(gateway)) => Some(gateway),
            _ => None,
        };
        if let Some(address) = [Some(address), gateway].into_iter().flatten().find(|address| is_guest_network(*address))
        {
            return Err(Error::NetworkOverlaps { address });
        }
        Ok(Uplink { name, address, mtu })
    }

    /// The tap's index, if there is a tap.
    pub(crate) fn tap(&mut self) -> Result<Option<u32>, Error> {
        let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
        request.encode().push_ifname_bytes(TAP_NAME.as_bytes());
        let mut replies = self.0.request(&request).context(|| format!("look for {TAP_NAME}"))?;
        match replies.recv_one() {
            Ok((header, _)) => Ok(Some(header.ifi_index as u32)),
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error).context(|| format!("look for {TAP_NAME}")),
        }
    }

    /// Gives the tap its MAC address and MTU. Not yet up, a new tap stays so.
    pub(crate) fn shape_tap(&mut self, index: u32, mac: Mac, mtu: u32) -> Result<(), Error> {
        let header = Ifinfomsg { ifi_index: index as i32, ..Ifinfomsg::new() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request.encode().push_address(&mac.0).push_mtu(mtu);
        self.acknowledged(&request).context(|| format!("give {TAP_NAME} MAC address {mac} and MTU {mtu}"))
    }

    /// Brings the tap up with the gateway's address. No error if it is.
    pub(crate) fn raise_tap(&mut self, index: u32) -> Result<(), Error> {
        let up = IfinfoFlags::Up as u32;
        let header = Ifinfomsg { ifi_index: index as i32, ifi_flags: up, ifi_change: up, ..Ifinfomsg::new() };
        let request = rt_link::Request::new().op_setlink_do(&header);
        self.acknowledged(&request).context(|| format!("bring {TAP_NAME} up"))?;
        self.add_gateway(index).context(|| format!("give {TAP_NAME} the address {GATEWAY}"))
    }

    fn acknowledged<R: NetlinkRequest>(&mut self, request: &R) -> Result<(), ReplyError> {
        self.0.request(request)?.recv_ack()
    }

    fn add_gateway(&mut self, index: u32) -> Result<(), ReplyError> {
        let header = Ifaddrmsg {
            ifa_family: libc::AF_INET as u8,
            ifa_prefixlen: PREFIX_LENGTH,
            ifa_index: index,
            ..Ifaddrmsg::new()
        };
        let mut request = rt_addr::Request::new().set_change().op_newaddr_do(&header);
        request.encode().push_local(GATEWAY.into()).push_address(GATEWAY.into());
        self.acknowledged(&request)
    }

    /// Deletes the tap, also while somebody holds it open; their descriptors then only fail.
    pub(crate) fn delete_tap(&mut self) -> Result<(), Error> {
        let Some(index) = self.tap()? else {
            return Ok(());
        };
        let header = Ifinfomsg { ifi_index: index as i32, ..Ifinfomsg::new() };
        let request = rt_link::Request::new().op_dellink_do(&header);
        match self.acknowledged(&request) {
            // Its last holder let go of it in between.
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other.context(|| format!("delete {TAP_NAME}")),
        }
    }

    /// The preferred default route (that of the lowest metric), if any.
    fn default_route(&mut self, family: i32) -> Result<Option<DefaultRoute>, ReplyError> {
        let header = Rtmsg { rtm_family: family as u8, ..Rtmsg::new() };
        let request = rt_route::Request::new().op_getroute_dump(&header);
        let mut replies = self.0.request(&request)?;
        let mut best: Option<DefaultRoute> = None;
        while let Some((route, attributes)) = replies.recv().transpose()? {
            let main = route.rtm_table == libc::RT_TABLE_MAIN && route.rtm_type == libc::RTN_UNICAST;
            if !main || i32::from(route.rtm_family) != family || route.rtm_dst_len != 0 {
                continue;
            }
            let Ok(interface) = attributes.get_oif() else {
                continue;
            };
            let metric = attributes.get_priority().unwrap_or(0);
            if best.as_ref().is_none_or(|best| metric < best.metric) {
                best = Some(DefaultRoute { metric, interface, gateway: attributes.get_gateway().ok() });
            }
        }
        Ok(best)
    }

    fn link(&mut self, index: u32) -> Result<(String, u32), ReplyError> {
        let header = Ifinfomsg { ifi_index: index as i32, ..Ifinfomsg::new() };
        let request = rt_link::Request::new().op_getlink_do(&header);
        let mut replies = self.0.request(&request)?;
        let (_, attributes) = replies.recv_one()?;
        let name = attributes.get_ifname()?.to_str().map_err(io::Error::other)?;
        Ok((name.to_owned(), attributes.get_mtu()?))
    }

    /// The interface's IPv4 addresses of more than link scope, the primary one first.
    fn addresses(&mut self, index: u32) -> Result<Vec<Ipv4Addr>, ReplyError> {
        let header = Ifaddrmsg { ifa_family: libc::AF_INET as u8, ..Ifaddrmsg::new() };
        let request = rt_addr::Request::new().op_getaddr_dump(&header);
        let mut replies = self.0.request(&request)?;
        let mut addresses = Vec::new();
        while let Some((address, attributes)) = replies.recv().transpose()? {
            if address.ifa_index != index || address.ifa_scope >= libc::RT_SCOPE_LINK {
                continue;
            }
            // IFA_ADDRESS is the peer's on point-to-point links.
            if let Ok(IpAddr::V4(local)) = attributes.get_local() {
                addresses.push(local);
            }
        }
        Ok(addresses)
    }
}

/// Whether the address lies in the network between guest and gateway.
fn is_guest_network(address: Ipv4Addr) -> bool {
    let host_bits = 32 - u32::from(PREFIX_LENGTH);
    address.to_bits() >> host_bits == GUEST.to_bits() >> host_bits
}
