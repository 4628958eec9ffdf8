//! File systems that virtiofsd serves.

use serde_json::json;

use crate::guest::Guest;
use crate::host::{Running, digest, fill};
use crate::initramfs::Content;
use crate::process::until;

const MOUNT: &str = "
mount -t virtiofs files /mnt
sum=$(sha256sum </mnt/large)
echo large ${sum%% *}
cp /mnt/large /mnt/copy && echo written >/mnt/new && mkdir /mnt/folder && mv /mnt/new /mnt/folder/moved
umount /mnt
echo unmounted
";

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn a_file_system_of_the_hosts_is_read_and_written() {
    let files = tempfile::tempdir().unwrap();
    let shared = tempfile::tempdir().unwrap();
    let large = shared.path().join("large");
    fill(&large, 3 << 20);
    let socket = files.path().join("virtiofsd");
    let [path, folder] = [&socket, shared.path()].map(|path: &std::path::Path| path.to_str().unwrap());
    let _server = Running::start("/usr/libexec/virtiofsd", &["--socket-path", path, "--shared-dir", folder]);
    until("virtiofsd listens", || socket.exists());
    let content = Content { modules: &["virtiofs"], script: MOUNT, ..Content::default() };
    let more = json!({
        "memory": {"size": 256 << 20, "shared": true},
        "fs": [{"id": "files", "tag": "files", "socket": socket}],
    });
    let mut guest = Guest::boot(files.path(), content, more);
    assert_eq!(guest.tells("large"), digest(&large));
    guest.tells("unmounted");
    assert_eq!(guest.vmm.end(), Some(0));
    assert_eq!(digest(&shared.path().join("copy")), digest(&large));
    assert_eq!(std::fs::read_to_string(shared.path().join("folder/moved")).unwrap(), "written\n");
}
