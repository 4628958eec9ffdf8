//! Reads a tree's names and metadata into memory. Owns how the untrusted tree is opened; reads no file content.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use crate::format::{NAME_MAX, device_number};
use crate::{Error, xattr};

/// Linux's `PATH_MAX` without the final zero.
const MAX_PATH: usize = 4095;

/// A directory tree; node 0 is its root.
pub(crate) struct Tree<'a> {
    root: BorrowedFd<'a>,
    pub(crate) nodes: Vec<Node>,
}

/// One inode.
pub(crate) struct Node {
    /// The directory it was first found in, and its name there.
    pub(crate) parent: usize,
    name: Box<[u8]>,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    /// Names of it in the tree; for directories as usual 2 + subdirectories.
    pub(crate) nlink: u32,
    /// Encoded extended attributes.
    pub(crate) xattrs: Box<[u8]>,
    pub(crate) content: Content,
}

/// What an inode holds.
pub(crate) enum Content {
    /// Sorted by name, with `.` and `..`.
    Directory(Vec<Entry>),
    File {
        size: u64,
    },
    Symlink(Box<[u8]>),
    /// The device number as EROFS encodes it; 0 for FIFOs and sockets.
    Special(u32),
}

/// One name in a directory.
pub(crate) struct Entry {
    pub(crate) name: Box<[u8]>,
    pub(crate) node: usize,
}

impl Tree<'_> {
    /// The path of a node, relative to the root.
    pub(crate) fn path(&self, mut node: usize) -> PathBuf {
        let mut names = Vec::new();
        while node != 0 {
            names.push(OsStr::from_bytes(&self.nodes[node].name));
            node = self.nodes[node].parent;
        }
        match names.is_empty() {
            true => PathBuf::from("."),
            false => names.iter().rev().collect(),
        }
    }

    /// Opens a regular file for reading. What is there now may be something else, and is not opened then: to open a
    /// device node can have effects.
    pub(crate) fn open_file(&self, node: usize) -> Result<OwnedFd, Error> {
        let path = self.path(node);
        let read = |source: rustix::io::Errno| read_error("open", &path, source);
        let place = open(self.root, &path, OFlags::PATH | OFlags::NOFOLLOW).map_err(read)?;
        let stat = rustix::fs::fstat(&place).map_err(read)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Changed { path });
        }
        let reopened = format!("/proc/self/fd/{}", place.as_raw_fd());
        rustix::fs::open(reopened, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(read)
    }
}

fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn read_error(action: &'static str, path: &Path, source: Errno) -> Error {
    Error::Read { action, path: path.to_owned(), source: source.into() }
}

/// Reads the tree below `root`.
pub(crate) fn read(root: BorrowedFd<'_>, max_inodes: u32) -> Result<Tree<'_>, Error> {
    let tree = Tree { root, nodes: Vec::new() };
    let mut reader = Reader { tree, linked: HashMap::new(), names: 0, limit: max_inodes };
    let top = Path::new(".");
    let fd = open(root, top, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| read_error("open", top, e))?;
    reader.add(fd.as_fd(), top, top, 0)?;

    // Directories are visited in the order of their nodes; each adds its own to the end.
    let mut next = 0;
    while next < reader.tree.nodes.len() {
        if matches!(reader.tree.nodes[next].content, Content::Directory(_)) {
            reader.fill(next)?;
        }
        next += 1;
    }
    Ok(reader.tree)
}

/// A tree being read.
struct Reader<'a> {
    tree: Tree<'a>,
    /// The nodes of files with several names, by device and inode number.
    linked: HashMap<(u32, u32, u64), usize>,
    names: u32,
    limit: u32,
}

impl Reader<'_> {
    /// Reads the entries of a directory's node.
    fn fill(&mut self, directory: usize) -> Result<(), Error> {
        let path = self.tree.path(directory);
        if path.as_os_str().len() > MAX_PATH {
            return Err(Error::PathTooLong { path, limit: MAX_PATH });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = open(self.tree.root, &path, flags).map_err(|e| read_error("open", &path, e))?;
        let mut entries = vec![
            Entry { name: (*b".").into(), node: directory },
            Entry { name: (*b"..").into(), node: self.tree.nodes[directory].parent },
        ];
        let first_own = self.tree.nodes.len();
        for name in self.list(&fd, &path)? {
            let child = Path::new(OsStr::from_bytes(&name));
            let node = self.add(fd.as_fd(), child, &path.join(child), directory)?;
            entries.push(Entry { name, node });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));

        let own = &self.tree.nodes[first_own..];
        let subdirectories = own.iter().filter(|node| matches!(node.content, Content::Directory(_))).count();
        self.tree.nodes[directory].nlink = 2 + subdirectories as u32;
        self.tree.nodes[directory].content = Content::Directory(entries);
        Ok(())
    }

    /// The names in a directory, sorted, so that nodes are numbered the same each time.
    fn list(&mut self, fd: &OwnedFd, path: &Path) -> Result<Vec<Box<[u8]>>, Error> {
        let read = |source| read_error("list", path, source);
        let mut names: Vec<Box<[u8]>> = Vec::new();
        for entry in Dir::read_from(fd).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if name.len() > NAME_MAX {
                return Err(read(Errno::NAMETOOLONG));
            }
            self.names += 1;
            if self.names > self.limit {
                return Err(Error::TooManyFiles { limit: self.limit });
            }
            names.push(name.into());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The node of `name` in an open directory: a new one, unless the file was seen under another name.
    fn add(&mut self, directory: BorrowedFd<'_>, name: &Path, full: &Path, parent: usize) -> Result<usize, Error> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS)
            .map_err(|e| read_error("examine", full, e))?;
        let has_other_names = stat.stx_nlink > 1 && file_type(&stat) != FileType::Directory;
        let id = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        if let Some(&known) = self.linked.get(&id).filter(|_| has_other_names) {
            self.tree.nodes[known].nlink += 1;
            return Ok(known);
        }
        let index = self.tree.nodes.len();
        self.tree.nodes.push(node(directory, name, full, parent, &stat)?);
        if has_other_names {
            self.linked.insert(id, index);
        }
        Ok(index)
    }
}

fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// A new node for `name` in an open directory.
fn node(directory: BorrowedFd<'_>, name: &Path, full: &Path, parent: usize, stat: &Statx) -> Result<Node, Error> {
    let content = match file_type(stat) {
        FileType::Directory => Content::Directory(Vec::new()),
        FileType::RegularFile => Content::File { size: stat.stx_size },
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(directory, name, Vec::new());
            Content::Symlink(target.map_err(|e| read_error("read", full, e))?.into_bytes().into())
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            Content::Special(device_number(stat.stx_rdev_major, stat.stx_rdev_minor))
        }
        _ => Content::Special(0),
    };
    Ok(Node {
        parent,
        name: name.as_os_str().as_bytes().into(),
        mode: stat.stx_mode,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mtime: stat.stx_mtime.tv_sec,
        mtime_nsec: stat.stx_mtime.tv_nsec,
        nlink: 1,
        xattrs: xattrs(directory, name, full)?,
        content,
    })
}

/// The encoded extended attributes of `name` in an open directory.
fn xattrs(directory: BorrowedFd<'_>, name: &Path, full: &Path) -> Result<Box<[u8]>, Error> {
    // The calls that take a descriptor want one opened for reading, which device nodes and FIFOs must not be.
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    let too_many = || Error::TooManyAttributes { path: full.to_owned(), limit: xattr::MAX_BYTES };
    let read = |source| match source {
        Errno::RANGE | Errno::TOOBIG => too_many(),
        source => read_error("read the extended attributes of", full, source),
    };

    // Most files have none: ask for the size first.
    let size = match rustix::fs::llistxattr_query(&path) {
        Ok(size) => size,
        Err(Errno::OPNOTSUPP) => 0,
        Err(source) => return Err(read(source)),
    };
    if size == 0 {
        return Ok(Box::default());
    }
    let mut list = vec![0; xattr::MAX_BYTES];
    let size = rustix::fs::llistxattr(&path, &mut list[..]).map_err(read)?;
    let mut kept: Vec<Vec<u8>> =
        list[..size].split(|&b| b == 0).filter(|name| xattr::is_kept(name)).map(<[u8]>::to_vec).collect();
    kept.sort_unstable();

    let mut value = list;
    let mut attributes = Vec::new();
    for name in kept {
        let size = rustix::fs::lgetxattr(&path, name.as_slice(), &mut value[..]).map_err(read)?;
        attributes.push((name, value[..size].to_vec()));
    }
    let encoded = xattr::encode(&attributes);
    if encoded.len() > xattr::MAX_BYTES {
        return Err(too_many());
    }
    Ok(encoded.into())
}

impl Node {
    /// The file type as directory entries have it (`FT_*` in Linux's `fs_types.h`).
    pub(crate) fn file_type(&self) -> u8 {
        match FileType::from_raw_mode(self.mode.into()) {
            FileType::RegularFile => 1,
            FileType::Directory => 2,
            FileType::CharacterDevice => 3,
            FileType::BlockDevice => 4,
            FileType::Fifo => 5,
            FileType::Socket => 6,
            FileType::Symlink => 7,
            FileType::Unknown => 0,
        }
    }
}

/// An I/O error as [`Error::Read`].
pub(crate) fn content_error(path: &Path, source: io::Error) -> Error {
    Error::Read { action: "read", path: path.to_owned(), source }
}
