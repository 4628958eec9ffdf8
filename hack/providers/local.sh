# Provider `local`: real Kubernetes on this machine alone, without Docker. The control plane
# and each node are machines of their own: a process tree in new PID, mount, network, UTS and
# IPC namespaces, with its own /etc, /run and /var. Control plane and nodes hang on one bridge
# inside the control plane's network namespace; one veth leads there from outside. So whatever
# runs, mounts or listens ends with its machine's first process. Sourced by hack/cluster.
#
# Claims are served by the controller manager's host path provisioner from one directory that all
# machines share. Not here: NetworkPolicy enforcement, cluster DNS, a way out to other networks.
# shellcheck shell=bash

local=$VSE_ROOT/hack/providers/local
# Seconds that a node may take over a step of its start.
patience=120
for part in addresses cgroup pki image node-config machine; do
    # shellcheck source=/dev/null
    . "$local/$part.sh"
done

kubectl() { "$(tool_dir kubernetes)/kubectl" --kubeconfig "$CLUSTER/kubeconfig" "$@"; }

up() {
    local i start=$SECONDS
    ((EUID == 0)) || die "the local cluster needs root"
    "$VSE_ROOT/hack/tools" cluster
    choose_net
    if [[ -f $CLUSTER/complete ]] && machine_pid control >/dev/null; then
        [[ $(wc -l <"$CLUSTER/nodes") == "$NODES" ]] ||
            die "a cluster of $(wc -l <"$CLUSTER/nodes") nodes is up; make cluster-down first"
        repair
        return
    fi
    if [[ -f $CLUSTER/nodes ]]; then
        say "what is left of a broken cluster is removed first"
        down
        choose_net
        echo "$PROVIDER" >"$CLUSTER/provider"
    fi
    rm -rf "$CLUSTER/logs"
    seq -f 'node-%g' "$NODES" >"$CLUSTER/nodes"
    for ((i = 1; i <= NODES; i++)); do echo "$(node_pods "$i") $(node_ip "$i")"; done >"$CLUSTER/routes"
    step "keys and certificates" pki_all
    step "control plane" control_up
    step "$NODES nodes" nodes_up
    touch "$CLUSTER/complete"
    say "cluster $cluster_id is ready after $((SECONDS - start)) s; export KUBECONFIG=$CLUSTER/kubeconfig"
}

# Starts what has died of a running cluster.
repair() {
    local node dead=()
    for node in $(nodes); do machine_pid "$node" >/dev/null || dead+=("$node"); done
    for node in "${dead[@]}"; do step "$node again" start_node "$node"; done
    ((${#dead[@]})) || say "cluster $cluster_id runs already"
}

pki_all() {
    local i
    pki_authority
    pki_certificate admin /O=system:masters/CN=admin
    pki_certificate apiserver /CN=kube-apiserver \
        "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:$net.0.2,IP:$net.16.1"
    pki_certificate kubelet-client /CN=kube-apiserver-kubelet-client
    pki_certificate controller-manager /CN=system:kube-controller-manager
    pki_certificate scheduler /CN=system:kube-scheduler
    pki_certificate kube-proxy /CN=system:kube-proxy
    for ((i = 1; i <= NODES; i++)); do
        pki_certificate "node-$i" "/O=system:nodes/CN=system:node:node-$i" "DNS:node-$i,IP:$(node_ip "$i")"
    done
    pki_kubeconfig admin >"$CLUSTER/kubeconfig"
    chmod 600 "$CLUSTER/kubeconfig"
}

control_up() {
    local k=$machines/control/root/etc/kubernetes name
    machine_create control "$net.0.2" control kubernetes etcd
    cp "$pki"/{ca,apiserver,kubelet-client}.{crt,key} "$pki"/service-account.{key,pub} "$k/"
    cp "$local/../audit-policy.yaml" "$k/"
    for name in controller-manager scheduler; do pki_kubeconfig "$name" >"$k/$name.kubeconfig"; done
    machine_start control
    ip link add "$cluster_id" type veth peer name eth0 netns "$(machine_pid control)"
    ip addr add "$net.0.1/24" dev "$cluster_id"
    ip link set "$cluster_id" up
    while read -r subnet via; do ip route add "$subnet" via "$via"; done <"$CLUSTER/routes"
    wait_for 180 "the API server to be ready" kubectl get --raw /readyz
    kubectl create clusterrolebinding kube-apiserver-kubelet-client \
        --clusterrole system:kubelet-api-admin --user kube-apiserver-kubelet-client >/dev/null
    kubectl apply -f "$local/storage-class.yaml" >/dev/null
}

nodes_up() {
    local i node
    pause_archive "$CLUSTER/pause.tar"
    for ((i = 1; i <= NODES; i++)); do node_create "$i"; done
    for node in $(nodes); do node_start "$node"; done
    for node in $(nodes); do
        node_reach "$node"
        wait_for "$patience" "containerd on $node" node_run "$node" ctr version
    done
    load "$CLUSTER/pause.tar"
    for node in $(nodes); do node_wait "$node"; done
}

node_create() {
    machine_create "node-$1" "$(node_ip "$1")" node kubernetes containerd
    node_files "$1"
}

# What kubelet and the programs beside it read: node_files NUMBER
node_files() {
    local name=node-$1 etc=$machines/node-$1/root/etc
    mkdir -p "$etc/kubernetes" "$etc/containerd" "$etc/cni/net.d"
    cp "$pki/ca.crt" "$etc/kubernetes/"
    cp "$pki/$name.crt" "$etc/kubernetes/kubelet.crt"
    cp "$pki/$name.key" "$etc/kubernetes/kubelet.key"
    pki_kubeconfig "$name" >"$etc/kubernetes/kubelet.kubeconfig"
    pki_kubeconfig kube-proxy >"$etc/kubernetes/kube-proxy.kubeconfig"
    {
        kubelet_config "$(node_ip "$1")"
        kubelet_resources "$name"
    } >"$etc/kubernetes/kubelet.yaml"
    kube_proxy_config >"$etc/kubernetes/kube-proxy.yaml"
    containerd_config >"$etc/containerd/config.toml"
    cni_config "$(node_pods "$1")" >"$etc/cni/net.d/10-pods.conflist"
}

# Powers a node on and plugs it into the bridge.
node_start() {
    machine_start "$1"
    local control node
    control=$(machine_pid control)
    node=$(machine_pid "$1")
    nsenter --target "$control" --net ip link add "$1" type veth peer name eth0 netns "$node"
    nsenter --target "$control" --net ip link set "$1" master br0 up
}

# Waits until commands can be run on a node that was started.
node_reach() { :; }

# Runs a command as root on a node: node_run NODE COMMAND...
node_run() { machine_exec "$@"; }

kubelet_wait() {
    wait_for "$patience" "kubelet of $1" node_run "$1" bash -c ': </dev/tcp/127.0.0.1/10248'
}

node_wait() {
    wait_for "$patience" "node $1 to register" kubectl get node "$1"
    kubectl wait --for=condition=Ready "node/$1" --timeout="${patience}s" >/dev/null
}

down() {
    local found=
    cgroup_remove "$cluster_id"
    ! ip link show "$cluster_id" >/dev/null 2>&1 || ip link del "$cluster_id"
    found=$(leftovers)
    [[ -z $found ]] || die "still there:"$'\n'"$found"
    rm -rf "${CLUSTER:?}"/{machines,volumes,archives,containerd,pki,kubeconfig,nodes,net,routes,complete,pause.tar,provider,preload.*}
}

leftovers() {
    local pid
    for pid in $(cgroup_processes "$cluster_id"); do
        echo "process $pid $({ tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null)"
    done
    cgroup_directories "$cluster_id" | sed 's/^/cgroup /'
    awk -v under="$CLUSTER/" 'index($5, under) == 1 { print "mount " $5 }' /proc/self/mountinfo
    ip -o link show 2>/dev/null | awk -F': ' -v id="$cluster_id" 'index($2, id) == 1 { print "link " $2 }'
}

nodes() { cat "$CLUSTER/nodes" 2>/dev/null || die "no cluster is up"; }

audit_log() { echo "$CLUSTER/logs/control/audit.log"; }

load() {
    local archive node pids pid
    for archive in "$@"; do
        [[ -f $archive ]] || die "there is no archive $archive; make images"
        pids=()
        for node in $(nodes); do
            node_load "$node" "$archive" &
            pids+=($!)
        done
        for pid in "${pids[@]}"; do wait "$pid" || die "$archive could not be imported"; done
    done
}

# Imports an image unless the node has just that one: node_load NODE ARCHIVE
node_load() {
    local name digest
    read -r name digest < <(tar -xOf "$2" --occurrence=1 index.json |
        jq -r '.manifests[0] | "\(.annotations["io.containerd.image.name"]) \(.digest)"')
    [[ $(node_run "$1" ctr -n k8s.io images ls "name==$name") == *" $digest "* ]] || node_import "$@"
}

node_import() { # NODE ARCHIVE
    node_run "$1" ctr -n k8s.io images import - <"$2" >/dev/null
}

node_exec() {
    known_node "$1"
    node_run "$@"
}

restart_kubelet() {
    known_node "$1"
    restart_service node_run "$1" kubelet
    kubelet_wait "$1"
}

# Without ado: asked politely, it drains open requests for up to a minute first.
restart_apiserver() {
    restart_service machine_exec control kube-apiserver KILL
    wait_for 180 "the API server to be ready" kubectl get --raw /readyz
}

kill_node() {
    known_node "$1"
    machine_stop "$1"
}

start_node() {
    known_node "$1"
    machine_pid "$1" >/dev/null && die "node $1 runs already"
    cgroup_remove "$cluster_id/$1"
    node_start "$1"
    node_reach "$1"
    # The API server may not have noticed yet that it was gone.
    kubelet_wait "$1"
    node_wait "$1"
}

known_node() {
    grep -qx "$1" "$CLUSTER/nodes" 2>/dev/null || die "there is no node $1; nodes: $(nodes | xargs)"
}
