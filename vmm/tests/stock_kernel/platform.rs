//! What a guest sees of its machine: names, vCPUs, cells, random numbers.

use serde_json::json;

use crate::guest::Guest;
use crate::initramfs::Content;

const LOOK: &str = r#"
for name in product_uuid product_serial sys_vendor; do echo $name $(cat /sys/class/dmi/id/$name); done
cd /sys/devices/system/cpu
for cpu in 0 1 2 3; do
    cd cpu$cpu/topology
    echo cpu$cpu $(cat physical_package_id core_id thread_siblings_list package_cpus_list)
    cd ../..
done
cd /sys/devices/system/node
for node in 0 1; do
    echo cell$node $(cat node$node/cpulist node$node/distance) $(awk '/MemTotal/ { print $4 }' node$node/meminfo)
done
echo rng $(cat /sys/class/misc/hw_random/rng_current) $(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c)
"#;

#[test]
#[ignore = "needs a stock kernel under real KVM: hack/lab-runner"]
fn a_guest_sees_its_machine_as_configured() {
    let files = tempfile::tempdir().unwrap();
    let content = Content { modules: &["virtio_rng"], script: LOOK, ..Content::default() };
    let zone = |id: &str| json!({"id": id, "size": 256 << 20});
    let more = json!({
        "platform": {
            "system_uuid": "01234567-89ab-cdef-0123-456789abcdef",
            "system_serial_number": "vse=node-1/guest",
            "system_manufacturer": "Example",
        },
        "cpus": {
            "boot_vcpus": 4, "max_vcpus": 4,
            "topology": {"threads_per_core": 2, "cores_per_die": 1, "dies_per_package": 1, "packages": 2},
        },
        "memory": {"size": 0, "zones": [zone("near"), zone("far")]},
        "numa": [
            {"guest_numa_id": 0, "cpus": [0, 1], "memory_zones": ["near"], "distances": [{"destination": 1, "distance": 21}]},
            {"guest_numa_id": 1, "cpus": [2, 3], "memory_zones": ["far"], "distances": [{"destination": 0, "distance": 21}]},
        ],
    });
    let mut guest = Guest::boot(files.path(), content, more);
    assert_eq!(guest.tells("rng"), "virtio_rng.0 32");
    assert_eq!(guest.tells("product_uuid"), "01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(guest.tells("product_serial"), "vse=node-1/guest");
    assert_eq!(guest.tells("sys_vendor"), "Example");
    for (cpu, seen) in ["0 0 0-1 0-1", "0 0 0-1 0-1", "1 0 2-3 2-3", "1 0 2-3 2-3"].iter().enumerate() {
        assert_eq!(guest.tells(&format!("cpu{cpu}")), *seen);
    }
    for (cell, seen) in ["0-1 10 21", "2-3 21 10"].iter().enumerate() {
        let told = guest.tells(&format!("cell{cell}"));
        let (places, kib) = told.rsplit_once(' ').unwrap();
        assert_eq!(places, *seen);
        // All but what the kernel keeps for itself.
        let kib: u64 = kib.parse().unwrap();
        assert!((150 << 10..=256 << 10).contains(&kib), "{kib} KiB in cell {cell}");
    }
    assert_eq!(guest.vmm.end(), Some(0));
}
