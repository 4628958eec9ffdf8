# Provider `kind`: Kubernetes in Docker, as kind-config.yaml says: a control plane and two
# workers, which are the nodes of the interface. Sourced by hack/cluster.
# shellcheck shell=bash

kind_name=vse-$(printf '%s' "$VSE_ROOT" | sha256sum | cut -c1-6)

kind() { "$(tool_dir kind)/kind" "$@"; }
kubectl() { "$(tool_dir kubernetes)/kubectl" --kubeconfig "$CLUSTER/kubeconfig" "$@"; }

up() {
    docker info >/dev/null 2>&1 || die "PROVIDER=kind needs Docker, and it does not answer"
    [[ $NODES == 2 ]] || die "kind-config.yaml has 2 workers, not $NODES; change it there"
    "$VSE_ROOT/hack/tools" kind
    if kind get clusters 2>/dev/null | grep -qx "$kind_name"; then
        docker start "$kind_name-control-plane" "$kind_name-worker" "$kind_name-worker2" >/dev/null
        wait_for 60 "the API server to be ready" kubectl get --raw /readyz
        say "cluster $kind_name is there already"
        return
    fi
    mkdir -p "$CLUSTER/logs/control"
    kind_config >"$CLUSTER/kind.yaml"
    # Relative paths in it start at the working directory.
    (cd "$VSE_ROOT" && kind create cluster --name "$kind_name" --config "$CLUSTER/kind.yaml" \
        --kubeconfig "$CLUSTER/kubeconfig" --wait 180s)
    kubectl wait --for=condition=Ready node --all --timeout=120s >/dev/null
}

# kind-config.yaml without the mounts of devices that this machine lacks.
kind_config() {
    awk '
        /- hostPath: \/dev\// && system("test -e " $3) { getline; next }
        { print }
    ' "$VSE_ROOT/kind-config.yaml"
}

down() {
    if [[ -n $(leftovers) ]]; then
        "$VSE_ROOT/hack/tools" kind
        kind delete cluster --name "$kind_name" --kubeconfig "$CLUSTER/kubeconfig"
    fi
    rm -f "$CLUSTER"/{kubeconfig,kind.yaml,provider}
}

leftovers() {
    docker ps -a --filter "label=io.x-k8s.kind.cluster=$kind_name" --format 'container {{.Names}}' 2>/dev/null
}

nodes() {
    docker ps -a --filter "label=io.x-k8s.kind.cluster=$kind_name" \
        --filter label=io.x-k8s.kind.role=worker --format '{{.Names}}' | sort
}

audit_log() { echo "$CLUSTER/logs/control/audit.log"; }

load() {
    local archive
    for archive in "$@"; do
        kind load image-archive "$archive" --name "$kind_name" \
            --nodes "$(nodes | paste -sd,)"
    done
}

node_exec() {
    local node=$1
    shift
    docker exec -i "$node" "$@"
}

restart_kubelet() {
    node_exec "$1" systemctl restart kubelet
    wait_for 60 "kubelet of $1" node_exec "$1" curl -sf http://127.0.0.1:10248/healthz
}

# kubelet starts the static pod again.
restart_apiserver() {
    node_exec "$kind_name-control-plane" pkill -KILL kube-apiserver
    wait_for 120 "the API server to be ready" kubectl get --raw /readyz
}

kill_node() { docker kill "$1" >/dev/null; }

start_node() {
    docker start "$1" >/dev/null
    wait_for 60 "kubelet of $1" node_exec "$1" curl -sf http://127.0.0.1:10248/healthz
    kubectl wait --for=condition=Ready "node/$1" --timeout=120s >/dev/null
}
