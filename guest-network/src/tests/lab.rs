//! Namespaces, and how they are joined. Everything ends with the test.

use crate::config::Mac;
use crate::tap;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

pub(super) const POD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Ends a test early, and says so, where namespaces cannot be made.
macro_rules! root_or_skip {
    () => {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: making network namespaces needs root");
            return;
        }
    };
}
pub(super) use root_or_skip;

/// A network namespace, kept by a process in it so that tools can name it.
pub(super) struct Namespace {
    holder: Child,
    netns: File,
}

impl Namespace {
    pub(super) fn new() -> Self {
        // `cat` starts after the namespace is entered, and ends when this process does.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        holder.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        let netns = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        Self { holder, netns }
    }

    pub(super) fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    fn try_run(&self, command: &str) -> Output {
        let target = format!("--target={}", self.holder.id());
        Command::new("nsenter").args([&target, "--net", "sh", "-c", command]).output().unwrap()
    }

    pub(super) fn succeeds(&self, command: &str) -> bool {
        self.try_run(command).status.success()
    }

    /// Standard output of a command that must succeed.
    pub(super) fn output(&self, command: &str) -> String {
        let output = self.try_run(command);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(super) fn run(&self, command: &str) {
        self.output(command);
    }

    /// Runs `work` on a thread in the namespace; what it opens stays there.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || move_into_link_name_space(self.netns(), Some(LinkNameSpaceType::Network)).unwrap();
        std::thread::scope(|scope| scope.spawn(|| (enter(), work()).1).join().unwrap())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Outside and pod, joined; and a guest that is not plugged in yet.
pub(super) struct Lab {
    pub(super) outside: Namespace,
    pub(super) pod: Namespace,
    pub(super) guest: Namespace,
    cable: Option<Cable>,
}

impl Lab {
    pub(super) fn new() -> Self {
        let (outside, pod, guest) = (Namespace::new(), Namespace::new(), Namespace::new());
        let pod_pid = pod.holder.id();
        outside.run(&format!("ip link add veth0 mtu 1400 type veth peer name eth0 mtu 1400 netns {pod_pid}"));
        outside.run("ip address add 192.0.2.1/24 dev veth0 && ip link set veth0 up");
        pod.run("ip link set lo up && ip address add 192.0.2.2/24 dev eth0 && ip link set eth0 up");
        pod.run("ip route add default via 192.0.2.1");
        Self { outside, pod, guest, cable: None }
    }

    /// Gives the guest a network card whose other end is the pod's tap.
    pub(super) fn plug_in_guest(&mut self, pod: Vec<OwnedFd>, mac: Mac) {
        let [pod] = <[OwnedFd; 1]>::try_from(pod).expect("one queue");
        let card = self.guest.within(|| tap::create(1).unwrap()).remove(0);
        self.guest.run(&format!("ip link set {} name eth0", tap::TAP_NAME));
        self.guest.run(&format!("ip link set eth0 address {mac} mtu 1400 up"));
        self.guest.run("echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet");
        self.cable = Some(Cable::join(pod, card));
    }

    /// What the guest's DHCP client was told, after it configured itself accordingly.
    pub(super) fn dhcp(&self) -> HashMap<String, String> {
        const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip address replace "$ip/$mask" dev "$interface"
ip route replace default via "$router"
env > "$0.lease"
"#;
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        std::fs::write(&script, SCRIPT).unwrap();
        let script = script.display();
        self.guest.run(&format!(
            "chmod +x {script} && busybox udhcpc -f -q -n -t 8 -T 1 -i eth0 -O search -O mtu -O hostname -s {script}"
        ));
        let lease = std::fs::read_to_string(format!("{script}.lease")).unwrap();
        lease.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }
}

/// Two taps, joined. Unplugged when dropped.
struct Cable {
    stop: Option<io::PipeWriter>,
    worker: Option<JoinHandle<()>>,
}

impl Cable {
    fn join(one: OwnedFd, other: OwnedFd) -> Self {
        let (stopped, stop) = io::pipe().unwrap();
        let (mut one, mut other) = (File::from(one), File::from(other));
        let worker = std::thread::spawn(move || {
            let mut frame = vec![0; 65_536];
            loop {
                let mut watched = [
                    PollFd::new(&stopped, PollFlags::IN),
                    PollFd::new(&one, PollFlags::IN),
                    PollFd::new(&other, PollFlags::IN),
                ];
                poll(&mut watched, None).unwrap();
                if !watched[0].revents().is_empty() {
                    return;
                }
                carry(&mut one, &mut other, &mut frame);
                carry(&mut other, &mut one, &mut frame);
            }
        });
        Self { stop: Some(stop), worker: Some(worker) }
    }
}

/// A frame at most, with its virtio-net header. What the other side has no room for is lost, as on any wire.
fn carry(from: &mut File, to: &mut File, frame: &mut [u8]) {
    if let Ok(length) = from.read(frame) {
        let _ = to.write(&frame[..length]);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.worker.take().unwrap().join().unwrap();
    }
}

/// Connects within the namespace of the calling thread.
pub(super) fn connect(address: &str) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&address.parse::<SocketAddr>().unwrap(), TIMEOUT)
}

/// Sends something each way.
pub(super) fn exchange(mut one: &TcpStream, mut other: &TcpStream) {
    let mut received = [0; 5];
    for stream in [one, other] {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    }
    one.write_all(b"there").unwrap();
    other.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"there");
    other.write_all(b"again").unwrap();
    one.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"again");
}
