#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs the unit test programs given, and the structure tests; prints what
# failed whole, and one closing line with the counts.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
passed=0 failed=0
log=$(mktemp) || exit 2
trap 'rm -f "$log"' EXIT
run() {
    if "$@" >"$log" 2>&1; then
        n=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -1)
        passed=$((passed + ${n:-1}))
    else
        n=$(grep -c '^\[  FAILED  \] [a-z]' "$log")
        [ "$n" -gt 0 ] || n=1
        failed=$((failed + n))
        echo "--- $* failed:"
        cat "$log"
    fi
}
for t in "$@"; do run "$t"; done
for t in "$top"/tests/layers.sh "$top"/tests/structure/*.sh; do
    [ -x "$t" ] && run "$t"
done
echo "unit: $passed passed, $failed failed"
[ "$failed" = 0 ]
