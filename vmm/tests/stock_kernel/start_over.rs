//! A guest starts over by itself, and ends at its power button.

use serde_json::json;

use crate::guest::Guest;
use crate::initramfs::Content;

/// The disk has the number of this boot. The button's event is two times of 8 bytes, then type, code and value
/// (`struct input_event` of linux/input.h).
const BOOTS: &str = "
until [ -b /dev/vda ]; do sleep 0.1; done
read boot </dev/vda
echo boot $boot
echo $((boot + 1)) | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
case $boot in
    1) reboot -f ;;
    2) echo b >/proc/sysrq-trigger ;;
    3) exec 3</dev/input/event0; echo ready; dd bs=24 count=1 <&3 2>/dev/null | od -A n -t d2 -j 16 -N 6; poweroff -f ;;
esac
sleep 3600
";

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn a_guest_starts_over_and_ends_at_its_power_button() {
    let files = tempfile::tempdir().unwrap();
    let disk = files.path().join("disk");
    let mut blocks = vec![0; 64 << 10];
    blocks[..2].copy_from_slice(b"1\n");
    std::fs::write(&disk, blocks).unwrap();
    let content = Content { modules: &["virtio_blk", "button", "evdev"], script: BOOTS, ..Content::default() };
    let mut guest = Guest::boot(files.path(), content, json!({"disks": [{"id": "disk", "path": disk}]}));
    guest.tells("boot 1");
    guest.tells("boot 2");
    guest.tells("boot 3");
    guest.tells("ready");
    assert_eq!([guest.event(), guest.event(), guest.event()], ["vm/booted", "vm/reset", "vm/reset"]);
    let counters = guest.get("vm.counters");
    assert!(counters["disk"]["write_ops"].as_u64() >= Some(3), "{counters}");
    guest.vmm.put("vm.power-button", "");
    assert_eq!(guest.event(), "vm/shutdown");
    assert_eq!(guest.vmm.end(), Some(0));
    // EV_KEY, KEY_POWER, pressed.
    assert!(guest.lines().iter().any(|line| line.split_whitespace().eq(["1", "116", "1"])), "{:?}", guest.lines());
    assert!(std::fs::read(&disk).unwrap().starts_with(b"4\n"));
}
