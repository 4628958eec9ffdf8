//! A running guest: its process, its console, and what can be counted of it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::contender::{Contender, Machine};
use crate::initramfs;
use crate::kvm::Counters;

/// How long a guest may take for anything, on a busy emulated host; more than the loop of `compute`.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// The guest's `/init` begins its lines with this.
const MARK: &str = "vse-bench: ";
/// Most bytes of a console's line; the kernel's own are shorter.
const LINE: u64 = 64 << 10;

/// What every guest is made of.
pub struct Assets {
    /// Our VMM's program.
    pub vmm: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs, in `directory`.
    pub initramfs: PathBuf,
    /// Gone with this value.
    pub directory: TempDir,
}

impl Assets {
    /// Makes the initramfs out of the guest's program and this host's modules.
    pub fn new(vmm: &Path, guest: &Path, kernel: &Path) -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for the guests' files")?;
        let initramfs = directory.path().join("initramfs");
        initramfs::write(&initramfs, guest)?;
        Ok(Self { vmm: vmm.canonicalize()?, kernel: kernel.canonicalize()?, initramfs, directory })
    }
}

/// A guest that runs; ended and waited for when dropped.
pub struct Guest {
    process: Child,
    lines: Receiver<String>,
    /// What its console said so far, its last lines: for error messages.
    said: Vec<String>,
}

/// The command line for a guest that does `task`; `words` go to the kernel, for example `quiet`.
pub fn command_line(words: &str, task: &str) -> String {
    format!("console=ttyS0 panic=-1 {words} -- {task}")
}

impl Guest {
    /// Starts a contender on a machine.
    pub fn start(contender: Contender, assets: &Assets, machine: &Machine) -> Result<Self> {
        Self::spawn(&contender.command(assets, machine))
    }

    /// Starts a command whose standard output is a guest's console.
    pub fn spawn(command: &[String]) -> Result<Self> {
        let [program, arguments @ ..] = command else { bail!("no command") };
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let output = process.stdout.take().context("a piped output is there")?;
        Ok(Self { process, lines: console(output), said: Vec::new() })
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the guest's init runs.
    pub fn ready(&mut self) -> Result<()> {
        self.marked("ready").map(drop)
    }

    /// Waits until the guest says that its task begins or is half way, as the task has it.
    pub fn begun(&mut self) -> Result<()> {
        self.marked("begun").map(drop)
    }

    /// Waits for what the task measured.
    pub fn result(&mut self) -> Result<Value> {
        serde_json::from_str(&self.marked("result")?).context("reading the guest's result")
    }

    /// KVM's counters of this guest, now.
    pub fn counters(&self) -> Result<Counters> {
        Counters::read(self.pid())
    }

    /// The rest of the first line that begins with this mark.
    fn marked(&mut self, mark: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        let problem = loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let said = line.split_once(MARK).map(|(_, said)| said);
                    if let Some(rest) = said.and_then(|said| said.strip_prefix(mark)) {
                        return Ok(rest.trim().to_owned());
                    }
                    if let Some(error) = said.and_then(|said| said.strip_prefix("error ")) {
                        bail!("the guest could not do its task: {error}");
                    }
                    self.said.push(line);
                }
                Err(RecvTimeoutError::Timeout) => break format!("did not say {mark} within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => break format!("ended before it said {mark}"),
            }
        };
        let last = self.said.len().saturating_sub(20);
        bail!("the guest {problem}; its console's last lines:\n{}", self.said[last..].join("\n"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell of a failure.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The console, line by line. A thread of its own reads it, so that a guest never waits for us.
fn console(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = sync_channel(1 << 16);
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while let Ok(1..) = std::io::Read::take(&mut output, LINE).read_until(b'\n', &mut line) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    lines
}

/// Waits, looking every few milliseconds, until something is so.
pub fn wait_for(mut is_so: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > end {
            bail!("waited {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
