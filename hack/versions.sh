# Versions of everything hack/tools builds. Sourced. Kubernetes and etcd are
# pinned together with all they import by hack/tools.d/*/go.{mod,sum}.
# shellcheck shell=bash

kubernetes_version=1.36.3
etcd_version=3.7.3
containerd_version=2.4.2
helm_version=4.3.1
kind_version=0.33.0
cargo_deny_version=0.20.2
