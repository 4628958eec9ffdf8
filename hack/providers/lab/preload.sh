# The images a host has from the start: unpacking them there would take minutes, where
# everything is emulated. Sourced.
# shellcheck shell=bash

# Makes containerd's root directory with this checkout's images, by a containerd of this machine,
# unless it is there: images_preload DIRECTORY
images_preload() {
    [[ ! -d $1 ]] || return 0
    local archives=("$VSE_ROOT"/.build/images/*.tar) work
    [[ -f ${archives[0]} ]] || archives=()
    work=$(mktemp -d "$CLUSTER/preload.XXXXXX")
    mkdir "$work/root"
    printf 'version = 3\nroot = "%s"\nstate = "%s"\n[grpc]\naddress = "%s"\n' \
        "$work/root" "$work/state" "$work/socket" >"$work/config.toml"
    # All of it in namespaces that end with the shell: mounts, and containerd itself.
    CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1 PATH=$(tool_dir containerd):$PATH unshare --mount --pid --fork --kill-child --mount-proc \
        bash -euo pipefail -c '
            work=$1
            shift
            containerd --config "$work/config.toml" >"$work/log" 2>&1 &
            until ctr --address "$work/socket" version >/dev/null 2>&1; do
                kill -0 $! 2>/dev/null || { echo "containerd has ended" >>"$work/log"; exit 1; }
                sleep 0.1
            done
            for archive; do
                ctr --address "$work/socket" --namespace k8s.io images import \
                    --snapshotter overlayfs "$archive" >/dev/null
            done
            kill $!
            wait $! || true
        ' preload "$work" "$CLUSTER/pause.tar" "${archives[@]}" >&2 ||
        die "images could not be unpacked: $(tail -n 3 "$work/log")"
    mv "$work/root" "$1"
    rm -rf "$work"
}
