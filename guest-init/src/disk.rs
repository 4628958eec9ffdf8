//! The root of a guest with a root disk: an ext4 file system, filled from the system image at first boot.
//!
//! ```text
//! blank ─mark─► marked ─mkfs─► label vse-filling ─copy, unmount─► label vse-root
//!               └──── cut short in one of these: ────┘
//!                            started anew
//! ```
//!
//! Nothing else is ever overwritten: a disk that holds other data is refused.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use rustix::mount::MountFlags;

use crate::error::{At, Error, Result};
use crate::{fill, mounts, program, say};

/// Label of the file system from its making until the image is copied completely. Any other, as a user may set one,
/// means filled.
const FILLING: &str = "vse-filling";
const FILLED: &str = "vse-root";

/// Says that a file system is being made, in case that is cut short and leaves something no one can recognize.
const MARK: &[u8; 32] = b"vse-init: making a file system.\n";
/// In the first block group (128 MiB), behind all that `mkfs.ext4` writes there.
const MARK_OFFSET: u64 = 96 << 20;
const LEAST_BYTES: u64 = 128 << 20;

/// How much of a disk's two ends must be zero for it to count as blank.
const HEAD: usize = 1 << 20;
const TAIL: usize = 64 << 10;

/// What a root disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    Unfinished,
    FileSystem,
    OtherData,
}

/// Mounts the root disk on `root`, after filling it from `system` if it is blank or was not filled completely.
pub(crate) fn mount(system: &str, disk: &Path, root: &str) -> Result<()> {
    match examine(disk)? {
        Holds::FileSystem => {}
        Holds::OtherData => return Err(Error::ForeignDisk(disk.to_owned())),
        Holds::Nothing => make(system, disk, root)?,
        Holds::Unfinished => {
            say("an earlier boot was cut short while it filled the root disk: starting anew");
            make(system, disk, root)?;
        }
    }
    mounts::mount("ext4", disk, root, MountFlags::empty(), "")?;
    share_modules(system, root)
}

/// Shows the modules of the running kernel, which comes from the system image, on a root disk that was filled from an
/// image with another kernel.
fn share_modules(system: &str, root: &str) -> Result<()> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    for directory in ["usr/lib/modules", "lib/modules"] {
        let from = format!("{system}/{directory}/{release}");
        if !Path::new(&from).is_dir() {
            continue;
        }
        let to = format!("{root}/{directory}/{release}");
        if !Path::new(&to).join("modules.dep").exists() {
            std::fs::create_dir_all(&to).at("make the directory", &to)?;
            rustix::mount::mount_bind(from.as_str(), to.as_str()).at("show the modules in", &to)?;
        }
        break;
    }
    Ok(())
}

fn examine(disk: &Path) -> Result<Holds> {
    let file = File::open(disk).at("open", disk)?;
    let bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).at("examine", disk)?;
    if bytes < LEAST_BYTES {
        return Err(Error::SmallDisk { path: disk.to_owned(), bytes, least: LEAST_BYTES });
    }
    let read = |offset, length| -> Result<Vec<u8>> {
        let mut buffer = vec![0; length];
        file.read_exact_at(&mut buffer, offset).at("read", disk)?;
        Ok(buffer)
    };
    Ok(classify(&read(0, HEAD)?, &read(MARK_OFFSET, MARK.len())?, &read(bytes - TAIL as u64, TAIL)?))
}

/// Judges a disk by its first [`HEAD`] bytes, those at [`MARK_OFFSET`], and its last.
fn classify(head: &[u8], mark: &[u8], tail: &[u8]) -> Holds {
    /// Of the superblock, which starts at byte 1024 (Linux, `Documentation/filesystems/ext4/super.rst`).
    const MAGIC: std::ops::Range<usize> = 1024 + 0x38..1024 + 0x3a;
    const LABEL: std::ops::Range<usize> = 1024 + 0x78..1024 + 0x88;
    let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);

    if head[MAGIC] == [0x53, 0xef] {
        let label = head[LABEL].split(|&byte| byte == 0).next().unwrap_or_default();
        if label == FILLING.as_bytes() { Holds::Unfinished } else { Holds::FileSystem }
    } else if mark == MARK {
        Holds::Unfinished
    } else if is_zero(head) && is_zero(tail) {
        Holds::Nothing
    } else {
        Holds::OtherData
    }
}

/// Makes a file system on `disk` and copies the system image into it.
fn make(system: &str, disk: &Path, root: &str) -> Result<()> {
    let mkfs = program::find(system, "mkfs.ext4", "e2fsprogs")?;
    let tune2fs = program::find(system, "tune2fs", "e2fsprogs")?;
    let devices = format!("{system}/dev");
    rustix::mount::mount_bind("/dev", devices.as_str()).at("show the devices in", &devices)?;

    let begin = Instant::now();
    say(&format!("filling the root disk {} from the system image", disk.display()));
    write_mark(disk, MARK).at("write to", disk)?;
    // Discarding would take the mark away. The block size puts block groups where the mark expects them.
    let options = ["-q", "-F", "-b", "4096", "-E", "nodiscard", "-L", FILLING];
    mkfs.run(options.iter().map(Path::new).chain([disk]))?;
    // The label says it from here on. A mark that stayed would make a root disk that is damaged later look unfinished.
    write_mark(disk, &[0; MARK.len()]).at("write to", disk)?;

    mounts::mount("ext4", disk, root, MountFlags::empty(), "")?;
    // The devices must not be copied, and the image is mounted again rather than shown without them.
    mounts::unmount(&devices)?;
    let copied = fill::copy_tree(Path::new(system), Path::new(root))?;
    mounts::unmount(root)?;

    rustix::mount::mount_bind("/dev", devices.as_str()).at("show the devices in", &devices)?;
    tune2fs.run([Path::new("-L"), Path::new(FILLED), disk])?;
    mounts::unmount(&devices)?;
    File::open(disk).and_then(|disk| disk.sync_all()).at("write to", disk)?;
    say(&format!("filled: {} files, {} MiB in {} s", copied.files, copied.bytes >> 20, begin.elapsed().as_secs()));
    Ok(())
}

fn write_mark(disk: &Path, mark: &[u8]) -> io::Result<()> {
    let disk = File::options().write(true).open(disk)?;
    // What mkfs wrote must be on the disk before the mark goes, and the mark before what mkfs writes.
    disk.sync_all()?;
    disk.write_all_at(mark, MARK_OFFSET)?;
    disk.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext4(label: &str) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        head[1024 + 0x78..1024 + 0x78 + label.len()].copy_from_slice(label.as_bytes());
        head
    }

    static BLANK: [u8; HEAD] = [0; HEAD];
    static NO_MARK: [u8; 32] = [0; 32];

    #[test]
    fn only_zeros_count_as_blank() {
        assert_eq!(classify(&BLANK, &NO_MARK, &BLANK[..TAIL]), Holds::Nothing);
        for position in [0, 510, 65_600, HEAD - 1] {
            let mut head = BLANK.to_vec();
            head[position] = 1;
            assert_eq!(classify(&head, &NO_MARK, &BLANK[..TAIL]), Holds::OtherData, "byte {position}");
        }
        let mut tail = BLANK[..TAIL].to_vec();
        tail[TAIL - 512] = b'E'; // the second copy of a GPT
        assert_eq!(classify(&BLANK, &NO_MARK, &tail), Holds::OtherData);
    }

    #[test]
    fn a_disk_whose_making_was_cut_short_is_made_anew() {
        let mut head = BLANK.to_vec();
        head[5000] = 1;
        assert_eq!(classify(&head, MARK, &BLANK[..TAIL]), Holds::Unfinished);
        assert_eq!(classify(&ext4(FILLING), &NO_MARK, &BLANK[..TAIL]), Holds::Unfinished);
    }

    #[test]
    fn a_file_system_is_kept_whatever_its_label() {
        for label in [FILLED, "", "mine", "vse-filling-not"] {
            // The mark may have survived in a block that was never used.
            assert_eq!(classify(&ext4(label), MARK, &BLANK[..TAIL]), Holds::FileSystem, "{label}");
        }
    }
}
