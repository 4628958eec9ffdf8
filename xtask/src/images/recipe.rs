//! Images whose file tree a script makes: `images/<name>/build TREE.tar`.
//!
//! They take a minute each and change rarely, so finished archives are kept in a cache that all checkouts of this
//! user share, keyed by everything the recipe consists of. Packages move on under an unchanged recipe; `--refresh`
//! takes the newer ones.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::Made;
use crate::oci::{ImageSpec, hex, write_archive};

/// Raised when archives of an unchanged recipe come out differently.
const FORMAT: &str = "1";

/// Puts the image of recipe `name` at `archive`, from the cache where it can.
pub(super) fn archive(root: &Path, archive: &Path, spec: &ImageSpec<'_>, name: &str, refresh: bool) -> Result<Made> {
    let images = root.join("images");
    let key = key(&images, name, spec)?;
    let cache = cache_dir()?;
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let cached = cache.join(format!("{name}-{key}.tar"));

    let made = if refresh || !cached.exists() {
        let work = tempfile::tempdir()?;
        let tree = work.path().join("tree.tar");
        run(&images.join(name).join("build"), &tree)?;
        let mut layer = File::open(&tree).context("the recipe wrote no tree")?;
        write_archive(&cached, spec, &mut layer)?;
        Made::Built
    } else if same_file(&cached, archive) {
        return Ok(Made::Unchanged);
    } else {
        Made::FromCache
    };
    place(&cached, archive)?;
    Ok(made)
}

/// Runs a recipe; what it prints is shown only when it fails.
fn run(script: &Path, tree: &Path) -> Result<()> {
    let output = Command::new(script).arg(tree).output().with_context(|| format!("starting {}", script.display()))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            script.display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Digest of all a recipe is made of: its files with their modes, the shared library, and the image's own words.
fn key(images: &Path, name: &str, spec: &ImageSpec<'_>) -> Result<String> {
    let mut files = vec![images.join("lib.sh")];
    collect(&images.join(name), &mut files)?;
    files.sort();

    let mut hasher = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(FORMAT.as_bytes());
    field(spec.reference.as_bytes());
    field(spec.user.as_bytes());
    spec.entrypoint.iter().for_each(|word| field(word.as_bytes()));
    for path in files {
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let executable = fs::metadata(&path)?.permissions().mode() & 0o111 != 0;
        field(path.strip_prefix(images)?.as_os_str().as_encoded_bytes());
        field(&[u8::from(executable)]);
        field(&content);
    }
    Ok(hex(&hasher.finalize())[..16].to_owned())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// `$VSE_CACHE/images`, by default under the user's cache directory.
fn cache_dir() -> Result<PathBuf> {
    let from = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = from("VSE_CACHE")
        .or_else(|| Some(from("XDG_CACHE_HOME")?.join("vse")))
        .or_else(|| Some(from("HOME")?.join(".cache/vse")))
        .context("none of VSE_CACHE, XDG_CACHE_HOME and HOME is set")?;
    Ok(base.join("images"))
}

/// Whether the archive in the checkout is the cached one, by link or by size and time of a copy.
fn same_file(cached: &Path, archive: &Path) -> bool {
    let (Ok(cached), Ok(archive)) = (fs::metadata(cached), fs::metadata(archive)) else {
        return false;
    };
    cached.len() == archive.len() && cached.modified().ok() == archive.modified().ok()
}

/// Links the cached archive into place, or copies it across file systems.
fn place(cached: &Path, archive: &Path) -> Result<()> {
    let fresh = archive.with_extension("tar.new");
    if fs::hard_link(cached, &fresh).is_err() {
        fs::copy(cached, &fresh).with_context(|| format!("copying to {}", fresh.display()))?;
        File::options().write(true).open(&fresh)?.set_modified(fs::metadata(cached)?.modified()?)?;
    }
    fs::rename(&fresh, archive).with_context(|| format!("writing {}", archive.display()))
}
