# What nodes that are hosts of their own give to pods. Sourced, over the local cluster's.
# shellcheck shell=bash

# 2 MiB pages on each cell.
lab_hugepages=${LAB_HUGEPAGES:-400}

node_snapshotter() { echo overlayfs; }
node_restricts_oom() { echo false; }

# CPU 0 is the host's own. Memory reserved on the cells must add up to what is kept from pods:
# kubeReserved and the eviction threshold.
kubelet_resources() {
    cat <<YAML
podLogsDir: /var/lib/kubelet/pod-logs
cpuManagerPolicy: static
reservedSystemCPUs: "0"
topologyManagerPolicy: ${LAB_TOPOLOGY_MANAGER:-single-numa-node}
memoryManagerPolicy: Static
kubeReserved: { memory: 400Mi }
evictionHard:
  memory.available: 100Mi
  nodefs.available: 5%
reservedMemory:
  - numaNode: 0
    limits: { memory: 500Mi }
# Everything takes longer where it is emulated.
runtimeRequestTimeout: 10m
YAML
}
