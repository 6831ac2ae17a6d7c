#!/bin/sh
# SPDX-License-Identifier: MIT
# usage: nightly.sh VM [DAYS]: one more snapshot, and none older than DAYS
set -eu
vm=$1
days=${2:-7}
oldest=$(date -u -d "$days days ago" +%Y-%m-%dT%H:%M:%SZ)

qstill create "$vm" "nightly-$(date -u +%Y%m%d-%H%M%S)" --memory \
    --label made-by=nightly >/dev/null

# Names of ours, made before $oldest: such times sort as text.
old=$(qstill list "$vm" --json | python3 -c '
import json, sys
for s in json.load(sys.stdin)["snapshots"]:
    if s["labels"].get("made-by") == "nightly" and s["createdAt"] < sys.argv[1]:
        print(s["id"])' "$oldest")

# Ids have no blanks. One command: neighbours are merged in one pass.
if [ -n "$old" ]; then
    # shellcheck disable=SC2086
    qstill delete "$vm" $old
fi
