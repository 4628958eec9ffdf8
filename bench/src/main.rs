//! `vse-bench`: measures VMMs beside each other, with the same kernel and guest, on the host it runs on.
//!
//! Times on an emulated host mean nothing by themselves, so what is told are counts (exits, system calls, bytes) and
//! ratios between contenders of the same run. The guest is [`vse-bench-guest`](../vse_bench_guest/index.html) as
//! `/init`; it says on the serial console when it has come up and what it measured inside.
//!
//! Needs root, /dev/kvm, debugfs and tracefs, and the programs `modprobe`, `strace` and `ip`.

mod contender;
mod guest;
mod initramfs;
mod kvm;
mod measure;
mod memory;
mod pin;
mod steps;
mod table;
mod tap;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::contender::Contender;
use crate::guest::Assets;

/// Measures VMMs beside each other on this host.
#[derive(Parser)]
#[command(version, after_help = "Example:\n  vse-bench --vmm ./vse-vmm --guest ./vse-bench-guest boot memory")]
struct Options {
    /// Our VMM's program.
    #[arg(long)]
    vmm: PathBuf,
    /// The program that is the guest's /init, statically linked.
    #[arg(long)]
    guest: PathBuf,
    /// The kernel that every guest boots.
    #[arg(long, default_value = "/boot/vmlinuz")]
    kernel: PathBuf,
    /// Contenders, the first one being what the others are compared with.
    #[arg(long, value_delimiter = ',', default_values = ["q35", "microvm", "vmm"])]
    contenders: Vec<Contender>,
    /// Runs of each contender, in turn, of `boot`, `block`, `direct` and `net`; of `start` four times as many.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    tries: u8,
    /// How long the loop of `compute` runs, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=240))]
    seconds: u32,
    /// The host's CPU that `compute`, `block`, `direct` and `net` pin their one vCPU to, and the VMM's other threads to the
    /// next one; better two that nobody else uses.
    #[arg(long, default_value_t = 1)]
    cpu: u32,
    /// Most instructions that `instructions` counts of one contender: some 10,000 a second where all is emulated. By
    /// default five times what ours takes, and a bit.
    #[arg(long, default_value_t = 3_000_000)]
    steps: u64,
    /// What to measure; everything by default.
    measures: Vec<Measure>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// Exits until the guest's init runs, with the verbose and with the quiet console.
    Boot,
    /// Resident memory beside the guest's RAM, and what a further vCPU adds.
    Memory,
    /// Time and system calls from `exec` to the guest's first instruction.
    Start,
    /// Instructions of the VMM's own code until then.
    Instructions,
    /// Exits of a pinned loop on a dedicated CPU.
    Compute,
    /// Random 4 KiB reads from a virtio disk, 32 at a time.
    Block,
    /// The same around the host's page cache and without io_uring, as in a VM pod.
    Direct,
    /// A TCP stream from the guest to the host over virtio-net.
    Net,
    /// Size of a snapshot, and what a restore reads.
    Snapshot,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(rustix::process::getuid().is_root(), "vse-bench has to read KVM's counters: run it as root");
    let assets = Assets::new(&options.vmm, &options.guest, &options.kernel)?;
    let (contenders, tries) = (&options.contenders, usize::from(options.tries));
    let measures = match options.measures.as_slice() {
        [] => Measure::value_variants(),
        some => some,
    };
    let mut failed = 0;
    for measure in measures {
        let table = match measure {
            Measure::Boot => measure::boot::run(&assets, contenders, tries),
            Measure::Memory => measure::memory::run(&assets, contenders),
            Measure::Start => measure::start::run(&assets, contenders, tries),
            Measure::Instructions => measure::instructions::run(&assets, contenders, options.steps),
            Measure::Compute => measure::compute::run(&assets, contenders, options.seconds, options.cpu),
            Measure::Block => measure::block::run(&assets, contenders, tries, options.cpu, false),
            Measure::Direct => measure::block::run(&assets, contenders, tries, options.cpu, true),
            Measure::Net => measure::net::run(&assets, contenders, tries, options.cpu),
            Measure::Snapshot => measure::snapshot::run(&assets),
        };
        match table {
            Ok(table) => writeln!(io::stdout(), "{table}")?,
            // The others may still say something.
            Err(error) => {
                failed += 1;
                let name = measure.to_possible_value().context("every measure has a name")?;
                writeln!(io::stderr(), "{}: {error:#}\n", name.get_name())?;
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} measures failed", measures.len());
    Ok(())
}
