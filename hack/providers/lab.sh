# Provider `lab`: the control plane of the local cluster, and nodes that are virtual bare-metal
# hosts: servers emulated by QEMU with two sockets, a NUMA cell each, real KVM, IOMMU, huge pages
# and cards for guests, running a kernel of their own. Sourced by hack/cluster.
#
# Each host's QEMU runs in the control plane's network namespace and in its own control group, so
# that it ends as everything of a local cluster does. There, its card to the cluster hangs on the
# same bridge as the control plane; its cards for guests hang on one bridge for each place, which
# wires them to the cards in the same place of the other hosts.
#
# Not here, besides what `local` lacks: times that mean anything.
# shellcheck shell=bash

# shellcheck source=hack/providers/local.sh
. "$VSE_ROOT/hack/providers/local.sh"
for part in image host preload resources; do
    # shellcheck source=/dev/null
    . "$VSE_ROOT/hack/providers/lab/$part.sh"
done

patience=600
host_prefix=(setsid)
# Bridges of the cards for guests, see host_cards.
wires=(wire0 wire1 wire2 wire3)

node_create() {
    local directory=$machines/node-$1
    machine_identity "node-$1" "$(node_ip "$1")" node
    echo "hugepages=$lab_hugepages" >>"$directory/root/etc/machine/settings"
    # A cell's memory differs by some pages from boot to boot, its CPUs with LAB_CPUS, and kubelet
    # refuses to start on a state of others; no pod of before is left anyhow.
    sed -i '1i rm -f /var/lib/kubelet/{cpu,memory}_manager_state' "$directory/root/etc/machine/role"
    node_files "$1"
    images_preload "$CLUSTER/containerd"
    host_disk "$directory" "$CLUSTER/containerd"
    mkdir -p "$CLUSTER/archives"
    ln -sfn "$CLUSTER/logs/node-$1/console.log" "$directory/console"
}

# Powers a host on, plugged into the bridges.
node_start() {
    local directory=$machines/$1 number=${1#node-} mac wire arguments=()
    lab_assets
    # Addresses of the cluster's cards differ in the last two places: host, card.
    mac=52:54:$(printf '%02x:%02x:%02x' $((16#${cluster_hash:0:2})) $((16#${cluster_hash:2:2})) "$number")
    mapfile -t arguments < <(
        host_cards "$mac"
        host_share "$CLUSTER/volumes" /tmp/hostpath_pv 0x10
        host_share "$CLUSTER/archives" /mnt/archives 0x11
        host_share "$CLUSTER/logs/$1" /var/log 0x12
    )
    tap "$1" br0
    for wire in "${wires[@]}"; do
        tap "$1-$wire" "$wire"
        arguments+=(-netdev "tap,id=$wire,ifname=$1-$wire,script=no,downscript=no")
    done
    arguments+=(
        -netdev "tap,id=host,ifname=$1,script=no,downscript=no"
        -drive "file=$(lab_tools),format=raw,if=none,id=tools,readonly=on"
        -device "virtio-blk-pci,drive=tools,serial=tools,addr=0x7"
    )
    rm -f "$directory/pid"
    : >"$CLUSTER/logs/$1/console.log"
    cgroup_create "$cluster_id/$1/system"
    # In the background for good: its own session, no descriptor of ours.
    (
        cgroup_join "$cluster_id/$1/system"
        exec {lock}>&-
        HOST_MAC=$mac:01
        host_prefix=(setsid nsenter "--net=/proc/$(machine_pid control)/ns/net")
        host_exec "$directory" "${arguments[@]}" </dev/null >>"$directory/log/qemu.log" 2>&1
    ) &
    echo $! >"$directory/pid"
    wait_for 30 "QEMU of $1 to start" machine_pid "$1"
}

# A tap in the control plane's network namespace, on a bridge there: tap NAME BRIDGE
tap() {
    local inside=(nsenter --target "$(machine_pid control)" --net)
    "${inside[@]}" ip link show "$2" >/dev/null 2>&1 ||
        "${inside[@]}" ip link add "$2" up type bridge mcast_snooping 0
    "${inside[@]}" ip link show "$1" >/dev/null 2>&1 ||
        "${inside[@]}" ip tuntap add dev "$1" mode tap
    "${inside[@]}" ip link set "$1" master "$2" up
}

node_reach() {
    wait_for "$patience" "host $1 to boot" host_booted_or_ended "$1" || true
    machine_pid "$1" >/dev/null ||
        die "host $1 did not boot: $(tail -n 20 "$machines/$1/log"/{qemu,console}.log)"
    wait_for 60 "an SSH connection to $1" host_connect "$1"
}

host_booted_or_ended() {
    grep -qs "^host $1 is up" "$machines/$1/console" || ! machine_pid "$1" >/dev/null
}

# The one connection that all commands share; it ends with the host.
host_connect() {
    (
        cgroup_join "$cluster_id/$1/system"
        exec {lock}>&-
        host_ssh "$machines/$1" "$(host_address "$1")" -f -N -M </dev/null >/dev/null 2>&1
    )
}

host_address() {
    choose_net
    echo "$(node_ip "${1#node-}"):22"
}

# No shell of the host's takes the command apart.
node_run() {
    local node=$1 command
    machine_pid "$node" >/dev/null || die "node $node does not run"
    shift
    command=$(printf ' %q' "$@")
    host_ssh "$machines/$node" "$(host_address "$node")" "exec$command"
}

# Through a shared directory: encryption is slow where everything is emulated.
node_import() { # NODE ARCHIVE
    local name status=0
    name=$1-$(basename "$2")
    ln -f "$2" "$CLUSTER/archives/$name" 2>/dev/null || cp "$2" "$CLUSTER/archives/$name"
    node_run "$1" ctr -n k8s.io images import "/mnt/archives/$name" </dev/null >/dev/null || status=$?
    rm -f "$CLUSTER/archives/$name"
    return "$status"
}

set_link() { # NODE on|off CARD
    known_node "$1"
    [[ $2 == on || $2 == off ]] || die "a link is on or off, not $2"
    host_qmp "$machines/$1" "$(jq -cn --arg card "$3" --argjson up "$([[ $2 == on ]] && echo true || echo false)" \
        '{execute: "set_link", arguments: {name: $card, up: $up}}')" >/dev/null || die "$1 has no card $3"
}

machine_check() { # NODE CPU BANK STATUS MCGSTATUS ADDR MISC
    local said
    known_node "$1"
    said=$(host_monitor "$machines/$1" "mce ${*:2}")
    [[ -z $said ]] || die "$said"
}
