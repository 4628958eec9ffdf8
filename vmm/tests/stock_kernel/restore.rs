//! A guest is kept and goes on elsewhere: with its work, its clock, its connection, its devices.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::guest::{Guest, config};
use crate::host::{ADDRESS, Tap, accept, digest, fill};
use crate::initramfs::Content;
use crate::process::{assert_snapshot_is_small, until};

/// A generator's steps (`glibc`'s, that of ISO C's example), 200 a line; each line with its number and what time it is, over
/// one connection.
const COMPUTE: &str = "
until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
ifconfig eth0 192.0.2.2 netmask 255.255.255.0 up
line=0; state=1
while :; do
    step=0
    while [ $step -lt 200 ]; do
        state=$(( (state * 1103515245 + 12345) % 2147483648 )); step=$((step + 1))
    done
    line=$((line + 1))
    read uptime rest </proc/uptime
    echo $line $state $(date +%s) ${uptime%.*}
done | nc 192.0.2.1 7000
";

/// What the guest does in a line.
fn compute(mut state: u64) -> u64 {
    for _ in 0..200 {
        state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
    }
    state
}

/// One line of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    number: u64,
    state: u64,
    /// Seconds since 1970, as the guest has it.
    time: u64,
    /// Seconds since its boot.
    uptime: u64,
}

struct Computation(BufReader<TcpStream>);

impl Computation {
    fn line(&mut self) -> Line {
        let mut text = String::new();
        self.0.read_line(&mut text).unwrap();
        let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let [number, state, time, uptime] = numbers[..] else { panic!("not a line of the guest's: {text:?}") };
        Line { number, state, time, uptime }
    }

    /// Lines from `last` on, checked, until one is as wanted; that one.
    fn follow(&mut self, mut last: Line, wanted: impl Fn(Line) -> bool) -> Line {
        while !wanted(last) {
            let next = self.line();
            assert_eq!((next.number, next.state), (last.number + 1, compute(last.state)), "after {last:?}");
            assert!(next.time >= last.time && next.uptime >= last.uptime, "{next:?} after {last:?}");
            last = next;
        }
        last
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Keeps a guest in `folder` and ends it.
fn keep(guest: Guest, folder: &Path) {
    guest.vmm.put("vm.pause", "");
    guest.vmm.put("vm.snapshot", &format!(r#"{{"destination_url": "file://{}"}}"#, folder.display()));
}

/// The guest that was kept there, going on.
fn restore(config: &Value, folder: &Path) -> Guest {
    Guest::start(config, &["--restore", &format!("source_url=file://{},resume=on", folder.display())])
}

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn a_restored_guest_goes_on_with_its_work_its_clock_and_its_connection() {
    let _tap = Tap::new("vse0");
    let listener = TcpListener::bind((ADDRESS, 7000)).unwrap();
    let files = tempfile::tempdir().unwrap();
    let content = Content { modules: &["virtio_net"], script: COMPUTE, ..Content::default() };
    let config = config(files.path(), content, json!({"net": [{"id": "net", "tap": "vse0"}]}));
    let first = Guest::start(&config, &["--boot"]);
    let mut guest = Computation(BufReader::new(accept(&listener)));
    let line = guest.line();
    let line = guest.follow(line, |line| line.number >= 20);

    let snapshot = tempfile::tempdir().unwrap();
    keep(first, snapshot.path());
    // Time goes by meanwhile.
    let kept = now();
    until("three seconds are gone", || now() >= kept + 3);

    let _second = restore(&config, snapshot.path());
    let restored = now();
    let end = guest.follow(line, |next| next.number >= line.number + 40 && next.time >= restored);
    assert!(end.uptime >= line.uptime + 3, "{end:?} after {line:?}");
}

/// Each vCPU reads the disk, around the guest's cache, and the random number generator, and tells on the console, and over
/// the network, how often.
const USE_DEVICES: &str = "
until [ -b /dev/vda -a -e /sys/class/net/eth0 -a -c /dev/hvc0 -a -c /dev/hwrng ]; do sleep 0.1; done
ifconfig eth0 192.0.2.2 netmask 255.255.255.0 up
stty -F /dev/hvc0 raw
work() {
    round=0
    while :; do
        round=$((round + 1))
        sum=$(dd if=/dev/vda bs=64k count=1 skip=$cpu iflag=direct 2>/dev/null | sha256sum)
        random=$(dd if=/dev/hwrng bs=8 count=1 2>/dev/null | wc -c)
        echo cpu $cpu $round ${sum%% *} $random >/dev/hvc0
        echo cpu $cpu $round
    done
}
for cpu in 0 1 2 3; do
    export cpu
    (taskset -p $((1 << cpu)) $(exec sh -c 'echo $PPID') >/dev/null; work) &
done | nc 192.0.2.1 7001
";

/// What a vCPU tells: its number, its round, the digest of its part of the disk, random bytes.
fn rounds(console: &Path) -> Vec<(usize, u64, String, String)> {
    let text = std::fs::read_to_string(console).unwrap_or_default();
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["cpu", cpu, round, digest, random] = words[..] else { panic!("not a line of the guest's: {line:?}") };
            (cpu.parse().unwrap(), round.parse().unwrap(), digest.to_owned(), random.to_owned())
        })
        .collect()
}

/// The last round that each vCPU has told of.
fn last_rounds(console: &Path) -> [u64; 4] {
    let mut last = [0; 4];
    rounds(console).iter().for_each(|(cpu, round, ..)| last[*cpu] = *round);
    last
}

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn four_vcpus_go_on_with_their_disk_network_console_and_random_numbers() {
    let _tap = Tap::new("vse0");
    let listener = TcpListener::bind((ADDRESS, 7001)).unwrap();
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name);
    fill(&path("disk"), 1 << 20);
    let bytes = std::fs::read(path("disk")).unwrap();
    let digests: Vec<String> = bytes
        .chunks(64 << 10)
        .map(|part| {
            std::fs::write(path("part"), part).unwrap();
            digest(&path("part"))
        })
        .collect();
    let content = Content {
        modules: &["virtio_blk", "virtio_net", "virtio_console", "virtio_rng"],
        script: USE_DEVICES,
        ..Content::default()
    };
    let more = json!({
        "cpus": {"boot_vcpus": 4, "max_vcpus": 4},
        "disks": [{"id": "disk", "path": path("disk"), "num_queues": 4}],
        "net": [{"id": "net", "tap": "vse0"}],
        "rng": {"id": "rng"},
        "console": {"mode": "File", "file": path("console")},
    });
    let config = config(files.path(), content, more);
    let first = Guest::start(&config, &["--boot"]);
    let mut connection = BufReader::new(accept(&listener));
    let console = path("console");
    until("each vCPU works", || last_rounds(&console).iter().all(|round| *round >= 3));
    let snapshot = tempfile::tempdir().unwrap();
    keep(first, snapshot.path());
    assert_snapshot_is_small(snapshot.path());

    // What is told then is appended, a line that was told in part made whole.
    let before = last_rounds(&console);
    let second = restore(&config, snapshot.path());
    until("each vCPU goes on", || last_rounds(&console).iter().zip(before).all(|(now, before)| *now >= before + 5));
    let mut done = [0; 4];
    for (cpu, round, digest, random) in rounds(&console) {
        assert_eq!((round, digest, random.as_str()), (done[cpu] + 1, digests[cpu].clone(), "8"), "of {cpu}");
        done[cpu] = round;
    }
    let mut told = [0; 4];
    while told.iter().zip(done).any(|(told, done)| *told < done) {
        let mut line = String::new();
        connection.read_line(&mut line).unwrap();
        let numbers: Vec<u64> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
        let [cpu, round] = numbers[..] else { panic!("not a line of the guest's: {line:?}") };
        assert_eq!(round, told[cpu as usize] + 1, "of {cpu}");
        told[cpu as usize] = round;
    }
    let counters = second.get("vm.counters");
    assert!(counters["disk"]["read_ops"].as_u64() >= Some(20), "{counters}");
}
