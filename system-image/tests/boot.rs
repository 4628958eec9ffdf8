//! Boots real guests from a system image that this crate made: the test image `tiny`, under QEMU without KVM.
//!
//! Needs `cargo xtask images tiny`, QEMU and e2fsprogs.

#![allow(clippy::unwrap_used)] // a step that fails fails the test

use std::env;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vse_system_image::{Cache, Key, Source};

/// A guest under emulation, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(240);

/// What the guest does in place of an init: says what it sees, leaves a file behind, ends.
const PROBE: &str = r#"#!/bin/sh
echo "probe: arguments $*"
echo "probe: root $(sed -n 's/^\([^ ]*\) \/ \([^ ]*\) .*/\1 \2/p' /proc/mounts)"
echo "probe: left behind: $(cat /left-behind)"
echo "probe: link count $(stat -c %h /probe)"
echo "probe: modules $(wc -l < "/lib/modules/$(uname -r)/modules.dep")"
case "$*" in *forget-modules*) rm -r /lib/modules/* ;; esac
echo here > /left-behind
sync
poweroff -f
"#;

#[test]
fn diskless() {
    let system = System::with(|_| {});
    for _ in 0..2 {
        let console = system.boot("vse.root=diskless vse.init=/probe one two", None).finish();
        assert_says(&console, "probe: arguments one two");
        assert_says(&console, "probe: root overlay overlay");
        assert_says(&console, "probe: link count 2");
        assert!(!console.contains("left behind: here"), "{console}");
    }
}

#[test]
fn a_root_disk_is_filled_once_and_anew_after_a_crash() {
    let system = System::with(|tree| {
        ["mkfs.ext4", "tune2fs"].iter().for_each(|program| add_program(tree, program));
        // Enough to copy that the filling can be cut short.
        fs::write(tree.join("ballast"), vec![1; 128 << 20]).unwrap();
    });
    let disk = system.blank_disk();
    let boot_with = |arguments| system.boot(&format!("vse.root=disk vse.init=/probe {arguments}"), Some(&disk));
    let boot = || boot_with("");

    let mut guest = boot();
    wait_until("the file system is made", || {
        assert!(guest.0.try_wait().unwrap().is_none(), "the guest ended early:\n{}", guest.console());
        label(&disk) == *b"vse-filling"
    });
    guest.0.kill().unwrap();
    guest.0.wait().unwrap();

    let console = boot().finish();
    assert_says(&console, "vse-init: an earlier boot was cut short");
    assert_says(&console, "vse-init: filled: ");
    assert_says(&console, "probe: root /dev/vdb ext4");
    assert_says(&console, "probe: link count 2");
    assert_eq!(label(&disk)[..8], *b"vse-root");

    let console = boot_with("forget-modules").finish();
    assert!(!console.contains("vse-init: fill"), "{console}");
    assert_says(&console, "probe: left behind: here");
    assert!(has_modules(&console), "{console}");
    assert!(has_modules(&boot().finish()), "the image's modules are there when the disk's are of another kernel");

    // A file system that was damaged is not mistaken for none.
    File::options().write(true).open(&disk).unwrap().write_all_at(&[0xaa; 4096], 0).unwrap();
    let console = boot().finish();
    assert_says(&console, "holds data but no ext4 file system, and is left as it is");
    assert_says(&console, "Kernel panic");
}

#[test]
fn what_is_missing_is_named() {
    let system = System::with(|_| {});
    let console = system.boot("vse.root=disk", Some(&system.blank_disk())).finish();
    assert_says(&console, "vse-init: error: the system image has no mkfs.ext4");
    assert_says(&console, "Kernel panic");
    let console = system.boot("vse.init=/absent", None).finish();
    assert_says(&console, "vse-init: error: the root file system has no program /absent");
}

/// A system image made of `tiny` with the probe in it.
struct System {
    directory: TempDir,
    image: PathBuf,
}

impl System {
    /// With something more in its tree.
    fn with(more: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        unpack_tiny(&directory.path().join("archive"), &tree);
        fs::write(tree.join("probe"), PROBE).unwrap();
        fs::set_permissions(tree.join("probe"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::hard_link(tree.join("probe"), tree.join("probe-again")).unwrap();
        more(&tree);

        let key = Key::new("tiny", None);
        let cache = directory.path().join("cache");
        let handle = File::open(&tree).unwrap();
        let source = Source { tree: handle.as_fd(), init: vse_init(), kernel: None };
        Cache::open(&cache).unwrap().prepare(&key, &source).unwrap();
        System { image: cache.join(key.to_string()), directory }
    }

    fn blank_disk(&self) -> PathBuf {
        let path = self.directory.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        path
    }

    fn boot(&self, arguments: &str, disk: Option<&Path>) -> Guest {
        let file = |name: &str| self.image.join(name).into_os_string().into_string().unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nic", "none"]);
        command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.args(["-kernel", &file("kernel"), "-initrd", &file("initramfs")]);
        command.args(["-append", &format!("console=ttyS0 quiet {arguments}")]);
        let drive = format!("if=none,id=system,format=raw,readonly=on,file={}", file("root.erofs"));
        command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=system,serial=vse-system"]);
        if let Some(disk) = disk {
            let drive = format!("if=none,id=root,format=raw,file={}", disk.display());
            command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=root,serial=vse-root"]);
        }
        let console = self.directory.path().join("console");
        command.stdin(Stdio::null()).stdout(File::create(&console).unwrap());
        Guest(command.spawn().unwrap(), console)
    }
}

/// A running engine, and where its guest's console goes.
struct Guest(Child, PathBuf);

impl Guest {
    /// What the console said, once the guest has ended.
    fn finish(mut self) -> String {
        wait_until("the guest ends", || self.0.try_wait().unwrap().is_some());
        self.console()
    }

    /// What the console said so far.
    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.1).unwrap()).into_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {} s until {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(5));
    }
}

fn has_modules(console: &str) -> bool {
    let count = console.split("probe: modules ").nth(1).and_then(|rest| rest.lines().next());
    count.is_some_and(|count| count.trim().parse::<u32>().is_ok_and(|count| count > 0))
}

fn assert_says(console: &str, text: &str) {
    assert!(console.contains(text), "{text:?} is not on the console:\n{console}");
}

/// The label of an ext4 file system, as far as `vse-filling` is long.
fn label(disk: &Path) -> [u8; 11] {
    let mut label = [0; 11];
    File::open(disk).unwrap().read_exact_at(&mut label, 1024 + 0x78).unwrap();
    label
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Unpacks the layers of the OCI archive `tiny`.
fn unpack_tiny(archive: &Path, tree: &Path) {
    let path = workspace().join(".build/images/tiny.tar");
    let file = File::open(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; run `cargo xtask images` first", path.display());
    });
    tar::Archive::new(file).unpack(archive).unwrap();
    let json = |path: &Path| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |descriptor: &serde_json::Value| {
        let (algorithm, digest) = descriptor["digest"].as_str().unwrap().split_once(':').unwrap();
        archive.join("blobs").join(algorithm).join(digest)
    };
    let manifest = json(&blob(&json(&archive.join("index.json"))["manifests"][0]));
    for layer in manifest["layers"].as_array().unwrap() {
        let mut layer = tar::Archive::new(File::open(blob(layer)).unwrap());
        layer.set_preserve_permissions(true);
        layer.unpack(tree).unwrap();
    }
}

/// Copies a program of this machine, and what `ldd` says it needs, to the same paths in the tree.
fn add_program(tree: &Path, program: &str) {
    let path = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(program));
    let path = path.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{program} is not installed"));
    let needs = Command::new("ldd").arg(&path).output().unwrap();
    let needs = String::from_utf8(needs.stdout).unwrap();
    let libraries = needs.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for file in libraries.chain([path]) {
        let target = tree.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

/// The program `vse-init`, built statically as images have it.
fn vse_init() -> &'static [u8] {
    static INIT: OnceLock<Vec<u8>> = OnceLock::new();
    INIT.get_or_init(|| {
        const TARGET: &str = "x86_64-unknown-linux-gnu";
        let target_directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vse-init");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace()).args(["build", "--quiet", "--locked", "--package", "vse-init"]);
        cargo.args(["--release", "--target", TARGET, "--target-dir"]).arg(&target_directory);
        cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
        assert!(cargo.status().unwrap().success());
        fs::read(target_directory.join(TARGET).join("release/vse-init")).unwrap()
    })
}
