//! From `exec` to the guest's first instruction: time, and system calls of all the VMM's threads.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::boot::MEMORY;
use super::in_turn;
use crate::contender::{Contender, Machine};
use crate::guest::{Assets, Guest, PATIENCE, command_line, wait_for};
use crate::table::{Table, ratio};

/// Runs for each try: they are short, and what disturbs one is longer than it.
const STARTS: usize = 4;

pub fn run(assets: &Assets, contenders: &[Contender], tries: usize) -> Result<Table> {
    let tries = STARTS * tries;
    let title = format!("From exec to the guest's first instruction (1 vCPU, {MEMORY} MiB), best of {tries}");
    let mut table = Table::new(title, &["", "time", "ratio", "system calls", "ratio"]);
    let one = |contender: Contender| time(&contender.command(assets, &machine()));
    let mut base = None;
    for (contender, times) in in_turn("start", contenders, tries, one, |time| format!("{time:.1?}"))? {
        let best = times.into_iter().min().context("no run")?;
        let calls = system_calls(assets, &contender.command(assets, &machine()))? as f64;
        let time = best.as_secs_f64();
        let (time_base, calls_base) = *base.get_or_insert((time, calls));
        let cells = [format!("{best:.1?}"), ratio(time, time_base), calls.to_string(), ratio(calls, calls_base)];
        table.row([contender.to_string()].into_iter().chain(cells));
    }
    Ok(table)
}

pub(super) fn machine() -> Machine {
    Machine { vcpus: 1, memory: MEMORY, command_line: command_line("quiet", "boot"), ..Machine::default() }
}

/// By the tracepoints of the scheduler and KVM, in a trace of their own.
fn time(command: &[String]) -> Result<Duration> {
    let mut trace = Trace::new()?;
    let guest = Guest::spawn(command)?;
    let pid = format!(" pid={} ", guest.pid());
    let exec = trace.wait_for("sched_process_exec:", &pid).context("waiting for the VMM's exec")?;
    let entry = trace.wait_for("kvm_entry:", "").context("waiting for the first entry into the guest")?;
    entry.checked_sub(exec).with_context(|| format!("the first entry, at {entry:?}, is before the exec, at {exec:?}"))
}

fn contains(file: &Path, word: &str) -> bool {
    fs::read(file).is_ok_and(|text| String::from_utf8_lossy(&text).contains(word))
}

/// Of a line like `vse-vmm-812 [001] d..1.   101.123456: kvm_entry: vcpu 0, …`.
fn timestamp(line: &str) -> Option<Duration> {
    let time = line.split_whitespace().find_map(|word| word.strip_suffix(':').filter(|word| word.contains('.')))?;
    let (seconds, micros) = time.split_once('.')?;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

/// An instance of the kernel's tracing (`Documentation/trace/ftrace.rst`). It is waited for, not looked at again and again:
/// that would take CPUs from what is measured.
struct Trace {
    // Before the instance, which stays as long as this is open.
    pipe: BufReader<File>,
    _instance: Instance,
}

/// Its directory.
struct Instance(PathBuf);

impl Trace {
    fn new() -> Result<Self> {
        let directory = Path::new("/sys/kernel/tracing/instances").join(format!("vse-bench-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let instance = Instance(directory);
        for (file, value) in [
            // What comes first is kept.
            ("options/overwrite", "0"),
            // One clock for all CPUs; each CPU's own drifts where all is emulated.
            ("trace_clock", "mono"),
            ("buffer_size_kb", "256"),
            ("events/sched/sched_process_exec/enable", "1"),
            ("events/kvm/kvm_entry/enable", "1"),
        ] {
            fs::write(instance.0.join(file), value).with_context(|| format!("setting {file} of the trace"))?;
        }
        let pipe = File::open(instance.0.join("trace_pipe")).context("opening the trace")?;
        Ok(Self { pipe: BufReader::new(pipe), _instance: instance })
    }

    /// When the first event from here on happened that is of this name and says this.
    fn wait_for(&mut self, name: &str, words: &str) -> Result<Duration> {
        let end = Instant::now() + PATIENCE;
        loop {
            if self.pipe.buffer().is_empty() {
                let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
                let ready = poll(&mut [PollFd::new(self.pipe.get_ref(), PollFlags::IN)], Some(&left));
                ensure!(ready.context("waiting for the trace")? > 0, "waited {PATIENCE:?}");
            }
            let mut line = String::new();
            ensure!(self.pipe.read_line(&mut line).context("reading the trace")? > 0, "the trace has ended");
            if line.contains(name) && line.contains(words) {
                return timestamp(&line).with_context(|| format!("no time in {line:?}"));
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // What is left of it would only cost memory of the host's.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Every call that began before the first `KVM_RUN`, by strace.
fn system_calls(assets: &Assets, command: &[String]) -> Result<usize> {
    let log = assets.directory.path().join("strace");
    // What it said of another contender would be taken for this one's.
    File::create(&log).context("making a file for strace")?;
    let mut traced: Vec<String> = ["strace", "-f", "-qq", "--kill-on-exit", "-o"].map(str::to_owned).into();
    traced.push(log.display().to_string());
    traced.extend_from_slice(command);
    let guest = Guest::spawn(&traced)?;
    wait_for(|| contains(&log, "KVM_RUN")).context("waiting for strace to see a KVM_RUN")?;
    drop(guest);
    let log = fs::read(&log).context("reading what strace wrote")?;
    calls_before_run(&String::from_utf8_lossy(&log)).context("strace saw no KVM_RUN")
}

/// A call that another thread's came between has a second line, where it ends.
fn calls_before_run(log: &str) -> Option<usize> {
    log.lines().filter(|line| !line.contains(" resumed>")).position(|line| line.contains("KVM_RUN"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_trace_are_read() {
        let line = "         vse-vmm-812     [001] d..1.   101.123456: kvm_entry: vcpu 0, rip 0x100000";
        assert_eq!(timestamp(line), Some(Duration::from_micros(101_123_456)));
        assert_eq!(timestamp("# tracer: nop"), None);
    }

    #[test]
    fn calls_are_counted_once() {
        let log =
            "7 futex(0x1, FUTEX_WAIT <unfinished ...>\n8 close(3) = 0\n7 <... futex resumed>) = 0\n8 ioctl(9, KVM_RUN";
        assert_eq!(calls_before_run(log), Some(2));
        assert_eq!(calls_before_run("8 close(3) = 0"), None);
    }
}
