#!/usr/bin/env bash
# Builds the fuzz targets and runs each, for so many seconds or with the same inputs each time; ends with a table. See fuzz/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

CARGO_FUZZ_VERSION='0.13.2'
# No target takes more memory, and no input more time.
MEMORY_MIB=1024
INPUT_SECONDS=10
# Seeds are at least so long: few long ones reach what many short ones do.
SEED_BYTES_MIN=250
# Longer inputs say nothing that shorter ones don't.
declare -A INPUT_BYTES=([request]=4096 [recovery]=1024 [commands]=2048)
# --fixed: so many inputs are made from each seed; the targets take up to 10 seconds each.
declare -A FIXED_EACH=([request]=300 [recovery]=7 [commands]=5)

usage() {
    cat <<'TEXT'
usage: fuzz/run.sh [--json] SECONDS [TARGET…]
       fuzz/run.sh [--json] --fixed [TARGET…]
       fuzz/run.sh --seeds
       fuzz/run.sh --build

Runs the targets (request, recovery, commands) for SECONDS each, from the seeds and from what earlier runs found, which
is kept below target/fuzz. An input that breaks something is written to target/fuzz/artifacts/TARGET.
--fixed runs the same inputs each time: the seeds, and what is made from each of them as drawn from a number. That is what CI does:
what it says does not depend on chance.
--build only builds the targets.
--seeds replaces the seeds of recovery and commands by few known inputs that reach the same code.

    fuzz/run.sh --fixed
    fuzz/run.sh 60
    fuzz/run.sh 600 recovery
    fuzz/run.sh --seeds               # after a long run
    target/fuzz/x86_64-unknown-linux-gnu/release/recovery INPUT    # repeats one input

Exit status: 0 nothing found, 1 something found, 2 usage, or inputs that can not be made.
TEXT
}

json=false seeds=false only_build=false fixed=false
while [[ ${1:-} == -* ]]; do
    case $1 in
    --json) json=true ;;
    --seeds) seeds=true ;;
    --build) only_build=true ;;
    --fixed) fixed=true ;;
    --help | -h)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
    shift
done
seconds=0
if ! $seeds && ! $only_build && ! $fixed; then
    if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
        usage >&2
        exit 2
    fi
    seconds=$1
    shift
fi
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(request recovery commands)
for target in "${targets[@]}"; do
    if [ -z "${INPUT_BYTES[$target]:-}" ]; then
        echo "fuzz/run.sh: there is no target '$target'; there are request, recovery and commands" >&2
        exit 2
    fi
done
if [ "$(cargo fuzz --version 2>/dev/null)" != "cargo-fuzz $CARGO_FUZZ_VERSION" ]; then
    echo "fuzz/run.sh: cargo-fuzz $CARGO_FUZZ_VERSION is not there: cargo install --locked cargo-fuzz@$CARGO_FUZZ_VERSION" >&2
    exit 2
fi

out="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
host=$(rustc -vV | sed -n 's/^host: //p')
# Without a sanitizer: those need a nightly compiler. Panics, failed assertions, overflows, time and memory are found without.
cargo fuzz build --sanitizer none --codegen-units 16 --target "$host" --target-dir "$out" >&2

if $only_build; then
    exit 0
fi
if $seeds; then
    # The seeds of requests are made by a program.
    for target in recovery commands; do
        new="$out/seeds/$target" candidates="$out/seeds/candidates"
        rm -rf "$new" "$candidates"
        mkdir -p "$new" "$candidates" "$out/corpus/$target" "fuzz/seeds/$target"
        find "$out/corpus/$target" -type f -size +"$SEED_BYTES_MIN"c -exec cp -t "$candidates" {} +
        # Counters aside: one input for each edge of the code.
        "$out/$host/release/$target" -merge=1 -use_counters=0 -rss_limit_mb=$MEMORY_MIB "$new" "$candidates" \
            "fuzz/seeds/$target" 2>"$out/$target.log"
        # What has a name was found once, and stays.
        find "fuzz/seeds/$target" -type f -regex '.*/[0-9a-f]*' -delete
        find "$new" -type f -regex '.*/[0-9a-f]*' -exec cp -t "fuzz/seeds/$target" {} +
        printf '%-10s %4d seeds\n' "$target" "$(find "fuzz/seeds/$target" -type f | wc -l)"
    done
    exit 0
fi

# An engine takes and returns tens of megabytes of buffers for each input: the allocator keeps them.
export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296

# field NAME LOG: the figure of libFuzzer's final statistics.
field() {
    sed -n "s/^stat::$1: *//p" "$2" | tail -1
}

status=0
rows=()
for target in "${targets[@]}"; do
    log="$out/$target.log"
    mkdir -p "$out/corpus/$target" "$out/artifacts/$target"
    if $fixed; then
        echo "fuzz/run.sh: $target, the same inputs each time" >&2
        rm -rf "$out/fixed/$target"
        if ! cargo xtask fuzz-inputs --each "${FIXED_EACH[$target]}" --bytes-max "${INPUT_BYTES[$target]}" \
            "fuzz/seeds/$target" "$out/fixed/$target"; then
            exit 2
        fi
        extent=(-runs=0 -seed=1 -shuffle=0)
        corpora=("$out/fixed/$target" "fuzz/seeds/$target")
    else
        echo "fuzz/run.sh: $target for $seconds s" >&2
        extent=("-max_total_time=$seconds")
        corpora=("$out/corpus/$target" "fuzz/seeds/$target")
    fi
    code=0
    "$out/$host/release/$target" "${extent[@]}" -rss_limit_mb=$MEMORY_MIB -timeout=$INPUT_SECONDS \
        -max_len="${INPUT_BYTES[$target]}" -artifact_prefix="$out/artifacts/$target/" -print_final_stats=1 \
        "${corpora[@]}" >"$log" 2>&1 || code=$?
    if [ $code -ne 0 ]; then
        status=1
        echo "fuzz/run.sh: $target found something; of $log what was said first, and the end:" >&2
        grep -m1 -A2 -E 'panicked at|memory allocation of|ERROR: libFuzzer' "$log" >&2 || true
        tail -40 "$log" >&2
        # Where nothing outlasts the run, this does.
        input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)
        if [ -n "$input" ] && [ -f "$input" ]; then
            echo "fuzz/run.sh: the input, to be given to 'base64 -d':" >&2
            base64 "$input" >&2
        fi
    fi
    edges=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2 || true)
    runs=$(field number_of_executed_units "$log")
    memory=$(field peak_rss_mb "$log")
    rows+=("$target ${runs:-0} ${edges:-0} ${memory:-0} $code")
    # It leaves empty ones out.
    inputs=$(find "${corpora[@]}" -type f -size +0 | wc -l)
    if $fixed && [ $code -eq 0 ] && [ "${runs:-0}" -lt "$inputs" ]; then
        echo "fuzz/run.sh: $target ran ${runs:-0} of $inputs inputs" >&2
        status=1
    fi
done

if $json; then
    for row in "${rows[@]}"; do
        read -r target runs edges memory code <<<"$row"
        printf '{"target":"%s","seconds":%d,"runs":%d,"edges":%d,"peak_mib":%d,"exit":%d}\n' \
            "$target" "$seconds" "${runs:-0}" "$edges" "${memory:-0}" "$code"
    done
else
    printf '%-10s %12s %8s %10s %6s\n' target runs edges 'peak MiB' exit
    for row in "${rows[@]}"; do
        read -r target runs edges memory code <<<"$row"
        printf '%-10s %12s %8s %10s %6s\n' "$target" "$runs" "$edges" "$memory" "$code"
    done
fi
exit $status
