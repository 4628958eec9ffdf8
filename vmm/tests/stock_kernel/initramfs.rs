//! Guests' initramfs: the distribution's own, another `/init`, modules and programs of the host's.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::newc::{self, Builder, ModeFileType};

/// What a guest has beside the distribution's initramfs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Content<'a> {
    /// Modules that `/init` loads, with what they depend on.
    pub modules: &'a [&'a str],
    /// The host's programs, with their libraries.
    pub programs: &'a [&'a str],
    /// What `/init` does then: a script for busybox.
    pub script: &'a str,
}

/// Writes it to `folder`. Of two archives the later one's files count
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
pub fn write(folder: &Path, content: Content<'_>) -> PathBuf {
    let mut archive = std::fs::read("/boot/initrd.img").unwrap();
    archive.resize(archive.len().next_multiple_of(4), 0);
    let mut tree = Tree { archive, folders: BTreeSet::new(), inode: 0 };
    for path in module_files(content.modules).iter().chain(&program_files(content.programs)) {
        tree.copy(path);
    }
    tree.put("init", ModeFileType::Regular, init(content).as_bytes());
    let path = folder.join("initramfs");
    std::fs::write(&path, newc::trailer(tree.archive).unwrap()).unwrap();
    path
}

fn init(Content { modules, script, .. }: Content<'_>) -> String {
    format!(
        "#!/bin/sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
mkdir -p /proc /sys /dev /mnt
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
modprobe -a virtio_pci {}
{script}
poweroff -f
",
        modules.join(" ")
    )
}

struct Tree {
    archive: Vec<u8>,
    folders: BTreeSet<PathBuf>,
    inode: u32,
}

impl Tree {
    /// A file of the host's, at its own path; symbolic links on the way there (`/lib`) are the same in both.
    fn copy(&mut self, path: &Path) {
        let real = path.parent().unwrap().canonicalize().unwrap().join(path.file_name().unwrap());
        let name = real.strip_prefix("/").unwrap();
        let above: Vec<PathBuf> = name.ancestors().skip(1).map(Path::to_owned).collect();
        for folder in above.into_iter().rev().filter(|folder| folder != Path::new("")) {
            if self.folders.insert(folder.clone()) {
                self.put(folder.to_str().unwrap(), ModeFileType::Directory, &[]);
            }
        }
        self.put(name.to_str().unwrap(), ModeFileType::Regular, &std::fs::read(path).unwrap());
    }

    fn put(&mut self, name: &str, kind: ModeFileType, content: &[u8]) {
        self.inode += 1;
        let entry = Builder::new(name).ino(self.inode).nlink(1).mode(0o755).set_mode_file_type(kind);
        let mut writer = entry.write(&mut self.archive, content.len() as u32);
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
    }
}

/// Files of modules of the host's kernel, and of those they need; what is built in has none. With them go the tables that
/// modprobe finds them by.
fn module_files(modules: &[&str]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for module in modules {
        let answer = output("modprobe", &["--show-depends", module]);
        files.extend(
            answer
                .lines()
                .filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next())
                .map(PathBuf::from),
        );
    }
    if !modules.is_empty() {
        let tables = Path::new("/lib/modules").join(output("uname", &["-r"]).trim());
        files.extend(["modules.dep", "modules.dep.bin", "modules.builtin.bin"].map(|name| tables.join(name)));
    }
    files
}

/// Programs and the libraries that they are linked to.
fn program_files(programs: &[&str]) -> Vec<PathBuf> {
    let mut files = BTreeSet::new();
    for program in programs {
        files.insert(PathBuf::from(program));
        let libraries = output("ldd", &[program]);
        files.extend(libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    files.into_iter().collect()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
