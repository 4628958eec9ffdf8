//! System images made on this host, each once for all guests that boot from it.
//!
//! ```text
//! <dir>/<key>/{kernel,initramfs,root.erofs,manifest.json}   finished: it appears by one rename
//! <dir>/<key>.new/                                          being made; left over by a crash it is made anew
//! <dir>/<key>.lock                                          held while <key> is made or deleted
//! ```
//!
//! Users hold the files open: what is deleted or replaced stays readable to guests that run from it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use sha2::{Digest, Sha256};
use tracing::{debug, info};

use crate::error::{At, Error, Result};
use crate::lock::Lock;
use crate::manifest::{Manifest, Sizes, hex};
use crate::tree::Tree;
use crate::{initramfs, kernel, modules};

const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";
const ROOT: &str = "root.erofs";
const MANIFEST: &str = "manifest.json";

/// Names an entry of the cache: 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// The key of an image and of the kernel chosen in it. `image` must name the content, as an image's digest does.
    pub fn new(image: &str, kernel: Option<&Path>) -> Self {
        let mut hash = Sha256::new();
        hash.update(image);
        if let Some(kernel) = kernel {
            hash.update([0]);
            hash.update(kernel.as_os_str().as_encoded_bytes());
        }
        Key(hex(&hash.finalize()[..16]))
    }

    fn parse(name: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (name.len() == 32 && name.bytes().all(is_digit)).then(|| Key(name.to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a system image is made of.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The root directory of the image's file tree. Nothing may change it meanwhile.
    pub tree: BorrowedFd<'a>,
    /// The program `vse-init`, linked statically.
    pub init: &'a [u8],
    /// Path of the kernel in the tree; the newest one if not given.
    pub kernel: Option<&'a Path>,
}

/// A system image, its files open for reading.
#[derive(Debug)]
pub struct SystemImage {
    /// A bzImage.
    pub kernel: File,
    /// A newc archive.
    pub initramfs: File,
    /// An EROFS image.
    pub root: File,
    /// As `uname -r` says.
    pub kernel_version: String,
}

/// The cache, a directory that belongs to it alone.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Opens the cache, and makes the directory if needed. Only the owner can enter it: an image's files may be secret.
    ///
    /// # Errors
    /// [`Error::Cache`].
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let directory = directory.into();
        let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        make.at("make the directory", &directory)?;
        Ok(Cache { directory })
    }

    /// The system image `key`, made of `source` if it is not there.
    ///
    /// Of several callers with the same key, in one process or several, one makes it and the others wait.
    ///
    /// # Errors
    /// See [`Error`]; nothing of a failed attempt stays.
    pub fn prepare(&self, key: &Key, source: &Source<'_>) -> Result<SystemImage> {
        let _lock = Lock::wait(&self.lock_path(key))?;
        let entry = self.entry(key);
        if let Some(image) = open_entry(&entry, source)? {
            debug!(%key, "system image is there");
            return Ok(image);
        }
        let new = self.new_entry(key);
        delete(&new)?;
        fs::create_dir(&new).at("make the directory", &new)?;
        if let Err(error) = make(&new, key, source) {
            delete(&new)?;
            return Err(error);
        }
        delete(&entry)?;
        fs::rename(&new, &entry).at("rename", &new)?;
        sync(&self.directory)?;
        open_entry(&entry, source)?.ok_or_else(|| Error::Cache {
            action: "read",
            path: entry,
            source: io::Error::other("it changed while it was made"),
        })
    }

    /// Deletes entries that are not in `keep`, and says which. One that is being made stays.
    ///
    /// # Errors
    /// [`Error::Cache`].
    pub fn collect(&self, keep: &BTreeSet<Key>) -> Result<Vec<Key>> {
        let mut found = BTreeSet::new();
        for name in fs::read_dir(&self.directory).at("list", &self.directory)? {
            let name = name.at("list", &self.directory)?.file_name();
            let name = name.to_string_lossy();
            found.extend(Key::parse(name.split('.').next().unwrap_or_default()));
        }
        let mut deleted = Vec::new();
        for key in found.difference(keep) {
            let Some(lock) = Lock::try_now(&self.lock_path(key))? else {
                continue;
            };
            delete(&self.entry(key))?;
            delete(&self.new_entry(key))?;
            lock.delete()?;
            info!(%key, "system image deleted");
            deleted.push(key.clone());
        }
        Ok(deleted)
    }

    fn entry(&self, key: &Key) -> PathBuf {
        self.directory.join(&key.0)
    }

    fn new_entry(&self, key: &Key) -> PathBuf {
        self.directory.join(format!("{key}.new"))
    }

    fn lock_path(&self, key: &Key) -> PathBuf {
        self.directory.join(format!("{key}.lock"))
    }
}

/// Opens an entry; `None` when it is not there, not finished, damaged, or was made of something else.
fn open_entry(entry: &Path, source: &Source<'_>) -> Result<Option<SystemImage>> {
    let Some(manifest) = Manifest::read(&entry.join(MANIFEST))?.filter(|manifest| manifest.is_of(source)) else {
        return Ok(None);
    };
    let open = |name, bytes| {
        let path = entry.join(name);
        File::open(path).ok().filter(|file| file.metadata().is_ok_and(|data| data.is_file() && data.len() == bytes))
    };
    let Sizes { kernel, initramfs, root } = manifest.sizes;
    let files = (open(KERNEL, kernel), open(INITRAMFS, initramfs), open(ROOT, root));
    let (Some(kernel), Some(initramfs), Some(root)) = files else {
        return Ok(None);
    };
    Ok(Some(SystemImage { kernel, initramfs, root, kernel_version: manifest.kernel_version }))
}

/// Makes the files of an entry. What is cheap and likely to fail comes first.
fn make(entry: &Path, key: &Key, source: &Source<'_>) -> Result<()> {
    let begin = Instant::now();
    let tree = Tree(source.tree);
    let kernel = kernel::find(tree, source.kernel)?;
    let initramfs = put_initramfs(entry, tree, &kernel.version, source.init)?;
    let kernel_size = put(entry, KERNEL, |file| io::copy(&mut kernel.image.take(kernel::MAX_KERNEL), file).map(drop))?;
    let sizes = Sizes { kernel: kernel_size, initramfs, root: put_root(entry, key, source)? };
    let manifest = Manifest::new(source, kernel.version, sizes);
    put(entry, MANIFEST, |file| Ok(serde_json::to_writer_pretty(file, &manifest)?))?;
    sync(entry)?;
    info!(
        %key,
        kernel = manifest.kernel_version,
        kernel_bytes = sizes.kernel,
        initramfs_bytes = sizes.initramfs,
        root_bytes = sizes.root,
        milliseconds = begin.elapsed().as_millis() as u64,
        "system image made"
    );
    Ok(())
}

fn put_initramfs(entry: &Path, tree: Tree<'_>, kernel_version: &str, init: &[u8]) -> Result<u64> {
    let modules = modules::read(tree, kernel_version)?;
    put(entry, INITRAMFS, |file| initramfs::write(BufWriter::new(file), init, &modules))
}

fn put_root(entry: &Path, key: &Key, source: &Source<'_>) -> Result<u64> {
    let path = entry.join(ROOT);
    let file = File::create_new(&path).at("make", &path)?;
    let digest = Sha256::digest(&key.0);
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    let options = vse_erofs::Options { uuid, volume_name: "vse-system".to_owned(), ..Default::default() };
    vse_erofs::write(source.tree, &file, &options).map_err(Error::Root)?;
    finish(&file, &path)
}

/// Writes one file of an entry; returns its size.
fn put(entry: &Path, name: &str, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<u64> {
    let path = entry.join(name);
    let mut file = File::create_new(&path).at("make", &path)?;
    write(&mut file).at("write", &path)?;
    finish(&file, &path)
}

fn finish(file: &File, path: &Path) -> Result<u64> {
    file.set_permissions(Permissions::from_mode(0o444)).at("set the mode of", path)?;
    file.sync_all().at("write", path)?;
    Ok(file.metadata().at("examine", path)?.len())
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|directory| directory.sync_all()).at("write", directory)
}

/// Deletes a directory, if it is there.
fn delete(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("delete", path),
        _ => Ok(()),
    }
}
