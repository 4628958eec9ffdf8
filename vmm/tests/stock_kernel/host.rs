//! What tests need of the host: network interfaces, processes, checksums.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::process::until;

/// The host's address on a tap (RFC 5737); guests have 192.0.2.2.
pub const ADDRESS: &str = "192.0.2.1";

/// A network interface of the host's, there until it goes out of scope.
pub struct Tap(&'static str);

impl Tap {
    pub fn new(name: &'static str) -> Self {
        run("ip", &["tuntap", "add", "dev", name, "mode", "tap"]);
        let tap = Self(name);
        run("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", name]);
        run("ip", &["link", "set", name, "up"]);
        tap
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", self.0]).status();
    }
}

/// Waits for a guest's connection; what it sends may take its time.
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut connection = None;
    until("the guest connects", || {
        connection = listener.accept().ok();
        connection.is_some()
    });
    let (connection, _) = connection.unwrap();
    connection.set_nonblocking(false).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    connection
}

/// A program that runs until this goes out of scope.
pub struct Running(Child);

impl Running {
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        Self(Command::new(program).args(arguments).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program that has to succeed.
pub fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

/// A file's SHA-256, as `sha256sum` has it.
pub fn digest(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Writes a file whose blocks differ, of so many bytes.
pub fn fill(file: &Path, bytes: usize) {
    let content: Vec<u8> =
        (0_u64..).flat_map(|number| number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).take(bytes).collect();
    std::fs::write(file, content).unwrap();
}
