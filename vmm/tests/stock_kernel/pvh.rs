//! The kernel proper, an ELF file, entered by PVH; and by that again when the guest starts over.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::guest::Guest;
use crate::host::{digest, fill};
use crate::initramfs::Content;

/// What `/boot/vmlinuz` unpacks when it is started. Its setup header says where that lies, counted from the end of the
/// setup sectors, and how long it is; its last four bytes are its unpacked size (Documentation/arch/x86/boot.rst,
/// scripts/Makefile.lib).
fn unpack(folder: &Path) -> PathBuf {
    let image = std::fs::read("/boot/vmlinuz").unwrap();
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let start = (usize::from(image[0x1F1]) + 1) * 512 + word(0x248);
    let end = start + word(0x24C);
    // Packed with a window as large as it can be.
    let mut packed = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(&image[start..end - 4], 1 << 27)
        .expect("a kernel packed by zstd");
    let mut elf = Vec::new();
    packed.read_to_end(&mut elf).unwrap();
    assert!(elf.starts_with(b"\x7FELF") && elf.len() == word(end - 4));
    let path = folder.join("vmlinux");
    std::fs::write(&path, elf).unwrap();
    path
}

/// The disk's first sector has the number of this boot. The vCPUs are known by ACPI only.
const LOOK: &str = "
until [ -b /dev/vda ]; do sleep 0.1; done
read boot </dev/vda
echo loader $boot $(cat /proc/sys/kernel/bootloader_type)
echo words $boot $(cat /proc/cmdline)
echo cpus $boot $(cat /sys/devices/system/cpu/online)
echo ram $boot $(awk '/MemTotal/ { print $2 }' /proc/meminfo)
echo clocks $boot $(cat /sys/devices/system/clocksource/clocksource0/available_clocksource)
sum=$(sha256sum </dev/vdb)
echo disk $boot ${sum%% *}
echo $((boot + 1)) | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
case $boot in 1) reboot -f; sleep 3600 ;; esac
";

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn the_unpacked_kernel_is_entered_by_pvh() {
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name);
    let mut blocks = vec![0; 64 << 10];
    blocks[..2].copy_from_slice(b"1\n");
    std::fs::write(path("boots"), blocks).unwrap();
    fill(&path("disk"), 1 << 20);
    let content = Content { modules: &["virtio_blk"], script: LOOK, ..Content::default() };
    let mut config = crate::guest::config(
        files.path(),
        content,
        json!({
            "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
            "disks": [{"path": path("boots")}, {"path": path("disk"), "readonly": true}],
        }),
    );
    config["payload"]["kernel"] = json!(unpack(files.path()));
    let mut guest = Guest::boot_of(&config);
    for boot in 1..=2 {
        let tells = |word: &str| guest.tells(&format!("{word} {boot}"));
        // What Linux writes down of a PVH loader that is not Xen (arch/x86/platform/pvh/enlighten.c).
        assert_eq!(tells("loader"), 0xB0.to_string());
        assert_eq!(tells("words"), config["payload"]["cmdline"].as_str().unwrap());
        assert_eq!(tells("cpus"), "0-1");
        // All but what the kernel keeps for itself.
        let kib: u64 = tells("ram").parse().unwrap();
        assert!((150 << 10..=256 << 10).contains(&kib), "{kib} KiB");
        assert!(tells("clocks").split(' ').any(|clock| clock == "kvm-clock"));
        assert_eq!(tells("disk"), digest(&path("disk")));
    }
    assert_eq!([guest.event(), guest.event(), guest.event()], ["vm/booted", "vm/reset", "vm/shutdown"]);
    assert_eq!(guest.vmm.end(), Some(0));
}
