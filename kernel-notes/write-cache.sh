#!/bin/sh
# Shows what queue/write_cache changes: the same durable writes to a loop device that says "write back", and to the same
# device told to say "write through". Needs root, losetup and fio; touches no device but the loop device that it makes.
#   kernel-notes/write-cache.sh DIR
set -eu
image=$(mktemp --tmpdir="$1")
truncate --size 128M "$image"
device=$(losetup --find --show --direct-io=on "$image")
cache=/sys/block/${device#/dev/}/queue/write_cache
# A loop device keeps what it was told after it is detached, and the next user would send no flushes.
trap 'echo "write back" >"$cache"; losetup --detach "$device"; rm -f "$image"' EXIT

# Field 16 of /sys/block/*/stat: flushes completed (Documentation/block/stat.rst).
flushes() { awk '{ print $16 }' "/sys/block/${device#/dev/}/stat"; }

run() {
    before=$(flushes)
    fio --name=durable --filename="$device" --ioengine=io_uring --direct=1 --sync=dsync --rw=write --bs=4k --size=64m \
        --iodepth=1 --time_based --runtime=2 --output-format=terse --terse-version=3 >"$image.out"
    # Write IOPS is field 49 of that format.
    printf '%-14s %6s durable writes/s, %6s flushes\n' "$(cat "$cache")" "$(cut -d';' -f49 "$image.out")" \
        "$(($(flushes) - before))"
    rm -f "$image.out"
}

# A loop device keeps what an earlier user told it.
echo "write back" >"$cache"
# Writes every block once, so that both runs overwrite.
dd if=/dev/zero of="$device" bs=1M count=64 oflag=direct conv=fsync status=none
run
echo "write through" >"$cache"
run
