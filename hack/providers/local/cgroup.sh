# The cluster's control groups: /ID/MACHINE in every hierarchy, version 1 or 2, with
# /ID/MACHINE/system for the machine's own daemons; pods come beside it by kubelet. They are
# also how `down` finds every process of the cluster, whatever crashed before. Sourced.
# shellcheck shell=bash

# Mount points of all hierarchies that can be written to.
cgroup_hierarchies() { awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts; }

# Makes a group, its parents included, in every hierarchy: cgroup_create PATH
cgroup_create() {
    local hierarchy group part file
    while read -r hierarchy; do
        group=$hierarchy
        for part in ${1//\// }; do
            cgroup_delegate "$group"
            group+=/$part
            mkdir -p "$group"
            # Version 1 starts a group with no CPU and no memory node at all.
            for file in cpuset.cpus cpuset.mems; do
                if [[ -f $group/cgroup.clone_children && -f $group/$file && -z $(<"$group/$file") ]]; then
                    cat "$group/../$file" >"$group/$file"
                fi
            done
        done
    done < <(cgroup_hierarchies)
}

# Gives a group the CPU time of eight processes where CPUs are contended; as it is, all of it together
# has that of one, and starves beside a compiler: cgroup_favour PATH
cgroup_favour() {
    local hierarchy
    while read -r hierarchy; do
        [[ ! -f $hierarchy/$1/cpu.shares ]] || echo 8192 >"$hierarchy/$1/cpu.shares"
        [[ ! -f $hierarchy/$1/cpu.weight ]] || echo 800 >"$hierarchy/$1/cpu.weight"
    done < <(cgroup_hierarchies)
}

# Version 2: hands all controllers of a group on to its children.
cgroup_delegate() {
    local controller
    [[ -f $1/cgroup.controllers ]] || return 0
    for controller in $(<"$1/cgroup.controllers"); do
        echo "+$controller" 2>/dev/null >"$1/cgroup.subtree_control" ||
            say "warning: controller $controller cannot be delegated in $1"
    done
}

# Moves the calling shell into a group of every hierarchy: cgroup_join PATH
cgroup_join() {
    local hierarchy
    while read -r hierarchy; do
        echo $BASHPID >"$hierarchy/$1/cgroup.procs"
    done < <(cgroup_hierarchies)
}

# The directories of a group and all below it, deepest first: cgroup_directories PATH
cgroup_directories() {
    local hierarchy
    while read -r hierarchy; do
        [[ ! -d $hierarchy/$1 ]] || find "$hierarchy/$1" -depth -type d 2>/dev/null
    done < <(cgroup_hierarchies)
}

# The processes in a group and all below it: cgroup_processes PATH
cgroup_processes() {
    local directory
    cgroup_directories "$1" | while read -r directory; do
        cat "$directory/cgroup.procs" 2>/dev/null || true
    done | sort -nu
}

# Kills every process of a group and removes it: cgroup_remove PATH
cgroup_remove() {
    wait_for 30 "the processes of cgroup $1 to end" cgroup_try_kill "$1"
    wait_for 10 "cgroup $1 to empty" cgroup_try_remove "$1"
}

cgroup_try_kill() {
    local processes
    processes=$(cgroup_processes "$1")
    [[ -z $processes ]] && return 0
    # shellcheck disable=SC2086 # one argument a process
    kill -KILL $processes
    return 1
}

cgroup_try_remove() {
    cgroup_directories "$1" | xargs -r rmdir 2>/dev/null
    [[ -z $(cgroup_directories "$1") ]]
}
