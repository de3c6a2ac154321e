#!/bin/sh
# Runs every page's command once, briefly. Says which run, which can't run here and why, and fails when one that can does not.
#   kernel-notes/check.sh [--change-settings] DIR
# With --change-settings it also runs what sets something of the whole machine for a moment (root): kernel.io_uring_disabled and
# queue/rq_affinity. DIR is a directory on the device, where a ledger would lie. CLAIM_BENCH, EXAMPLES and CLAIMD name the
# binary of claim-bench, the directory of its examples and the daemon's binary, where they are built already.
set -eu

usage() { echo "usage: kernel-notes/check.sh [--change-settings] DIR" >&2; exit 2; }
settings=
[ "${1:-}" != --change-settings ] || { settings=1; shift; }
[ $# -eq 1 ] || usage
case $1 in -*) usage ;; esac
[ -d "$1" ] || { echo "check.sh: $1 is no directory" >&2; exit 2; }
directory=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}/release
if [ -z "${CLAIM_BENCH:-}" ] || [ -z "${EXAMPLES:-}" ]; then
    cargo build --release --quiet -p claim-bench --bins --examples
fi
CLAIM_BENCH=${CLAIM_BENCH:-$target/claim-bench}
EXAMPLES=${EXAMPLES:-$target/examples}
export CLAIM_BENCH EXAMPLES
if [ -z "${CLAIMD:-}" ]; then
    cargo build --release --quiet -p claimd
    CLAIMD=$target/claimd
fi

out=$(mktemp)
# Ordinary users reach it, whoever owns DIR.
others=$(mktemp --directory)
chmod 777 "$others"
sysctl=/proc/sys/kernel/io_uring_disabled
sysctl_before=
cleanup() {
    status=$?
    [ -z "$sysctl_before" ] || echo "$sysctl_before" >"$sysctl"
    rm -rf "$out" "$others"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
failed=0
may_end_with=0

# not_here PAGE WHAT WHY
not_here() { printf 'not here  %-24s %s: %s\n' "$1" "$2" "$3"; }

# check PAGE PATTERN COMMAND…: the command has to succeed within two minutes, and to print a line that matches.
check() {
    page=$1 pattern=$2
    shift 2
    status=0
    timeout 120 "$@" >"$out" 2>&1 || status=$?
    [ "$status" -ne "$may_end_with" ] || status=0
    if [ "$status" -eq 0 ] && reason=$(grep '^not available here: ' "$out"); then
        not_here "$page" "$*" "${reason#not available here: }"
    elif [ "$status" -eq 0 ] && grep -q -- "$pattern" "$out"; then
        printf 'runs      %-24s %s\n' "$page" "$*"
    else
        printf 'FAILS     %-24s %s (status %d, expected a line like: %s)\n' "$page" "$*" "$status" "$pattern"
        sed 's/^/          /' "$out"
        failed=$((failed + 1))
    fi
}

# doctor PAGE PATTERN COMMAND…: the same for claimd doctor, which ends with 1 when it finds a fault, as it should on some pages.
doctor() {
    page=$1 pattern=$2
    shift 2
    may_end_with=1
    check "$page" "$pattern" "$@"
    may_end_with=0
}

# needs PAGE WHAT COMMAND…: whether every command is there; says it where one is not.
needs() {
    page=$1 what=$2
    shift 2
    for command in "$@"; do
        command -v "$command" >/dev/null || { not_here "$page" "$what" "$command is not installed"; return 1; }
    done
}

# Being root is not enough for a loop device: containers have none.
loop=
[ "$(id -u)" -ne 0 ] || ! losetup --find >/dev/null 2>&1 || loop=1
device=$(readlink -f "/sys/dev/block/$(stat --format=%Hd:%Ld "$directory")" || true)
# A partition's queue is its disk's.
[ ! -e "$device/partition" ] || device=$(dirname "$device")
device=$(basename "$device")
[ -r "/sys/block/$device/stat" ] || device=
affinity=/sys/block/$device/queue/rq_affinity
elsewhere="no block device can be told below $directory"
sets_affinity="it sets queue/rq_affinity: be root and give --change-settings"

if ! needs written-extents.md written-extents.sh filefrag losetup mkfs.ext4; then :
elif [ -z "$loop" ]; then not_here written-extents.md written-extents.sh "no loop device can be had"
else check written-extents.md '^journal  *unwritten' kernel-notes/written-extents.sh "$directory"
fi
for extents in written unwritten; do
    check written-extents.md RWF_DSYNC "$CLAIM_BENCH" floor --dir "$directory" --seconds 0.2 --kib 4 --extents "$extents"
done

check durable-writes.md RWF_DSYNC "$CLAIM_BENCH" floor --dir "$directory" --seconds 0.2 --mode rwf-dsync,o-dsync,fdatasync
if [ -z "$device" ]; then not_here durable-writes.md flushes.sh "$elsewhere"
else check durable-writes.md '^o-dsync' kernel-notes/flushes.sh "$directory" "$device"
fi

if [ -z "$device" ]; then not_here flush-worker.md flush-worker.sh "$elsewhere"
elif [ -z "$settings" ] || [ ! -w "$affinity" ]; then not_here flush-worker.md flush-worker.sh "$sets_affinity"
elif [ "$(nproc)" -lt 2 ]; then not_here flush-worker.md flush-worker.sh "it needs two cores"
else check flush-worker.md 'rq_affinity 2' kernel-notes/flush-worker.sh "$directory" "$device" 0 1
fi

if [ -z "$device" ]; then not_here completion-core.md completion-core.sh "$elsewhere"
elif [ -z "$settings" ]; then not_here completion-core.md completion-core.sh "$sets_affinity"
else check completion-core.md '^0 ' kernel-notes/completion-core.sh "$directory" "$device"
fi

if ! needs write-cache.md write-cache.sh losetup fio; then :
elif [ -z "$loop" ]; then not_here write-cache.md write-cache.sh "no loop device can be had"
else check write-cache.md '^write through .* 0 flushes' kernel-notes/write-cache.sh "$directory"
fi

check direct-io-alignment.md 'taken at multiples' "$EXAMPLES/direct_io_alignment" "$directory" /dev/shm
doctor direct-io-alignment.md O_DIRECT "$CLAIMD" doctor --data "$directory"
check atomic-writes.md 'with RWF_ATOMIC' "$EXAMPLES/atomic_writes" "$directory"
check ring-setup.md DEFER_TASKRUN "$EXAMPLES/ring_setup" "$directory" 0.2
check memlock.md 'ring 1' "$EXAMPLES/memlock"
doctor memlock.md 'below the 512 KiB' prlimit --memlock=65536 "$CLAIMD" doctor --data "$directory"
check kernel-versions.md io_uring "$EXAMPLES/kernel_features" "$directory"
check lock-outlives-process.md 'the last write is there' "$EXAMPLES/lock_outlives_process" "$directory"
check socket-readiness.md 'one epoll' "$EXAMPLES/socket_readiness" 0.5
check peer-credentials.md 'on accept' "$EXAMPLES/peer_credentials"

check ring-permission.md 'EPERM: DeniedBySeccomp' "$EXAMPLES/ring_permission"
if [ -z "$settings" ] || [ ! -w "$sysctl" ]; then
    not_here ring-permission.md 'kernel.io_uring_disabled' "it sets a sysctl: be root and give --change-settings"
else
    cp "$CLAIMD" "$others/claimd"
    sysctl_before=$(cat "$sysctl")
    echo 1 >"$sysctl"
    doctor ring-permission.md 'io_uring_disabled is 1' \
        setpriv --reuid nobody --clear-groups "$others/claimd" doctor --data "$others"
    echo "$sysctl_before" >"$sysctl"
    sysctl_before=
fi

[ "$failed" -eq 0 ] || { echo "$failed of the commands fail" >&2; exit 1; }
