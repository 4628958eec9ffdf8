//! Work that guest, host and network card leave to each other: features on one side, tap flags on the other. Pure.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO,
};

/// Which of them are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums; without it there is none of the others.
    pub checksum: bool,
    /// Segmentation of TCP.
    pub tcp: bool,
    /// Segmentation of UDP.
    pub udp: bool,
    /// Segmentation of UDP by datagrams too: the tap can (Linux 6.2).
    pub datagrams: bool,
}

const fn bits<const N: usize>(features: [u32; N]) -> u64 {
    let mut bits = 0;
    let mut index = 0;
    while index < N {
        bits |= 1 << features[index];
        index += 1;
    }
    bits
}

const CHECKSUM: u64 = bits([VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM]);
const TCP: u64 = bits([
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
]);
const UDP: u64 = bits([VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_GUEST_UFO]);
const DATAGRAMS: u64 = bits([VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]);

/// Features after which packets to the guest are larger than the network's.
const LARGE: u64 = bits([
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
]);

/// Bytes of an Ethernet header with a VLAN tag.
const ETHERNET: u64 = 18;

/// Bytes of an Ethernet network's packet.
const DEFAULT_MTU: u16 = 1500;

/// Tap flag (`TUN_F_*`, linux/if_tun.h) for each feature of the guest's.
const TAP_FLAGS: [(u32, u32); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, 0x01),
    (VIRTIO_NET_F_GUEST_TSO4, 0x02),
    (VIRTIO_NET_F_GUEST_TSO6, 0x04),
    (VIRTIO_NET_F_GUEST_ECN, 0x08),
    (VIRTIO_NET_F_GUEST_UFO, 0x10),
    (VIRTIO_NET_F_GUEST_USO4, 0x20),
    (VIRTIO_NET_F_GUEST_USO6, 0x40),
];

impl Offloads {
    /// Features to offer.
    #[must_use]
    pub fn features(self) -> u64 {
        let one = |is_wanted, features| if is_wanted { features } else { 0 };
        let others = one(self.tcp, TCP) | one(self.udp, UDP) | one(self.udp && self.datagrams, DATAGRAMS);
        one(self.checksum, CHECKSUM | others)
    }
}

/// What a tap may leave to the guest after it agreed on `features`.
#[must_use]
pub fn tap_flags(features: u64) -> u32 {
    TAP_FLAGS.iter().filter(|(feature, _)| features >> feature & 1 != 0).fold(0, |flags, (_, flag)| flags | flag)
}

/// Bytes of the largest packet that may come after the guest agreed on `features`.
#[must_use]
pub fn largest_packet(features: u64, mtu: Option<u16>) -> u64 {
    let payload = if features & LARGE != 0 { u16::MAX } else { mtu.unwrap_or(DEFAULT_MTU) };
    u64::from(payload) + ETHERNET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_without_checksums() {
        let all = Offloads { checksum: true, tcp: true, udp: true, datagrams: true };
        assert_eq!(Offloads { checksum: false, ..all }.features(), 0);
        assert_eq!(Offloads { tcp: false, udp: false, ..all }.features(), 0b11);
        assert_eq!(Offloads { udp: false, ..all }.features() >> 54, 0);
        assert_eq!(tap_flags(all.features()), 0x7f);
        assert_eq!(tap_flags(CHECKSUM | 1 << VIRTIO_NET_F_GUEST_TSO6), 0x05);
    }

    #[test]
    fn packets_are_large_only_when_the_guest_takes_large_ones() {
        assert_eq!(largest_packet(CHECKSUM, None), 1518);
        assert_eq!(largest_packet(CHECKSUM | bits([VIRTIO_NET_F_HOST_TSO4]), Some(9000)), 9018);
        assert_eq!(largest_packet(1 << VIRTIO_NET_F_GUEST_TSO4, Some(9000)), 65553);
    }
}
