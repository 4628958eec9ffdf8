#!/usr/bin/env bash
# First process of a machine, in new namespaces of every kind: turns a directory into the
# machine's root file system and hands over to its init.
#
#   boot.sh MACHINE_DIRECTORY
#
# Programs (/usr) and devices are this machine's; /etc, /opt, /run, /tmp and /var are the
# machine's own, so every node has the standard paths to itself.
set -euo pipefail

directory=$1
root=$directory/root

# /proc is still the outer machine's here, and so is the process id it shows.
read -r pid _ </proc/self/stat
echo "$pid" >"$directory/pid"

mount --bind "$root" "$root"

mkdir -p "$root"/{dev,etc,old,opt/cni/bin,proc,root,run,sys,tmp,usr,var/lib,var/log,var/tmp}
chmod 1777 "$root"/tmp "$root"/var/tmp
ln -sfn /run "$root/var/run"
for link in bin sbin lib lib32 lib64; do
    [[ ! -L /$link ]] || ln -sfn "usr/$link" "$root/$link"
done
mount --rbind /usr "$root/usr"
mount -o remount,bind,ro "$root/usr"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount --bind "$directory/log" "$root/var/log"
# Where the controller manager's host path provisioner makes volumes: the same everywhere, as
# if on a network file system.
mkdir -p "$root/tmp/hostpath_pv"
mount --bind "$directory/volumes" "$root/tmp/hostpath_pv"
mount --bind /usr/lib/cni "$root/opt/cni/bin"
for tool in "$directory"/tools/*; do
    mkdir -p "$root/opt/tools/${tool##*/}"
    mount --bind -o ro "$(readlink -f "$tool")" "$root/opt/tools/${tool##*/}"
done
# A sysfs of its own shows its own network links. No securityfs: AppArmor profiles that
# containerd loaded would stay in the outer machine's kernel.
mount -t sysfs sysfs "$root/sys"
for tree in fs/cgroup kernel/debug kernel/tracing; do
    ! mountpoint -q "/sys/$tree" || mount --rbind "/sys/$tree" "$root/sys/$tree"
done

cd "$root"
pivot_root . old
mount -t proc proc /proc
umount -l /old
rmdir /old
# What a node mounts reaches its pods (mountPropagation), and nothing outside.
mount --make-rshared /

# kubelet sets these on start, for the whole kernel, unless it finds the values it wants:
# let it find them, and the outer machine keep its own.
while read -r file value; do
    echo "$value" >"/run/${file##*/}"
    mount --bind "/run/${file##*/}" "/proc/sys/$file"
done <<'SYSCTLS'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTLS

exec bash /etc/machine/init
