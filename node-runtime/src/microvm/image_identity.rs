//! What tells one mounted system image from another on this host. Pure.
//!
//! Two guests share a prepared image only when they have the very same tree. Kubernetes does not (by default) say the
//! digest of a mounted image volume, so an image is identified by its digest when the reference has one, and otherwise by
//! what is mounted: the container runtime's unpacked layers, which it never changes.

/// What is known of a mounted system image.
#[derive(Clone, Debug)]
pub struct MountedImage<'a> {
    /// Reference in the pod's spec.
    pub reference: &'a str,
    /// The pod's mount table.
    pub mounts: &'a str,
    /// Mount point of the image.
    pub mount_point: &'a str,
    /// Inode number and change time (seconds, nanoseconds) of a directory in the image: they differ between two
    /// unpackings that happen to get the same place. Not of its root, which in an overlay is each mount's own.
    pub witness: (u64, i64, i64),
}

/// A text that is the same for the same tree only; nothing when no image is mounted there.
pub fn image_identity(image: &MountedImage<'_>) -> Option<String> {
    match image.reference.rsplit_once("@sha256:") {
        Some((_, digest)) if digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Some(format!("sha256:{digest}"))
        }
        _ => {
            let mounted = mounted(image.mounts, image.mount_point)?;
            Some(format!("{}\n{:?}\n{mounted}", image.reference, image.witness))
        }
    }
}

/// What is mounted at a mount point: root within the file system, device, and lower directories of an overlay
/// (proc_pid_mountinfo(5): `id parent major:minor root mount-point options … - type source super-options`).
fn mounted(mounts: &str, mount_point: &str) -> Option<String> {
    let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(mount_point))?;
    let (own, file_system) = line.split_once(" - ")?;
    let mut fields = own.split(' ').skip(2);
    let (device, root) = (fields.next()?, fields.next()?);
    let kind = file_system.split(' ').next()?;
    let lower = file_system.split([' ', ',']).find(|option| option.starts_with("lowerdir=")).unwrap_or_default();
    // Each overlay mount has a device number of its own; its layers are what identifies it.
    let device = if kind == "overlay" { "" } else { device };
    Some(format!("{kind} {device} {root} {lower}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERLAY: &str = "\
812 801 0:91 / / ro,relatime - overlay overlay rw,lowerdir=/x/9/fs,upperdir=/u,workdir=/w
830 812 0:99 / /vse/system ro,relatime master:1 - overlay overlay rw,lowerdir=/s/12/fs:/s/11/fs,upperdir=/s/40/fs,workdir=/s/40/work
";
    const BIND: &str = "830 812 254:0 /s/12/fs /vse/system ro,relatime - ext4 /dev/vda rw,discard\n";

    fn identity(reference: &str, mounts: &str, inode: u64) -> Option<String> {
        image_identity(&MountedImage { reference, mounts, mount_point: "/vse/system", witness: (inode, 1, 2) })
    }

    #[test]
    fn one_tree_is_one_image_wherever_it_is_mounted() {
        let elsewhere = OVERLAY.replace("0:99", "0:123").replace("/s/40", "/s/41");
        assert_eq!(identity("a:1", OVERLAY, 7), identity("a:1", &elsewhere, 7));
        assert!(identity("a:1", BIND, 7).is_some());
    }

    #[test]
    fn another_tree_is_another_image() {
        let base = identity("a:1", OVERLAY, 7);
        assert_ne!(base, identity("a:1", &OVERLAY.replace("/s/12", "/s/13"), 7));
        assert_ne!(base, identity("a:1", OVERLAY, 8));
        assert_ne!(identity("a:1", BIND, 7), identity("a:1", &BIND.replace("/s/12", "/s/2"), 7));
    }

    #[test]
    fn a_digest_says_it_all() {
        let reference = format!("registry/a@sha256:{}", "0a".repeat(32));
        assert_eq!(identity(&reference, OVERLAY, 7), identity(&reference, BIND, 8));
    }

    #[test]
    fn what_is_not_mounted_has_no_identity() {
        assert_eq!(identity("a:1", "", 7), None);
    }
}
