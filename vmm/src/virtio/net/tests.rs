use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::*;
use crate::virtio::testing::{BUFFERS, Bench, Ring, input, output};

/// Features that a driver may do without.
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const EVENT_IDX: u64 = 1 << 29;
const MQ: u64 = 1 << VIRTIO_NET_F_MQ;

const ROOM: u64 = BUFFERS + 0x10_0000;

fn options() -> NetOptions {
    NetOptions {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: Some(1400),
        queue_size: 256,
        offload_tcp: true,
        offload_udp: true,
        offload_checksums: true,
    }
}

/// An interface whose other ends are sockets.
fn wired(pairs: usize) -> (Net, Vec<OwnedFd>) {
    let pair = |_| {
        let (here, there) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
        (Tap::of_socket(here), there)
    };
    let (taps, ends) = (0..pairs).map(pair).unzip();
    (Net::new(taps, Vec::new(), &options(), None).unwrap(), ends)
}

/// Room for a packet, as Linux makes it: 1526 bytes each.
fn give_room(ring: &mut Ring, count: u64) {
    for place in 0..count {
        ring.add(&[output(ROOM + place * 2048, 1526)]);
    }
    ring.kick();
}

fn packet(length: usize) -> Vec<u8> {
    (0..length).map(|at| if at < HEADER { 0 } else { (at % 253) as u8 }).collect()
}

#[test]
fn packets_from_the_guest_leave_as_they_are() {
    for without in [0, EVENT_IDX, MERGE] {
        let (net, ends) = wired(1);
        let mut bench = Bench::new(net, without);
        for length in [60, 1514, 60_000] {
            let packet = packet(length);
            bench.rings[1].put(BUFFERS, &packet);
            let pieces = [input(BUFFERS, 12), input(BUFFERS + 12, 20), input(BUFFERS + 32, length as u32 - 32)];
            assert_eq!(bench.exchange(1, &pieces), 0);
            let mut sent = vec![0; 70_000];
            let (_, length) = recv(&ends[0], &mut sent[..], RecvFlags::empty()).unwrap();
            assert_eq!(sent[..length], packet);
        }
        let counts = bench.device.counters();
        let bytes = (60 + 1514 + 60_000 - 3 * HEADER) as u64;
        assert_eq!(counts, [("rx_bytes", 0), ("rx_frames", 0), ("tx_bytes", bytes), ("tx_frames", 3)]);
    }
}

#[test]
fn packets_to_the_guest_take_as_many_buffers_as_they_need() {
    let (net, ends) = wired(1);
    let mut bench = Bench::new(net, 0);
    give_room(&mut bench.rings[0], 100);
    for length in [72, 1526, 1527, 60_000] {
        let packet = packet(length);
        send(&ends[0], &packet, SendFlags::empty()).unwrap();
        let mut received = Vec::new();
        let mut buffers = 0;
        while received.len() < length {
            let (head, written) = bench.rings[0].wait(&bench.recorder);
            received.extend(bench.rings[0].bytes(ROOM + u64::from(head) * 2048, written as usize));
            buffers += 1;
        }
        assert_eq!(buffers, length.div_ceil(1526));
        assert_eq!(received[10..12], (buffers as u16).to_le_bytes());
        received[10..12].fill(0);
        assert_eq!(received, packet);
    }
    let bytes = (72 + 1526 + 1527 + 60_000 - 4 * HEADER) as u64;
    assert_eq!(bench.device.counters()[..2], [("rx_bytes", bytes), ("rx_frames", 4)]);
}

#[test]
fn packets_wait_in_the_tap_until_there_is_room() {
    for without in [0, MERGE, EVENT_IDX] {
        let (net, ends) = wired(1);
        let mut bench = Bench::new(net, without);
        for number in 1..=4_u8 {
            send(&ends[0], &[number; 100], SendFlags::empty()).unwrap();
        }
        // One page is not enough for the largest packet, when it may take several buffers.
        bench.rings[0].add(&[output(ROOM, 4096)]);
        bench.rings[0].kick();
        for number in 1..=4_u8 {
            bench.rings[0].add(&[output(ROOM + u64::from(number) * 0x2_0000, 70_000)]);
            bench.rings[0].kick();
            let (head, written) = bench.rings[0].wait(&bench.recorder);
            assert_eq!(written, 100);
            assert_eq!(bench.rings[0].bytes(ROOM + u64::from(head) * 0x2_0000 + 12, 88), [number; 88]);
        }
    }
}

#[test]
fn a_pause_puts_room_back_and_packets_go_on_in_another_process() {
    let (net, ends) = wired(2);
    let mut bench = Bench::new(net, 0);
    give_room(&mut bench.rings[0], 100);
    send(&ends[0], &packet(100), SendFlags::empty()).unwrap();
    bench.rings[0].wait(&bench.recorder);
    // Both pairs, by the control queue.
    bench.rings[4].put(BUFFERS, &[4, 0, 2, 0]);
    assert_eq!(bench.exchange(4, &[input(BUFFERS, 2), input(BUFFERS + 2, 2), output(BUFFERS + 8, 1)]), 1);
    assert_eq!(bench.rings[4].get(BUFFERS + 8), [0]);
    bench.device.pause();
    let states = bench.device.queue_states();
    assert_eq!(states[0].map(|state| (state.next_avail, state.next_used)), Some((1, 1)));
    let Saved::State(unit) = bench.device.save() else { panic!("it has state") };
    send(&ends[0], &packet(200), SendFlags::empty()).unwrap();
    bench.device.resume().unwrap();
    assert_eq!(bench.rings[0].wait(&bench.recorder).1, 200);

    bench.device.pause();
    let states = bench.device.queue_states();
    let (mut other, ends) = wired(2);
    other.restore(&unit).unwrap();
    bench.device = other;
    bench.activate(&states);
    send(&ends[0], &packet(300), SendFlags::empty()).unwrap();
    assert_eq!(bench.rings[0].wait(&bench.recorder).1, 300);
    bench.device.pause();
    assert_eq!(bench.device.save(), Saved::State(unit.clone()));
    bench.device.reset();
    assert_ne!(bench.device.save(), Saved::State(unit.clone()));
    assert!(matches!(wired(1).0.restore(&unit), Err(InvalidState::Damaged { .. })));
}

#[test]
fn every_queue_has_a_state_and_nothing_else_has() {
    for pairs in 1..=2 {
        let mut bench = Bench::new(wired(pairs).0, 0);
        bench.device.pause();
        assert_eq!(bench.device.queue_states().len(), bench.device.queue_sizes().len(), "{pairs} pairs");
    }
}

#[test]
fn the_control_queue_refuses_what_it_does_not_know() {
    let (net, _ends) = wired(2);
    // Without MQ, it is the third.
    for (without, queue) in [(0, 4), (MQ, 2)] {
        let mut bench = Bench::new(if without == 0 { wired(2).0 } else { wired(3).0 }, without);
        for command in [&[4, 0, 0, 0][..], &[4, 0, 9, 0], &[4, 1, 1, 0], &[0, 0, 1, 0], &[4, 0, 1], &[]] {
            bench.rings[queue].put(BUFFERS, command);
            let pieces = [input(BUFFERS, command.len() as u32), output(BUFFERS + 8, 1)];
            assert_eq!(bench.exchange(queue, &pieces), 1);
            assert_eq!(bench.rings[queue].get(BUFFERS + 8), [1], "{command:?}");
        }
    }
    assert_eq!(net.queue_sizes().len(), 5);
}

#[test]
fn room_too_small_for_a_header_stops_the_queue() {
    let (net, _ends) = wired(1);
    let mut bench = Bench::new(net, 0);
    bench.rings[0].add(&[output(ROOM, 11)]);
    bench.rings[0].kick();
    bench.recorder.wait("a reset asked for", |seen| seen.needs_reset.then_some(()));
    bench.device.reset();
    bench.activate(&[]);
}

#[test]
fn configuration_says_what_was_asked_for() {
    let (net, _ends) = wired(2);
    let mut config = [0xff; 14];
    net.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 2, 0, 120, 5, 0xff, 0xff]);
    assert_eq!(net.features() & 1 << 40, 0);
}

/// Runs `test` in a network namespace of its own, if that may be made.
fn in_new_network(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // Only this thread moves, and what it starts.
        #[expect(deprecated, reason = "the thread shares nothing that it would have to")]
        let moved = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
        match moved {
            Ok(()) => test(),
            Err(error) => eprintln!("skipped: no network namespace: {error}"),
        }
    });
    thread.join().unwrap();
}

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

/// An ARP request for 10.1.2.1, and whose answer it is.
fn arp_request() -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x08, 0x06]].concat();
    let request =
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[2, 0, 0, 0, 0, 1], &[10, 1, 2, 2], &[0; 6], &[10, 1, 2, 1]].concat();
    [vec![0; HEADER], ethernet, request].concat()
}

/// A guest asks who has the tap's address, and the host's kernel answers, also after a pause.
fn ask_the_host(name: &str, queues: u16, vhosts: Vec<File>) {
    let taps = match Tap::open(name, queues) {
        Ok(taps) => taps,
        Err(error) => return eprintln!("skipped: no tap: {error}"),
    };
    ip(&format!("address add 10.1.2.1/24 dev {name}"));
    ip(&format!("link set {name} up"));
    let net = Net::new(taps, vhosts, &options(), None).unwrap();
    let mut bench = Bench::new(net, 0);
    give_room(&mut bench.rings[0], 100);
    for _ in 0..3 {
        let request = arp_request();
        bench.rings[1].put(BUFFERS, &request);
        assert_eq!(bench.exchange(1, &[input(BUFFERS, request.len() as u32)]), 0);
        // Others come too: the host looks for routers and neighbours.
        loop {
            let (head, written) = bench.rings[0].wait(&bench.recorder);
            let packet = bench.rings[0].bytes(ROOM + u64::from(head) * 2048, written as usize);
            if packet[HEADER + 12..HEADER + 14] == [0x08, 0x06] && packet[HEADER + 21] == 2 {
                assert_eq!(packet[HEADER + 28..HEADER + 32], [10, 1, 2, 1]);
                assert_eq!(packet[HEADER..HEADER + 6], [2, 0, 0, 0, 0, 1]);
                break;
            }
        }
        bench.device.pause();
        let state = bench.device.queue_states()[1].unwrap();
        assert_eq!(state.next_avail, state.next_used);
        bench.device.resume().unwrap();
    }
    // The next driver.
    bench.device.reset();
    bench.rings.iter_mut().for_each(Ring::clear);
    bench.activate(&[]);
    let request = arp_request();
    bench.rings[1].put(BUFFERS, &request);
    bench.exchange(1, &[input(BUFFERS, request.len() as u32)]);
}

#[test]
fn a_real_tap_answers() {
    in_new_network(|| [1, 2].into_iter().for_each(|queues| ask_the_host(&format!("vse{queues}"), queues, Vec::new())));
}

#[test]
fn a_real_tap_answers_through_vhost_net() {
    in_new_network(|| {
        for queues in [1, 2] {
            let open = |_| File::options().read(true).write(true).open("/dev/vhost-net");
            match (0..queues).map(open).collect() {
                Ok(vhosts) => ask_the_host(&format!("vse{queues}"), queues, vhosts),
                Err(error) => eprintln!("skipped: no vhost-net: {error}"),
            }
        }
    });
}
