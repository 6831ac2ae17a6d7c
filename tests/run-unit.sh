#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs the unit test programs given, and the structure tests, one a CPU at a
# time: many of them wait. Prints what failed whole, and one closing line with
# the counts.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
if [ "${1:-}" = --one ]; then # FOLDER PROGRAM: its counts into a file there
    out=$(mktemp "$2/XXXXXX") || exit 2
    if "$3" >"$out.log" 2>&1; then
        n=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$out.log" | tail -1)
        echo "passed ${n:-1}" >"$out"
    else
        n=$(grep -c '^\[  FAILED  \] [a-z]' "$out.log")
        [ "$n" -gt 0 ] || n=1
        echo "failed $n" >"$out"
        { echo "--- $3 failed:"; cat "$out.log"; } >"$out.failed"
    fi
    exit 0
fi
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
set -- "$@" "$top"/tests/layers.sh "$top"/tests/structure/*.sh
printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" "$0" --one "$work"
cat "$work"/*.failed 2>/dev/null
counts=$(find "$work" -type f -name '??????' -exec cat {} + |
    awk '{ n[$1] += $2; programs++ }
         END { print programs + 0, n["passed"] + 0, n["failed"] + 0 }')
# shellcheck disable=SC2086
set -- $# $counts
echo "unit: $3 passed, $4 failed"
[ "$1" = "$2" ] || echo "unit: $2 of $1 programs have run"
[ "$4" = 0 ] && [ "$1" = "$2" ]
