//! The guests' initramfs: the guest's program as `/init` and the host's own modules for virtio devices.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use cpio::newc::{self, Builder, ModeFileType};

/// What a guest needs for its disk and its network card.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net"];

/// Writes the archive. `/modules/N` are to be loaded in the order of their numbers.
pub fn write(path: &Path, guest: &Path) -> Result<()> {
    let mut out = File::create(path)?;
    let guest = fs::read(guest).with_context(|| format!("reading {}", guest.display()))?;
    put(&mut out, 1, "dev", ModeFileType::Directory, &[])?;
    let console = Builder::new("dev/console").ino(2).mode(0o600).set_mode_file_type(ModeFileType::Char);
    console.rdev_major(5).rdev_minor(1).write(&mut out, 0).finish()?;
    put(&mut out, 3, "init", ModeFileType::Regular, &guest)?;
    put(&mut out, 4, "sys", ModeFileType::Directory, &[])?;
    put(&mut out, 5, "modules", ModeFileType::Directory, &[])?;
    for (number, file) in modules()?.iter().enumerate() {
        let content = fs::read(file).with_context(|| format!("reading {file}"))?;
        put(&mut out, 6 + number as u32, &format!("modules/{number:02}"), ModeFileType::Regular, &content)?;
    }
    newc::trailer(out)?;
    Ok(())
}

fn put(out: &mut File, ino: u32, name: &str, kind: ModeFileType, content: &[u8]) -> Result<()> {
    let entry = Builder::new(name).ino(ino).nlink(1).mode(0o755).set_mode_file_type(kind);
    let mut writer = entry.write(out, u32::try_from(content.len())?);
    writer.write_all(content)?;
    writer.finish()?;
    Ok(())
}

/// Files of the running kernel's modules, each after those it needs; what is built in has none.
fn modules() -> Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    for module in MODULES {
        let output = Command::new("modprobe").args(["--show-depends", module]).output().context("starting modprobe")?;
        if !output.status.success() {
            bail!("modprobe knows no {module}: {}", String::from_utf8_lossy(&output.stderr));
        }
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if let Some(file) = line.strip_prefix("insmod ").and_then(|rest| rest.split_whitespace().next())
                && seen.insert(file.to_owned())
            {
                files.push(file.to_owned());
            }
        }
    }
    Ok(files)
}
