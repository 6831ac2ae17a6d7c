#!/bin/sh
# SPDX-License-Identifier: MIT
# Includes point downwards only (docs/ARCHITECTURE.md), and each outside
# library has its home. Prints every offence; exits 1 when there is one.
set -u
cd "$(dirname "$0")/.." || exit 2
bad=0

# forbid DIR REGEX WHY: no include line in DIR may match REGEX
forbid() {
    [ -d "src/$1" ] || return 0
    found=$(grep -rnE "^[[:space:]]*#[[:space:]]*include[[:space:]]+[\"<]($2)" \
        "src/$1" --include='*.[ch]')
    [ -z "$found" ] && return 0
    echo "layers: $3:"
    echo "$found"
    bad=1
}

# home REGEX FILE...: only these files may include a header matching REGEX
home() {
    header=$1
    shift
    found=$(grep -rlE "^[[:space:]]*#[[:space:]]*include[[:space:]]+<($header)" \
        src --include='*.[ch]')
    for f in $found; do
        ok=0
        for h in "$@"; do
            # shellcheck disable=SC2254
            case "$f" in $h) ok=1 ;; esac
        done
        [ $ok = 1 ] && continue
        echo "layers: $f includes <$header>, whose home is: $*"
        bad=1
    done
}

up='qmp/|qcow2/|memstate/|engine/|cli/'
forbid base "(\.\./)*($up)" "base stands at the bottom"
forbid qmp "(\.\./)*(qcow2/|memstate/|engine/|cli/)" "qmp includes a sibling or upwards"
forbid qcow2 "(\.\./)*(qmp/|memstate/|engine/|cli/)" "qcow2 includes a sibling or upwards"
forbid memstate "(\.\./)*(qmp/|qcow2/|engine/|cli/)" "memstate includes a sibling or upwards"
forbid engine "(\.\./)*cli/" "engine includes cli"
forbid cli "(\.\./)*(base/|$up)" "cli sees include/ only"
forbid "" "\.\./" "no include climbs with .."

home 'jansson\.h' 'src/qmp/*' src/engine/json.c src/engine/json.h \
    src/engine/manifest.c src/engine/journal.c src/engine/vmrecord.c \
    src/engine/launch_json.c \
    src/cli/output.c src/cli/output.h
home 'liburing\.h' src/base/aio_uring.c
home 'zlib\.h' src/base/compress.c
home 'zstd\.h' src/base/compress.c
home 'xxh(ash|_x86dispatch)\.h' src/base/sum.c
[ $bad = 0 ] && echo "layers: ok"
exit $bad
