//! Files that appear as memory.

use serde_json::json;

use crate::guest::Guest;
use crate::host::{digest, fill, run};
use crate::initramfs::Content;

const MOUNT: &str = "
until [ -b /dev/pmem0 -a -b /dev/pmem1 ]; do sleep 0.1; done
mount -t ext4 -o ro,dax /dev/pmem0 /mnt
sum=$(sha256sum </mnt/large)
echo large ${sum%% *} $(grep -c ' /mnt ext4 .*dax' /proc/mounts)
echo written | dd of=/dev/pmem1 conv=fsync,notrunc 2>/dev/null
echo flushed
sleep 3600
";

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn files_are_read_without_a_copy_and_written_through() {
    let files = tempfile::tempdir().unwrap();
    let tree = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name);
    let large = tree.path().join("large");
    fill(&large, 1 << 20);
    let image = path("image");
    run(
        "mke2fs",
        &["-q", "-t", "ext4", "-b", "4096", "-d", tree.path().to_str().unwrap(), image.to_str().unwrap(), "8M"],
    );
    let before = digest(&image);
    fill(&path("log"), 2 << 20);
    let content = Content { modules: &["virtio_pmem", "nd_pmem", "ext4"], script: MOUNT, ..Content::default() };
    let more = json!({"pmem": [
        {"id": "image", "file": image, "discard_writes": true},
        {"id": "log", "file": path("log")},
    ]});
    let guest = Guest::boot(files.path(), content, more);
    assert_eq!(guest.tells("large"), format!("{} 1", digest(&large)));
    guest.tells("flushed");
    assert!(std::fs::read(path("log")).unwrap().starts_with(b"written\n"));
    let counters = guest.get("vm.counters");
    assert!(counters["log"]["flush_ops"].as_u64() >= Some(1), "{counters}");
    assert_eq!(digest(&image), before);
}
