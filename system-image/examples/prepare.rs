//! `prepare TREE CACHE VSE-INIT`: makes the files a guest boots from, to try a boot by hand:
//!
//! ```text
//! qemu-system-x86_64 -M q35 -m 512 -nographic -no-reboot -kernel kernel -initrd initramfs \
//!   -append "console=ttyS0 vse.root=diskless" \
//!   -drive file=root.erofs,format=raw,if=none,readonly=on,id=s -device virtio-blk-pci,drive=s,serial=vse-system
//! ```

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use vse_system_image::{Cache, Key, Source};

fn main() -> Result<()> {
    tracing_subscriber::fmt().init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tree, cache, init] = &arguments[..] else { anyhow::bail!("usage: prepare TREE CACHE VSE-INIT") };
    let key = Key::new(tree, None);
    let tree = File::open(tree).with_context(|| tree.clone())?;
    let init = std::fs::read(init).with_context(|| init.clone())?;
    let source = Source { tree: tree.as_fd(), init: &init, kernel: None };
    let image = Cache::open(cache)?.prepare(&key, &source)?;
    println!("{cache}/{key}: kernel {}", image.kernel_version);
    Ok(())
}
