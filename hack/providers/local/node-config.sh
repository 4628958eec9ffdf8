# Configuration of a node's kubelet, containerd, CNI and kube-proxy, printed. Sourced.
# shellcheck shell=bash

kubelet_config() { # IP
    cat <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $1
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
authentication:
  anonymous: { enabled: false }
  webhook: { enabled: true }
  x509: { clientCAFile: /etc/kubernetes/ca.crt }
authorization: { mode: Webhook }
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failSwapOn: false
maxPods: 110
# Images are never collected, for there is no registry to pull them from again.
imageGCHighThresholdPercent: 100
serializeImagePulls: false
# Scenarios kill components again and again: they wait for the next life, not for its delay.
crashLoopBackOff: { maxContainerRestartPeriod: 1s }
# No cluster DNS: pods get the node's resolver, which names none.
resolvConf: /etc/resolv.conf
volumePluginDir: /var/lib/kubelet/volume-plugins
YAML
}

# What a node may give to pods, and from which group: kubelet_resources NAME
kubelet_resources() {
    cat <<YAML
cgroupRoot: /$cluster_id/$1
failCgroupV1: false
# The static policy keeps as many whole CPUs out of exclusive use as are reserved, here
# one, while the scheduler may still give away all but a tenth of it to shared pods.
cpuManagerPolicy: $(if (($(nproc) > 1)); then echo static; else echo none; fi)
kubeReserved: { cpu: 100m }
# Several nodes share one disk and one memory: leave them to the outer machine.
evictionHard:
  memory.available: 50Mi
  nodefs.available: 1%
  nodefs.inodesFree: 1%
  imagefs.available: 1%
  imagefs.inodesFree: 1%
YAML
}

# Overlayfs cannot lie on overlayfs, which the checkout may be on.
node_snapshotter() {
    if [[ $(stat -fc %T "$CLUSTER") == overlayfs ]]; then echo native; else echo overlayfs; fi
}

# Without CAP_SYS_RESOURCE (bit 24) no process may lower its oom_score_adj.
node_restricts_oom() {
    if (((16#$(awk '/^CapEff/ { print $2 }' /proc/self/status) >> 24) & 1)); then echo false; else echo true; fi
}

containerd_config() {
    cat <<TOML
version = 3
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "$(node_snapshotter)"
  # Each collection walks through all files of all images.
  stats_collect_period = 600
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$pause_image"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = $(node_restricts_oom)
  # Engines that open /dev/kvm by its name may.
  device_ownership_from_security_context = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "runc"
  SystemdCgroup = false
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
TOML
}

# Each pod has a routed link of its own to the node, so that Services whose pods are on the
# same node need no bridge filtering. Nothing enforces NetworkPolicy.
cni_config() { # POD_SUBNET
    cat <<JSON
{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "ptp",
      "ipam": {
        "type": "host-local",
        "ranges": [[{ "subnet": "$1" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    }
  ]
}
JSON
}

kube_proxy_config() {
    cat <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: $net.64.0/18
clientConnection: { kubeconfig: /etc/kubernetes/kube-proxy.kubeconfig }
# The limits of connection tracking are the outer machine's.
conntrack: { maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s }
YAML
}
