use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::virtio::testing::{BUFFERS, Bench, input, output};

const ROOM: u64 = BUFFERS + 0x1_0000;

type Heard = Arc<Mutex<Vec<bool>>>;

struct Agent {
    heard: Heard,
    directory: TempDir,
}

impl Agent {
    fn new() -> Self {
        Self { heard: Heard::default(), directory: TempDir::new().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("agent")
    }

    fn port(&self) -> PortOptions {
        let _ = std::fs::remove_file(self.path());
        let listener = UnixListener::bind(self.path()).unwrap();
        let heard = self.heard.clone();
        let watcher: Watcher = Arc::new(move |is_open| heard.lock().unwrap().push(is_open));
        PortOptions::named(AGENT, listener, Some(watcher)).unwrap()
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn heard(&self) -> Vec<bool> {
        self.heard.lock().unwrap().clone()
    }
}

impl Bench<Console> {
    /// Says something about a port.
    fn say(&mut self, port: u32, event: u16, value: u16) {
        let message = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.rings[3].put(BUFFERS, &message);
        assert_eq!(self.exchange(3, &[input(BUFFERS, 8)]), 0);
    }

    /// What the device says next.
    fn hear(&mut self) -> Vec<u8> {
        self.rings[2].add(&[output(BUFFERS + 0x100, 128)]);
        self.rings[2].kick();
        let (_, written) = self.rings[2].wait(&self.recorder);
        self.rings[2].bytes(BUFFERS + 0x100, written as usize)
    }

    /// A guest's driver makes the agent's port (the first) and its program opens it.
    fn open(&mut self) {
        self.say(u32::MAX, 0, 1);
        assert_eq!(self.hear(), [0, 0, 0, 0, 1, 0, 1, 0]);
        self.say(0, 3, 1);
        assert_eq!(self.hear()[8..], *AGENT.as_bytes());
        self.say(0, 6, 1);
    }

    fn room(&mut self, length: u32) {
        self.rings[0].add(&[output(ROOM, length)]);
        self.rings[0].kick();
    }

    fn read(&mut self) -> Vec<u8> {
        let (_, written) = self.rings[0].wait(&self.recorder);
        self.rings[0].bytes(ROOM, written as usize)
    }
}

const HOST_OPEN: [u8; 8] = [0, 0, 0, 0, 6, 0, 1, 0];
const HOST_CLOSED: [u8; 8] = [0, 0, 0, 0, 6, 0, 0, 0];

#[test]
fn an_agent_talks_with_one_client_after_the_other() {
    let agent = Agent::new();
    let mut bench = Bench::new(Console::new(vec![agent.port()], None).unwrap(), 0);
    assert_eq!(bench.config(4), 1_u32.to_le_bytes());
    bench.open();
    assert_eq!(agent.heard(), [true]);
    // Nobody listens: it is lost.
    bench.rings[1].put(BUFFERS, b"lost");
    assert_eq!(bench.exchange(1, &[input(BUFFERS, 4)]), 0);

    let mut first = agent.connect();
    assert_eq!(bench.hear(), HOST_OPEN);
    let mut second = agent.connect();
    second.write_all(b"second").unwrap();
    first.write_all(b"request").unwrap();
    bench.room(100);
    assert_eq!(bench.read(), b"request");
    bench.rings[1].put(BUFFERS, b"answer");
    bench.exchange(1, &[input(BUFFERS, 2), input(BUFFERS + 2, 4)]);
    let mut answer = [0; 6];
    first.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");

    // What the first one has still said comes before the second's turn.
    first.write_all(b"bye").unwrap();
    drop(first);
    bench.room(100);
    assert_eq!(bench.read(), b"bye");
    bench.room(100);
    assert_eq!(bench.hear(), HOST_CLOSED);
    assert_eq!(bench.hear(), HOST_OPEN);
    assert_eq!(bench.read(), b"second");

    bench.say(0, 6, 0);
    bench.device.reset();
    assert_eq!(agent.heard(), [true, false]);
    bench.activate(&[]);
}

#[test]
fn a_client_that_left_before_the_agent_came_is_forgotten() {
    let agent = Agent::new();
    let mut bench = Bench::new(Console::new(vec![agent.port()], None).unwrap(), 0);
    drop(agent.connect());
    let mut client = agent.connect();
    client.write_all(b"hello").unwrap();
    bench.open();
    assert_eq!(bench.hear(), HOST_OPEN);
    bench.room(10);
    assert_eq!(bench.read(), b"hello");
    assert_eq!(bench.device.counters(), [("rx_bytes", 5), ("tx_bytes", 0)]);
    bench.rings[1].put(BUFFERS, b"answer");
    bench.exchange(1, &[input(BUFFERS, 6)]);
    assert_eq!(bench.device.counters(), [("rx_bytes", 5), ("tx_bytes", 6)]);
}

#[test]
fn what_a_client_does_not_read_stays_with_the_guest() {
    let agent = Agent::new();
    let mut bench = Bench::new(Console::new(vec![agent.port()], None).unwrap(), 0);
    bench.open();
    let mut client = agent.connect();
    assert_eq!(bench.hear(), HOST_OPEN);
    let data: Vec<u8> = (0..1_u32 << 20).map(|at| (at % 251) as u8).collect();
    bench.rings[1].put(BUFFERS + 0x10_0000, &data);
    bench.rings[1].add(&[input(BUFFERS + 0x10_0000, 1 << 20)]);
    bench.rings[1].kick();
    let mut read = vec![0; data.len()];
    client.read_exact(&mut read[..1000]).unwrap();
    assert_eq!(bench.rings[1].take(), None);
    // It goes on where it was, also after a pause.
    bench.device.pause();
    let state = bench.device.queue_states()[1].unwrap();
    assert_eq!((state.next_avail, state.next_used), (0, 0));
    let Saved::State(unit) = bench.device.save() else { panic!("it has state") };
    let state: State = unit.decode(KIND, VERSION).unwrap();
    assert!(state.ports[0].sent >= 1000 && state.ports[0].sent < 1 << 20, "{state:?}");
    bench.device.resume().unwrap();
    client.read_exact(&mut read[1000..]).unwrap();
    assert!(read == data);
    bench.rings[1].wait(&bench.recorder);
}

#[test]
fn a_restored_guest_knows_its_ports_and_hears_that_nobody_is_there() {
    let agent = Agent::new();
    let mut bench = Bench::new(Console::new(vec![agent.port()], None).unwrap(), 0);
    bench.open();
    let _client = agent.connect();
    assert_eq!(bench.hear(), HOST_OPEN);
    bench.device.pause();
    let (Saved::State(unit), states) = (bench.device.save(), bench.device.queue_states()) else { panic!("no state") };
    let other = Agent::new();
    let mut console = Console::new(vec![other.port()], None).unwrap();
    console.restore(&unit).unwrap();
    assert_eq!(console.save(), Saved::State(unit.clone()), "before it goes on");
    bench.device = console;
    bench.activate(&states);
    assert_eq!(other.heard(), [true]);
    assert_eq!(bench.hear(), HOST_CLOSED);
    let mut client = other.connect();
    client.write_all(b"again").unwrap();
    assert_eq!(bench.hear(), HOST_OPEN);
    bench.room(10);
    assert_eq!(bench.read(), b"again");
    let mut two = Console::new(vec![Agent::new().port(), Agent::new().port()], None).unwrap();
    assert!(matches!(two.restore(&unit), Err(InvalidState::Damaged { .. })));
}

#[test]
fn a_terminal_serves_drivers_that_know_one_port_only() {
    for without in [MULTIPORT, 0] {
        let (input_end, mut typed) = std::io::pipe().unwrap();
        let (mut shown, output_end) = std::io::pipe().unwrap();
        let input_end = File::from(std::os::fd::OwnedFd::from(input_end));
        let output_end = File::from(std::os::fd::OwnedFd::from(output_end));
        let terminal = PortOptions::console(Some(input_end), output_end);
        let agent = Agent::new();
        let mut bench = Bench::new(Console::new(vec![terminal, agent.port()], None).unwrap(), without);
        if without == 0 {
            bench.say(u32::MAX, 0, 1);
            assert_eq!(bench.hear()[4], 1);
            assert_eq!(bench.hear()[..5], [1, 0, 0, 0, 1]);
            bench.say(0, 3, 1);
            assert_eq!(bench.hear()[4], 4);
            assert_eq!(bench.hear(), HOST_OPEN);
            bench.say(0, 6, 1);
        }
        typed.write_all(b"ls\n").unwrap();
        bench.room(10);
        assert_eq!(bench.read(), b"ls\n");
        // More than a pipe takes at once, and more than it holds.
        let data = vec![b'x'; 200_000];
        bench.rings[1].put(BUFFERS + 0x10_0000, &data);
        bench.rings[1].add(&[input(BUFFERS + 0x10_0000, data.len() as u32)]);
        bench.rings[1].kick();
        // Nothing is typed any more; what is shown isn't cut short by that.
        drop(typed);
        bench.room(10);
        let mut read = vec![0; data.len()];
        shown.read_exact(&mut read).unwrap();
        assert!(read == data);
        bench.rings[1].wait(&bench.recorder);
    }
}
