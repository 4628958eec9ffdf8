//! A distribution's own kernel, on a host with real KVM: computes, talks to its host, is kept and goes on elsewhere.
//!
//! Needs root, `/boot/vmlinuz`, `/boot/initrd.img` with busybox and virtio-net, and `ip`: a host of `hack/lab-host`.
//!
//! ```console
//! $ export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$PWD/hack/lab-runner
//! $ cargo test -p vse-vmm --test stock_kernel -- --ignored
//! ```
#![allow(clippy::unwrap_used, reason = "tests")]

mod process;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cpio::newc::{self, Builder, ModeFileType};
use process::{Vmm, until};

const TAP: &str = "snapshot0";
/// The host's end (addresses of RFC 5737).
const HOST: &str = "192.0.2.1:7000";

/// The guest's `/init`: a generator's steps (`glibc`'s, that of ISO C's example), 200 a line; each line with its number and
/// what time it is, over one connection.
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
mkdir -p /proc /sys; mount -t proc none /proc; mount -t sysfs none /sys
modprobe -a virtio_pci virtio_net
until [ -e /sys/class/net/eth0 ]; do :; done
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
"#;

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

struct Guest(BufReader<TcpStream>);

impl Guest {
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

/// A network interface of the host's, there until it goes out of scope.
struct Tap;

impl Tap {
    fn new() -> Self {
        ip(&["tuntap", "add", "dev", TAP, "mode", "tap"]);
        let tap = Self;
        ip(&["address", "add", "192.0.2.1/24", "dev", TAP]);
        ip(&["link", "set", TAP, "up"]);
        tap
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", TAP]).status();
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

/// The distribution's initramfs with another `/init`: of two archives the later one's files count
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
fn initramfs(folder: &Path) -> std::path::PathBuf {
    let mut image = std::fs::read("/boot/initrd.img").unwrap();
    image.resize(image.len().next_multiple_of(4), 0);
    let mut entry = Builder::new("init")
        .ino(1)
        .nlink(1)
        .mode(0o755)
        .set_mode_file_type(ModeFileType::Regular)
        .write(image, INIT.len() as u32);
    entry.write_all(INIT.as_bytes()).unwrap();
    let image = newc::trailer(entry.finish().unwrap()).unwrap();
    let path = folder.join("initramfs");
    std::fs::write(&path, image).unwrap();
    path
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn a_restored_guest_goes_on_with_its_work_its_clock_and_its_connection() {
    let _tap = Tap::new();
    let listener = TcpListener::bind(HOST).unwrap();
    let files = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"payload": {{"kernel": "/boot/vmlinuz", "initramfs": "{}", "cmdline": "console=ttyS0 quiet panic=-1"}},
             "memory": {{"size": 268435456}}, "console": {{"mode": "Off"}}, "serial": {{"mode": "File", "file": "{}"}},
             "net": [{{"id": "net", "tap": "{TAP}"}}]}}"#,
        initramfs(files.path()).display(),
        files.path().join("serial").display()
    );
    let first = Vmm::start(tempfile::tempdir().unwrap(), &["--config-json", &config, "--boot"]);
    listener.set_nonblocking(true).unwrap();
    let mut connection = None;
    until("the guest connects", || {
        connection = listener.accept().ok();
        connection.is_some()
    });
    let (connection, _) = connection.unwrap();
    connection.set_nonblocking(false).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let mut guest = Guest(BufReader::new(connection));
    let line = guest.line();
    let line = guest.follow(line, |line| line.number >= 20);

    let snapshot = tempfile::tempdir().unwrap();
    let url = format!("file://{}", snapshot.path().display());
    first.put("vm.pause", "");
    first.put("vm.snapshot", &format!(r#"{{"destination_url": "{url}"}}"#));
    drop(first);
    // Time goes by meanwhile.
    let kept = now();
    until("three seconds are gone", || now() >= kept + 3);

    let restore = format!("source_url={url},resume=on");
    let _second = Vmm::start(tempfile::tempdir().unwrap(), &["--restore", &restore, "--config-json", &config]);
    let restored = now();
    let end = guest.follow(line, |next| next.number >= line.number + 40 && next.time >= restored);
    assert!(end.uptime >= line.uptime + 3, "{end:?} after {line:?}");
}
