# Role of the control plane's machine: etcd, API server, controller manager, scheduler, each
# at its standard port; only the API server listens on the cluster's network.
# shellcheck shell=bash

k=/etc/kubernetes

service etcd etcd --name control --data-dir /var/lib/etcd \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync --logger zap --log-level warn

service kube-apiserver kube-apiserver \
    --advertise-address "$ip" --bind-address "$ip" --secure-port 6443 \
    --etcd-servers http://127.0.0.1:2379 \
    --client-ca-file $k/ca.crt --tls-cert-file $k/apiserver.crt --tls-private-key-file $k/apiserver.key \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-key-file $k/service-account.pub \
    --service-account-signing-key-file $k/service-account.key \
    --service-cluster-ip-range "$net.16.0/20" \
    --kubelet-certificate-authority $k/ca.crt --kubelet-preferred-address-types InternalIP \
    --kubelet-client-certificate $k/kubelet-client.crt --kubelet-client-key $k/kubelet-client.key \
    --audit-policy-file $k/audit-policy.yaml --audit-log-path /var/log/audit.log \
    --audit-log-maxsize 10000

# Both end when there is no API server to reach.
until_ok kubectl --kubeconfig $k/controller-manager.kubeconfig get --raw /readyz

service kube-controller-manager kube-controller-manager \
    --kubeconfig $k/controller-manager.kubeconfig --bind-address 127.0.0.1 \
    --authentication-kubeconfig $k/controller-manager.kubeconfig \
    --authorization-kubeconfig $k/controller-manager.kubeconfig \
    --service-account-private-key-file $k/service-account.key --root-ca-file $k/ca.crt \
    --cluster-signing-cert-file $k/ca.crt --cluster-signing-key-file $k/ca.key \
    --use-service-account-credentials --enable-hostpath-provisioner --leader-elect=false

service kube-scheduler kube-scheduler \
    --kubeconfig $k/scheduler.kubeconfig --bind-address 127.0.0.1 \
    --authentication-kubeconfig $k/scheduler.kubeconfig \
    --authorization-kubeconfig $k/scheduler.kubeconfig --leader-elect=false
