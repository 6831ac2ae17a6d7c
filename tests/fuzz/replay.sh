#!/bin/sh
# SPDX-License-Identifier: MIT
# replay.sh PROGRAM...: each fuzzer, built with replay.c, over its corpus
# tests/fuzz/corpus/NAME. A corpus without inputs is a failure: it would prove
# nothing. Closes with the counts.
set -u
corpus=$(cd "$(dirname "$0")" && pwd)/corpus
passed=0 failed=0
for program in "$@"; do
    name=${program##*/}
    if out=$("$program" "$corpus/$name" 2>&1) && [ "$out" != "0 inputs" ]; then
        passed=$((passed + 1))
        echo "fuzz: $name: $out"
    else
        failed=$((failed + 1))
        echo "fuzz: $name failed:"
        echo "$out"
    fi
done
echo "fuzz: $passed passed, $failed failed"
[ "$failed" = 0 ]
