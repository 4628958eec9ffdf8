# Machines of the local cluster, seen from outside: each is one process in new namespaces of
# every kind (boot.sh, then init.sh) with a directory for its disk. Sourced.
#
# .cluster/machines/NAME/{root,log,tools,volumes,pid}
# shellcheck shell=bash

machines=$CLUSTER/machines

# The environment of everything that runs in a machine.
machine_environment=(
    HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1
    PATH=/opt/tools/kubernetes:/opt/tools/containerd:/opt/tools/etcd:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
)

# Process id of a machine's init, as long as that runs: machine_pid NAME
machine_pid() {
    local pid
    pid=$(cat "$machines/$1/pid" 2>/dev/null) &&
        grep -qs "/$cluster_id/$1/system" "/proc/$pid/cgroup" && echo "$pid"
}

# Makes the disk of a machine: machine_create NAME IP ROLE TOOL...
machine_create() {
    local directory=$machines/$1 tool
    machine_identity "$1" "$2" "$3"
    mkdir -p "$directory/tools" "$directory/root/root"
    for tool in "${@:4}"; do ln -sfn "$(tool_dir "$tool")" "$directory/tools/$tool"; done
    cp -a /etc/{passwd,group,nsswitch.conf,ld.so.cache,alternatives} "$directory/root/etc/"
}

# Writes what makes a machine this one, whatever it runs in: machine_identity NAME IP ROLE
machine_identity() {
    local directory=$machines/$1 name=$1 ip=$2 role=$3 etc=$machines/$1/root/etc
    mkdir -p "$etc/machine" "$etc/kubernetes" "$CLUSTER/logs/$name" "$CLUSTER/volumes"
    ln -sfn "$CLUSTER/logs/$name" "$directory/log"
    ln -sfn "$CLUSTER/volumes" "$directory/volumes"
    local here=$VSE_ROOT/hack/providers/local
    cp "$here/init.sh" "$etc/machine/init"
    cp "$here/$role.sh" "$etc/machine/role"
    cp "$CLUSTER/routes" "$etc/machine/routes"
    printf 'name=%s net=%s ip=%s bridge=%s\n' "$name" "$net" "$ip" "$([[ $role == control ]] && echo yes)" \
        >"$etc/machine/settings"
    echo "$name" >"$etc/hostname"
    printf '127.0.0.1 localhost\n%s %s\n' "$ip" "$name" >"$etc/hosts"
    : >"$etc/resolv.conf"
    printf '%s-%s' "$cluster_id" "$name" | md5sum | cut -c1-32 >"$etc/machine-id"
}

# Powers a machine on: machine_start NAME
machine_start() {
    local directory=$machines/$1
    rm -f "$directory/pid"
    cgroup_create "$cluster_id/$1/system"
    cgroup_favour "$cluster_id"
    # In the background for good: its own session, no descriptor of ours.
    (
        cgroup_join "$cluster_id/$1/system"
        exec {lock}>&-
        exec env -i "${machine_environment[@]}" setsid unshare --fork --pid --mount --uts --ipc --net --kill-child \
            bash "$VSE_ROOT/hack/providers/local/boot.sh" "$directory" \
            </dev/null >>"$directory/log/boot.log" 2>&1
    ) &
    wait_for 30 "machine $1 to start" machine_pid "$1" ||
        die "machine $1 did not start: $(tail -3 "$directory/log/boot.log")"
}

# Power cut: machine_stop NAME
machine_stop() {
    cgroup_remove "$cluster_id/$1"
    rm -f "$machines/$1/pid"
}

# Runs a command in all namespaces of a machine: machine_exec NAME COMMAND...
machine_exec() {
    local pid
    pid=$(machine_pid "$1") || die "machine $1 does not run"
    shift
    env -i "${machine_environment[@]}" \
        nsenter --target "$pid" --mount --uts --ipc --net --pid "$@"
}

# Ends a service and waits until init has started it again, SIGNAL being TERM unless given; RUN
# runs a command on a machine: restart_service RUN NAME SERVICE [SIGNAL]
restart_service() {
    "$1" "$2" bash -c '
        old=$(<"/run/services/$1")
        kill "-$2" "$old"
        until [[ $(<"/run/services/$1") != "$old" ]]; do sleep 0.1; done
    ' restart "$3" "${4:-TERM}"
}
