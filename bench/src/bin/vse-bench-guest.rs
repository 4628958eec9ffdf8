//! `/init` of the guests that `vse-bench` measures: says that it runs, does the one task it was told, says what it
//! measured, and waits to be ended.
//!
//! Tasks, as the word after `--` on the kernel's command line: `boot` (none), `compute=SECONDS`, `block=READS`,
//! `net=ADDRESS:PORT:MIB`.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use rtnetlink::{LinkUnspec, new_connection};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};
use rustix::system::finit_module;
use serde_json::{Value, json};

/// Reads in flight.
const DEPTH: u32 = 32;
/// Bytes of one read.
const BLOCK: usize = 4096;
/// How long a device may take to appear.
const PATIENCE: Duration = Duration::from_secs(30);
/// `finit_module` unpacks the file itself (`MODULE_INIT_COMPRESSED_FILE`, `include/uapi/linux/module.h`).
const COMPRESSED: i32 = 4;

fn main() -> Infallible {
    println!("vse-bench: ready");
    if let Err(error) = run() {
        println!("vse-bench: error {error:#}");
    }
    loop {
        thread::park();
    }
}

fn run() -> Result<()> {
    let task = std::env::args().nth(1).context("no task on the command line")?;
    let (task, value) = task.split_once('=').unwrap_or((&task, ""));
    let result = match task {
        "boot" => return Ok(()),
        "compute" => compute(Duration::from_secs(value.parse()?)),
        "block" => {
            modules()?;
            block(value.parse()?)?
        }
        "net" => {
            modules()?;
            net(value)?
        }
        other => bail!("there is no task {other}"),
    };
    println!("vse-bench: result {result}");
    Ok(())
}

fn modules() -> Result<()> {
    mount("none", "/dev", "devtmpfs", MountFlags::empty(), None).context("mounting /dev")?;
    let mut files: Vec<_> =
        fs::read_dir("/modules")?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    for path in files {
        let magic = fs::read(&path)?;
        let flags = if magic.starts_with(b"\x7fELF") { 0 } else { COMPRESSED };
        // One that is loaded, or whose devices are not there, is no reason to stop.
        if let Err(error) = finit_module(File::open(&path)?, c"", flags) {
            println!("vse-bench: {}: {error}", path.display());
        }
    }
    Ok(())
}

/// Steps of a linear congruential generator: nothing but the CPU.
fn compute(span: Duration) -> Value {
    println!("vse-bench: begun");
    let (start, mut state, mut rounds) = (Instant::now(), 1_u64, 0_u64);
    while start.elapsed() < span {
        for _ in 0..1_000_000 {
            state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        rounds += 1;
    }
    json!({ "rounds": rounds, "state": state })
}

/// A buffer that direct reads may go to.
#[repr(align(4096))]
struct Page([u8; BLOCK]);

fn block(reads: u32) -> Result<Value> {
    let path = "/dev/vda";
    wait_for(|| fs::exists(path).unwrap_or(false)).context("waiting for the disk")?;
    let size: u64 = fs::read_to_string("/sys/block/vda/size")
        .or_else(|_| {
            mount("none", "/sys", "sysfs", MountFlags::empty(), None)?;
            fs::read_to_string("/sys/block/vda/size")
        })?
        .trim()
        .parse()?;
    let blocks = size * 512 / BLOCK as u64;
    let disk = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
    let left = AtomicU32::new(reads);
    println!("vse-bench: begun");
    let start = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let reader = |seed: u32| -> Result<()> {
            let (mut page, mut state) = (Page([0; BLOCK]), u64::from(seed) + 1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                disk.read_exact_at(&mut page.0, (state >> 16) % blocks * BLOCK as u64)?;
                if page.0[0] != 0x5A || page.0[BLOCK - 1] != 0x5A {
                    bail!("the disk does not hold what was written");
                }
            }
            Ok(())
        };
        let threads: Vec<_> = (0..DEPTH).map(|seed| scope.spawn(move || reader(seed))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a reader panicked")))
    })?;
    Ok(json!({ "per_second": f64::from(reads) / start.elapsed().as_secs_f64() }))
}

fn net(value: &str) -> Result<Value> {
    let [host, port, mib] = value.split(':').collect::<Vec<_>>()[..] else { bail!("net={value}: three parts") };
    let (host, mib): (Ipv4Addr, u32) = (host.parse()?, mib.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(address(Ipv4Addr::from(u32::from(host) + 1)))?;
    let mut stream = TcpStream::connect(SocketAddrV4::new(host, port.parse()?)).context("connecting to the host")?;
    let buffer = vec![0x5A; 1 << 20];
    println!("vse-bench: begun");
    let start = Instant::now();
    for _ in 0..mib {
        stream.write_all(&buffer)?;
    }
    Ok(json!({ "per_second": f64::from(mib) / start.elapsed().as_secs_f64() }))
}

/// Gives the one network card an address and switches it on.
async fn address(address: Ipv4Addr) -> Result<()> {
    let (connection, handle, _) = new_connection().context("netlink")?;
    tokio::spawn(connection);
    let link = handle.link().get().match_name("eth0".to_owned()).execute().try_next().await?;
    let index = link.context("there is no eth0")?.header.index;
    handle.address().add(index, address.into(), 24).execute().await?;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    Ok(())
}

fn wait_for(mut is_so: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
