#!/usr/bin/env bash
# check.sh CLAIM_BENCH CLAIMD DIRECTORY: whether `claim-bench peers` measures what it says: a short run of these binaries, with
# scratch data in DIRECTORY, gives a row of every kind, none of them with errors, and leaves nothing behind. The figures of so short a
# run mean nothing.
set -euo pipefail
bench=$1
claimd=$2
directory=$(mktemp --directory --tmpdir="$3")
trap 'rm -rf "$directory"' EXIT
# A server that does not run as root has to get there.
chmod 711 "$directory"

"$bench" peers --claimd "$claimd" --dir "$directory" --seconds 0.3 --warmup 0.1 --floor-seconds 0.1 \
    --rounds 1 --json >"$directory/rows"

python3 - "$directory/rows" <<'END'
import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1])]
fields = ["connections", "outstanding", "batch", "claims_per_second", "p50_us", "p99_us"]
faults = [f"{field} is no number in {row}" for row in rows for field in fields if not isinstance(row.get(field), (int, float))]
faults += [f"errors in {row}" for row in rows if row.get("errors", 0) != 0]
found = {(row["system"], row["connections"], row["outstanding"], row["batch"]) for row in rows}
expected = {("claimd", 1, 1, 1), ("claimd", 64, 64, 1), ("claimd", 4, 1024, 1), ("claimd", 4, 4, 1000), ("claimd", 4, 4, 8190)}
expected |= {("postgresql", 1, 1, 1), ("postgresql", 64, 64, 1), ("postgresql", 256, 256, 1)}
expected |= {("postgresql", 8, 8, 1000), ("postgresql", 2, 2, 8190), ("floor", 0, 1, 1)}
faults += [f"there is no row {row}" for row in sorted(expected - found)]
for row in rows:
    if row["system"] == "postgresql" and row["facts"]["synchronous_commit"] != "on":
        faults.append(f"not durable: {row}")
    if (row["connections"], row["outstanding"], row["batch"]) == (1, 1, 1) and row["claims_per_second"] <= 0:
        faults.append(f"nothing was claimed: {row}")
print("\n".join(faults) or f"{len(rows)} rows, and none with errors")
sys.exit(bool(faults))
END

rm "$directory/rows"
left=$(ls -A "$directory")
if [ -n "$left" ]; then
    echo "left behind in $directory: $left" >&2
    exit 1
fi
