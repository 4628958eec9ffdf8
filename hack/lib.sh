# What every script under hack/ shares. Sourced, never run.
# shellcheck shell=bash

VSE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VSE_CACHE=${VSE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vse}

# shellcheck source=hack/versions.sh
. "$VSE_ROOT/hack/versions.sh"

say() { printf '%s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The directory the programs of one tool lie in: tool_dir NAME
tool_dir() {
    local version=${1//-/_}_version
    printf '%s/tools/%s-%s' "$VSE_CACHE" "$1" "${!version}"
}

# Milliseconds since the epoch, without starting a process.
now_ms() { printf '%s' "$((${EPOCHREALTIME/./} / 1000))"; }

# Runs a command as a named step and says how long it took: step TITLE COMMAND...
step() {
    local title=$1 start ms status
    shift
    start=$(now_ms)
    printf '==> %s\n' "$title" >&2
    "$@"
    status=$?
    ms=$(($(now_ms) - start))
    printf '    %s: %d.%d s\n' "$title" $((ms / 1000)) $((ms % 1000 / 100)) >&2
    return "$status"
}

# Waits until a command succeeds: wait_for SECONDS WHAT COMMAND...
wait_for() {
    local seconds=$1 what=$2 end
    shift 2
    end=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || {
            say "error: waited $seconds s for $what: $*"
            return 1
        }
        sleep 0.2
    done
}
