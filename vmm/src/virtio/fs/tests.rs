use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::memory::GuestMemory;
use crate::virtio::testing::{BUFFERS, Bench, RAM, input, memory, output};

/// Messages of the protocol, as its specification numbers them.
const GET_FEATURES: u32 = 1;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;

pub(super) fn shared_memory() -> GuestMemory {
    let file = File::from(memfd_create("ram", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, RAM).unwrap();
    let half = RAM / 2;
    let region = |start: u64| {
        let offset = FileOffset::new(file.try_clone().unwrap(), start);
        (GuestAddress(start), half as usize, Some(offset))
    };
    GuestMemory::from_ranges_with_files([region(0), region(half)]).unwrap()
}

/// One ring as the server knows it.
struct ServerRing {
    queue: Queue,
    call: Option<EventFd>,
}

/// A server that copies what it reads to where it may write, on whichever ring it is asked to look at.
struct EchoServer {
    socket: UnixStream,
    memory: Option<GuestMemory>,
    rings: Vec<ServerRing>,
    heard: Sender<u32>,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl EchoServer {
    fn start(rings: usize) -> (UnixStream, Receiver<u32>, JoinHandle<()>) {
        let (here, there) = UnixStream::pair().unwrap();
        let (heard, hears) = channel();
        let ring = |_| ServerRing { queue: Queue::new(64).unwrap(), call: None };
        let mut server = Self { socket: there, memory: None, rings: (0..rings).map(ring).collect(), heard };
        (here, hears, std::thread::spawn(move || while server.step() {}))
    }

    fn reply(&self, request: u32, payload: &[u8]) {
        let message =
            [&request.to_le_bytes()[..], &5_u32.to_le_bytes(), &(payload.len() as u32).to_le_bytes(), payload];
        std::io::Write::write_all(&mut &self.socket, &message.concat()).unwrap();
    }

    fn step(&mut self) -> bool {
        let mut header = [0; 12];
        let Ok((12, file)) = self.socket.recv_with_fd(&mut header) else { return false };
        let mut files: Vec<File> = file.into_iter().collect();
        let request = number(&header, 0) as u32;
        let mut body = vec![0; u32::from_le_bytes(header[8..].try_into().unwrap()) as usize];
        if request == SET_MEM_TABLE {
            // Its files come with the body here, for the header was read alone; both regions are one file.
            files.extend(files.first().map(|file| file.try_clone().unwrap()).into_iter().collect::<Vec<_>>());
        }
        self.socket.read_exact(&mut body).unwrap();
        self.obey(request, &body, files);
        let _ = self.heard.send(request);
        true
    }

    fn obey(&mut self, request: u32, body: &[u8], mut files: Vec<File>) {
        let index = body.first().map_or(0, |index| usize::from(*index));
        let event = |file: Option<File>| {
            use std::os::fd::{FromRawFd, IntoRawFd};
            #[expect(unsafe_code, reason = "an event comes as a file")]
            // SAFETY: the descriptor is this file's, which lets go of it.
            file.map(|file| unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
        };
        match request {
            GET_FEATURES => self.reply(request, &(RING_FEATURES | PROTOCOL_FEATURES).to_le_bytes()),
            GET_PROTOCOL_FEATURES => self.reply(request, &1_u64.to_le_bytes()),
            SET_MEM_TABLE => {
                let count = body[0] as usize;
                let region = |index: usize| {
                    let at = 8 + 32 * index;
                    assert_eq!(number(body, at), number(body, at + 16), "user addresses are guest addresses");
                    let file = files[0].try_clone().unwrap();
                    let offset = FileOffset::new(file, number(body, at + 24));
                    (GuestAddress(number(body, at)), number(body, at + 8) as usize, Some(offset))
                };
                self.memory = Some(GuestMemory::from_ranges_with_files((0..count).map(region)).unwrap());
            }
            SET_VRING_NUM => self.rings[index].queue.set_size(body[4].into()),
            SET_VRING_BASE => {
                let base = u16::from_le_bytes([body[4], body[5]]);
                self.rings[index].queue.set_next_avail(base);
                self.rings[index].queue.set_next_used(base);
            }
            SET_VRING_ADDR => {
                let queue = &mut self.rings[index].queue;
                queue.set_desc_table_address(Some(number(body, 8) as u32), Some(0));
                queue.set_used_ring_address(Some(number(body, 16) as u32), Some(0));
                queue.set_avail_ring_address(Some(number(body, 24) as u32), Some(0));
                queue.set_ready(true);
            }
            SET_VRING_CALL => self.rings[index].call = event(files.pop()),
            SET_VRING_KICK => {
                let kick = event(files.pop()).unwrap();
                self.echo(index, &kick);
            }
            GET_VRING_BASE => {
                let base = self.rings[index].queue.next_avail();
                self.reply(request, &[&(index as u32).to_le_bytes()[..], &u32::from(base).to_le_bytes()].concat());
            }
            _ => {}
        }
    }

    /// Looks at what is there already.
    fn echo(&mut self, index: usize, kick: &EventFd) {
        assert!(kick.as_raw_fd() >= 0);
        let memory = self.memory.as_ref().unwrap();
        let ring = &mut self.rings[index];
        while let Some(chain) = ring.queue.iter(memory).unwrap().next() {
            let head = chain.head_index();
            let pieces: Vec<_> = chain.collect();
            let mut bytes = vec![0; pieces[0].len() as usize];
            memory.read_slice(&mut bytes, pieces[0].addr()).unwrap();
            memory.write_slice(&bytes, pieces[1].addr()).unwrap();
            ring.queue.add_used(memory, head, bytes.len() as u32).unwrap();
            ring.call.as_ref().unwrap().write(1).unwrap();
        }
    }
}

#[test]
fn a_server_works_on_the_queues_and_gives_them_back() {
    let (connection, _heard, server) = EchoServer::start(2);
    let fs = Fs::new(connection, "home", 1, 64, None).unwrap();
    let mut tag = [0; 36];
    tag[..4].copy_from_slice(b"home");
    let mut bench = Bench::with(fs, shared_memory(), 0, &[]);
    assert_eq!(bench.config(0), tag);
    assert_eq!(bench.config(36), 1_u32.to_le_bytes());
    for round in 1..4_u16 {
        bench.device.pause();
        let states = bench.device.queue_states();
        assert_eq!(states[1].map(|state| (state.next_avail, state.next_used)), Some((round - 1, round - 1)));
        bench.rings[1].put(BUFFERS, b"echo");
        bench.rings[1].add(&[input(BUFFERS, 4), output(BUFFERS + 8, 4)]);
        bench.device.resume().unwrap();
        // The interrupt has no vector, so it comes by this process.
        assert_eq!(bench.rings[1].wait(&bench.recorder).1, 4);
        bench.recorder.wait("an interrupt", |seen| (seen.queues.get(&1) >= Some(&usize::from(round))).then_some(()));
        assert_eq!(&bench.rings[1].get::<4>(BUFFERS + 8), b"echo");
    }
    assert!(matches!(bench.device.save(), Saved::Unsupported(_)));
    bench.device.reset();
    drop(bench);
    server.join().unwrap();
}

#[test]
fn memory_that_is_not_shared_is_refused() {
    assert!(!super::super::vhost::is_shared(&memory()));
    let memory = memory();
    let (connection, _heard, server) = EchoServer::start(2);
    let mut fs = Fs::new(connection, "home", 1, 64, None).unwrap();
    let queues = [0, 1].map(|index| {
        let ring = crate::virtio::testing::Ring::new(&memory, index * crate::virtio::testing::Ring::SPACE, 64);
        Some(ring.queue(None, true))
    });
    let recorder = std::sync::Arc::<crate::virtio::testing::Recorder>::default();
    let activation =
        Activation { memory, interrupt: recorder, queues: queues.into_iter().collect(), features: RING_FEATURES };
    let error = fs.activate(activation).unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "guest memory is not shared");
    drop(fs);
    server.join().unwrap();
}

#[test]
fn a_server_that_goes_leaves_a_device_that_needs_a_reset() {
    let (connection, _heard, _server) = EchoServer::start(2);
    let end = connection.try_clone().unwrap();
    let fs = Fs::new(connection, "home", 1, 64, None).unwrap();
    let mut bench = Bench::with(fs, shared_memory(), 0, &[]);
    end.shutdown(std::net::Shutdown::Both).unwrap();
    bench.recorder.wait("a reset asked for", |seen| seen.needs_reset.then_some(()));
    bench.device.pause();
    assert!(Fs::new(UnixStream::pair().unwrap().0, "", 1, 64, None).is_err());
}
