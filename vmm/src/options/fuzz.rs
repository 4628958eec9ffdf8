//! Hostile command lines ([`crate::fuzzing`]): words, a zero byte between them.
//!
//! Whatever a caller writes is understood or refused in words; a guest that is understood is the same when it is
//! written as JSON.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::{Action, ConfigFrom, parse};
use crate::fuzzing::{Shape, assert_is_told, fuzz};

#[rustfmt::skip]
const WORDS: &[&str] = &[
    "\0", "=", ",", "[", "]", "@", ":", "-", "\"", "--", "on", "off", "0", "4294967296", "18446744073709551616", "K", "T",
    "id=", "path=", "fd=", "socket_fd=", "size=", "shared=", "hugepages=", "hugepage_size=", "affinity=", "topology=",
    "distances=", "queue_size=", "num_queues=", "pci_device_id=", "image_type=", "--disk", "--net", "--fs", "--pmem",
    "--vsock", "--numa", "--device", "--memory-zone", "--serial", "--console", "--restore", "--config-json",
    "--boot", "--platform", "--rng",
];

#[test]
fn words() {
    fuzz("options/words", Shape::text(1024, WORDS), |script| {
        let words = script.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
        match parse(words) {
            Err(usage) => assert!(usage.to_string().len() > "; --help says more".len()),
            Ok(Action::Print(text)) => assert!(!text.is_empty()),
            Ok(Action::Run(options)) => {
                let Some(ConfigFrom::Options(config)) = options.config else { return };
                assert_is_told(&config);
                let _ = config.validate();
            }
        }
    });
}
