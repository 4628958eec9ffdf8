# Names and addresses of this checkout's cluster, derived from the checkout's path so that
# two checkouts can each have one on the same machine. Sourced.
#
#   10.H.0.0/16       all of it: H from the path, the next free one if routed elsewhere
#   10.H.0.1          this machine's end of the link into the cluster
#   10.H.0.2          control plane
#   10.H.0.(10+i)     node i
#   10.H.16.0/20      Services
#   10.H.64.0/18      pods, 10.H.(64+i).0/24 on node i
# shellcheck shell=bash

cluster_hash=$(printf '%s' "$VSE_ROOT" | sha256sum)
# Name of the link, the cgroup, and whatever else is visible outside the cluster.
cluster_id=vse-${cluster_hash:0:6}

# Sets $net to 10.H: as remembered since `up`, or else the first free.
choose_net() {
    local remembered=$CLUSTER/net first octet routed
    if [[ -s $remembered ]]; then
        net=$(<"$remembered")
        return
    fi
    first=$((16#${cluster_hash:0:4} % 200))
    for ((try = 0; try < 200; try++)); do
        octet=$(((first + try) % 200 + 20))
        routed=$(ip -4 route show root "10.$octet.0.0/16"; ip -4 route show match "10.$octet.0.0/16" | grep -v ^default || true)
        if [[ -z $routed ]]; then
            net=10.$octet
            echo "$net" >"$remembered"
            return
        fi
    done
    die "no free 10.x.0.0/16 network on this machine"
}

node_ip() { echo "$net.0.$((10 + $1))"; }
node_pods() { echo "$net.$((64 + $1)).0/24"; }
