//! Every option: the one source of what is understood and of what `--help` says.

use super::words::{Key, Kind};

/// An option.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name, without dashes.
    pub name: &'static str,
    /// How its value is written, for `--help`; empty if it has none.
    pub value: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Keys of its value, if it is made of keys.
    pub keys: &'static [Key],
    /// The field of the configuration that it fills, for options of the guest.
    pub field: Field,
}

/// Where an option's value goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Not into the configuration.
    Vmm,
    /// It is this object, in the part of that name.
    Object(&'static str),
    /// It is one of the list of that name.
    List(&'static str),
    /// A text of the payload.
    Payload(&'static str),
    /// A descriptor of the payload.
    PayloadFd(&'static str),
    /// The descriptor of that name.
    Fd(&'static str),
    /// What is behind a console of that name.
    Console(&'static str),
    /// The switch of that name.
    Switch(&'static str),
}

const fn key(name: &'static str, field: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, field, kind, help }
}

const fn same(name: &'static str, kind: Kind, help: &'static str) -> Key {
    key(name, name, kind, help)
}

const ID: Key = same("id", Kind::Text, "its name");
const SLOT: Key = same("pci_device_id", Kind::Number, "its device number on the PCI bus");
const QUEUES: Key = same("num_queues", Kind::Number, "queues");
const ENTRIES: Key = same("queue_size", Kind::Number, "entries of each");
const SHARED: Key = same("shared", Kind::Switch, "shared with other processes");
const HUGE: Key = same("hugepages", Kind::Switch, "from huge pages");
const HUGE_SIZE: Key = same("hugepage_size", Kind::Size, "2M or 1G");
const PREFAULT: Key = same("prefault", Kind::Switch, "allocated before the guest starts");
const RESERVE: Key = same("reserve", Kind::Switch, "swap is reserved for it");

const fn entry(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    keys: &'static [Key],
    field: Field,
) -> Entry {
    Entry { name, value, help, keys, field }
}

/// Options of the VMM itself.
pub const VMM: &[Entry] = &[
    entry("api-socket", "PATH|path=PATH|fd=N", "serve the REST API on this unix socket", &[], Field::Vmm),
    entry(
        "event-monitor",
        "path=FILE|fd=N|socket=PATH|socket_fd=N",
        "tell events: to a file, or to all who connect to a socket",
        &[],
        Field::Vmm,
    ),
    entry("seccomp", "true|false|log", "filter system calls (default: true)", &[], Field::Vmm),
    entry("kvm-fd", "N", "open /dev/kvm", &[], Field::Vmm),
    entry("config", "FILE", "create the guest described by this JSON file (as for vm.create)", &[], Field::Vmm),
    entry("config-json", "JSON", "the same, on the command line", &[], Field::Vmm),
    entry("config-fd", "N", "the same, from an open descriptor", &[], Field::Vmm),
    entry("boot", "", "boot what --config, --config-json or --config-fd describes, at once", &[], Field::Vmm),
    entry(
        "restore",
        "KEYS",
        "go on from a snapshot; --config… gives the host's part of its configuration",
        &[
            same("source_url", Kind::Text, "file:///DIRECTORY"),
            same("source_fd", Kind::Number, "the same, open"),
            same("prefault", Kind::Switch, "RAM is allocated before the guest goes on"),
            same("resume", Kind::Switch, "go on at once"),
            same("keep_clock", Kind::Switch, "the guest's time goes on from where it stopped"),
        ],
        Field::Vmm,
    ),
    entry("version", "", "say the version", &[], Field::Vmm),
    entry("help", "", "say this", &[], Field::Vmm),
];

/// Options of the guest.
pub const GUEST: &[Entry] = &[
    entry("kernel", "FILE", "bzImage, or ELF with a PVH note; the guest boots at once", &[], Field::Payload("kernel")),
    entry("kernel-fd", "N", "the same, open for reading", &[], Field::PayloadFd("kernel_fd")),
    entry("initramfs", "FILE", "initial RAM file system", &[], Field::Payload("initramfs")),
    entry("initramfs-fd", "N", "the same, open for reading", &[], Field::PayloadFd("initramfs_fd")),
    entry("cmdline", "TEXT", "the kernel's command line", &[], Field::Payload("cmdline")),
    entry(
        "cpus",
        "KEYS",
        "vCPUs",
        &[
            key("boot", "boot_vcpus", Kind::Number, "how many"),
            key("max", "max_vcpus", Kind::Number, "the same"),
            same("topology", Kind::Topology, "threads:cores:dies:sockets"),
            same("affinity", Kind::Affinity, "host CPUs of each: [0@[2],1@[3]]"),
            same("dedicated", Kind::Switch, "each has a host CPU for itself"),
            same("nested", Kind::Switch, "the guest may run guests"),
            same("max_phys_bits", Kind::Number, "bits of physical address"),
            same("baseline", Kind::Text, "named set of CPU features"),
        ],
        Field::Object("cpus"),
    ),
    entry(
        "memory",
        "KEYS",
        "RAM",
        &[
            same("size", Kind::Size, "bytes; 0 with zones"),
            SHARED,
            HUGE,
            HUGE_SIZE,
            PREFAULT,
            RESERVE,
            same("thp", Kind::Switch, "the host may use transparent huge pages"),
        ],
        Field::Object("memory"),
    ),
    entry(
        "memory-zone",
        "KEYS…",
        "part of RAM",
        &[
            ID,
            same("size", Kind::Size, "bytes"),
            same("host_numa_node", Kind::Number, "host cell"),
            SHARED,
            HUGE,
            HUGE_SIZE,
            PREFAULT,
            RESERVE,
        ],
        Field::List("memory.zones"),
    ),
    entry(
        "numa",
        "KEYS…",
        "cell of the guest",
        &[
            same("guest_numa_id", Kind::Number, "its number"),
            same("cpus", Kind::Numbers, "its vCPUs"),
            same("memory_zones", Kind::Texts, "its zones"),
            same("distances", Kind::Distances, "how far others are: [1@20]"),
        ],
        Field::List("numa"),
    ),
    entry(
        "disk",
        "KEYS…",
        "block device",
        &[
            same("path", Kind::Text, "raw image or block device"),
            same("fd", Kind::Number, "the same, open"),
            same("readonly", Kind::Switch, "the guest can't write"),
            same("direct", Kind::Switch, "around the host's page cache"),
            same("serial", Kind::Text, "serial number"),
            same("sparse", Kind::Switch, "the guest may discard blocks"),
            same("image_type", Kind::Text, "raw, which it always is"),
            same("disable_io_uring", Kind::Switch, "not by io_uring"),
            same("disable_aio", Kind::Switch, "not by Linux AIO"),
            QUEUES,
            ENTRIES,
            ID,
            SLOT,
        ],
        Field::List("disks"),
    ),
    entry(
        "net",
        "KEYS…",
        "network device",
        &[
            same("tap", Kind::Text, "name of a tap interface"),
            key("fd", "fds", Kind::Numbers, "open taps, one for each pair of queues"),
            key("vhost_fd", "vhost_fds", Kind::Numbers, "open /dev/vhost-net, likewise"),
            same("mac", Kind::Text, "the guest's address"),
            same("mtu", Kind::Number, "largest packet"),
            same("offload_tso", Kind::Switch, "segmentation of TCP"),
            same("offload_ufo", Kind::Switch, "segmentation of UDP"),
            same("offload_csum", Kind::Switch, "checksums"),
            QUEUES,
            ENTRIES,
            ID,
            SLOT,
        ],
        Field::List("net"),
    ),
    entry(
        "rng",
        "KEYS",
        "random numbers",
        &[same("src", Kind::Text, "/dev/urandom; nothing for no such device")],
        Field::Object("rng"),
    ),
    entry(
        "fs",
        "KEYS…",
        "file system served by a vhost-user process",
        &[
            same("tag", Kind::Text, "what the guest mounts it by"),
            same("socket", Kind::Text, "where the process listens"),
            same("socket_fd", Kind::Number, "the same, connected"),
            QUEUES,
            ENTRIES,
            ID,
            SLOT,
        ],
        Field::List("fs"),
    ),
    entry(
        "pmem",
        "KEYS…",
        "file that appears as memory",
        &[
            same("file", Kind::Text, "the file"),
            same("fd", Kind::Number, "the same, open"),
            same("size", Kind::Size, "bytes"),
            same("discard_writes", Kind::Switch, "what the guest writes is its own"),
            ID,
            SLOT,
        ],
        Field::List("pmem"),
    ),
    entry(
        "device",
        "KEYS…",
        "host PCI function bound to vfio-pci",
        &[
            same("path", Kind::Text, "its directory in sysfs"),
            same("vfio_group_fd", Kind::Number, "open /dev/vfio/GROUP"),
            same("host_address", Kind::Text, "its address, with vfio_group_fd"),
            ID,
            SLOT,
        ],
        Field::List("devices"),
    ),
    entry(
        "vfio-container-fd",
        "N",
        "open /dev/vfio/vfio, for devices with vfio_group_fd",
        &[],
        Field::Fd("vfio_container_fd"),
    ),
    entry(
        "vsock",
        "KEYS",
        "sockets between host and guest",
        &[
            same("cid", Kind::Number, "the guest's context ID, from 3 on"),
            same("socket", Kind::Text, "unix socket that host programs connect to"),
            same("socket_fd", Kind::Number, "the same, listening; with socket, where the guest connects to"),
            same("vhost_fd", Kind::Number, "open /dev/vhost-vsock instead"),
            ID,
            SLOT,
        ],
        Field::Object("vsock"),
    ),
    entry("serial", "off|null|tty|file=FILE|fd=N", "serial port COM1 (default: null)", &[], Field::Console("serial")),
    entry("console", "off|null|tty|file=FILE|fd=N", "virtio console (default: off)", &[], Field::Console("console")),
    entry(
        "platform",
        "KEYS",
        "what firmware tables say",
        &[
            key("uuid", "system_uuid", Kind::Text, "UUID"),
            key("serial_number", "system_serial_number", Kind::Text, "serial number"),
            same("oem_strings", Kind::Texts, "strings for programs in the guest"),
        ],
        Field::Object("platform"),
    ),
    entry(
        "agent",
        "KEYS",
        "the guest agent's port",
        &[same("socket", Kind::Text, "unix socket"), same("socket_fd", Kind::Number, "the same, listening")],
        Field::Object("agent"),
    ),
    entry("pvpanic", "", "a guest whose kernel panics says so", &[], Field::Switch("pvpanic")),
];

/// What `--help` shows at its end.
pub const EXAMPLES: &str = "\
Examples:
  Boot a kernel, and see it on the terminal:
    vse-vmm --kernel vmlinuz --initramfs initrd.img --cmdline 'console=ttyS0' \\
            --cpus boot=2 --memory size=512M --serial tty
  Wait for orders, as Cloud Hypervisor does, and give one:
    vse-vmm --api-socket /run/vm.sock
    curl --unix-socket /run/vm.sock http://localhost/api/v1/vmm.ping
  Two cells with huge pages and pinned vCPUs:
    vse-vmm --kernel vmlinuz --cpus 'boot=2,affinity=[0@[2],1@[10]],dedicated=on' --memory size=0 \\
            --memory-zone id=a,size=1G,hugepages=on,host_numa_node=0 id=b,size=1G,hugepages=on,host_numa_node=1 \\
            --numa 'guest_numa_id=0,cpus=[0],memory_zones=[a]' 'guest_numa_id=1,cpus=[1],memory_zones=[b]'
  Go on from a snapshot:
    vse-vmm --restore source_url=file:///var/snap,resume=on --config host.json

Exit codes: 0 the guest powered off or vmm.shutdown, 1 failure, 2 usage, 3 the guest's kernel panicked.
";
