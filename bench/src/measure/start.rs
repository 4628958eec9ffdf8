//! From `exec` to the guest's first instruction: time, and system calls of all the VMM's threads.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::boot::MEMORY;
use super::in_turn;
use crate::contender::{Contender, Machine};
use crate::guest::{Assets, Guest, command_line, wait_for};
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
    let trace = Trace::new()?;
    let file = trace.0.join("trace");
    let guest = Guest::spawn(command)?;
    let pid = guest.pid();
    wait_for(|| contains(&file, "kvm_entry:")).context("waiting for the first entry into the guest")?;
    drop(guest);
    let text = fs::read_to_string(&file).context("reading the trace")?;
    let of = |name: &str, also: &str| {
        text.lines().find(|line| line.contains(name) && line.contains(also)).and_then(timestamp)
    };
    let exec = of("sched_process_exec:", &format!(" pid={pid} ")).context("the VMM's exec is not in the trace")?;
    let entry = of("kvm_entry:", "").context("the first entry is not in the trace")?;
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

/// An instance of the kernel's tracing (`Documentation/trace/ftrace.rst`) that keeps what comes first.
struct Trace(std::path::PathBuf);

impl Trace {
    fn new() -> Result<Self> {
        let directory = Path::new("/sys/kernel/tracing/instances").join(format!("vse-bench-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let trace = Self(directory);
        for (file, value) in [
            ("options/overwrite", "0"),
            // One clock for all CPUs; each CPU's own drifts where all is emulated.
            ("trace_clock", "mono"),
            ("buffer_size_kb", "256"),
            ("events/sched/sched_process_exec/enable", "1"),
            ("events/kvm/kvm_entry/enable", "1"),
        ] {
            fs::write(trace.0.join(file), value).with_context(|| format!("setting {file} of the trace"))?;
        }
        Ok(trace)
    }
}

impl Drop for Trace {
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
