//! A TCP stream from the guest to the host over virtio-net with vhost: exits for each MiB, and MiB in a second.

use std::io;
use std::net::TcpListener;
use std::thread;

use anyhow::{Context, Result};
use rustix::net::{RecvFlags, recv};

use super::boot::MEMORY;
use super::flow::{self, Flow};
use crate::contender::{Contender, Machine};
use crate::guest::{Assets, Guest, command_line};
use crate::table::Table;
use crate::tap::{HOST, Tap};

/// Length of the stream, MiB.
const STREAM: u32 = 512;

pub fn run(assets: &Assets, contenders: &[Contender], tries: usize, cpu: u32) -> Result<Table> {
    let title = format!("virtio-net: a TCP stream of {STREAM} MiB from guest to host, vhost-net");
    flow::table("net", title, "MiB", contenders, tries, |contender| {
        let tap = Tap::new()?;
        let port = sink()?;
        let machine = Machine {
            vcpus: 1,
            memory: MEMORY,
            command_line: command_line("quiet", &format!("net={HOST}:{port}:{STREAM}")),
            tap: Some(tap.descriptors()),
            ..Machine::default()
        };
        Flow::of(Guest::start(contender, assets, &machine)?, STREAM, cpu)
    })
}

/// Takes one stream and forgets it; returns where it listens.
fn sink() -> Result<u16> {
    let listener = TcpListener::bind((HOST, 0)).context("listening on the tap's address")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || -> io::Result<()> {
        let (stream, _) = listener.accept()?;
        let mut buffer = vec![0; 256 << 10];
        // Without a copy of it (tcp(7)): the way to here is measured, not we.
        while recv(&stream, &mut buffer, RecvFlags::TRUNC)?.1 > 0 {}
        Ok(())
    });
    Ok(port)
}
