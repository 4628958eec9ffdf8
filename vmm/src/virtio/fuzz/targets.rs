//! The devices, what their host's end does, and what a script of a good driver is.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use tempfile::TempDir;

use super::script::{Step, chain};
use super::{Host, corpus, fuzz};
use crate::seccomp::{Filters, Role, Seccomp};
use crate::virtio::block::{Block, BlockOptions, Kinds};
use crate::virtio::console::{AGENT, Console, PortOptions};
use crate::virtio::device::VirtioDevice;
use crate::virtio::net::{Net, NetOptions, Tap};
use crate::virtio::pmem::{Pmem, PmemMode};
use crate::virtio::rng::Rng;
use crate::virtio::testing::{BUFFERS, Bench, Ring, input, output};
use crate::virtio::vsock::{Sockets, Vsock, VsockBackend};
use crate::virtio::worker::Filter;

/// What a device's thread is confined to: a call that isn't allowed ends these tests.
fn filter(role: Role) -> Filter {
    Filters::new(Seccomp::On).of(role).unwrap()
}

/// A disk in memory, so that a flush takes no time.
fn image() -> File {
    let mut file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&vec![5; 1 << 20]).unwrap();
    file
}

fn block(read_only: bool, io_uring: bool) {
    let file = image();
    let options = BlockOptions {
        read_only,
        direct: false,
        discard: true,
        kinds: Kinds { io_uring, aio: false },
        serial: "fuzz".to_owned(),
        queues: 2,
        queue_size: 16,
    };
    let mut bench = Bench::new(Block::new(file.try_clone().unwrap(), &options, filter(Role::Block)).unwrap(), 0);
    fuzz("block", &mut bench, &mut (), |bench, ()| {
        bench.rings[0].put(BUFFERS, &[0; 16]);
        let written = bench.exchange(0, &[input(BUFFERS, 16), output(BUFFERS + 0x1000, 512), output(BUFFERS + 64, 1)]);
        assert_eq!((written, bench.rings[0].get(BUFFERS + 64)), (513, [0]));
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        assert!(!read_only || bench.rings[0].bytes(BUFFERS + 0x1000, 512) == [5; 512]);
    });
}

#[test]
fn block_by_io_uring() {
    block(false, true);
}

#[test]
fn block_one_after_the_other_read_only() {
    block(true, false);
}

#[test]
fn rng() {
    fuzz("rng", &mut Bench::new(Rng::new(filter(Role::Rng)).unwrap(), 0), &mut (), |bench, ()| {
        assert_eq!(bench.exchange(0, &[output(BUFFERS, 16)]), 16);
    });
}

#[test]
fn pmem() {
    let pmem = Pmem::new(image(), PmemMode::ReadOnly, None, filter(Role::Pmem)).unwrap();
    fuzz("pmem", &mut Bench::new(pmem, 0), &mut (), |bench, ()| {
        bench.rings[0].put(BUFFERS, &[0; 4]);
        assert_eq!(bench.exchange(0, &[input(BUFFERS, 4), output(BUFFERS + 8, 4)]), 4);
    });
}

impl Host for Vec<OwnedFd> {
    fn act(&mut self, what: u8, length: u32) {
        let end = &self[usize::from(what) % self.len()];
        let packet = vec![what; length as usize % 70_000];
        let _ = send(end, &packet, SendFlags::empty());
        self.iter().for_each(drain);
    }
}

fn drain(end: &OwnedFd) {
    while recv(end, &mut [0; 16][..], RecvFlags::empty()).is_ok_and(|(_, length)| length > 0) {}
}

#[test]
fn net() {
    let pair = |_| {
        let flags = SocketFlags::NONBLOCK;
        let (here, there) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Tap::of_socket(here), there)
    };
    let (taps, mut ends): (Vec<_>, Vec<_>) = (0..2).map(pair).unzip();
    let options = NetOptions {
        mac: [2; 6],
        mtu: None,
        queue_size: 16,
        offload_tcp: true,
        offload_udp: true,
        offload_checksums: true,
    };
    let net = Net::new(taps, Vec::new(), &options, filter(Role::Net)).unwrap();
    fuzz("net", &mut Bench::new(net, 0), &mut ends, |bench, ends| {
        ends.iter().for_each(drain);
        bench.rings[1].put(BUFFERS, &[9; 64]);
        bench.exchange(1, &[input(BUFFERS, 64)]);
        let mut packet = [0; 64];
        assert_eq!(recv(&ends[0], &mut packet[..], RecvFlags::empty()).unwrap().1, 64);
        assert_eq!(packet, [9; 64]);
    });
}

/// Programs of the host's that connect to one socket, or listen at another.
struct Programs {
    directory: TempDir,
    listener: Option<UnixListener>,
    streams: Vec<UnixStream>,
}

impl Programs {
    fn new(listens_at: Option<&str>) -> Self {
        let directory = TempDir::new().unwrap();
        let listener = listens_at.map(|name| UnixListener::bind(directory.path().join(name)).unwrap());
        if let Some(listener) = &listener {
            listener.set_nonblocking(true).unwrap();
        }
        Self { directory, listener, streams: Vec::new() }
    }

    fn bind(&self) -> UnixListener {
        UnixListener::bind(self.directory.path().join("socket")).unwrap()
    }

    fn connect(&mut self) {
        if self.streams.len() < 8
            && let Ok(stream) = UnixStream::connect(self.directory.path().join("socket"))
        {
            stream.set_nonblocking(true).unwrap();
            self.streams.push(stream);
        }
    }
}

impl Host for Programs {
    fn act(&mut self, what: u8, length: u32) {
        if let Some((stream, _)) = self.listener.as_ref().and_then(|listener| listener.accept().ok()) {
            stream.set_nonblocking(true).unwrap();
            self.streams.push(stream);
            self.streams.truncate(16);
        }
        let index = length as usize % self.streams.len().max(1);
        match (what % 5, self.streams.get_mut(index)) {
            (0, _) | (_, None) => self.connect(),
            (1, Some(stream)) => drop(stream.write(format!("CONNECT {}\n", length % 9).as_bytes())),
            (2, Some(stream)) => drop(stream.write(&vec![what; length as usize % 20_000])),
            (3, Some(stream)) => drop(stream.read(&mut [0; 10_000])),
            (_, Some(_)) => drop(self.streams.swap_remove(index)),
        }
    }
}

#[test]
fn console() {
    let mut programs = Programs::new(None);
    let port = PortOptions::named(AGENT, programs.bind(), None).unwrap();
    let (typed, shown) = std::io::pipe().unwrap();
    let terminal = PortOptions::console(Some(OwnedFd::from(typed).into()), OwnedFd::from(shown).into());
    let console = Console::new(vec![terminal, port], filter(Role::Console)).unwrap();
    fuzz("console", &mut Bench::new(console, 0), &mut programs, |bench, _| {
        bench.rings[3].put(BUFFERS, &[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0]);
        bench.exchange(3, &[input(BUFFERS, 8)]);
        assert_eq!(bench.exchange(2, &[output(BUFFERS + 8, 64)]), 8);
        assert_eq!(bench.rings[2].get(BUFFERS + 8), [0, 0, 0, 0, 1, 0, 1, 0]);
    });
}

#[test]
fn vsock() {
    let mut programs = Programs::new(Some("socket_80"));
    let sockets = Sockets { listener: programs.bind(), path: Some(programs.directory.path().join("socket")) };
    let vsock = Vsock::new(VsockBackend::Sockets(sockets), 3, filter(Role::Vsock)).unwrap();
    fuzz("vsock", &mut Bench::new(vsock, 0), &mut programs, |bench, programs| {
        // Those who left their greeting before this driver came are not what is looked for.
        programs.streams.clear();
        let request = vsock_packet(1000, 81, 1, b"");
        bench.rings[1].put(BUFFERS, &request);
        bench.exchange(1, &[input(BUFFERS, request.len() as u32)]);
        for _ in 0..64 {
            let written = bench.exchange(0, &[output(BUFFERS + 0x100, 4096)]);
            // Nobody listens there.
            if written == 44 && bench.rings[0].get::<1>(BUFFERS + 0x100 + 30) == [3] {
                return;
            }
        }
        panic!("no refusal");
    });
}

fn vsock_packet(from: u32, to: u32, op: u16, data: &[u8]) -> Vec<u8> {
    let addresses = [&3_u64.to_le_bytes()[..], &2_u64.to_le_bytes(), &from.to_le_bytes(), &to.to_le_bytes()].concat();
    let what = [&(data.len() as u32).to_le_bytes()[..], &1_u16.to_le_bytes(), &op.to_le_bytes(), &[0; 4]].concat();
    [&addresses[..], &what, &0x1_0000_u32.to_le_bytes(), &[0; 4], data].concat()
}

/// What good drivers do, to begin with.
fn seeds() -> Vec<(&'static str, &'static str, Vec<Step>)> {
    let block = |kind: u32, data: &[&[u8]], room: &[u32]| {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &8_u64.to_le_bytes()].concat();
        chain(0, 0, &[&[&header[..]], data].concat(), &[room, &[1]].concat())
    };
    let range = [&16_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &0_u32.to_le_bytes()].concat();
    let message = |port: u32, event: u16| [&port.to_le_bytes()[..], &event.to_le_bytes(), &[1, 0]].concat();
    let host = |what, length| vec![Step::Host { what, length }];
    let open = [
        chain(3, 0, &[&message(u32::MAX, 0)], &[]),
        chain(2, 0, &[], &[64]),
        chain(2, 2, &[], &[64]),
        chain(3, 2, &[&message(1, 3)], &[]),
        chain(2, 4, &[], &[64]),
        chain(3, 4, &[&message(1, 6)], &[]),
        host(0, 0),
        chain(5, 0, &[b"to the host"], &[]),
    ]
    .concat();
    let connected = [
        chain(0, 0, &[], &[4096]),
        chain(1, 0, &[&vsock_packet(7, 80, 1, b"")], &[]),
        host(2, 100),
        chain(0, 2, &[], &[4096]),
        chain(1, 2, &[&vsock_packet(7, 80, 5, b"hello")], &[]),
        vec![Step::Pause],
    ]
    .concat();
    vec![
        ("block", "read", block(0, &[], &[512, 1024])),
        ("block", "write", [block(1, &[&[7; 512]], &[]), vec![Step::Pause]].concat()),
        ("block", "flush", block(4, &[], &[])),
        ("block", "id", block(8, &[], &[20])),
        ("block", "discard", block(11, &[&range], &[])),
        ("block", "zero", block(13, &[&range], &[])),
        ("rng", "bytes", [chain(0, 0, &[], &[64, 64]), vec![Step::Pause]].concat()),
        ("pmem", "flush", [chain(0, 0, &[&[0; 4]], &[4]), vec![Step::Pause]].concat()),
        ("net", "transmit", [chain(1, 0, &[&[0; 12], &[1; 100]], &[]), vec![Step::Pause]].concat()),
        ("net", "receive", [chain(0, 0, &[], &[12, 0x2000]), host(0, 100)].concat()),
        ("net", "pairs", chain(4, 0, &[&[4, 0], &[2, 0]], &[1])),
        ("console", "agent", [&open[..], &chain(4, 0, &[], &[100]), &host(2, 50), &host(3, 0), &host(4, 0)].concat()),
        ("console", "terminal", chain(1, 0, &[b"hello"], &[])),
        ("vsock", "to-host", connected.clone()),
        ("vsock", "end", [connected, chain(1, 4, &[&vsock_packet(7, 80, 3, b"")], &[])].concat()),
        ("vsock", "to-guest", [host(0, 0), host(1, 5), chain(0, 0, &[], &[4096]), host(2, 9), host(4, 0)].concat()),
        ("vsock", "refused", [chain(0, 0, &[], &[64]), chain(1, 0, &[&vsock_packet(7, 81, 1, b"")], &[])].concat()),
    ]
}

/// The corpus holds them; `VSE_FUZZ_SEED=1` writes them there.
#[test]
fn what_good_drivers_do_is_kept() {
    let write = std::env::var_os("VSE_FUZZ_SEED").is_some();
    for (device, name, steps) in seeds() {
        let bytes: Vec<u8> = steps.into_iter().flat_map(Step::encode).collect();
        let file = corpus(device).join(name);
        if write {
            std::fs::create_dir_all(corpus(device)).unwrap();
            std::fs::write(&file, &bytes).unwrap();
        }
        assert!(std::fs::read(&file).is_ok_and(|kept| kept == bytes), "{}", file.display());
    }
}

/// A device here has no more queues than a test's memory has room for.
#[test]
fn rings_lie_before_buffers() {
    let device = Console::new(Vec::new(), None).unwrap();
    assert!((device.queue_sizes().len() as u64 + 4) * Ring::SPACE <= BUFFERS);
}
