# Role of a node: containerd, kubelet, kube-proxy.
# shellcheck shell=bash

k=/etc/kubernetes

service containerd containerd --config /etc/containerd/config.toml
service kubelet kubelet --config $k/kubelet.yaml --kubeconfig $k/kubelet.kubeconfig \
    --hostname-override "$name" --node-ip "$ip" --root-dir /var/lib/kubelet
service kube-proxy kube-proxy --config $k/kube-proxy.yaml --hostname-override "$name"
