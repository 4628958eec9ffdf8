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

/// Archives of one recipe that stay cached: this checkout's, and those of a few others or of before.
const KEPT: usize = 4;

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
        prune(&cache, name)?;
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

/// Removes all but the newest archives of recipe `name`. Checkouts that use an older one have it by link or copy.
fn prune(cache: &Path, name: &str) -> Result<()> {
    let mut archives = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let file = entry.file_name();
        let key = file.to_str().and_then(|f| f.strip_prefix(name)?.strip_prefix('-')?.strip_suffix(".tar"));
        if key.is_some_and(|key| key.bytes().all(|b| b.is_ascii_hexdigit())) {
            archives.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    archives.sort();
    archives.reverse();
    for (_, old) in archives.iter().skip(KEPT) {
        fs::remove_file(old).with_context(|| format!("removing {}", old.display()))?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: ImageSpec<'_> = ImageSpec { reference: "vse.hpc.io/a:dev", entrypoint: &[], user: "0:0" };

    fn recipe(images: &Path) {
        fs::create_dir_all(images.join("a/files")).unwrap();
        for (file, content) in [("lib.sh", ""), ("a/build", "one"), ("a/files/motd", "two")] {
            fs::write(images.join(file), content).unwrap();
        }
    }

    #[test]
    fn a_key_depends_on_every_file_its_mode_and_the_image() {
        let images = tempfile::tempdir().unwrap();
        recipe(images.path());
        let key = || key(images.path(), "a", &SPEC).unwrap();
        let mut keys = vec![key()];
        assert_eq!(key(), keys[0]);
        fs::write(images.path().join("a/files/motd"), "three").unwrap();
        keys.push(key());
        fs::rename(images.path().join("a/files/motd"), images.path().join("a/files/issue")).unwrap();
        keys.push(key());
        fs::write(images.path().join("lib.sh"), "more").unwrap();
        keys.push(key());
        fs::set_permissions(images.path().join("a/build"), fs::Permissions::from_mode(0o755)).unwrap();
        keys.push(key());
        keys.push(super::key(images.path(), "a", &ImageSpec { user: "1:1", ..SPEC }).unwrap());
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    }

    #[test]
    fn pruning_keeps_the_newest_and_other_recipes() {
        let cache = tempfile::tempdir().unwrap();
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        for n in 0..KEPT + 2 {
            let file = File::create(cache.path().join(format!("a-{n:016x}.tar"))).unwrap();
            file.set_modified(epoch + std::time::Duration::from_secs(n as u64)).unwrap();
        }
        File::create(cache.path().join("a-hpc-0123456789abcdef.tar")).unwrap();
        prune(cache.path(), "a").unwrap();
        let left = fs::read_dir(cache.path()).unwrap().count();
        assert_eq!(left, KEPT + 1);
        assert!(!cache.path().join(format!("a-{:016x}.tar", 1)).exists());
        assert!(cache.path().join(format!("a-{:016x}.tar", 2)).exists());
    }
}
