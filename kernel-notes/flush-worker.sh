#!/bin/sh
# Shows whose core a durable write needs: writes from one core while another core, which takes the device's interrupts, is
# kept busy. Then the same with completions sent back to the core that submitted (needs root; put back at the end).
#   kernel-notes/flush-worker.sh DIR DEVICE WRITING_CORE BUSY_CORE     e.g. kernel-notes/flush-worker.sh . sda 0 1
set -eu
directory=$1
affinity=/sys/block/$2/queue/rq_affinity
writing=$3
busy=$4
bench=${CLAIM_BENCH:-cargo run --release --quiet -p claim-bench --}

measure() {
    echo "$1 (rq_affinity $(cat "$affinity")):"
    # shellcheck disable=SC2086 # The command and its arguments.
    taskset --cpu-list "$writing" $bench floor --dir "$directory" --seconds 2 --kib 4 --in-flight 1
}

before=$(cat "$affinity")
measure "core $busy idle"
taskset --cpu-list "$busy" sh -c 'while :; do :; done' &
loop=$!
trap 'kill "$loop"; [ ! -w "$affinity" ] || echo "$before" >"$affinity"' EXIT
measure "core $busy busy"
echo 2 >"$affinity"
measure "core $busy busy"
