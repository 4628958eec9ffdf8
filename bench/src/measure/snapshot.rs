//! Size of a snapshot beside what the guest's RAM holds, and what a restore reads of it. Ours alone: QEMU writes a
//! stream of another kind.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::boot::MEMORY;
use crate::contender::{Contender, Machine};
use crate::guest::{Assets, Guest, command_line};
use crate::table::{Table, ratio};

pub fn run(assets: &Assets) -> Result<Table> {
    let directory = assets.directory.path();
    let (api, snapshot) = (directory.join("api.sock"), directory.join("snapshot"));
    fs::create_dir(&snapshot)?;
    let machine = Machine {
        vcpus: 1,
        memory: MEMORY,
        command_line: command_line("quiet", "boot"),
        api: Some(api.clone()),
        ..Machine::default()
    };
    let mut guest = Guest::start(Contender::Vmm, assets, &machine)?;
    guest.ready()?;
    request(&api, "vm.pause", "")?;
    let ram = non_zero(guest.pid(), MEMORY)?;
    request(&api, "vm.snapshot", &format!(r#"{{"destination_url":"file://{}"}}"#, snapshot.display()))?;
    let stored = stored(&snapshot)?;
    drop(guest);
    let _ = fs::remove_file(&api);

    let restore = [
        assets.vmm.display().to_string(),
        "--api-socket".to_owned(),
        format!("path={}", api.display()),
        "--restore".to_owned(),
        format!("source_url=file://{}", snapshot.display()),
    ];
    let guest = Guest::spawn(&restore)?;
    crate::guest::wait_for(|| api.exists()).context("waiting for the restored VMM's socket")?;
    request(&api, "vm.resume", "")?;
    let read = read_bytes(guest.pid())?;

    let mut table = Table::new("A snapshot of a guest whose init runs", &["", "KiB", "ratio"]);
    let kib = |bytes: u64| (bytes / 1024).to_string();
    table.row(["pages of guest RAM that are not zero".to_owned(), kib(ram), ratio(ram as f64, ram as f64)]);
    table.row(["the snapshot on disk".to_owned(), kib(stored), ratio(stored as f64, ram as f64)]);
    table.row(["read by the restoring process".to_owned(), kib(read), ratio(read as f64, ram as f64)]);
    Ok(table)
}

/// A request of the VMM's API; curl knows HTTP over unix sockets.
fn request(socket: &Path, what: &str, body: &str) -> Result<()> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail-with-body", "-X", "PUT", "--unix-socket"]).arg(socket);
    if !body.is_empty() {
        curl.args(["-H", "Content-Type: application/json", "-d", body]);
    }
    let output = curl.arg(format!("http://localhost/api/v1/{what}")).output().context("starting curl")?;
    let said = [&output.stdout[..], &output.stderr].concat();
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

/// Bytes in 4 KiB pages of guest RAM that hold anything, read through /proc/PID/mem.
fn non_zero(pid: u32, ram: u32) -> Result<u64> {
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut page = [0; 4096];
    let mut bytes = 0;
    for line in maps.lines() {
        let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) else { continue };
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        if end - start < u64::from(ram) << 19 {
            continue;
        }
        for address in (start..end).step_by(page.len()) {
            memory.read_exact_at(&mut page, address).context("reading guest RAM")?;
            bytes += if page.iter().any(|&byte| byte != 0) { page.len() as u64 } else { 0 };
        }
    }
    Ok(bytes)
}

/// Bytes that the files of a directory occupy.
fn stored(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

/// Bytes that a process has read by system calls (proc_pid_io(5)).
fn read_bytes(pid: u32) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).context("the kernel accounts input")?;
    Ok(read.trim().parse()?)
}
