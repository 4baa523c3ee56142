#!/usr/bin/env bash
# Makes a Jetson ready and builds a TensorRT bundle on it: checks versions, installs into .venv, builds the engines.
#
#   apps/jetson/setup.sh [--dry-run] BUNDLE [options of kdc-edge build]
#
# The environment, .venv of the repository, sees the system's TensorRT. --dry-run checks, prints every command and runs none.
# Exit codes: 2 misused, 3 something is missing.
set -euo pipefail

TEGRA_RELEASE=${TEGRA_RELEASE:-/etc/nv_tegra_release}  # L4T's own: R36 is JetPack 6, R38 JetPack 7
MEMINFO=${MEMINFO:-/proc/meminfo}
OLDEST_TENSORRT=10.3
BUILD_FACTOR=4  # memory of a build for each byte of weights: 3.7 was measured with tensorrt-rtx, 482M parameters in fp16

dry_run=
if [ "${1:-}" = --dry-run ]; then
    dry_run=1
    shift
fi
if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
    sed -n '4s/^# *//p' "$0" >&2
    exit 2
fi
bundle=$1
shift
repository=$(cd "$(dirname "$0")/../.." && pwd)

say() { printf '%-10s %s\n' "$1" "$2"; }

missing() {  # WHAT SEEN REMEDY
    say "$1" "$2; $3" >&2
    [ -n "$dry_run" ] || exit 3
}

run() {
    echo "+ $*"
    [ -n "$dry_run" ] || "$@"
}

check_board() {
    local release
    release=$(sed -n 's/^# R\([0-9]*\).*REVISION: \([0-9.]*\).*/\1.\2/p' "$TEGRA_RELEASE" 2>/dev/null || true)
    case $release in
        36.*) say board "L4T $release, JetPack 6" ;;
        3[89].*) say board "L4T $release, JetPack 7" ;;
        '') missing board "$TEGRA_RELEASE is not there" "this is no Jetson; elsewhere: pip install '.[tensorrt]' and kdc-edge build" ;;
        *) missing board "L4T $release" "JetPack 6 or 7 is wanted, it brings TensorRT $OLDEST_TENSORRT or later" ;;
    esac
}

check_python() {
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        say python "$(python3 -c 'import platform; print(platform.python_version())')"
    else
        missing python "python3 is missing or older than 3.10" "JetPack 6 and 7 bring it"
    fi
}

check_tensorrt() {
    local found
    found=$(python3 -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null || true)
    if [ -z "$found" ]; then
        missing tensorrt "python3 cannot import it" "sudo apt-get install nvidia-jetpack"
    elif [ "$(printf '%s\n' "$OLDEST_TENSORRT" "$found" | sort -V | head -n 1)" != "$OLDEST_TENSORRT" ]; then
        missing tensorrt "$found" "$OLDEST_TENSORRT or later is wanted: JetPack 6.1"
    else
        say tensorrt "$found"
    fi
}

check_bundle() {
    if [ -f "$bundle/manifest.json" ] && grep -q '"runtime": *"tensorrt"' "$bundle/manifest.json"; then
        say bundle "$bundle"
    else
        missing bundle "$bundle is no TensorRT bundle" "python -m convert.tensorrt makes one, on any machine"
    fi
}

check_memory() {
    local have need
    have=$(awk '/^(MemAvailable|SwapFree):/ { sum += $2 } END { print int(sum / 1024) }' "$MEMINFO")
    need=$(($(du -sm "$bundle/unet" 2>/dev/null | cut -f 1 || echo 0) * BUILD_FACTOR + 1024))
    if [ "$have" -lt "$need" ]; then
        missing memory "$have MiB with swap, a build takes about $need" \
            "sudo fallocate -l 8G /swap && sudo chmod 600 /swap && sudo mkswap /swap && sudo swapon /swap"
    else
        say memory "$have MiB with swap, a build takes about $need"
    fi
}

check_power() {
    if command -v nvpmodel >/dev/null; then
        say power "$(nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: *//p'); full: sudo nvpmodel -m 0 && sudo jetson_clocks"
    else
        say power "nvpmodel is not there: the power mode is unknown"
    fi
}

check_board
check_python
check_tensorrt
check_bundle
check_memory
check_power
[ -d "$repository/.venv" ] || run python3 -m venv --system-site-packages "$repository/.venv"
run "$repository/.venv/bin/pip" install -q "$repository[tensorrt,bench]"
run "$repository/.venv/bin/kdc-edge" build "$bundle" "$@"
