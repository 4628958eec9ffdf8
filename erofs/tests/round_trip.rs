//! Writes images and reads them back with the readers that count: Linux itself and `fsck.erofs`.
//!
//! Needs root, loop devices, EROFS in the kernel, and erofs-utils.

#![allow(clippy::unwrap_used)] // a step that fails fails the test

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use vse_erofs::{Error, Options, Summary};

/// All of an inode that an image must keep.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    links: u64,
    device: u64,
    size: u64,
    content: Vec<u8>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    same_as: PathBuf,
}

fn records(root: &Path) -> BTreeMap<PathBuf, Record> {
    let (mut records, mut first) = (BTreeMap::new(), BTreeMap::new());
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let full = root.join(&path);
        let data = fs::symlink_metadata(&full).unwrap();
        if data.is_dir() {
            open.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        let content = match data.file_type() {
            kind if kind.is_file() => fs::read(&full).unwrap(),
            kind if kind.is_symlink() => fs::read_link(&full).unwrap().into_os_string().into_vec(),
            _ => Vec::new(),
        };
        let record = Record {
            mode: data.mode(),
            owner: (data.uid(), data.gid()),
            modified: (data.mtime(), data.mtime_nsec()),
            links: data.nlink(),
            device: data.rdev(),
            size: if data.is_dir() { 0 } else { data.size() },
            content,
            attributes: attributes(&full),
            same_as: PathBuf::new(),
        };
        first.entry(data.ino()).and_modify(|p: &mut PathBuf| *p = path.clone().min(p.clone())).or_insert(path.clone());
        records.insert(path, (data.ino(), record));
    }
    let with_link = |(ino, record)| Record { same_as: first[&ino].clone(), ..record };
    records.into_iter().map(|(path, record)| (path, with_link(record))).collect()
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let size = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..size].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let size = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..size].to_vec())
        })
        .collect()
}

fn write(tree: &Path, image: &Path) -> Result<Summary, Error> {
    let tree = File::open(tree).unwrap();
    vse_erofs::write(tree.as_fd(), &File::create(image).unwrap(), &Options::default())
}

/// A mounted image.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, on: PathBuf) -> Self {
        fs::create_dir(&on).unwrap();
        run(Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(image).arg(&on));
        Mounted(on)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes the tree twice, compares the images with each other, checks one, mounts it and compares all with the tree.
fn assert_round_trip(work: &Path, tree: &Path) -> Summary {
    let (image, again) = (work.join("image"), work.join("again"));
    let summary = write(tree, &image).unwrap();
    assert_eq!(write(tree, &again).unwrap(), summary);
    run(Command::new("cmp").arg(&image).arg(&again));
    assert_eq!(fs::metadata(&image).unwrap().len(), summary.image_bytes);
    run(Command::new("fsck.erofs").arg(&image));

    let mounted = Mounted::new(&image, work.join("mounted"));
    let (expected, found) = (records(tree), records(&mounted.0));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (path, record) in &expected {
        assert_eq!(record, &found[path], "{path:?}");
    }
    summary
}

fn set_times(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn everything_an_inode_can_be() {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    for (name, size) in
        [("empty", 0), ("small", 10), ("inline", 4032), ("over", 4033), ("block", 4096), ("big", 3 << 20)]
    {
        let content: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        fs::write(tree.join(name), content).unwrap();
    }
    fs::hard_link(tree.join("small"), tree.join("a/b/also-small")).unwrap();
    fs::hard_link(tree.join("small"), tree.join("!before-dot")).unwrap();
    symlink("../big", tree.join("a/link")).unwrap();
    symlink("x".repeat(4095), tree.join("a/long-link")).unwrap();
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, tree.join(name), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
    };
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("wide", FileType::BlockDevice, rustix::fs::makedev(259, 0x12345));
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);

    let owner = |name: &str, id| {
        let (user, group) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id + 1)));
        rustix::fs::chownat(CWD, tree.join(name), user, group, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    owner("inline", 70_000);
    owner("a/link", 3_000_000_000);
    rustix::fs::chmod(tree.join("block"), Mode::from_raw_mode(0o6755)).unwrap();

    let attribute = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(tree.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    attribute("big", "security.capability", &capability);
    attribute("big", "user.comment", b"");
    attribute("a", "user.on-a-directory", &[7; 900]);
    attribute("a/link", "trusted.on-a-link", b"value");
    // user::rw-, user 1000:r--, group::r--, mask::r--, other::r-- (Linux, include/uapi/linux/posix_acl_xattr.h)
    let none = u32::MAX;
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [(1u16, 6u16, none), (2, 4, 1000), (4, 4, none), (0x10, 4, none), (0x20, 4, none)] {
        acl.extend(tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()).chain(id.to_le_bytes()));
    }
    attribute("small", "system.posix_acl_access", &acl);
    set_times(&tree.join("over"), -1, 999_999_999);
    set_times(&tree.join("null"), 5_000_000_000, 1);

    let summary = assert_round_trip(work.path(), &tree);
    assert_eq!(summary.inodes, 16);
}

#[test]
fn large_and_sparse_files_stay_sparse() {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let path = tree.join("sparse");
    let file = File::create(&path).unwrap();
    let size = (5 << 30) + 100;
    file.set_len(size).unwrap();
    for offset in [1 << 20, (4 << 30) + 5000, size - 1] {
        file.write_all_at(b"!", offset).unwrap();
    }
    fs::write(tree.join("after"), "after").unwrap();

    let image = work.path().join("image");
    write(&tree, &image).unwrap();
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < 1 << 20);
    let mounted = Mounted::new(&image, work.path().join("mounted"));
    let found = File::open(mounted.0.join("sparse")).unwrap();
    assert_eq!(found.metadata().unwrap().len(), size);
    for offset in [1 << 20, (4 << 30) + 5000, size - 1] {
        let mut around = [1; 3];
        let start = offset.min(size - 2) - 1;
        found.read_exact_at(&mut around, start).unwrap();
        let mut expected = [0; 3];
        expected[(offset - start) as usize] = b'!';
        assert_eq!(around, expected, "at {offset}");
    }
    assert_eq!(fs::read(mounted.0.join("after")).unwrap(), b"after");
}

#[test]
fn a_directory_of_many_names() {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for i in 0..3000 {
        File::create(tree.join(format!("{i:0width$}", width = 1 + i % 255))).unwrap();
    }
    assert_round_trip(work.path(), &tree);
}

#[test]
fn limits_are_errors() {
    let work = tempfile::tempdir().unwrap();
    let (tree, image) = (work.path().join("tree"), work.path().join("image"));
    fs::create_dir(&tree).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(tree.join(name), "").unwrap();
    }
    let handle = File::open(&tree).unwrap();
    let few = Options { max_inodes: 2, ..Options::default() };
    let error = vse_erofs::write(handle.as_fd(), &File::create(&image).unwrap(), &few).unwrap_err();
    assert!(matches!(error, Error::TooManyFiles { limit: 2 }));

    // Deeper than any path can name; made from within, one step at a time.
    let mut directory = rustix::fs::open(&tree, rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    let name = "d".repeat(255);
    for _ in 0..20 {
        rustix::fs::mkdirat(&directory, name.as_str(), Mode::RWXU).unwrap();
        directory = rustix::fs::openat(&directory, name.as_str(), rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    }
    assert!(matches!(write(&tree, &image), Err(Error::PathTooLong { .. })));
}

#[test]
fn a_mount_in_the_tree_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let (tree, image) = (work.path().join("tree"), work.path().join("image"));
    fs::create_dir_all(tree.join("mount")).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(tree.join("mount")));
    let mounted = Mounted(tree.join("mount"));
    let error = write(&tree, &image).unwrap_err();
    drop(mounted);
    assert!(matches!(&error, Error::Read { path, .. } if path.ends_with("mount")), "{error}");
}

/// One thing in a random tree.
#[derive(Clone, Debug)]
enum Thing {
    Directory,
    File(Vec<u8>),
    Link(String),
    Again(usize),
}

fn thing() -> impl Strategy<Value = Thing> {
    let sizes = prop_oneof![0usize..100, 3900usize..4200, 0usize..20_000];
    prop_oneof![
        3 => Just(Thing::Directory),
        5 => (sizes, any::<u8>()).prop_map(|(size, byte)| Thing::File(vec![byte; size])),
        1 => "[a-z/.]{1,300}".prop_map(Thing::Link),
        1 => any::<usize>().prop_map(Thing::Again),
    ]
}

/// Any bytes but `/` and zero, in names neither `.` nor `..`.
fn name() -> impl Strategy<Value = OsString> {
    let byte = any::<u8>().prop_map(|byte| if byte == 0 || byte == b'/' { b'_' } else { byte });
    let bytes = prop_oneof![prop::collection::vec(byte.clone(), 1..6), prop::collection::vec(byte, 1..255)];
    bytes.prop_filter("not a name", |name| name != b"." && name != b"..").prop_map(OsString::from_vec)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn random_trees(
        things in prop::collection::vec((any::<prop::sample::Index>(), name(), thing(), any::<u32>(), 0usize..3), 0..80),
    ) {
        let work = tempfile::tempdir().unwrap();
        let tree = work.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let (mut directories, mut files) = (vec![tree.clone()], Vec::<PathBuf>::new());
        for (parent, name, thing, number, attributes) in &things {
            let path = parent.get(&directories).join(name);
            if path.symlink_metadata().is_ok() || path.as_os_str().as_bytes().len() > 2000 {
                continue;
            }
            match thing {
                Thing::Directory => {
                    fs::create_dir(&path).unwrap();
                    directories.push(path.clone());
                }
                Thing::File(content) => {
                    fs::write(&path, content).unwrap();
                    files.push(path.clone());
                }
                Thing::Link(to) => symlink(to, &path).unwrap(),
                Thing::Again(_) if files.is_empty() => continue,
                Thing::Again(index) => fs::hard_link(&files[index % files.len()], &path).unwrap(),
            }
            rustix::fs::chownat(CWD, &path, Some(Uid::from_raw(number / 2)), None, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            for i in 0..*attributes {
                let value = vec![b'v'; (number % 700) as usize * i];
                rustix::fs::lsetxattr(&path, format!("trusted.{i}"), &value, XattrFlags::empty()).unwrap();
            }
            set_times(&path, (*number).into(), (number % 1_000_000_000).into());
        }
        assert_round_trip(work.path(), &tree);
    }
}
