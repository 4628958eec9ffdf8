//! Hostile scripts: what is kept in `vmm/corpus`, and mutations of it for a bounded time.
//!
//! A script is a list of steps of equal size; what a step means is the target's matter. Nothing guides the mutations but
//! the corpus. `VSE_FUZZ_SECONDS` is the time for each target (2 without it). A script that fails is shown as hexadecimal
//! digits; kept in the corpus, it stays a test.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long scripts are.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of a step.
    pub(crate) step: usize,
    /// Most steps of a script.
    pub(crate) most: usize,
}

/// Where a target's scripts are kept.
pub(crate) fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Runs what is kept for a target, then mutations of it.
pub(crate) fn fuzz(target: &str, shape: Shape, mut run: impl FnMut(&[u8])) {
    let mut files: Vec<_> = fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let kept: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!kept.is_empty(), "nothing is kept for {target}");
    let mut run = |script: &[u8]| {
        let on_failure = Shown(script);
        run(script);
        std::mem::forget(on_failure);
    };
    kept.iter().for_each(|script| run(script));
    let seconds = std::env::var("VSE_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(2);
    let (end, mut random, mut runs) = (Instant::now() + Duration::from_secs(seconds), Random(0x9e37_79b9), 0_u32);
    while Instant::now() < end {
        run(&mutate(&kept, shape, &mut random));
        runs += 1;
    }
    println!("{target}: {} kept scripts, {runs} mutations", kept.len());
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

fn mutate(kept: &[Vec<u8>], shape: Shape, random: &mut Random) -> Vec<u8> {
    let Shape { step: size, most } = shape;
    let mut script = kept[random.below(kept.len())].clone();
    for _ in 0..=random.below(8) {
        let steps = script.len() / size;
        let at = random.below(steps) * size;
        match random.below(6) {
            0 if steps > 0 => {
                let byte = random.below(script.len());
                script[byte] ^= 1 << random.below(8);
            }
            1 if steps > 0 => {
                let byte = random.below(script.len());
                script[byte] = BORDERS[random.below(BORDERS.len())];
            }
            2 if steps > 1 => drop(script.drain(at..at + size)),
            3 if steps > 0 && steps < most => {
                let step = script[at..at + size].to_vec();
                let to = random.below(steps + 1) * size;
                script.splice(to..to, step);
            }
            4 => {
                let other = &kept[random.below(kept.len())];
                let from = random.below(other.len() / size) * size;
                script.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let step: Vec<u8> = (0..size).map(|_| random.below(256) as u8).collect();
                script.splice(at..at, step);
            }
        }
    }
    script.truncate(most * size);
    script
}
