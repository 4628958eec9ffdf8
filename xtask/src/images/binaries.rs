//! Images that hold nothing but static programs, most of them of this workspace.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Made;
use crate::oci::{ImageSpec, Tar, write_archive};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where each program of the last build lies.
pub(super) type Built = BTreeMap<&'static str, PathBuf>;

/// Our VMM's package, and the profile (`Cargo.toml`) that is its alone.
const VMM: (&str, &str) = ("vse-vmm", "vmm");

/// Builds `programs` (package names, which are their binaries' names) for release, linked statically.
pub(super) fn build(root: &Path, programs: &[&'static str]) -> Result<Built> {
    let (vmm, others): (Vec<_>, Vec<_>) = programs.iter().partition(|program| **program == VMM.0);
    let mut built = build_with(root, "release", &others)?;
    built.extend(build_with(root, VMM.1, &vmm)?);
    Ok(built)
}

fn build_with(root: &Path, profile: &str, programs: &[&'static str]) -> Result<Built> {
    if programs.is_empty() {
        return Ok(Built::new());
    }
    let target_dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--profile", profile, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root)?.join("\x1f"));
    for program in programs {
        cargo.args(["--package", program]);
    }
    if !cargo.status().context("starting cargo")?.success() {
        bail!("cargo could not build {}", programs.join(", "));
    }
    let from = target_dir.join(TARGET).join(profile);
    Ok(programs.iter().map(|program| (*program, from.join(program))).collect())
}

/// Static linking, and no path of this machine in the binaries: they are the same wherever they are built.
fn rustflags(root: &Path) -> Result<Vec<String>> {
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"),
    };
    Ok(vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=/vse", root.display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
    ])
}

/// Writes an image with `programs`, each with its path there and here; leaves `archive` untouched when it would not
/// change, so that what looks at its time does not import it again.
pub(super) fn archive(archive: &Path, spec: &ImageSpec<'_>, programs: &[(&str, &Path)]) -> Result<Made> {
    let mut layer = Tar::new(Vec::new());
    for (there, here) in programs {
        let content = fs::read(here).with_context(|| format!("reading {}", here.display()))?;
        layer.stream(there, 0o755, content.len() as u64, content.as_slice())?;
    }
    let mut layer = Cursor::new(layer.finish()?);

    let fresh = archive.with_extension("tar.new");
    write_archive(&fresh, spec, &mut layer)?;
    if archive.exists() && fs::read(archive)? == fs::read(&fresh)? {
        fs::remove_file(&fresh)?;
        return Ok(Made::Unchanged);
    }
    fs::rename(&fresh, archive)?;
    Ok(Made::Built)
}
