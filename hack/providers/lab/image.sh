# What virtual bare-metal hosts are made of: the QEMU that emulates them, their kernel and root
# file system. Built from the recipes under images/ and kept in the cache, keyed by those.
# Sourced.
# shellcheck shell=bash

# The directory of what a recipe made, in the cache: lab_cached RECIPE
lab_cached() {
    local key
    key=$(cd "$VSE_ROOT/images" && find lib.sh "$1" -type f -printf '%p %m\n' -exec cat {} + | sha256sum)
    echo "$VSE_CACHE/lab/$1-${key:0:16}"
}

# Makes the directory of a recipe unless it is there, by a function that fills it from the
# recipe's tar: lab_provide RECIPE FUNCTION
lab_provide() (
    local directory partial
    directory=$(lab_cached "$1")
    mkdir -p "$VSE_CACHE/lab"
    # Whoever comes second waits for the first.
    exec 9>"$VSE_CACHE/lab/$1.lock"
    flock 9
    [[ ! -d $directory ]] || return 0
    partial=$(mktemp -d "$directory.XXXXXX")
    "$VSE_ROOT/images/$1/build" "$partial/tree.tar" >&2 || {
        rm -rf "$partial"
        die "images/$1/build failed"
    }
    "$2" "$partial"
    rm "$partial/tree.tar"
    chmod 755 "$partial"
    mv -T "$partial" "$directory"
    # Those of older recipes.
    find "$VSE_CACHE/lab" -maxdepth 1 -name "$1-*" ! -path "$directory" -mtime +2 -exec rm -rf {} +
)

lab_unpack_qemu() { tar -xf "$1/tree.tar" -C "$1" --no-same-owner; }

# kernel, initrd and root.img, a read-only disk that all hosts share.
lab_pack_host() {
    mkdir "$1/root"
    tar -xf "$1/tree.tar" -C "$1/root" --numeric-owner
    cp -L "$1/root/boot/vmlinuz" "$1/kernel"
    cp "$1/root/boot/lab-initrd.img" "$1/initrd"
    truncate -s 4G "$1/root.img"
    mke2fs -q -F -t ext4 -O ^has_journal -d "$1/root" "$1/root.img"
    rm -rf "$1/root"
}

# Builds what is missing, and sets $lab_qemu and $lab_host to where it lies.
lab_assets() {
    lab_qemu=$(lab_cached engine-qemu)
    lab_host=$(lab_cached lab-host)
    [[ -d $lab_qemu ]] || step "QEMU that emulates hosts (once)" lab_provide engine-qemu lab_unpack_qemu
    [[ -d $lab_host ]] || step "system of the hosts (once; minutes)" lab_provide lab-host lab_pack_host
}

# Prints the disk of the programs of a node, /opt/tools there, made unless it is there.
lab_tools() {
    local disk=$VSE_CACHE/lab/tools-$kubernetes_version-$containerd_version.erofs work
    if [[ ! -f $disk ]]; then
        work=$(mktemp -d "$VSE_CACHE/lab/tools.XXXXXX")
        mkdir -p "$work/tree/kubernetes" "$work/tree/containerd"
        chmod 755 "$work/tree"
        ln "$(tool_dir kubernetes)"/{kubelet,kube-proxy,kubectl} "$work/tree/kubernetes/"
        ln "$(tool_dir containerd)"/* "$work/tree/containerd/"
        mkfs.erofs -d0 --all-root "$work/disk" "$work/tree" >/dev/null
        mv "$work/disk" "$disk"
        rm -rf "$work"
    fi
    echo "$disk"
}
