//! The cache from outside: what it makes, when it makes it again, and what it leaves behind.

#![allow(clippy::unwrap_used)] // a step that fails fails the test

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;

use tempfile::TempDir;
use vse_system_image::{Cache, Error, Key, Result, Source, SystemImage};

/// A tree with the least that counts as a kernel, and a cache.
struct Bench {
    directory: TempDir,
    cache: Cache,
    tree: File,
}

const KERNEL: &str = "boot/vmlinuz-6.12.0";

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        let put = |path: &str, content: &[u8]| {
            fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
            fs::write(tree.join(path), content).unwrap();
        };
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        kernel[0x300..0x306].copy_from_slice(b"6.12.0");
        put(KERNEL, &kernel);
        put("lib/modules/6.12.0/modules.dep", b"kernel/erofs.ko: kernel/crc.ko\nkernel/crc.ko:\n");
        put("lib/modules/6.12.0/modules.builtin", b"virtio_pci.ko\nvirtio_blk.ko\noverlay.ko\n");
        put("lib/modules/6.12.0/kernel/erofs.ko", b"erofs");
        put("lib/modules/6.12.0/kernel/crc.ko", b"crc");
        put("etc/hostname", b"guest");
        let cache = Cache::open(directory.path().join("cache")).unwrap();
        Bench { tree: File::open(tree).unwrap(), cache, directory }
    }

    fn prepare_with(&self, key: &Key, init: &[u8]) -> Result<SystemImage> {
        self.cache.prepare(key, &Source { tree: self.tree.as_fd(), init, kernel: None })
    }

    fn prepare(&self) -> Result<SystemImage> {
        self.prepare_with(&key(), b"init")
    }

    fn tree(&self, path: &str) -> PathBuf {
        self.directory.path().join("tree").join(path)
    }

    fn cached(&self, name: &str) -> PathBuf {
        self.directory.path().join("cache").join(name)
    }

    /// All names in the cache.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cached("")).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn key() -> Key {
    Key::new("sha256:1234", None)
}

fn inode(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}

fn text(mut file: &File) -> String {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn makes_all_files_once() {
    let bench = Bench::new();
    let image = bench.prepare().unwrap();
    assert_eq!(image.kernel_version, "6.12.0");
    assert_eq!(image.kernel.metadata().unwrap().len(), 0x400);
    assert!(text(&image.initramfs).contains("crc.ko\nerofs.ko\n"));
    let mut magic = [0; 1028];
    (&image.root).read_exact(&mut magic).unwrap();
    assert_eq!(magic[1024..], 0xe0f5_e1e2u32.to_le_bytes());
    for file in [&image.kernel, &image.initramfs, &image.root] {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o444);
    }
    assert_eq!(fs::metadata(bench.cached("")).unwrap().permissions().mode() & 0o777, 0o700);

    assert_eq!(inode(&bench.prepare().unwrap().root), inode(&image.root));
}

#[test]
fn many_at_once_make_one() {
    let bench = Bench::new();
    let start = Barrier::new(8);
    let inodes: BTreeSet<u64> = thread::scope(|scope| {
        let prepare = || {
            start.wait();
            inode(&bench.prepare().unwrap().root)
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(prepare)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(inodes.len(), 1);
}

#[test]
fn what_a_crash_left_is_made_anew() {
    let bench = Bench::new();
    let unfinished = bench.cached(&format!("{}.new", key()));
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("root.erofs"), "half").unwrap();
    bench.prepare().unwrap();
    assert_eq!(bench.names(), [key().to_string(), format!("{}.lock", key())]);
}

#[test]
fn what_is_damaged_or_of_another_init_is_made_anew() {
    let bench = Bench::new();
    let first = bench.prepare().unwrap();
    let entry = bench.cached(&key().to_string());
    for name in ["kernel", "initramfs", "root.erofs", "manifest.json"] {
        fs::remove_file(entry.join(name)).unwrap();
        fs::write(entry.join(name), "{}").unwrap();
        bench.prepare().unwrap();
        assert!(fs::metadata(entry.join(name)).unwrap().len() > 2, "{name}");
    }
    let other = bench.prepare_with(&key(), b"another").unwrap();
    assert!(text(&other.initramfs).contains("another"));
    assert!(text(&first.initramfs).contains("init"), "a guest that runs keeps its files");
}

#[test]
fn a_failure_leaves_nothing_and_names_its_cause() {
    let bench = Bench::new();
    fs::remove_file(bench.tree("lib/modules/6.12.0/modules.builtin")).unwrap();
    let error = bench.prepare().unwrap_err();
    assert!(matches!(&error, Error::NoModule { module: "virtio_pci", .. }), "{error}");
    fs::remove_dir_all(bench.tree("lib")).unwrap();
    assert!(matches!(bench.prepare(), Err(Error::NoModules { .. })));
    fs::remove_file(bench.tree(KERNEL)).unwrap();
    let error = bench.prepare().unwrap_err();
    assert!(matches!(error, Error::NoKernel) && error.is_in_tree());
    assert_eq!(bench.names(), [format!("{}.lock", key())]);
}

#[test]
fn collects_what_is_not_kept() {
    let bench = Bench::new();
    let [kept, gone] = ["kept", "gone"].map(|image| Key::new(image, Some(Path::new(KERNEL))));
    for key in [&kept, &gone] {
        bench.prepare_with(key, b"init").unwrap();
    }
    fs::create_dir(bench.cached("not-a-key")).unwrap();
    assert_eq!(bench.cache.collect(&BTreeSet::from([kept.clone()])).unwrap(), [gone]);
    let mut expected = vec![kept.to_string(), format!("{kept}.lock"), "not-a-key".to_owned()];
    expected.sort();
    assert_eq!(bench.names(), expected);
}
