# One virtual bare-metal host, seen from outside: a directory with its disk, and a QEMU that
# emulates a server with two sockets, a NUMA cell each, IOMMU, SVM, and cards for guests.
# Sourced, after image.sh.
#
#   DIRECTORY/root/       what is put on its disk at host_disk, over the shared root
#   DIRECTORY/disk.img    its own disk, ext4; all it ever writes
#   DIRECTORY/nvme.img    what its NVMe controller holds
#   DIRECTORY/console     its serial console so far
#   DIRECTORY/{qmp,ssh}   sockets: QEMU's monitor, open connection
#   DIRECTORY/key         the SSH key that root on it takes
# shellcheck shell=bash

lab_cpus=${LAB_CPUS:-6}
lab_memory=${LAB_MEMORY:-5120}

# Makes the disk of a host from DIRECTORY/root, with a way in for us, and with containerd's root
# directory where one is given: host_disk DIRECTORY [CONTAINERD]
host_disk() {
    local upper=$1/root
    mkdir -p "$upper/etc/ssh" "$upper/root/.ssh" "$1/content"
    ssh-keygen -q -t ed25519 -N '' -C lab -f "$1/key"
    ssh-keygen -q -t ed25519 -N '' -C lab -f "$upper/etc/ssh/ssh_host_ed25519_key"
    cp "$1/key.pub" "$upper/root/.ssh/authorized_keys"
    chmod 700 "$upper/root" "$upper/root/.ssh"
    mv "$upper" "$1/content/upper"
    [[ -z ${2:-} ]] || cp -al "$2" "$1/content/containerd"
    truncate -s 24G "$1/disk.img"
    mke2fs -q -F -t ext4 -E lazy_itable_init=1,root_owner=0:0 -d "$1/content" "$1/disk.img"
    rm -rf "$1/content"
    truncate -s 256M "$1/nvme.img"
}

# All that QEMU emulates, but not what says that copying byte by byte is the fastest way: there it takes four times as long.
lab_cpu=max,erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off

# Becomes the QEMU of a host, by way of the words of $host_prefix. Its card to the control plane
# is plugged into the netdev `host`, which the arguments must give, and has the address $HOST_MAC.
# $HOST_APPEND goes to the end of the kernel's command line: host_exec DIRECTORY QEMU_ARGUMENT...
#
# With eim=on its kernel uses x2APIC mode. Without, it ended interrupts by MMIO, and now and then an end was lost (it seems,
# when another CPU changed what is mapped at that moment): in service for ever, and that CPU's timer dead.
#
# All its CPUs read one counter, but QEMU can't tell it that (invtsc), so tsc=reliable does: else its clock, and so its
# guests', were the HPET, as on no bare-metal host, and each look at it went to QEMU. It must not test its timer: on a busy
# machine it saw too few of its ticks in 60 ms, and panicked.
host_exec() {
    local tree=$lab_qemu half=$((lab_memory / 2)) last=$((lab_cpus - 1)) middle=$((lab_cpus / 2))
    cd "$1" || exit
    shift
    rm -f qmp ssh
    exec "${host_prefix[@]}" "$tree/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" \
        "$tree/usr/bin/qemu-system-x86_64" -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" \
        -M q35,kernel-irqchip=split,sata=off,smbus=off -accel tcg,thread=multi -cpu "$lab_cpu" \
        -smp "$lab_cpus,sockets=2,cores=$middle,threads=1" -m "$lab_memory" \
        -object "memory-backend-ram,id=cell0,size=${half}M" -object "memory-backend-ram,id=cell1,size=${half}M" \
        -numa "node,nodeid=0,cpus=0-$((middle - 1)),memdev=cell0" \
        -numa "node,nodeid=1,cpus=$middle-$last,memdev=cell1" -numa dist,src=0,dst=1,val=21 \
        -device intel-iommu,intremap=on,eim=on,caching-mode=on \
        -nodefaults -no-reboot -display none -serial file:console \
        -qmp unix:qmp,server=on,wait=off \
        -kernel "$lab_host/kernel" -initrd "$lab_host/initrd" \
        -append "console=ttyS0 intel_iommu=on iommu=pt mitigations=off apparmor=0 tsc=reliable no_timer_check quiet panic=-1 ${HOST_APPEND:-}" \
        -drive "file=$lab_host/root.img,format=raw,if=none,id=root,readonly=on" \
        -device virtio-blk-pci,drive=root,serial=root,addr=0x2 \
        -drive file=disk.img,format=raw,if=none,id=disk,cache=unsafe,discard=unmap \
        -device virtio-blk-pci,drive=disk,serial=disk,addr=0x3 \
        -device virtio-net-pci,netdev=host,id=host0,romfile=,addr=0x4,mac="${HOST_MAC:-52:54:00:00:00:01}" \
        -device virtio-rng-pci,addr=0x5 \
        "$@"
}

# The arguments of the cards for guests, each on the netdev of its name, one a line. The e1000
# shares its IOMMU group with a device of the host's own: host_cards MAC_PREFIX
host_cards() {
    cat <<ARGUMENTS
-device
e1000e,netdev=wire0,id=e1000e0,romfile=,addr=0x8,mac=$1:10
-device
e1000e,netdev=wire1,id=e1000e1,romfile=,addr=0x9,mac=$1:11
-device
igb,netdev=wire2,id=igb0,romfile=,addr=0xa,mac=$1:12
-drive
file=nvme.img,format=raw,if=none,id=nvme,cache=unsafe
-device
nvme-subsys,id=subsystem
-device
nvme,id=nvme0,serial=lab,subsys=subsystem,addr=0xb,sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2,max_ioqpairs=6,msix_qsize=9
-device
nvme-ns,drive=nvme,shared=on
-device
pcie-pci-bridge,id=pci,addr=0xc
-device
e1000,netdev=wire3,id=e1000,romfile=,bus=pci,addr=0x1,mac=$1:13
-device
virtio-balloon-pci,bus=pci,addr=0x2
ARGUMENTS
}

# The arguments that show a host a directory of this machine's, one a line; PCI_SLOT from 0x10:
# host_share DIRECTORY PATH_THERE PCI_SLOT
host_share() {
    cat <<ARGUMENTS
-fsdev
local,id=share$3,path=$1,security_model=none,multidevs=remap
-device
virtio-9p-pci,fsdev=share$3,mount_tag=$2,addr=$3
ARGUMENTS
}

# Runs a command on a host, as root there: host_ssh DIRECTORY ADDRESS[:PORT] COMMAND...
host_ssh() {
    local directory=$1 at=$2
    shift 2
    (
        cd "$directory" &&
            exec ssh -F none -i key -p "${at#*:}" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
                -o LogLevel=ERROR -o ConnectTimeout=10 -o ServerAliveInterval=20 -o ServerAliveCountMax=6 \
                -o ControlPath=ssh "root@${at%:*}" "$@"
    )
}

# Gives QEMU one QMP command and prints its answer, JSON: host_qmp DIRECTORY COMMAND
host_qmp() (
    local answer answers=0
    cd "$1" || exit
    coproc SOCKET { exec socat - UNIX-CONNECT:qmp; }
    printf '%s\n' '{"execute":"qmp_capabilities"}' "$2" >&"${SOCKET[1]}"
    while IFS= read -r -t 10 answer <&"${SOCKET[0]}"; do
        [[ $answer == *'"return"'* || $answer == *'"error"'* ]] || continue
        ((++answers == 2)) || continue
        printf '%s\n' "$answer"
        break
    done
    kill "$SOCKET_PID"
    ((answers == 2)) && [[ $answer != *'"error"'* ]]
)

# Gives QEMU's human monitor a command and prints what it says: host_monitor DIRECTORY COMMAND
host_monitor() {
    local command
    command=$(jq -cn --arg line "$2" '{execute: "human-monitor-command", arguments: {"command-line": $line}}')
    host_qmp "$1" "$command" | jq -r .return | tr -d '\r'
}
