#!/bin/sh
# Shows whose core a durable write needs: writes from one core while another core, which takes the device's interrupts, is
# kept busy, by a program as any and by one that gives way. Then the first again with completions sent back to the core that
# submitted (needs root; put back at the end).
#   kernel-notes/flush-worker.sh DIR DEVICE WRITING_CORE BUSY_CORE     e.g. kernel-notes/flush-worker.sh . sda 0 1
set -eu
directory=$1
affinity=/sys/block/$2/queue/rq_affinity
writing=$3
busy=$4
bench=${CLAIM_BENCH:-cargo run --release --quiet -p claim-bench --}
# The example that CLAIM_BENCH was built beside, or one that is built now.
if [ -n "${EXAMPLES:-}" ]; then busy_program=$EXAMPLES/busy
else
    cargo build --release --quiet -p claim-bench --example busy
    busy_program=${CARGO_TARGET_DIR:-target}/release/examples/busy
fi

measure() {
    echo "$1 (rq_affinity $(cat "$affinity")):"
    # shellcheck disable=SC2086 # The command and its arguments.
    taskset --cpu-list "$writing" $bench floor --dir "$directory" --seconds 2 --kib 4 --in-flight 1
}

before=$(cat "$affinity")
measure "core $busy idle"
trap 'kill "$loop" 2>/dev/null; [ ! -w "$affinity" ] || echo "$before" >"$affinity"' EXIT
taskset --cpu-list "$busy" "$busy_program" give-way &
loop=$!
measure "core $busy busy, giving way"
kill "$loop"
taskset --cpu-list "$busy" "$busy_program" &
loop=$!
measure "core $busy busy"
echo 2 >"$affinity"
measure "core $busy busy"
