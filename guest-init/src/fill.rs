//! Copies a file tree, with all that a system's files have: owners, modes, times, hard links, device nodes, extended
//! attributes, holes. The source is the guest's own system image, and does not change.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use crate::error::{At, Result};

/// How much was copied.
#[derive(Default)]
pub(crate) struct Copied {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// Copies what lies in `from` into the directory `to`, and `from`'s own attributes to `to`.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<Copied> {
    let mut copier = Copier { copied: Copied::default(), linked: HashMap::new(), buffer: vec![0; 256 << 10] };
    copier.directory(from, to)?;
    Ok(copier.copied)
}

struct Copier {
    copied: Copied,
    /// Where files with several names were copied to, by inode number.
    linked: HashMap<u64, PathBuf>,
    buffer: Vec<u8>,
}

impl Copier {
    fn directory(&mut self, from: &Path, to: &Path) -> Result<()> {
        for entry in fs::read_dir(from).at("list", from)? {
            let name = entry.at("list", from)?.file_name();
            self.entry(&from.join(&name), &to.join(&name))?;
        }
        let metadata = fs::metadata(from).at("examine", from)?;
        // Last, for what is made in a directory changes its time.
        attributes(from, to, &metadata)
    }

    fn entry(&mut self, from: &Path, to: &Path) -> Result<()> {
        let metadata = fs::symlink_metadata(from).at("examine", from)?;
        self.copied.files += 1;
        if metadata.is_dir() {
            fs::create_dir(to).at("make the directory", to)?;
            return self.directory(from, to);
        }
        if metadata.nlink() > 1 {
            if let Some(first) = self.linked.get(&metadata.ino()) {
                return fs::hard_link(first, to).at("make the link", to);
            }
            self.linked.insert(metadata.ino(), to.to_owned());
        }
        let kind = metadata.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(from).at("read", from)?;
            std::os::unix::fs::symlink(target, to).at("make the link", to)?;
        } else if kind.is_file() {
            self.copied.bytes += metadata.len();
            copy_content(from, to, metadata.len(), &mut self.buffer).at("copy", from)?;
        } else {
            let kind = match () {
                () if kind.is_block_device() => FileType::BlockDevice,
                () if kind.is_char_device() => FileType::CharacterDevice,
                () if kind.is_fifo() => FileType::Fifo,
                () => FileType::Socket,
            };
            rustix::fs::mknodat(CWD, to, kind, Mode::empty(), metadata.rdev()).at("make the node", to)?;
        }
        attributes(from, to, &metadata)
    }
}

/// Copies a file's bytes; where a whole buffer is zero a hole is left.
fn copy_content(from: &Path, to: &Path, size: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut source = File::open(from)?;
    let target = File::create_new(to)?;
    target.set_len(size)?;
    let mut offset = 0;
    loop {
        let read = source.read(buffer)?;
        if read == 0 {
            return Ok(());
        }
        if buffer[..read].iter().any(|&byte| byte != 0) {
            target.write_all_at(&buffer[..read], offset)?;
        }
        offset += read as u64;
    }
}

/// Gives `to` the owner, mode, extended attributes and times of `from`.
fn attributes(from: &Path, to: &Path, metadata: &Metadata) -> Result<()> {
    let owner = (Some(Uid::from_raw(metadata.uid())), Some(Gid::from_raw(metadata.gid())));
    rustix::fs::chownat(CWD, to, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).at("set the owner of", to)?;
    // After the owner: to change that clears the set-user-ID bit and file capabilities.
    if !metadata.is_symlink() {
        let mode = Mode::from_raw_mode(metadata.mode());
        rustix::fs::chmodat(CWD, to, mode, AtFlags::empty()).at("set the mode of", to)?;
    }
    extended_attributes(from, to).at("copy the extended attributes of", from)?;
    let modified = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() };
    let times = Timestamps { last_access: modified, last_modification: modified };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).at("set the times of", to)
}

fn extended_attributes(from: &Path, to: &Path) -> rustix::io::Result<()> {
    let size = rustix::fs::llistxattr_query(from)?;
    if size == 0 {
        return Ok(());
    }
    let mut list = vec![0; size];
    rustix::fs::llistxattr(from, &mut list[..])?;
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; rustix::fs::lgetxattr_query(from, name)?];
        rustix::fs::lgetxattr(from, name, &mut value[..])?;
        rustix::fs::lsetxattr(to, name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;
    use std::collections::BTreeMap;

    /// All of a tree that a copy must keep, by path; hard links as the first path of the same file.
    fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
        let (mut found, mut first) = (BTreeMap::new(), HashMap::new());
        let mut open = vec![root.to_owned()];
        while let Some(path) = open.pop() {
            let data = fs::symlink_metadata(&path).unwrap();
            if data.is_dir() {
                let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
                names.sort();
                open.extend(names);
            }
            let name = path.strip_prefix(root).unwrap().to_owned();
            let same = first.entry(data.ino()).or_insert_with(|| name.clone()).clone();
            let mut attribute = [0; 16];
            let attribute = rustix::fs::lgetxattr(&path, "trusted.test", &mut attribute[..])
                .map(|size| attribute[..size].to_vec())
                .ok();
            let content = match data.file_type() {
                kind if kind.is_file() => fs::read(&path).unwrap(),
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                _ => Vec::new(),
            };
            let owner = (data.uid(), data.gid(), data.mode());
            let time = (data.mtime(), data.mtime_nsec());
            let rest = (same, owner, time, data.rdev(), attribute, content);
            found.insert(name, format!("{rest:?}"));
        }
        found
    }

    /// Needs root.
    #[test]
    fn a_copy_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a/program"), "program").unwrap();
        fs::hard_link(from.join("a/program"), from.join("a/b/link")).unwrap();
        std::os::unix::fs::symlink("../nowhere", from.join("a/dangling")).unwrap();
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.set_len(10 << 20).unwrap();
        sparse.write_all_at(b"!", 5 << 20).unwrap();
        let node = |name: &str, kind, device| {
            rustix::fs::mknodat(CWD, from.join(name), kind, Mode::RUSR, device).unwrap();
        };
        node("null", FileType::CharacterDevice, makedev(1, 3));
        node("block", FileType::BlockDevice, makedev(259, 0x12345));
        node("fifo", FileType::Fifo, 0);
        node("socket", FileType::Socket, 0);
        for (name, mode) in [("a/program", 0o6755), ("a", 0o1777), ("sparse", 0o600)] {
            let (user, group) = (Some(Uid::from_raw(70_000)), Some(Gid::from_raw(7)));
            rustix::fs::chownat(CWD, from.join(name), user, group, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            rustix::fs::chmodat(CWD, from.join(name), Mode::from_raw_mode(mode), AtFlags::empty()).unwrap();
            rustix::fs::lsetxattr(from.join(name), "trusted.test", b"value", XattrFlags::empty()).unwrap();
        }
        let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
        let times = Timestamps { last_access: time, last_modification: time };
        for name in ["a/dangling", "a/b", "a", ""] {
            rustix::fs::utimensat(CWD, from.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }

        let copied = copy_tree(&from, &to).unwrap();
        assert_eq!(snapshot(&from), snapshot(&to));
        assert_eq!(copied.files, 10);
        assert!(fs::metadata(to.join("sparse")).unwrap().blocks() * 512 < 1 << 20);
    }
}
