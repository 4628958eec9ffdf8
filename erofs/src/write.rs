//! Writes a tree that was read, as an image. Streams file content; knows no path outside the tree.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::format::{self, BLOCK, DataLayout, Dirent, Inode, Superblock};
use crate::layout::{self, Need, Place};
use crate::tree::{Content, Entry, Node, Tree, content_error};
use crate::{Error, Options, Summary};

/// Bytes of file content held at a time.
const BUFFER: usize = 1 << 20;

/// Writes the image of `tree` to the empty file `out`.
pub(crate) fn image(tree: &Tree<'_>, out: &File, options: &Options) -> Result<Summary, Error> {
    let needs: Vec<Need> = tree.nodes.iter().map(need).collect();
    let layout = layout::layout(&needs);
    let blocks = u32::try_from(layout.total_blocks).map_err(|_| Error::TooLarge)?;
    let image_bytes = layout.total_blocks * BLOCK;
    // What is not written below stays a hole, and reads as zeros.
    out.set_len(image_bytes).map_err(Error::Write)?;

    let mut buffer = vec![0; BUFFER];
    for (index, (node, place)) in tree.nodes.iter().zip(&layout.places).enumerate() {
        let size = needs[index].content;
        let mut head = inode(index, node, place, size).encode();
        head.extend_from_slice(&node.xattrs);
        let tail_offset = place.offset() + head.len() as u64;
        out.write_all_at(&head, place.offset()).map_err(Error::Write)?;

        let target = Target { out, place, tail_offset, size };
        match &node.content {
            Content::Special(_) => {}
            Content::Symlink(to) => target.write(0, to)?,
            Content::Directory(entries) => target.write(0, &directory(tree, entries, &layout.places))?,
            Content::File { size: 0 } => {}
            Content::File { .. } => copy_file(tree, index, &target, &mut buffer)?,
        }
    }

    let superblock = format::superblock(&Superblock {
        root_nid: layout.places[0].nid as u16,
        inodes: tree.nodes.len() as u64,
        blocks,
        uuid: options.uuid,
        volume_name: options.volume_name.as_bytes(),
    });
    out.write_all_at(&superblock, 0).map_err(Error::Write)?;
    let metadata_bytes = layout.metadata_blocks * BLOCK;
    Ok(Summary { inodes: tree.nodes.len() as u64, image_bytes, metadata_bytes })
}

fn need(node: &Node) -> Need {
    let content = match &node.content {
        Content::File { size } => *size,
        Content::Symlink(to) => to.len() as u64,
        Content::Directory(entries) => format::directory_size(entries.iter().map(|entry| entry.name.len())),
        Content::Special(_) => 0,
    };
    Need { xattr_bytes: node.xattrs.len() as u64, content }
}

fn inode(index: usize, node: &Node, place: &Place, size: u64) -> Inode {
    Inode {
        layout: place.layout,
        xattr_bytes: node.xattrs.len(),
        mode: node.mode,
        size,
        location: match node.content {
            Content::Special(device) => device,
            _ => place.first_block as u32,
        },
        ino: index as u32 + 1,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        mtime_nsec: node.mtime_nsec,
        nlink: node.nlink,
    }
}

/// The content of a directory.
fn directory(tree: &Tree<'_>, entries: &[Entry], places: &[Place]) -> Vec<u8> {
    let dirents: Vec<Dirent<'_>> = entries
        .iter()
        .map(|Entry { name, node }| Dirent { name, nid: places[*node].nid, file_type: tree.nodes[*node].file_type() })
        .collect();
    format::directory(&dirents)
}

/// Where one inode's content goes.
struct Target<'a> {
    out: &'a File,
    place: &'a Place,
    tail_offset: u64,
    size: u64,
}

impl Target<'_> {
    /// Writes a part of the content, which must lie within its size.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let tail_start = match self.place.layout {
            DataLayout::Plain => self.size,
            DataLayout::InlineTail => self.size - self.size % BLOCK,
        };
        let in_blocks = tail_start.saturating_sub(offset).min(bytes.len() as u64);
        let (full, tail) = bytes.split_at(in_blocks as usize);
        self.out.write_all_at(full, self.place.data_offset() + offset).map_err(Error::Write)?;
        if tail.is_empty() {
            return Ok(());
        }
        let into_tail = offset + in_blocks - tail_start;
        self.out.write_all_at(tail, self.tail_offset + into_tail).map_err(Error::Write)
    }
}

/// Copies a file's data and skips its holes.
fn copy_file(tree: &Tree<'_>, index: usize, target: &Target<'_>, buffer: &mut [u8]) -> Result<(), Error> {
    let file = File::from(tree.open_file(index)?);
    let fail = |source| content_error(&tree.path(index), source);
    let changed = || Error::Changed { path: tree.path(index) };
    if file.metadata().map_err(fail)?.len() != target.size {
        return Err(changed());
    }
    let mut offset = 0;
    while let Some(start) = next_data(&file, offset).map_err(fail)? {
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).map_err(|e| fail(e.into()))?.min(target.size);
        offset = start;
        while offset < end {
            let want = buffer.len().min((end - offset) as usize);
            let got = file.read_at(&mut buffer[..want], offset).map_err(fail)?;
            if got == 0 {
                return Err(changed());
            }
            target.write(offset, &buffer[..got])?;
            offset += got as u64;
        }
        if offset >= target.size {
            break;
        }
    }
    Ok(())
}

/// Where the next data begins; `None` when there is only a hole up to the end.
fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => Ok(Some(start)),
        Err(Errno::NXIO) => Ok(None),
        Err(source) => Err(source.into()),
    }
}
