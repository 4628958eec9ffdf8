//! Finds the kernel in a tree.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tree::Tree;
use crate::version;

/// Distributions' largest kernels have 20 MiB.
pub(crate) const MAX_KERNEL: u64 = 256 << 20;
/// What [`release`] can look at: a 16-bit pointer into the kernel behind its first sector, and a text there.
const HEAD: u64 = 0x200 + 0xffff + 256;

/// A kernel of the tree.
pub(crate) struct Kernel {
    pub(crate) image: File,
    /// As `uname -r` says.
    pub(crate) version: String,
}

/// Reads the kernel at `wanted`, or else the newest one.
///
/// Debian, SUSE and Fedora put kernels at `/boot/vmlinuz-VERSION`, image-based Fedora at
/// `/lib/modules/VERSION/vmlinuz`; hand-made trees at `/boot/vmlinuz` or `/vmlinuz`.
pub(crate) fn find(tree: Tree<'_>, wanted: Option<&Path>) -> Result<Kernel> {
    if let Some(path) = wanted {
        let found = || candidates(tree).map(|all| all.iter().map(|path| format!("{path:?}")).collect::<Vec<_>>());
        return match tree.open(path)? {
            Some(image) => kernel(image, path),
            None => Err(Error::NoSuchKernel { path: path.to_owned(), found: found()?.join(", ") }),
        };
    }
    for path in candidates(tree)? {
        if let Some(image) = tree.open(&path)? {
            return kernel(image, &path);
        }
    }
    Err(Error::NoKernel)
}

/// Where kernels may lie, the best first.
fn candidates(tree: Tree<'_>) -> Result<Vec<PathBuf>> {
    let mut releases: Vec<(String, PathBuf)> = Vec::new();
    for name in tree.names(Path::new("boot"))? {
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            releases.push((release.to_owned(), Path::new("boot").join(&name)));
        }
    }
    for release in tree.names(Path::new("lib/modules"))? {
        let path = Path::new("lib/modules").join(&release).join("vmlinuz");
        releases.push((release, path));
    }
    releases.sort_by(|a, b| version::compare(&b.0, &a.0));
    let unnamed = ["boot/vmlinuz", "boot/bzImage", "vmlinuz"].map(PathBuf::from);
    Ok(releases.into_iter().map(|(_, path)| path).chain(unnamed).collect())
}

fn kernel(mut image: File, path: &Path) -> Result<Kernel> {
    let fail = |source| Error::Tree { path: path.to_owned(), source };
    if image.metadata().map_err(fail)?.len() > MAX_KERNEL {
        return Err(Error::TooLarge { path: path.to_owned(), limit: MAX_KERNEL });
    }
    let mut head = Vec::new();
    (&image).take(HEAD).read_to_end(&mut head).map_err(fail)?;
    image.rewind().map_err(fail)?;
    let version = release(&head).ok_or_else(|| Error::NotAKernel { path: path.to_owned() })?.to_owned();
    Ok(Kernel { image, version })
}

/// The release that a bzImage names (Linux, `Documentation/arch/x86/boot.rst`, field `kernel_version`).
///
/// It becomes a part of paths, and so must be a plain name.
fn release(image: &[u8]) -> Option<&str> {
    const MAGIC: std::ops::Range<usize> = 0x202..0x206;
    const POINTER: std::ops::Range<usize> = 0x20e..0x210;
    if image.get(MAGIC)? != b"HdrS" {
        return None;
    }
    let pointer = u16::from_le_bytes(image.get(POINTER)?.try_into().ok()?);
    let text = image.get(usize::from(pointer) + 0x200..)?;
    let text = &text[..text.len().min(256)];
    let release = text.split(|&byte| byte == b' ' || byte == 0).next()?;
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._+-~".contains(byte);
    let is_name = !release.is_empty() && release[0] != b'.' && release.iter().all(is_plain);
    std::str::from_utf8(release).ok().filter(|_| is_name)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;

    /// The least that counts as a kernel.
    pub(crate) fn bzimage(release: &str) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x300 + release.len()].copy_from_slice(release.as_bytes());
        image
    }

    fn found(files: &[(&str, &str)], wanted: Option<&str>) -> Result<String> {
        let root = tempfile::tempdir().unwrap();
        for (path, release) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bzimage(&format!("{release} (someone@somewhere) #1"))).unwrap();
        }
        let handle = File::open(root.path()).unwrap();
        find(Tree(handle.as_fd()), wanted.map(Path::new)).map(|kernel| kernel.version)
    }

    #[test]
    fn the_newest_wins_wherever_it_lies() {
        let files = [("boot/vmlinuz-6.9.1", "6.9.1"), ("boot/vmlinuz-6.12.0", "6.12.0"), ("boot/vmlinuz", "1.0")];
        assert_eq!(found(&files, None).unwrap(), "6.12.0");
        assert_eq!(found(&[files[0], ("lib/modules/6.11.2/vmlinuz", "6.11.2")], None).unwrap(), "6.11.2");
        assert_eq!(found(&files[2..], None).unwrap(), "1.0");
    }

    #[test]
    fn a_wanted_kernel_is_taken_or_the_choices_are_told() {
        let files = [("boot/vmlinuz-6.9.1", "6.9.1"), ("boot/vmlinuz-6.12.0", "6.12.0")];
        assert_eq!(found(&files, Some("/boot/vmlinuz-6.9.1")).unwrap(), "6.9.1");
        let message = found(&files, Some("/boot/vmlinuz-7")).unwrap_err().to_string();
        assert!(message.contains("/boot/vmlinuz-7") && message.contains("boot/vmlinuz-6.12.0"), "{message}");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(matches!(found(&[], None), Err(Error::NoKernel)));
        for image in [vec![], b"\x7fELF".to_vec(), bzimage(""), bzimage("../../etc"), bzimage("..")] {
            assert_eq!(release(&image), None);
        }
        let mut beyond = bzimage("6.12");
        beyond[0x20e..0x210].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(release(&beyond), None);
    }
    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged(pointer: u16, text in "\\PC{0,40}", length in 0usize..1200) {
            let mut image = bzimage("");
            image[0x20e..0x210].copy_from_slice(&pointer.to_le_bytes());
            image.extend_from_slice(text.as_bytes());
            image.resize(length, b'.');
            if let Some(release) = release(&image) {
                proptest::prop_assert!(!release.starts_with('.') && !release.contains('/'));
            }
        }
    }
}
