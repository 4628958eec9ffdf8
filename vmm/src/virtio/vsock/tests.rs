use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tempfile::TempDir;

use super::connection::ROOM;
use super::packet::{HEADER, HOST, Header, NO_SEND, NOTHING, Op, STREAM};
use super::*;
use crate::virtio::testing::{BUFFERS, Bench, input, output};

const CID: u32 = 5;
const PLACE: u64 = BUFFERS + 0x10_0000;
const BUFFER: u32 = 4096;

struct Host(TempDir);

impl Host {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn device(&self) -> Vsock {
        self.device_at(Some(self.0.path().join("vsock")))
    }

    /// One whose guest's connections go to `path`.
    fn device_at(&self, path: Option<PathBuf>) -> Vsock {
        let listener = UnixListener::bind(self.0.path().join("vsock")).unwrap();
        Vsock::new(VsockBackend::Sockets(Sockets { listener, path }), CID, None).unwrap()
    }

    fn bench(&self) -> Bench<Vsock> {
        let mut bench = Bench::new(self.device(), 0);
        bench.give_room();
        bench
    }

    fn connect(&self) -> UnixStream {
        patient(UnixStream::connect(self.0.path().join("vsock")).unwrap())
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.0.path().join(format!("vsock_{port}"))).unwrap()
    }
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0].into());
    }
    line
}

/// A packet of the guest's.
fn packet(ports: (u32, u32), op: Op) -> Header {
    Header {
        from: CID.into(),
        to: HOST,
        from_port: ports.0,
        to_port: ports.1,
        length: 0,
        kind: STREAM,
        op: Some(op),
        flags: 0,
        room: 1 << 20,
        passed: 0,
    }
}

impl Bench<Vsock> {
    fn give_room(&mut self) {
        for place in 0..64 {
            self.rings[0].add(&[output(PLACE + place * u64::from(BUFFER), BUFFER)]);
        }
        self.rings[0].kick();
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        self.rings[1].put(BUFFERS, &Header { length: data.len() as u32, ..header }.bytes());
        self.rings[1].put(BUFFERS + 0x100, data);
        self.exchange(1, &[input(BUFFERS, HEADER as u32), input(BUFFERS + 0x100, data.len() as u32)]);
    }

    /// The next packet for the guest. Its buffer is made available again.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (head, written) = self.rings[0].wait(&self.recorder);
        let bytes = self.rings[0].bytes(PLACE + u64::from(head) * u64::from(BUFFER), written as usize);
        let header = Header::parse(bytes[..HEADER].try_into().unwrap());
        assert_eq!((header.from, header.to, header.kind), (HOST, CID.into(), STREAM));
        assert_eq!(header.length as usize, bytes.len() - HEADER);
        // Descriptors are taken in turn, so it is this one's turn again after 64 others.
        self.rings[0].offer(head);
        self.rings[0].kick();
        (header, bytes[HEADER..].to_vec())
    }

    fn receive_op(&mut self) -> Option<Op> {
        self.receive().0.op
    }

    /// A connection from the guest to the host's port.
    fn open(&mut self, listener: &UnixListener, ports: (u32, u32)) -> UnixStream {
        self.send(packet(ports, Op::Request), b"");
        let (header, _) = self.receive();
        assert_eq!((header.op, header.to_port, header.from_port), (Some(Op::Response), ports.0, ports.1));
        assert_eq!(header.room, ROOM);
        patient(listener.accept().unwrap().0)
    }
}

#[test]
fn a_program_of_the_host_reaches_the_guest() {
    let host = Host::new();
    let mut bench = host.bench();
    assert_eq!(bench.config(0), u64::from(CID).to_le_bytes());
    let mut stream = host.connect();
    // In two pieces, and with data right behind it.
    stream.write_all(b"CONN").unwrap();
    stream.write_all(b"ECT 1024\nhello").unwrap();
    let (request, _) = bench.receive();
    assert_eq!((request.op, request.to_port), (Some(Op::Request), 1024));
    let ports = (1024, request.from_port);
    bench.send(packet(ports, Op::Response), b"");
    assert_eq!(line(&mut stream), format!("OK {}\n", request.from_port));
    let (data, bytes) = bench.receive();
    assert_eq!((data.op, &bytes[..]), (Some(Op::Data), &b"hello"[..]));
    bench.send(packet(ports, Op::Data), b"world");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"world");
    // Requests and answers are packets too.
    let expected = [("rx_bytes", 5), ("rx_frames", 2), ("tx_bytes", 5), ("tx_frames", 2)];
    assert_eq!(bench.device.counters(), expected);
    // It ends when the host's program is gone, and the guest agrees.
    drop(stream);
    let (end, _) = bench.receive();
    assert_eq!(end.op, Some(Op::Shutdown));
    assert_ne!(end.flags & NO_SEND, 0);
    bench.send(Header { flags: NOTHING, ..packet(ports, Op::Shutdown) }, b"");
    while bench.receive_op() != Some(Op::Reset) {}
}

#[test]
fn a_socket_of_no_name_is_for_programs_of_the_host_only() {
    let host = Host::new();
    let mut bench = Bench::new(host.device_at(None), 0);
    bench.give_room();
    let _nobody = (host.listen(80), UnixListener::bind(host.0.path().join("_80")).unwrap());
    bench.send(packet((1000, 80), Op::Request), b"");
    assert_eq!(bench.receive_op(), Some(Op::Reset));
    let mut stream = host.connect();
    stream.write_all(b"CONNECT 7\n").unwrap();
    assert_eq!(bench.receive_op(), Some(Op::Request));
}

#[test]
fn greetings_that_make_no_sense_are_hung_up_on() {
    let host = Host::new();
    let mut bench = host.bench();
    for greeting in [&b"HELLO 1\n"[..], b"CONNECT x\n", b"CONNECT 4294967296\n", b"CONNECT 1111111111111111111", b""] {
        let mut stream = host.connect();
        stream.write_all(greeting).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "{greeting:?}");
    }
    // One that the guest refuses, and one that leaves before it answers.
    let mut stream = host.connect();
    stream.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = bench.receive();
    bench.send(packet((7, request.from_port), Op::Reset), b"");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let mut stream = host.connect();
    stream.write_all(b"CONNECT 7\n").unwrap();
    bench.receive();
    drop(stream);
    assert_eq!(bench.receive_op(), Some(Op::Reset));
}

#[test]
fn the_guest_reaches_who_listens_and_is_refused_where_nobody_does() {
    let host = Host::new();
    let mut bench = host.bench();
    let listener = host.listen(80);
    let mut stream = bench.open(&listener, (1000, 80));
    bench.send(packet((1000, 80), Op::Data), b"ping");
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    stream.write_all(b"pong").unwrap();
    assert_eq!(bench.receive().1, b"pong");
    // It sends no more but still listens.
    bench.send(Header { flags: NO_SEND, ..packet((1000, 80), Op::Shutdown) }, b"");
    assert_eq!(stream.read(&mut bytes).unwrap(), 0);
    stream.write_all(b"late").unwrap();
    assert_eq!(bench.receive().1, b"late");

    for refused in [
        packet((1000, 81), Op::Request),
        packet((1, 80), Op::Data),
        Header { to: 9, ..packet((1, 80), Op::Request) },
        Header { kind: 2, ..packet((1, 80), Op::Request) },
    ] {
        bench.send(refused, b"");
        let (head, _) = bench.rings[0].wait(&bench.recorder);
        let bytes = bench.rings[0].get::<HEADER>(PLACE + u64::from(head) * u64::from(BUFFER));
        assert_eq!(Header::parse(&bytes), refused.refusal());
        bench.rings[0].offer(head);
    }
    bench.send(packet((1, 2), Op::Reset), b"");
}

#[test]
fn neither_side_sends_more_than_the_other_has_room_for() {
    let host = Host::new();
    let mut bench = host.bench();
    let listener = host.listen(80);
    let ports = (1000, 80);
    let mut stream = bench.open(&listener, ports);
    // To the guest: 10 bytes of room, then 5 more.
    bench.send(Header { room: 10, ..packet(ports, Op::CreditUpdate) }, b"");
    stream.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(bench.receive().1, b"0123456789");
    bench.send(Header { room: 10, passed: 5, ..packet(ports, Op::CreditUpdate) }, b"");
    assert_eq!(bench.receive().1, b"abcde");
    bench.send(packet(ports, Op::CreditRequest), b"");
    assert_eq!(bench.receive_op(), Some(Op::CreditUpdate));
    assert_eq!(bench.receive().1, b"f");

    // From the guest: as much as is known to be passed on, read slowly.
    let data: Vec<u8> = (0..1_u32 << 20).map(|at| (at % 251) as u8).collect();
    let (mut sent, mut passed, mut read) = (0_u32, 0, Vec::<u8>::new());
    while read.len() < data.len() {
        while (sent as usize) < data.len() && sent - passed <= ROOM - 2048 {
            bench.send(packet(ports, Op::Data), &data[sent as usize..sent as usize + 2048]);
            sent += 2048;
            if sent.is_multiple_of(1 << 14) {
                break;
            }
        }
        let mut bytes = [0; 10_000];
        let want = bytes.len().min(sent as usize - read.len());
        let count = stream.read(&mut bytes[..want]).unwrap();
        read.extend(&bytes[..count]);
        bench.send(packet(ports, Op::CreditRequest), b"");
        // Others may have come by themselves before.
        while (passed as usize) < read.len() {
            let (header, _) = bench.receive();
            assert_eq!(header.op, Some(Op::CreditUpdate));
            passed = header.passed;
        }
        assert!(sent - passed <= ROOM);
    }
    assert!(read == data);

    // More than that ends the connection.
    let full = vec![1; 2048];
    let mut op = None;
    for _ in 0..1024 {
        bench.send(packet(ports, Op::Data), &full);
        if let Some((head, _)) = bench.rings[0].take() {
            let bytes = bench.rings[0].get::<HEADER>(PLACE + u64::from(head) * u64::from(BUFFER));
            op = Header::parse(&bytes).op;
            bench.rings[0].offer(head);
        }
        if op == Some(Op::Reset) {
            break;
        }
    }
    assert_eq!(op, Some(Op::Reset));
}

#[test]
fn connections_survive_a_pause_but_not_a_restore() {
    let host = Host::new();
    let mut bench = host.bench();
    let listener = host.listen(80);
    let mut stream = bench.open(&listener, (1000, 80));
    bench.device.pause();
    let state = bench.device.queue_states()[0].unwrap();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    stream.write_all(b"meanwhile").unwrap();
    bench.device.resume().unwrap();
    assert_eq!(bench.receive().1, b"meanwhile");
    bench.device.pause();
    let (Saved::State(unit), states) = (bench.device.save(), bench.device.queue_states()) else { panic!("no state") };

    let other = Host::new();
    let mut device = other.device();
    device.restore(&unit).unwrap();
    bench.device = device;
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    bench.activate(&states);
    bench.rings[2].put(BUFFERS, &[0xff; 4]);
    assert_eq!(bench.exchange(2, &[output(BUFFERS, 4)]), 4);
    assert_eq!(bench.rings[2].get(BUFFERS), TRANSPORT_RESET);
    let listener = other.listen(80);
    bench.open(&listener, (1001, 80));
    bench.device.reset();
    assert!(bench.device.queue_states().is_empty());
}

#[test]
fn connections_are_bounded() {
    let host = Host::new();
    let mut bench = host.bench();
    let listener = host.listen(80);
    let ports = 0..switch::CONNECTIONS as u32;
    let streams: Vec<_> = ports.map(|port| bench.open(&listener, (port, 80))).collect();
    bench.send(packet((5000, 80), Op::Request), b"");
    assert_eq!(bench.receive_op(), Some(Op::Reset));
    // A program of the host's waits until there is a place.
    let mut waiting = host.connect();
    waiting.write_all(b"CONNECT 3\n").unwrap();
    bench.send(packet((0, 80), Op::Reset), b"");
    let (request, _) = bench.receive();
    assert_eq!((request.op, request.to_port), (Some(Op::Request), 3));
    drop(streams);
}

/// Begins to connect to a guest's port, without waiting for an answer.
fn connect_by_kernel(cid: u32, port: u32) -> OwnedFd {
    let flags = SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None).unwrap();
    #[expect(unsafe_code, reason = "rustix knows no such addresses")]
    // SAFETY: `address` is a `sockaddr_vm`, for which zeroes are valid, and as long as is said.
    let result = unsafe {
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        (address.svm_cid, address.svm_port) = (cid, port);
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length)
    };
    assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EINPROGRESS)));
    socket
}

#[test]
fn the_kernel_connects_programs_of_the_host() {
    let file = match File::options().read(true).write(true).open("/dev/vhost-vsock") {
        Ok(file) => file,
        Err(error) => return eprintln!("skipped: no vhost-vsock: {error}"),
    };
    const GUEST: u32 = 4242;
    let vsock = Vsock::new(VsockBackend::Kernel(file), GUEST, None).unwrap();
    let mut bench = Bench::new(vsock, 0);
    bench.give_room();
    for port in 1..4 {
        bench.device.pause();
        bench.device.resume().unwrap();
        let _socket = connect_by_kernel(GUEST, port);
        // Others end in between.
        loop {
            let (head, _) = bench.rings[0].wait(&bench.recorder);
            let bytes = bench.rings[0].get::<HEADER>(PLACE + u64::from(head) * u64::from(BUFFER));
            let header = Header::parse(&bytes);
            if header.op == Some(Op::Request) {
                assert_eq!((header.from, header.to, header.to_port), (HOST, GUEST.into(), port));
                break;
            }
        }
    }
}
