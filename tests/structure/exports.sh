#!/bin/sh
# SPDX-License-Identifier: MIT
# Headers, version map and built library agree: what is declared is exported,
# and nothing else is. The headers stand alone, in C99 and in C++.
set -u
cd "$(dirname "$0")/../.." || exit 2
BUILD=${BUILD:-build}
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
bad=0
offence() {
    echo "exports: $1"
    sed 's/^/    /' "$2"
    bad=1
}

# Declared functions: a name before "(", comments and callback types aside.
cat include/*.h | tr '\n' ' ' | sed 's|/\*[^*]*\*\+\([^/*][^*]*\*\+\)*/| |g' |
    sed 's/typedef [^;{]*;//g' |
    grep -oE '\bqstill_[a-z0-9_]+ *\(' | tr -d ' (' |
    sort -u >"$tmp/declared"
nm -D --defined-only "$BUILD/libqstill.so" |
    awk '$2 ~ /[TDBRV]/ {sub(/@.*/, "", $3); print $3}' | sort -u >"$tmp/so"
nm -g --defined-only "$BUILD/public/libqstill.a" |
    awk 'NF == 3 {print $3}' | grep -v '^__odr_asan' | sort -u >"$tmp/a"
if [ ! -s "$tmp/declared" ] || [ ! -s "$tmp/so" ]; then
    echo "exports: no names found"
    exit 1
fi

comm -13 "$tmp/declared" "$tmp/so" >"$tmp/undeclared"
[ -s "$tmp/undeclared" ] && offence "exported, but in no header:" "$tmp/undeclared"
comm -23 "$tmp/declared" "$tmp/so" >"$tmp/missing"
[ -s "$tmp/missing" ] && offence "declared, but not exported:" "$tmp/missing"
comm -3 "$tmp/so" "$tmp/a" >"$tmp/differ"
[ -s "$tmp/differ" ] && offence "not the same in .so and .a:" "$tmp/differ"

alone() { # COMPILER SUFFIX FLAGS...
    compiler=$1 suffix=$2
    shift 2
    command -v "$compiler" >/dev/null || { echo "exports: no $compiler"; return; }
    for h in include/*.h; do
        echo "#include \"$(basename "$h")\"" >"$tmp/alone.$suffix"
        "$compiler" "$@" -Werror -Wall -Wextra -pedantic-errors -Iinclude \
            -fsyntax-only "$tmp/alone.$suffix" >"$tmp/words" 2>&1 ||
            offence "$h does not stand alone ($compiler $*):" "$tmp/words"
    done
}
alone "${CC:-cc}" c -std=c99
alone "${CXX:-c++}" cpp -std=c++11
[ $bad = 0 ] && echo "exports: ok"
exit $bad
