#!/bin/sh
# Counts the flushes that durable writes cost: what the block device's own counters say before and after a run of
# `claim-bench floor`, for each way of asking for durability, at 1 and 4 in flight.
#   kernel-notes/flushes.sh DIR DEVICE     e.g. kernel-notes/flushes.sh . sda
# The counters see everything that happens on the device, so nothing else should write to it meanwhile.
set -eu
directory=$1
device=$2
bench=${CLAIM_BENCH:-cargo run --release --quiet -p claim-bench --}

# Field 16 of /sys/block/*/stat: flushes completed (Documentation/block/stat.rst).
flushes() { awk '{ print $16 }' "/sys/block/$device/stat"; }

printf '%-10s %9s %9s %9s %18s\n' mode in-flight writes flushes flushes-per-write
for mode in rwf-dsync o-dsync fdatasync; do
    for in_flight in 1 4; do
        before=$(flushes)
        row=$($bench floor --dir "$directory" --seconds 2 --mode "$mode" --kib 4 --in-flight "$in_flight" --json)
        writes=$(echo "$row" | sed 's/.*"writes":\([0-9]*\).*/\1/')
        echo "$mode $in_flight $writes $before $(flushes)" | awk '{
            printf "%-10s %9d %9d %9d %18.2f\n", $1, $2, $3, $5 - $4, ($5 - $4) / $3 }'
    done
done
