//! A pod's network with real kernels at every end: *outside* — veth — *pod* — tap — *guest*, each a network
//! namespace. The guest's network card is a tap of its own, joined to the pod's frame by frame.
//!
//! Needs root, and iproute2, nftables, util-linux and busybox (its DHCP client).

mod lab;

use crate::*;
use lab::{Lab, Namespace, POD, connect, exchange, root_or_skip};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;

fn tcp(port: u16, guest_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp, port, guest_port }
}

fn config(ports: &[PortMapping]) -> GuestNetworkConfig {
    GuestNetworkConfig {
        mac_seed: "5b0f8a52".into(),
        ports: ports.to_vec(),
        dns: Dns { servers: vec![Ipv4Addr::new(10, 96, 0, 10)], search: vec!["ns.svc.cluster.local".into()] },
        hostname: "vse-0".into(),
        queues: 1,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_lives_behind_its_pod() {
    root_or_skip!();
    let mut lab = Lab::new();
    let web = config(&[tcp(8080, 80)]);
    let attached = attach(lab.pod.netns(), &web).await.unwrap();
    assert_eq!((attached.pod_address, attached.mtu), (POD, 1400));
    let Tap::Created(queues) = attached.tap else { panic!("fresh namespace") };
    lab.plug_in_guest(queues, attached.mac);

    // DHCP, by a real client.
    let lease = lab.dhcp();
    let told = |name: &str| lease.get(name).map(String::as_str);
    assert_eq!((told("ip"), told("mask"), told("router")), (Some("10.0.2.2"), Some("24"), Some("10.0.2.1")));
    assert_eq!((told("dns"), told("search")), (Some("10.96.0.10"), Some("ns.svc.cluster.local")));
    assert_eq!((told("hostname"), told("mtu"), told("serverid")), (Some("vse-0"), Some("1400"), Some("10.0.2.1")));

    // Out: from the pod's address.
    let server = lab.outside.within(|| TcpListener::bind("192.0.2.1:7000").unwrap());
    let client = lab.guest.within(|| connect("192.0.2.1:7000").unwrap());
    let (served, peer) = server.accept().unwrap();
    assert_eq!(peer.ip(), POD);
    exchange(&client, &served);

    // In: the exposed port, with the client's own address.
    let web_server = lab.guest.within(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let client = lab.outside.within(|| connect("192.0.2.2:8080").unwrap());
    let (kept, peer) = web_server.accept().unwrap();
    assert_eq!(peer.ip(), Ipv4Addr::new(192, 0, 2, 1));
    exchange(&client, &kept);
    // Not in: any other.
    assert_eq!(lab.outside.within(|| connect("192.0.2.2:80")).unwrap_err().kind(), ErrorKind::ConnectionRefused);

    // In from the pod's loopback, as kubectl port-forward does, and from its own address.
    for (address, seen_as) in [("127.0.0.1:8080", GATEWAY), ("192.0.2.2:8080", POD)] {
        let local = lab.pod.within(|| connect(address).unwrap());
        let (served, peer) = web_server.accept().unwrap();
        assert_eq!(peer.ip(), seen_as);
        exchange(&local, &served);
    }
    // The guest reaches itself by the pod's address.
    let local = lab.guest.within(|| connect("192.0.2.2:8080").unwrap());
    exchange(&local, &web_server.accept().unwrap().0);

    // A restarted caller adopts; the connection opened before goes on, and DHCP too.
    drop(attached.dhcp);
    let adopted = adopt(lab.pod.netns(), &web).await.unwrap();
    assert!(matches!(adopted.tap, Tap::InUse));
    assert_eq!(adopted.mac, attached.mac);
    exchange(&client, &kept);
    assert_eq!(lab.dhcp()["ip"], "10.0.2.2");

    // Other ports take the place of the old ones; none named are all.
    let other = attach(lab.pod.netns(), &config(&[])).await.unwrap();
    assert!(matches!(other.tap, Tap::InUse));
    let client = lab.outside.within(|| connect("192.0.2.2:80").unwrap());
    exchange(&client, &web_server.accept().unwrap().0);
    let local = lab.pod.within(|| connect("127.0.0.1:80").unwrap());
    exchange(&local, &web_server.accept().unwrap().0);
    assert!(lab.outside.succeeds("busybox ping -c 1 -W 2 192.0.2.2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_is_kept_from_the_pods_own_services() {
    root_or_skip!();
    let mut lab = Lab::new();
    let attached = attach(lab.pod.netns(), &config(&[tcp(8080, 80)])).await.unwrap();
    let Tap::Created(queues) = attached.tap else { panic!("fresh namespace") };
    lab.plug_in_guest(queues, attached.mac);
    lab.dhcp();

    let udp = |address: &'static str| {
        let socket = lab.pod.within(|| UdpSocket::bind(address).unwrap());
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let services = [udp("127.0.0.1:9000"), udp("0.0.0.0:9001")];
    let guest = lab.guest.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    // The guest's loopback is down, so these leave by its network card.
    for target in ["127.0.0.1:9000", "127.0.0.1:9001", "10.0.2.1:9001", "192.0.2.2:9001"] {
        guest.send_to(b"let me in", target).unwrap();
    }
    // Another address than its own, towards the outside.
    let outside = lab.outside.within(|| UdpSocket::bind("192.0.2.1:9002").unwrap());
    outside.set_nonblocking(true).unwrap();
    lab.guest.run("ip address add 10.0.2.77/24 dev eth0");
    let liar = lab.guest.within(|| UdpSocket::bind("10.0.2.77:0").unwrap());
    liar.send_to(b"not me", "192.0.2.1:9002").unwrap();

    // The tap keeps the order of packets: what comes back from a ping shows that all before it were handled.
    assert!(lab.guest.succeeds("busybox ping -c 1 -W 2 10.0.2.1"));
    assert!(lab.guest.succeeds("busybox ping -c 1 -W 2 192.0.2.1"));
    for socket in services.iter().chain([&outside]) {
        let received = socket.recv_from(&mut [0; 64]);
        assert_eq!(received.as_ref().map_err(|e| e.kind()), Err(ErrorKind::WouldBlock), "{socket:?}");
    }
    // The services do work for the pod itself.
    let pod = lab.pod.within(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    pod.send_to(b"hello", "127.0.0.1:9000").unwrap();
    assert_eq!(services[0].recv(&mut [0; 64]).unwrap(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_read_as_intended_and_detach_leaves_nothing() {
    root_or_skip!();
    let lab = Lab::new();
    let dns = PortMapping { protocol: Protocol::Udp, port: 53, guest_port: 53 };
    let config = config(&[tcp(8080, 80), dns]);
    let attached = attach(lab.pod.netns(), &config).await.unwrap();
    assert_eq!(lab.pod.output("nft --numeric-priority list table ip vse"), include_str!("ruleset.nft"));

    // Losing the only descriptors is losing the tap; attaching again makes a new one.
    drop(attached);
    assert!(matches!(adopt(lab.pod.netns(), &config).await, Err(Error::NoTap)));
    let four = GuestNetworkConfig { queues: 4, ..config.clone() };
    let attached = attach(lab.pod.netns(), &four).await.unwrap();
    assert!(matches!(&attached.tap, Tap::Created(queues) if queues.len() == 4));

    for _ in 0..2 {
        detach(lab.pod.netns()).await.unwrap();
        assert_eq!(lab.pod.output("nft list ruleset"), "");
        assert!(!lab.pod.succeeds(&format!("ip link show {TAP_NAME}")));
    }
}

/// Stands for a caller killed after any of its steps, too: what it had not done is missing in the same way.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_missing_is_put_back() {
    root_or_skip!();
    let mut lab = Lab::new();
    let config = config(&[tcp(8080, 80)]);
    let attached = attach(lab.pod.netns(), &config).await.unwrap();
    let Tap::Created(queues) = attached.tap else { panic!("fresh namespace") };
    lab.plug_in_guest(queues, attached.mac);
    lab.dhcp();
    let server = lab.guest.within(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let expected = lab.pod.output("ip -o address show dev vse0 && ip -o link show dev vse0");
    for damage in [
        "nft delete table ip vse",
        "nft delete chain ip vse postrouting",
        "nft insert rule ip vse forward drop",
        "ip link set vse0 down",
        "ip address flush dev vse0",
        "ip link set vse0 mtu 600",
        "ip link set vse0 address 02:00:00:00:00:09",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
        "echo 0 > /proc/sys/net/ipv4/conf/vse0/route_localnet",
        "echo 0 > /proc/sys/net/ipv6/conf/vse0/disable_ipv6",
    ] {
        lab.pod.run(damage);
        let again = adopt(lab.pod.netns(), &config).await.unwrap();
        assert!(matches!(again.tap, Tap::InUse), "{damage}");
        for (namespace, address) in [(&lab.outside, "192.0.2.2:8080"), (&lab.pod, "127.0.0.1:8080")] {
            let client = namespace.within(|| connect(address));
            let client = client.unwrap_or_else(|error| panic!("{address} after {damage}: {error}"));
            exchange(&client, &server.accept().unwrap().0);
        }
        assert_eq!(lab.pod.output("ip -o address show dev vse0 && ip -o link show dev vse0"), expected, "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_all_or_nothing() {
    root_or_skip!();
    let pod = Namespace::new();
    let good = rules::ruleset("eth0", lab::POD, &[]);
    pod.within(|| nft::replace(&good)).unwrap();
    let before = pod.output("nft list ruleset");
    let mut bad = rules::ruleset("eth0", lab::POD, &[tcp(1, 1)]);
    bad.retain(|chain| chain.name != "exposed");
    let refused = pod.within(|| nft::replace(&bad)).unwrap_err();
    let Error::System { source, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(source.kind(), ErrorKind::NotFound);
    assert_eq!(pod.output("nft list ruleset"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_ports_as_promised_fit_one_batch() {
    root_or_skip!();
    let lab = Lab::new();
    let ports: Vec<_> = (1..=MAX_PORTS as u16).map(|port| tcp(port, port)).collect();
    let attached = attach(lab.pod.netns(), &config(&ports)).await.unwrap();
    let rules = lab.pod.output("nft list chain ip vse exposed");
    assert_eq!(rules.matches("dnat to 10.0.2.2:").count(), MAX_PORTS);
    drop(attached);
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_that_cannot_work_are_refused_untouched() {
    root_or_skip!();
    let config = config(&[]);
    let host = std::fs::File::open("/proc/self/ns/net").unwrap();
    assert!(matches!(attach(host.as_fd(), &config).await, Err(Error::HostNamespace)));
    let no_namespace = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(attach(no_namespace.as_fd(), &config).await, Err(Error::System { .. })));

    let pod = Namespace::new();
    let refusal = async || attach(pod.netns(), &config).await.unwrap_err();
    assert!(matches!(refusal().await, Error::NoDefaultRoute));
    pod.run("ip link add eth0 type veth peer name eth1 && ip link set eth0 up && ip link set eth1 up");
    pod.run("ip -6 route add default dev eth0");
    assert!(matches!(refusal().await, Error::Ipv6Only));
    pod.run("ip route add default dev eth0");
    assert!(matches!(refusal().await, Error::NoAddress { interface } if interface == "eth0"));
    pod.run("ip address add 10.0.2.9/32 dev eth0");
    assert!(matches!(refusal().await, Error::NetworkOverlaps { address } if address == Ipv4Addr::new(10, 0, 2, 9)));
    assert_eq!(pod.output("nft list ruleset"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_floods_still_gets_its_address() {
    root_or_skip!();
    let mut lab = Lab::new();
    let attached = attach(lab.pod.netns(), &config(&[])).await.unwrap();
    let Tap::Created(queues) = attached.tap else { panic!("fresh namespace") };
    lab.plug_in_guest(queues, attached.mac);
    lab.dhcp();
    let flood = lab.guest.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let to: SocketAddr = "10.0.2.1:67".parse().unwrap();
    for size in (0..20_000usize).map(|i| i * 7919 % 1472) {
        // The kernel may refuse when its queues are full.
        let _ = flood.send_to(&vec![size as u8; size], to);
    }
    assert_eq!(lab.dhcp()["ip"], "10.0.2.2");
}
