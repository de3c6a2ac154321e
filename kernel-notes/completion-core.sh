#!/bin/sh
# Counts on which cores the completions of durable writes are taken and handled, when the writes come from the first core and
# when they come from the last, for each setting of queue/rq_affinity (root; put back at the end).
#   kernel-notes/completion-core.sh DIR DEVICE     e.g. kernel-notes/completion-core.sh . sda
# The counters see everything that happens on the device, so nothing else should use it meanwhile.
set -eu
directory=$1
affinity=/sys/block/$2/queue/rq_affinity
bench=${CLAIM_BENCH:-cargo run --release --quiet -p claim-bench --}
last=$(($(nproc --all) - 1))

# The interrupts of the device, by the nearest of its parents that has any.
parent=$(readlink -f "/sys/block/$2/device" || true)
while [ -n "$parent" ] && [ ! -d "$parent/msi_irqs" ]; do
    [ "$parent" != / ] || { echo "not available here: no message interrupts of $2"; exit 0; }
    parent=$(dirname "$parent")
done
interrupts=$(ls "$parent/msi_irqs")

# Interrupts of the device and block softirqs, core by core, on one line.
counts() {
    awk -v wanted="$(echo "$interrupts" | tr '\n' ' ')" -v cores=$((last + 1)) '
        BEGIN { split(wanted, list, " "); for (i in list) is_wanted[list[i] ":"] = 1 }
        FILENAME == "/proc/interrupts" && $1 in is_wanted { for (i = 0; i < cores; i++) taken[i] += $(i + 2) }
        FILENAME == "/proc/softirqs" && $1 == "BLOCK:" { for (i = 0; i < cores; i++) handled[i] = $(i + 2) }
        END {
            for (i = 0; i < cores; i++) printf "%d ", taken[i]
            for (i = 0; i < cores; i++) printf "%d ", handled[i]
        }' /proc/interrupts /proc/softirqs
}

measure() {
    before=$(counts)
    # shellcheck disable=SC2086 # The command and its arguments.
    row=$(taskset --cpu-list "$1" $bench floor --dir "$directory" --seconds 1 --mode o-dsync --kib 4 --in-flight 1 --json)
    writes=$(echo "$row" | sed 's/.*"writes":\([0-9]*\).*/\1/')
    echo "$1 $(cat "$affinity") $writes $last $before $(counts)" | awk '{
        cores = $4 + 1
        for (i = 0; i < cores; i++) {
            taken = taken " " $(5 + 2 * cores + i) - $(5 + i)
            handled = handled " " $(5 + 3 * cores + i) - $(5 + cores + i)
        }
        printf "%-12d %-11d %8d   %-22s %s\n", $1, $2, $3, substr(taken, 2), substr(handled, 2) }'
}

echo "each column of counts: core 0 … core $last"
printf '%-12s %-11s %8s   %-22s %s\n' writing-core rq_affinity writes interrupts-taken block-softirqs
settings=$(cat "$affinity")
if [ -w "$affinity" ]; then
    before_all=$settings
    trap 'echo "$before_all" >"$affinity"' EXIT
    settings='1 2'
fi
for setting in $settings; do
    [ ! -w "$affinity" ] || echo "$setting" >"$affinity"
    for core in 0 "$last"; do
        measure "$core"
    done
done
