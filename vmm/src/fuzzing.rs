//! Hostile scripts: what is kept in `vmm/corpus`, and mutations of it for a bounded time.
//!
//! A script is a list of steps of equal size, or a text, whose steps are its bytes; what a step means is the target's
//! matter. Nothing guides the mutations but the corpus, and words that a text's reader knows. `VSE_FUZZ_SECONDS` is the
//! time for each target (2 without it). A script that fails is shown as hexadecimal digits; kept in the corpus, it stays a
//! test.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vse_vmm_api::{VmConfig, json};

/// How long scripts are.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of a step.
    pub(crate) step: usize,
    /// Most steps of a script.
    pub(crate) most: usize,
    /// What is put in now and then; only for texts, where a step is a byte.
    pub(crate) words: &'static [&'static str],
}

impl Shape {
    /// Steps of a few bytes.
    pub(crate) const fn steps(step: usize, most: usize) -> Self {
        Self { step, most, words: &[] }
    }

    /// A text of at most so many bytes.
    pub(crate) const fn text(most: usize, words: &'static [&'static str]) -> Self {
        Self { step: 1, most, words }
    }
}

/// What any JSON has, and numbers and texts that are often a border.
#[rustfmt::skip]
pub(crate) const JSON_WORDS: &[&str] = &[
    "{}", "[]", "null", "true", "false", "0", "1", "-1", "1.5", "1e99", "65535", "65536", "4294967295",
    "9223372036854775808", "18446744073709551615", "18446744073709551616", "\"", "\\", "\\u0000", "\\ud800", ",", ":",
];

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

/// Asserts that what a configuration is told as is read, and told the same again.
pub(crate) fn assert_is_told(config: &VmConfig) {
    let told = serde_json::to_string(config).unwrap();
    let read: VmConfig = json::read(told.as_bytes()).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), told);
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
    let Shape { step: size, most, words } = shape;
    let mut script = kept[random.below(kept.len())].clone();
    for _ in 0..=random.below(8) {
        let steps = script.len() / size;
        let first = random.below(steps);
        // Steps of scripts mean much; of a text, a few bytes at a time.
        let count = if size == 1 { 1 + random.below((steps - first).min(16)) } else { 1 };
        let (at, end) = (first * size, (first + count) * size);
        match random.below(if words.is_empty() { 6 } else { 7 }) {
            0 if steps > 0 => {
                let byte = random.below(script.len());
                script[byte] ^= 1 << random.below(8);
            }
            1 if steps > 0 => {
                let byte = random.below(script.len());
                script[byte] = BORDERS[random.below(BORDERS.len())];
            }
            2 if steps > 1 => drop(script.drain(at..end)),
            3 if steps > 0 && steps < most => {
                let copied = script[at..end].to_vec();
                let to = random.below(steps + 1) * size;
                script.splice(to..to, copied);
            }
            4 => {
                let other = &kept[random.below(kept.len())];
                let from = random.below(other.len() / size) * size;
                script.splice(at.., other[from..].iter().copied());
            }
            6 if steps > 0 => drop(script.splice(at..end, words[random.below(words.len())].bytes())),
            _ => {
                let step: Vec<u8> = (0..size).map(|_| random.below(256) as u8).collect();
                script.splice(at..at, step);
            }
        }
    }
    script.truncate(most * size);
    script
}
