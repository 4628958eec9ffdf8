//! The launcher from outside: orders good and bad, over its real socket.

#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not take for tests

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;
use vse_launch::{Descriptor, LaunchOrder, SendError, connect_beneath, send};

/// A launcher that waits on a socket in a directory of its own.
struct Launcher {
    dir: TempDir,
    child: Child,
    console: BufReader<ChildStdout>,
}

impl Launcher {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), &[])
    }

    fn start_in(dir: TempDir, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vse-launcher"));
        command.arg("--socket").arg(dir.path().join("launch.sock")).args(args).env("INHERITED", "yes");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let console = BufReader::new(child.stdout.take().unwrap());
        let mut launcher = Self { dir, child, console };
        launcher.await_waiting();
        launcher
    }

    fn await_waiting(&mut self) {
        assert_eq!(self.line(), "vse: waiting for the node runtime of this host");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.console.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn connect(&self) -> UnixStream {
        let dir = File::open(self.dir.path()).unwrap();
        let connection = connect_beneath(dir.as_fd(), "launch.sock").unwrap();
        assert_eq!(connection.peer_pid, self.child.id().cast_signed());
        connection.stream
    }

    fn send(&self, order: &LaunchOrder, fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        send(&self.connect(), order, fds)
    }

    /// The rest of the console, once the program has ended well.
    fn finish(mut self) -> String {
        let mut output = String::new();
        self.console.read_to_string(&mut output).unwrap();
        assert!(self.child.wait().unwrap().success(), "{output}");
        output
    }

    /// A plain order is still carried out: whatever came before did no harm.
    fn assert_alive(self) {
        self.send(&shell("echo alive"), &[]).unwrap();
        assert_eq!(self.finish(), "alive\n");
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prints the shell's open descriptors, but for the one that the expansion itself needs.
const OPEN: &str = "for fd in /proc/$$/fd/*; do if [ -e $fd ]; then printf '%s ' ${fd##*/}; fi; done";

fn shell(script: &str) -> LaunchOrder {
    LaunchOrder {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
        descriptors: vec![],
    }
}

fn file(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

fn raw_order(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"VSEL\x01\0\0\0".to_vec();
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(body);
    bytes
}

/// What the launcher answers to these bytes.
fn answer(launcher: &Launcher, bytes: &[u8]) -> String {
    let mut socket = launcher.connect();
    socket.write_all(bytes).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    // What was not read when the launcher gave up resets the connection after the answer.
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn becomes_the_program_with_just_what_was_ordered() {
    let launcher = Launcher::start();
    let mut order = shell(&format!("cat <&9; cat <&3; env; echo pid $$; {OPEN}"));
    order.descriptors =
        vec![Descriptor { name: "nine".into(), target: 9 }, Descriptor { name: "three".into(), target: 3 }];
    let (nine, three) = (file("nine\n"), file("three\n"));
    let pid = launcher.child.id();
    let socket = launcher.dir.path().join("launch.sock");
    launcher.send(&order, &[nine.as_fd(), three.as_fd()]).unwrap();
    assert!(!socket.exists());
    let output = launcher.finish();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["nine", "three"]);
    assert!(lines.contains(&"PATH=/usr/bin:/bin") && !output.contains("INHERITED"), "{output}");
    assert!(lines.contains(&format!("pid {pid}").as_str()), "{output}");
    assert_eq!(*lines.last().unwrap(), "0 1 2 3 9 ");
}

#[test]
fn the_program_cannot_be_terminated_or_gain_privileges() {
    let launcher = Launcher::start();
    // Not by way of a shell: it clears the mask itself.
    let mut order = shell("");
    order.program = "/usr/bin/cat".into();
    order.args = vec!["/proc/self/status".into()];
    launcher.send(&order, &[]).unwrap();
    let output = launcher.finish();
    let mask = output.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        assert_ne!(mask & (1 << (signal as u32 - 1)), 0, "{signal} in {mask:x}");
    }
    assert!(output.contains("NoNewPrivs:\t1"), "{output}");
}

#[test]
fn more_descriptors_than_one_message_holds_arrive_in_order() {
    let launcher = Launcher::start();
    let files: Vec<File> = (0..400).map(|index| file(&format!("{index}\n"))).collect();
    let mut order = shell("cat /proc/self/fd/3 /proc/self/fd/255 /proc/self/fd/256 /proc/self/fd/402");
    // The other way round from how they arrive: every one stands where another belongs.
    order.descriptors =
        (0..400).map(|index| Descriptor { name: format!("file {index}"), target: 402 - index }).collect();
    launcher.send(&order, &files.iter().map(File::as_fd).collect::<Vec<_>>()).unwrap();
    assert_eq!(launcher.finish(), "399\n147\n146\n0\n");
}

#[test]
fn a_program_that_cannot_be_executed_leaves_the_launcher_waiting() {
    let mut launcher = Launcher::start();
    let mut order = shell("");
    order.program = "/no/such/engine".into();
    order.descriptors = vec![Descriptor { name: "file".into(), target: 5 }];
    let refusal = launcher.send(&order, &[file("").as_fd()]).unwrap_err();
    assert!(matches!(&refusal, SendError::Refused(why) if why.contains("/no/such/engine")), "{refusal:?}");
    launcher.await_waiting();
    launcher.send(&shell(OPEN), &[]).unwrap();
    assert_eq!(launcher.finish(), "0 1 2 ");
}

#[test]
fn bad_orders_are_answered_and_forgotten() {
    let launcher = Launcher::start();
    for (bytes, why) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "no launch order"),
        (b"VSEL\x02\0\0\0\x01\0\0\0x".to_vec(), "version 2"),
        (b"VSEL\x01\0\0\0\xff\xff\xff\xff".to_vec(), "4294967295 bytes"),
        (raw_order(b"{}"), "cannot be read"),
        (raw_order(br#"{"program":"sh","args":[],"env":{},"descriptors":[]}"#), "absolute"),
        (raw_order(br#"{"program":"/sh","args":[],"env":{},"descriptors":[{"name":"n","target":1}]}"#), "number 1"),
        (raw_order(br#"{"program":"/sh","args":[],"env":{},"descriptors":[],"uid":0}"#), "uid"),
    ] {
        let answer = answer(&launcher, &bytes);
        assert!(answer.starts_with('-') && answer.contains(why), "{answer:?} does not say {why:?}");
    }
    launcher.assert_alive();
}

#[test]
fn senders_that_die_midway_are_forgotten() {
    let launcher = Launcher::start();
    let body = order_for_one("echo never");
    let whole = raw_order(body.as_bytes());
    for length in [0, 1, 11, 12, whole.len() - 1] {
        launcher.connect().write_all(&whole[..length]).unwrap();
    }
    launcher.assert_alive();
}

/// An order for one descriptor that never comes, as bytes.
fn order_for_one(script: &str) -> String {
    format!(r#"{{"program":"/bin/sh","args":["-c","{script}"],"env":{{}},"descriptors":[{{"name":"n","target":3}}]}}"#)
}

#[test]
fn missing_and_stray_descriptors_are_refused() {
    let launcher = Launcher::start();
    let order = raw_order(order_for_one("echo never").as_bytes());
    // The carrier comes without its descriptor.
    let missing = answer(&launcher, &[order.as_slice(), b"\xfd"].concat());
    assert!(missing.contains("names 1 descriptors, 0 arrived"), "{missing}");

    let file = file("");
    // A descriptor rides on the header, and two on the carrier.
    for (prefix, bytes, count) in [(&[][..], &order[..], 1), (&order[..], &b"\xfd"[..], 2)] {
        let mut socket = launcher.connect();
        socket.write_all(prefix).unwrap();
        let fds = vec![file.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with('-') && answer.contains("arrived"), "{answer}");
    }
    launcher.assert_alive();
}

#[test]
fn only_the_named_users_may_order() {
    let launcher = Launcher::start_in(tempfile::tempdir().unwrap(), &["--orders-from", "12345"]);
    let refusal = launcher.send(&shell("echo never"), &[]).unwrap_err();
    assert!(matches!(&refusal, SendError::Refused(why) if why.contains("may not")), "{refusal:?}");
}

#[test]
fn termination_ends_the_wait_at_once() {
    for busy in [false, true] {
        let mut launcher = Launcher::start();
        let _half = busy.then(|| {
            let mut socket = launcher.connect();
            socket.write_all(b"VSEL").unwrap();
            socket
        });
        kill(Pid::from_raw(launcher.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(launcher.child.wait().unwrap().success());
        assert!(!launcher.dir.path().join("launch.sock").exists());
    }
}

#[test]
fn a_socket_left_by_an_earlier_life_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(dir.path().join("launch.sock")).unwrap());
    Launcher::start_in(dir, &[]).assert_alive();
}

#[test]
fn help_shows_an_example() {
    let output = Command::new(env!("CARGO_BIN_EXE_vse-launcher")).arg("--help").output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("Example"));
}
