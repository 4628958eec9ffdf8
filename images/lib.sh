# Shared by the Debian image recipes; sourced by their `build` scripts.
#
# Owns where packages come from and how a Debian tree becomes a reproducible tar. A recipe says only which packages
# it holds and how they are set up.
# shellcheck shell=bash

set -euo pipefail

DEBIAN_SUITE=trixie
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1754697600}"
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

# Prints apt source lines for $DEBIAN_SUITE on the mirror this machine itself uses, so that a recipe works behind
# whatever mirror the machine was given. Prints nothing where the machine has no Debian mirror (Ubuntu, say):
# mmdebstrap then falls back to its own default. VSE_DEBIAN_MIRROR overrides both.
debian_sources() {
    if [[ -n "${VSE_DEBIAN_MIRROR:-}" ]]; then
        echo "deb $VSE_DEBIAN_MIRROR $DEBIAN_SUITE main"
        return
    fi
    local targets
    targets=$(debian_targets)
    if [[ -z "$targets" && $EUID -eq 0 ]]; then
        # apt knows a repository's origin only once it has its lists.
        apt-get --quiet --quiet update >&2
        targets=$(debian_targets)
    fi
    while read -r release uri; do
        case "$release" in
        '' | *-backports*) ;;
        *-security) echo "deb $uri $DEBIAN_SUITE-security main" ;;
        *-updates) echo "deb $uri $DEBIAN_SUITE-updates main" ;;
        *) echo "deb $uri $DEBIAN_SUITE main" ;;
        esac
    done <<<"$targets" | sort -u
}

# Prints "RELEASE URI" of each Debian repository this machine's apt knows.
debian_targets() {
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' \
        'Identifier: Packages' 'Origin: Debian' 'Component: main'
}

# Documentation and translations are dead weight in every image; licences stay.
SLIM=(
    --dpkgopt='path-exclude=/usr/share/man/*'
    --dpkgopt='path-exclude=/usr/share/info/*'
    --dpkgopt='path-exclude=/usr/share/locale/*'
    --dpkgopt='path-exclude=/usr/share/doc/*'
    --dpkgopt='path-include=/usr/share/doc/*/copyright'
)

# Removes what is made anew wherever the image runs, what mmdebstrap copied from this machine, and what differs
# between two builds of the same packages. Runs as the last customize hook. The tree's /tmp and apt lists are left
# to mmdebstrap: until it is done its apt configuration lies there, and without that its last `apt-get update`
# empties the lists of the machine it runs on.
CLEAN=(
    --customize-hook='rm -rf "$1"/run/* "$1"/var/tmp/* "$1"/var/cache/* "$1"/var/log/* "$1"/var/lib/dpkg/*-old'
    --customize-hook='rm -f "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/etc/apt/sources.list'
)

# bootstrap OUT.tar MMDEBSTRAP_OPTION... : one Debian tree as a tar.
bootstrap() {
    local out=$1
    shift
    # Whatever mounts the tree brings its own /dev, and unpacking device nodes takes privilege.
    debian_sources | mmdebstrap --quiet --format=tar --skip=output/dev "$@" "$DEBIAN_SUITE" "$out" -
    local empty
    empty=$(mktemp -d)
    mkdir -m 755 "$empty/dev"
    reproducible_tar --append --file="$out" --directory="$empty" ./dev
    rm -r "$empty"
}

# unpack DIR PACKAGE... : the files of packages and all they depend on, not configured.
unpack() {
    local dir=$1 packages
    shift
    packages=$(IFS=, && echo "$*")
    bootstrap "$dir.tar" --variant=extract --include="base-files,$packages" "${SLIM[@]}"
    mkdir "$dir"
    tar --extract --file="$dir.tar" --directory="$dir" --no-same-owner
    rm "$dir.tar"
}

# pack DIR OUT.tar : a tree as a tar, everything root's.
pack() {
    reproducible_tar --create --file="$2" --directory="$1" --sort=name .
}

reproducible_tar() {
    tar --format=gnu --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" "$@"
}
