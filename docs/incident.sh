#!/usr/bin/env bash
# Plays the incident of incident.md on a scratch ledger, and prints every command with its answer. It ends with an error if
# one of them does not do what the page says. Usage: docs/incident.sh [DIRECTORY OF claimd AND claimctl]
set -euo pipefail
bin=$(cd "${1:-target/release}" && pwd)
work=$(mktemp -d)
export PATH="$bin:$PATH" CLAIMD_SOCKET="$work/ledger/claimd.sock"
trap 'kill "${daemon:-}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT

# shown COMMAND…: prints a command as one would type it.
shown() {
    local word line='$'
    for word in "$@"; do
        case $word in *' '*) line+=" \"$word\"" ;; *) line+=" $word" ;; esac
    done
    printf '%s\n' "$line"
}

# say COMMAND…: prints it, runs it, prints and keeps its answer.
say() {
    shown "$@"
    answer=$("$@" 2>&1) || { printf '%s\n' "$answer"; return 1; }
    printf '%s\n\n' "$answer"
}

# refused CODE COMMAND…: the same for what is to be refused.
refused() {
    local code=$1
    shift
    shown "$@"
    if answer=$("$@" 2>&1); then
        printf '%s\nthis was to be refused with %s\n' "$answer" "$code"
        return 1
    fi
    printf '%s\n\n' "$answer"
    case $answer in *"$code"*) ;; *) return 1 ;; esac
}

expect() { case $answer in *"$1"*) ;; *) printf 'expected %s\n' "$1"; return 1 ;; esac }
field() { python3 -c 'import json,sys; print(json.loads(sys.stdin.readline())[sys.argv[1]])' "$1"; }

claimd format --data "$work/ledger" --shards 2 --clock replay >/dev/null
claimd start --data "$work/ledger" >"$work/ready" 2>"$work/log" &
daemon=$!
until grep -q ready "$work/ready"; do sleep 0.05; kill -0 $daemon; done

say claimctl onboard customer --at 2026-03-02T09:00:00Z
say claimctl onboard internal-tools --at 2026-03-02T09:00:01Z

first=$(claimctl claim --corpus customer --event-key embedder-cache-reset-2026-03-03 --category embedder \
    --occurred-at 2026-03-03T14:31:20Z --at 2026-03-03T14:31:22Z --json | field event_id)
second=$(claimctl claim --corpus internal-tools --event-key embedder-cache-reset-2026-03-03 --category cache \
    --occurred-at 2026-03-03T14:31:20Z --at 2026-03-03T14:31:51Z --json | field event_id)
say claimctl find embedder-cache-reset-2026-03-03
expect "$first"
expect "$second"

say claimctl reconcile --dry-run --at 2026-03-03T14:40:00Z
say claimctl reconcile --at 2026-03-03T14:40:00Z
say claimctl lookup "$second"
expect referenced

say claimctl dispute open --corpus internal-tools "$first" "$second" \
    --rationale "the reset was ours: customer saw it, we did it" --at 2026-03-03T15:02:00Z --json
dispute=$(printf '%s' "$answer" | field dispute_id)
say claimctl dispute respond "$dispute" --corpus customer \
    --rationale "agreed that you did it; we were first to see it" --at 2026-03-03T15:10:00Z
refused BAD_TRANSITION claimctl retract "$first" --reason "it was theirs" --reason-code wrong_corpus --at 2026-03-03T15:11:00Z
say claimctl dispute arbitrate "$dispute" --canonical "$second" --references "$first" \
    --rationale "the corpus that acted keeps the event" --at 2026-03-03T16:00:00Z
say claimctl lookup "$first"
expect "$second"

say claimctl retract "$second" --reason "nothing was reset: the alert was false" --reason-code false_alarm --at 2026-03-04T10:00:00Z
say claimctl reconcile --at 2026-03-04T10:10:00Z
say claimctl reactivate "$second" --reason "the log of the embedder shows the reset after all" --at 2026-04-02T08:30:00Z
say claimctl lookup "$second"
expect "2026-Q3"

say claimctl history "$first"
say claimctl totals
say claimctl audit head --json
printf '%s\n' "$answer" >"$work/heads"
say claimctl audit verify --against "$work/heads"
printf 'done\n'
