# Makes single-program OCI archives without a builder: the sandbox image. Sourced.
# shellcheck shell=bash

pause_image=vse.local/pause:1

# Stores a file as a blob and prints its descriptor's start: image_blob LAYOUT FILE MEDIA_TYPE
image_blob() {
    local digest
    digest=$(sha256sum <"$2")
    digest=${digest%% *}
    mv "$2" "$1/blobs/sha256/$digest"
    printf '"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%d' \
        "$3" "$digest" "$(stat -c %s "$1/blobs/sha256/$digest")"
}

# Packs one static program: image_archive NAME PROGRAM OUT
image_archive() {
    local work layer config manifest diff
    work=$(mktemp -d)
    mkdir -p "$work/oci/blobs/sha256"
    tar -C "$(dirname "$2")" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=755 \
        -cf "$work/layer" "$(basename "$2")"
    diff=$(sha256sum <"$work/layer")
    layer=$(image_blob "$work/oci" "$work/layer" layer.v1.tar)
    printf '{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/%s"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$(basename "$2")" "${diff%% *}" >"$work/config"
    config=$(image_blob "$work/oci" "$work/config" config.v1+json)
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{%s},"layers":[{%s}]}' \
        "$config" "$layer" >"$work/manifest"
    manifest=$(image_blob "$work/oci" "$work/manifest" manifest.v1+json)
    printf '{"schemaVersion":2,"manifests":[{%s,"annotations":{"io.containerd.image.name":"%s"}}]}' \
        "$manifest" "$1" >"$work/oci/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$work/oci/oci-layout"
    tar -C "$work/oci" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$3" \
        oci-layout index.json blobs
    rm -rf "$work"
}

pause_archive() { # OUT
    local work
    work=$(mktemp -d)
    gcc -Os -static -o "$work/pause" "$VSE_ROOT/hack/providers/local/pause.c"
    image_archive "$pause_image" "$work/pause" "$1"
    rm -rf "$work"
}
