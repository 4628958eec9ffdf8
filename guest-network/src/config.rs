//! What a caller says about a guest's network, and the addresses that are the same for every guest.

use crate::Error;
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::Ipv4Addr;

/// The guest's address, the same everywhere so that the guest can move between hosts.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The guest's default router and DHCP server: the address of the tap.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// Prefix length of the network between guest and gateway.
pub const PREFIX_LENGTH: u8 = 24;
/// At most this many ports can be exposed one by one; to expose more, expose all.
pub const MAX_PORTS: usize = 256;
/// At most this many queue pairs (the kernel's `MAX_TAP_QUEUES`, drivers/net/tun.c).
pub(crate) const MAX_QUEUES: u16 = 256;

/// What the guest's network shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNetworkConfig {
    /// What the guest's and the gateway's MAC addresses are derived from: something that stays with the guest when
    /// it restarts or moves, such as the VSE's UID.
    pub mac_seed: String,
    /// Ports of the pod that lead to the guest, at most [`MAX_PORTS`]. None named: all traffic to the pod's address
    /// (also ICMP), and all TCP and UDP ports of its loopback.
    pub ports: Vec<PortMapping>,
    /// Name resolution offered to the guest by DHCP.
    pub dns: Dns,
    /// Host name offered to the guest by DHCP: one DNS label.
    pub hostname: String,
    /// Queue pairs of the tap, 1 to 256. More than one makes a multi-queue tap.
    pub queues: u16,
}

/// One exposed port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port at the pod's address.
    pub port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

/// Transport protocol of an exposed port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The protocol's number in the IPv4 header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Name resolution offered to the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Servers, most wanted first. IPv4 only.
    pub servers: Vec<Ipv4Addr>,
    /// Search domains, most wanted first. Those that no longer fit into one DHCP message are left out.
    pub search: Vec<String>,
}

impl Dns {
    /// What a pod's `/etc/resolv.conf` offers that a guest can use: IPv4 servers outside 127.0.0.0/8, and the search
    /// domains. As in resolv.conf(5) the last `search` counts, and what is not understood is skipped.
    pub fn from_resolv_conf(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(|word| word.parse::<Ipv4Addr>().ok());
                    dns.servers.extend(server.filter(|server| !server.is_loopback()));
                }
                Some("search") => dns.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        dns
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The guest's address for this seed.
    pub fn guest(seed: &str) -> Self {
        Self::derive("guest", seed)
    }

    /// The gateway's address for this seed: the same on each host, so that a guest's ARP cache survives a move.
    pub(crate) fn gateway(seed: &str) -> Self {
        Self::derive("gateway", seed)
    }

    /// First octets of a hash, marked as locally administered unicast (IEEE 802, the two lowest bits of octet 0).
    fn derive(role: &str, seed: &str) -> Self {
        let hash = Sha256::new().chain_update(role).chain_update([0]).chain_update(seed).finalize();
        let mut octets = [0; 6];
        octets.copy_from_slice(&hash[..6]);
        octets[0] = (octets[0] & 0b1111_1100) | 0b10;
        Self(octets)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl GuestNetworkConfig {
    /// Refuses what cannot be set up, naming the field.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let invalid = |field, problem: String| Err(Error::Invalid { field, problem });
        if self.ports.len() > MAX_PORTS {
            return invalid(
                "ports",
                format!("{} are named, {MAX_PORTS} can be; name none to expose all", self.ports.len()),
            );
        }
        for (index, mapping) in self.ports.iter().enumerate() {
            if mapping.port == 0 || mapping.guest_port == 0 {
                return invalid("ports", format!("entry {index} names port 0; ports are 1 to 65535"));
            }
            let same = |other: &&PortMapping| other.protocol == mapping.protocol && other.port == mapping.port;
            if self.ports[..index].iter().any(|other| same(&other)) {
                return invalid("ports", format!("{:?} port {} is named twice", mapping.protocol, mapping.port));
            }
        }
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return invalid("queues", format!("{} is not within 1 to {MAX_QUEUES}", self.queues));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuestNetworkConfig {
        GuestNetworkConfig { mac_seed: "a".into(), ports: vec![], dns: Dns::default(), hostname: "a".into(), queues: 1 }
    }

    #[test]
    fn macs_are_stable_local_unicast_and_differ() {
        let guest = Mac::guest("6f1c");
        assert_eq!(guest, Mac::guest("6f1c"));
        assert_ne!(guest, Mac::gateway("6f1c"));
        assert_ne!(guest, Mac::guest("6f1d"));
        for mac in [guest, Mac::gateway("6f1c")] {
            assert_eq!(mac.0[0] & 0b11, 0b10, "{mac}");
        }
    }

    #[test]
    fn resolv_conf_gives_what_a_guest_can_use() {
        let text = "# made by kubelet\nsearch old.example\nsearch ns.svc.cluster.local\tcluster.local\n\
                    nameserver 10.96.0.10\nnameserver fd00::10\nnameserver 127.0.0.53\nnameserver\noptions ndots:5";
        let expected = Dns {
            servers: vec![Ipv4Addr::new(10, 96, 0, 10)],
            search: vec!["ns.svc.cluster.local".into(), "cluster.local".into()],
        };
        assert_eq!(Dns::from_resolv_conf(text), expected);
    }

    #[test]
    fn bad_ports_and_queues_are_refused_by_name() {
        let tcp = |port| PortMapping { protocol: Protocol::Tcp, port, guest_port: port };
        let field = |config: GuestNetworkConfig| match config.validate() {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(GuestNetworkConfig { ports: vec![tcp(0)], ..config() }), "ports");
        assert_eq!(field(GuestNetworkConfig { ports: vec![tcp(1), tcp(1)], ..config() }), "ports");
        assert_eq!(field(GuestNetworkConfig { ports: (1..=257).map(tcp).collect(), ..config() }), "ports");
        assert_eq!(field(GuestNetworkConfig { queues: 0, ..config() }), "queues");
        let both = vec![tcp(53), PortMapping { protocol: Protocol::Udp, ..tcp(53) }];
        assert!(GuestNetworkConfig { ports: both, ..config() }.validate().is_ok());
    }
}
