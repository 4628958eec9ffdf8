# Process 1 of a machine, after boot.sh: brings up the network, keeps the services of its
# role (/etc/machine/role) running, and reaps. Its end is the end of the whole machine.
# Settings come from /etc/machine/settings: name, net, ip, bridge, routes.
# shellcheck shell=bash
set -uo pipefail

# shellcheck source=/dev/null
. /etc/machine/settings
hostname "$name"
mkdir -p /run/services

# Keeps a program running, as its own log's writer: service NAME COMMAND...
service() {
    local name=$1
    shift
    while :; do
        "$@" >>"/var/log/$name.log" 2>&1 &
        echo $! >"/run/services/$name"
        wait $!
        echo "--- $name ended with $? and is started again" >>"/var/log/$name.log"
        sleep 0.5
    done &
}

until_ok() {
    until "$@" >/dev/null 2>&1; do sleep 0.1; done
}

network() {
    ip link set lo up
    echo 1 >/proc/sys/net/ipv4/ip_forward
    until_ok ip link show eth0
    if [[ -n $bridge ]]; then
        ip link add name br0 type bridge
        ip link set eth0 master br0
        ip link set eth0 up
        set -- br0
    else
        set -- eth0
    fi
    ip addr add "$ip/24" dev "$1"
    ip link set "$1" up
    # Pods of the other nodes; and no default route: the cluster stays on this machine.
    while read -r subnet via; do
        [[ $via == "$ip" ]] || ip route add "$subnet" via "$via"
    done </etc/machine/routes
}

network 2>>/var/log/init.log
# shellcheck source=/dev/null
. /etc/machine/role
while :; do wait; sleep 1; done
