#!/bin/sh
# SPDX-License-Identifier: MIT
# The examples are built against the public header and library alone, and run
# as far as that goes without a VM.
set -u
cd "$(dirname "$0")/../.." || exit 2
BUILD=${BUILD:-build}
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
bad=0
sanitize=$(nm "$BUILD/qstill" | grep -q __asan_init &&
    echo -fsanitize=address,undefined)
for f in examples/*.c; do
    # shellcheck disable=SC2046,SC2086
    "${CC:-cc}" -std=c99 -D_GNU_SOURCE -Wall -Wextra -Werror -Iinclude \
        $sanitize -o "$tmp/$(basename "$f" .c)" "$f" \
        "$BUILD/public/libqstill.a" -pthread \
        $(pkg-config --libs jansson liburing zlib libzstd libxxhash) ||
        { echo "examples: $f does not build"; bad=1; }
done
for f in examples/*.sh; do
    sh -n "$f" || { echo "examples: $f is no shell script"; bad=1; }
done
if [ -x "$tmp/snapshot" ]; then
    QSTILL_STORE=$tmp/store "$tmp/snapshot" nosuch name >"$tmp/out" 2>&1
    got=$?
    if [ $got != 4 ] || ! grep -q "^not-found: .*nosuch" "$tmp/out"; then
        echo "examples: snapshot on an unknown VM: exit $got"
        cat "$tmp/out"
        bad=1
    fi
fi
# A live capture and its restore, of a VMM of its own; it checks itself.
if [ -x "$tmp/own_vm" ]; then
    timeout 60 "$tmp/own_vm" "$tmp/captured" >"$tmp/out" 2>&1
    got=$?
    if [ $got != 0 ] || ! grep -q "^restored, and running on: ok" "$tmp/out" ||
        [ "$(ls "$tmp/captured")" != "$(printf 'device.state\nram.ram\nsums')" ]
    then
        echo "examples: own_vm: exit $got"
        cat "$tmp/out"
        bad=1
    fi
    # The mode depends on the machine: cow wants rights.
    sed 's/^captured/examples: own_vm: captured/;t;d' "$tmp/out"
fi
[ $bad = 0 ] && echo "examples: ok"
exit $bad
