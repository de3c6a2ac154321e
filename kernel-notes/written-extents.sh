#!/bin/sh
# Shows what zeroing ahead of need saves, without a clock: which extents of a file are marked unwritten, and what durable
# writes over both kinds cost: commits of the journal, and flushes that the device gets. Counts on file systems of
# its own, ext4 with and without a journal, on a loop device, so that nothing else is counted. Needs root, losetup and mkfs.ext4.
#   kernel-notes/written-extents.sh DIR
set -eu
directory=$1
bench=${CLAIM_BENCH:-cargo run --release --quiet -p claim-bench --}
work=$(mktemp --directory --tmpdir="$directory")
device=
cleanup() {
    ! mountpoint --quiet "$work/mount" || umount "$work/mount"
    [ -z "$device" ] || losetup --detach "$device"
    rm -rf "$work"
}
trap cleanup EXIT

# MiB of the file in extents that are marked unwritten, and in others; filefrag counts blocks of 1 KiB with -b1024.
extents() {
    filefrag -v -b1024 "$work/file" | awk -v what="$1" '
        $1 ~ /^[0-9]+:$/ { if (/unwritten/) unwritten += $6; else written += $6 }
        END { printf "%-28s %2d MiB unwritten, %2d MiB written\n", what, unwritten / 1024, written / 1024 }'
}

fallocate --length 16M "$work/file"
extents "reserved:"
dd if=/dev/zero of="$work/file" bs=1M count=8 oflag=direct conv=notrunc,fdatasync status=none
extents "zeros over the first half:"

# Commits of the journal (0 where there is none) and flushes completed (field 16, Documentation/block/stat.rst).
counts() {
    commits=$(cat "/proc/fs/jbd2/${device#/dev/}-8/info" 2>/dev/null || echo 0)
    echo "${commits%% *} $(awk '{ print $16 }' "/sys/block/${device#/dev/}/stat")"
}

# Durable writes for so many seconds: their number, and the counts before and after.
durable_writes() {
    before=$(counts)
    # shellcheck disable=SC2086 # The command and its arguments.
    row=$($bench floor --dir "$work/mount" --seconds "$2" --mode o-dsync --kib 4 --in-flight 1 --extents "$1" --json)
    writes=$(echo "$row" | sed 's/.*"writes":\([0-9]*\).*/\1/')
    echo "$writes $before $(counts)"
}

truncate --size 256M "$work/image"
mkdir "$work/mount"
device=$(losetup --find --show --direct-io=on "$work/image")
# A loop device keeps what an earlier user told it.
echo "write back" >"/sys/block/${device#/dev/}/queue/write_cache"
printf '%-12s %-10s %8s %15s %15s\n' ext4 extents writes commits/write flushes/write
for journal in has_journal ^has_journal; do
    mkfs.ext4 -q -F -O "$journal" "$device"
    mount "$device" "$work/mount"
    for extents in written unwritten; do
        # A short run is nearly all making of the file, which is taken off the longer one.
        short=$(durable_writes "$extents" 0.02)
        long=$(durable_writes "$extents" 2)
        echo "$journal $extents $short $long" | awk '{
            writes = $8 - $3
            commits = $11 - $9 - ($6 - $4)
            flushes = $12 - $10 - ($7 - $5)
            printf "%-12s %-10s %8d %15.2f %15.2f\n", $1 == "has_journal" ? "journal" : "no journal", $2, writes,
                commits / writes, flushes / writes }'
    done
    umount "$work/mount"
done
