#!/bin/sh
# Runs the log's patterns with fio in a directory, and prints the floor that they give: rates, and the latency of a half, of 99
# and of 99.9 in a hundred. Given claimd and claim-bench, it serves a ledger there, too, and prints its figures for the same
# patterns beside the floor, with the ratio of the medians.
#   fio-configs/run.sh [--json] [--seconds N] DIR [--claimd PATH --claim-bench PATH]
# DIR is where the ledger lies or will lie. Everything is written to a new directory in it, which is removed at the end; 2 GiB
# have to be free. Each pattern takes N seconds (4), all of them about 14 × N, with a daemon 7 × N more.
set -eu

usage() { sed -n '/^#   /{ s/^#   /usage: /; p; q }' "$0" >&2; exit 2; }

json=
seconds=4
directory=
claimd=
bench=
while [ $# -gt 0 ]; do
    case $1 in
    --json) json=1 ;;
    --seconds) [ $# -gt 1 ] || usage; seconds=$2; shift ;;
    --claimd) [ $# -gt 1 ] || usage; claimd=$2; shift ;;
    --claim-bench) [ $# -gt 1 ] || usage; bench=$2; shift ;;
    -*) usage ;;
    *) [ -z "$directory" ] || usage; directory=$1 ;;
    esac
    shift
done
[ -n "$directory" ] || usage
[ -z "$claimd$bench" ] || { [ -n "$claimd" ] && [ -n "$bench" ]; } || usage
case $seconds in '' | *[!0-9]* | 0) usage ;; esac
[ "$seconds" -le 60 ] || { echo "run.sh: more than 60 s a pattern fill the disk: found $seconds" >&2; exit 2; }

command -v fio >/dev/null || { echo "run.sh: fio is not installed (3.33 or later is needed)" >&2; exit 1; }
configs=$(dirname "$0")
free_kib=$(df --output=avail -k "$directory" | tail -1)
[ "$free_kib" -ge 2097152 ] || { echo "run.sh: $directory has $((free_kib / 1024)) MiB free, 2048 are needed" >&2; exit 1; }

work=$(mktemp --directory --tmpdir="$directory")
# A socket's path is at most 107 bytes long, and that of the directory may be longer.
sockets=$(mktemp --directory)
daemon=
cleanup() {
    status=$?
    [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null || true
    rm -rf "$work" "$sockets"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# One line for each section of a job: pattern, section, operations/s, MiB/s, p50, p99, p99.9.
floor() {
    sed "s/^runtime=.*/runtime=$seconds/" "$configs/$1.fio" >"$work/job.fio"
    timeout $((seconds * 4 + 60)) fio --directory="$work" --output-format=terse --terse-version=3 "$work/job.fio" >"$work/out" ||
        { echo "run.sh: $1.fio failed:" >&2; cat "$work/out" >&2; exit 1; }
    # Fields of the terse format 3: reads from 6 on, writes from 47 on: KiB, KiB/s, operations/s, milliseconds, …; percentiles
    # in the order of percentile_list from the 13th of them on.
    awk -F';' -v pattern="$1" '$1 == 3 {
        first = $6 > 0 ? 6 : 47
        for (i = 0; i < 4; i++) { split($(first + 12 + i), pair, "="); at[i] = pair[2] }
        print pattern, $3, $(first + 2), $(first + 1) / 1024, at[0], at[2], at[3] }' "$work/out" >>"$work/floor"
    rm -f "$work/job.fio" "$work/out"
}

for pattern in append-4k append-64k append-4k-fallocated zeroing recovery-read lookup-read all-at-once; do
    floor "$pattern"
done

# A figure of a JSON row on standard input.
figure() { sed -n "s/.*\"$1\":\\([0-9.]*\\).*/\\1/p"; }

# load SECONDS OPTION…: claim-bench against the daemon, its rows into $work/out.
load() {
    time=$1
    shift
    # shellcheck disable=SC2086 # No words, or two.
    timeout $((time * 6 + 60)) "$bench" run --socket "$sockets/claimd.sock" $load_core --seconds "$time" --warmup 0.5 --json \
        "$@" >"$work/out" 2>"$work/err" ||
        { echo "run.sh: claim-bench run $* failed:" >&2; cat "$work/err" >&2; exit 1; }
}

# beside PATTERN SECTION WHAT RATE_NAME: puts the row on standard input beside that of a job: operations/s, p50, p99, p99.9.
beside() {
    row=$(cat)
    for name in "$4" p50_us p99_us p999_us; do
        value=$(echo "$row" | figure "$name")
        [ -n "$value" ] || { echo "run.sh: no $name in a row of claim-bench: $row" >&2; exit 1; }
        printf '%s ' "$value"
    done >"$work/figures"
    echo "$1 $2 $(cat "$work/figures")$3" >>"$work/daemon"
}

: >"$work/daemon"
if [ -n "$claimd" ]; then
    # The daemon and the load on cores of their own, where there are two.
    daemon_core='' load_core=''
    [ "$(nproc)" -lt 2 ] || { daemon_core='--cores 0' load_core='--core 1'; }
    "$claimd" format --data "$work/ledger" --shards 1 --segment-bytes 16M >/dev/null
    # shellcheck disable=SC2086 # No words, or two.
    CLAIMD_LOG=error "$claimd" start --data "$work/ledger" --socket "$sockets/claimd.sock" --cache-mib 16 $daemon_core \
        >"$work/ready" &
    daemon=$!
    tries=0
    until grep -q '^ready' "$work/ready"; do
        tries=$((tries + 1))
        { [ "$tries" -le 100 ] && kill -0 "$daemon"; } || { echo "run.sh: claimd does not get ready" >&2; exit 1; }
        sleep 0.1
    done
    load "$seconds" --outstanding 1
    beside append-4k in-flight-1 'claims, 1 outstanding' claims_per_second <"$work/out"
    load "$seconds" --outstanding 64
    beside append-64k in-flight-1 'claims, 64 outstanding' claims_per_second <"$work/out"
    # Several times what the daemon's cache holds. The rate bounds the space that it takes.
    load 4 --outstanding 128 --rate 50000
    # Each row once before any again, and more of them than the cache holds.
    load "$seconds" --operation lookups --ids 2000 --outstanding 1
    beside lookup-read in-flight-1 'lookups, 1 outstanding' rows_per_second <"$work/out"
    load "$seconds" --operation lookups --ids 2000 --outstanding 16
    beside lookup-read in-flight-16 'lookups, 16 outstanding' rows_per_second <"$work/out"
    load "$seconds" --operation lookups --ids 2000 --outstanding 16 --rate 1000 --beside-claims 64 --rounds 1
    grep '"median_of".*"beside":"lookups".*"claims"' "$work/out" |
        beside all-at-once appends 'claims, 64 outstanding' claims_per_second
    grep '"median_of".*"beside":"claims"' "$work/out" |
        beside all-at-once lookups 'lookups, 1000/s' rows_per_second
    kill "$daemon"
    wait "$daemon"
    daemon=
    "$claimd" verify --data "$work/ledger" --json | tail -1 >"$work/out"
    # The summary has a figure of the whole ledger before those of its shards.
    bytes=$(sed 's/.*"batches":[0-9]*,"bytes":\([0-9]*\),"damaged_places".*/\1/' "$work/out")
    echo "recovery-read sequential $(figure seconds <"$work/out") $bytes" |
        awk '{ print $1, $2, $4 / 1048576 / $3, "- - - verify, MiB/s" }' >>"$work/daemon"
fi

awk -v json="$json" -v claimd="$claimd" '
    FILENAME ~ /daemon$/ {
        key = $1 " " $2
        rate[key] = $3; half[key] = $4; most[key] = $5; nearly[key] = $6
        what[key] = $7
        for (i = 8; i <= NF; i++) what[key] = what[key] " " $i
        next
    }
    function number(value) { return value == "-" ? "null" : value + 0 }
    FNR == 1 && !json {
        # By hand: some awks count the bytes of µ.
        printf "pattern              section           fio /s   MiB/s  p50 µs  p99 µs   p99.9"
        if (claimd != "") printf "    claimd                          /s  p50 µs  p99 µs   p99.9   ratio"
        print ""
    }
    {
        key = $1 " " $2
        # Of times: of the medians, or for a whole ledger of the rates.
        ratio = "null"
        if (key in what) {
            if (half[key] != "-" && $5 > 0) ratio = sprintf("%.1f", half[key] / $5)
            else if (half[key] == "-" && rate[key] > 0) ratio = sprintf("%.1f", $4 / rate[key])
        }
        if (json) {
            printf "{\"pattern\":\"%s\",\"section\":\"%s\",\"fio\":{\"per_second\":%.0f,\"mib_per_second\":%.1f,\"p50_us\":%d,\"p99_us\":%d,\"p999_us\":%d},", $1, $2, $3, $4, $5, $6, $7
            if (key in what) printf "\"claimd\":{\"what\":\"%s\",\"per_second\":%.1f,\"p50_us\":%s,\"p99_us\":%s,\"p999_us\":%s},\"ratio\":%s}\n",
                what[key], rate[key], number(half[key]), number(most[key]), number(nearly[key]), ratio
            else print "\"claimd\":null,\"ratio\":null}"
            next
        }
        printf "%-20s %-14s %9.0f %7.0f %7d %7d %7d", $1, $2, $3, $4, $5, $6, $7
        if (key in what) {
            printf "    %-24s %9.0f", what[key], rate[key]
            if (half[key] == "-") printf " %7s %7s %7s", "", "", ""
            else printf " %7.0f %7.0f %7.0f", half[key], most[key], nearly[key]
            printf "   %5s", ratio == "null" ? "" : ratio
        }
        print ""
    }' "$work/daemon" "$work/floor"
