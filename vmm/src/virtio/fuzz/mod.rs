//! Hostile drivers against each device: scripts kept in `vmm/corpus/virtio`, and mutations of them for a bounded time.
//!
//! Nothing guides the mutations but the corpus. Whatever a driver does, a device must not panic, must come back from a
//! pause, and must work for the next driver. `VSE_FUZZ_SECONDS` is the time for each device (2 without it). A script that
//! fails is shown as hexadecimal digits; kept in the corpus, it stays a test.

mod script;
mod targets;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::script::{MOST, STEP, Step, decode};
use super::device::VirtioDevice;
use super::testing::{Bench, Ring};

/// The host's end of a device.
pub trait Host {
    /// Does something: sends, reads, connects, leaves.
    fn act(&mut self, _what: u8, _length: u32) {}
}

/// The host's end of a device that has none.
impl Host for () {}

/// Runs a script against a device that works, and sees that it still does.
fn drive<D: VirtioDevice>(bench: &mut Bench<D>, host: &mut impl Host, bytes: &[u8]) {
    restart(bench);
    for step in decode(bytes) {
        let count = bench.rings.len();
        let ring = |queue: u8| usize::from(queue) % count;
        match step {
            Step::Describe { queue, index, address, length, flags, next } => {
                bench.rings[ring(queue)].describe(index, address, length, flags, next);
            }
            Step::Offer { queue, head } => bench.rings[ring(queue)].offer(head),
            Step::Kick { queue } => bench.rings[ring(queue)].kick(),
            Step::Put { address, data } => bench.rings[0].put(address, &data),
            Step::Jump { queue, index } => bench.rings[ring(queue)].jump(index),
            Step::Configure { offset, data } => {
                bench.device.write_config(offset, &data);
                bench.device.read_config(offset, &mut [0; 8]);
            }
            Step::Pause => {
                pause(bench);
                bench.device.resume().unwrap();
            }
            Step::Reset => restart(bench),
            Step::Host { what, length } => host.act(what, length),
        }
    }
    pause(bench);
}

/// Pauses a device that has a driver; a thread that panicked has lost its queues.
fn pause<D: VirtioDevice>(bench: &mut Bench<D>) {
    bench.device.pause();
    assert_eq!(bench.device.queue_states().len(), bench.rings.len(), "the device's thread is gone");
    bench.device.save();
}

/// A driver that starts anew.
fn restart<D: VirtioDevice>(bench: &mut Bench<D>) {
    bench.device.reset();
    bench.rings.iter_mut().for_each(Ring::clear);
    bench.recorder.forget();
    bench.activate(&[]);
}

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus/virtio").join(name)
}

/// Runs what is kept for a device, then mutations of it, and lets `check` see whether it still works.
fn fuzz<D: VirtioDevice, H: Host>(
    name: &str,
    bench: &mut Bench<D>,
    host: &mut H,
    mut check: impl FnMut(&mut Bench<D>, &mut H),
) {
    let mut files: Vec<_> = fs::read_dir(corpus(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let kept: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!kept.is_empty(), "nothing is kept for {name}");
    let mut run = |script: &[u8]| {
        let on_failure = Shown(script);
        drive(bench, host, script);
        restart(bench);
        check(bench, host);
        std::mem::forget(on_failure);
    };
    kept.iter().for_each(|script| run(script));
    let seconds = std::env::var("VSE_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(2);
    let (end, mut random, mut runs) = (Instant::now() + Duration::from_secs(seconds), Random(0x9e37_79b9), 0_u32);
    while Instant::now() < end {
        run(&mutate(&kept, &mut random));
        runs += 1;
    }
    println!("{name}: {} kept scripts, {runs} mutations", kept.len());
}

/// Shows a script when what it does panics.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("the script was {digits}");
    }
}

/// Numbers that look random, the same in every run (xorshift32, Marsaglia 2003).
struct Random(u32);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % limit.max(1)
    }
}

/// Bytes that are often a border.
const BORDERS: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];

fn mutate(kept: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut script = kept[random.below(kept.len())].clone();
    for _ in 0..=random.below(8) {
        let steps = script.len() / STEP;
        let at = random.below(steps) * STEP;
        match random.below(6) {
            0 if steps > 0 => {
                let byte = random.below(script.len());
                script[byte] ^= 1 << random.below(8);
            }
            1 if steps > 0 => {
                let byte = random.below(script.len());
                script[byte] = BORDERS[random.below(BORDERS.len())];
            }
            2 if steps > 1 => drop(script.drain(at..at + STEP)),
            3 if steps > 0 && steps < MOST => {
                let step = script[at..at + STEP].to_vec();
                let to = random.below(steps + 1) * STEP;
                script.splice(to..to, step);
            }
            4 => {
                let other = &kept[random.below(kept.len())];
                let from = random.below(other.len() / STEP) * STEP;
                script.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let step: Vec<u8> = (0..STEP).map(|_| random.below(256) as u8).collect();
                script.splice(at..at, step);
            }
        }
    }
    script.truncate(MOST * STEP);
    script
}
