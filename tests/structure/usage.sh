#!/bin/sh
# SPDX-License-Identifier: MIT
# The command without any VM: help, usage errors, exit codes, JSON, streams.
# Every verb and every option is tried, from the command's own tables.
set -u
cd "$(dirname "$0")/../.." || exit 2
BUILD=${BUILD:-build}
q=$(pwd)/$BUILD/qstill
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
QSTILL_STORE=$tmp/store
export QSTILL_STORE
bad=0
tab=$(printf '\t')

wrong() {
    echo "usage: $*"
    sed 's/^/    /' "$tmp/out" "$tmp/err"
    bad=1
}
# expect STATUS ARGS...: runs the command, keeps what it printed
expect() {
    want=$1
    shift
    "$q" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    got=$?
    [ $got = "$want" ] || wrong "qstill $*: exit $got, not $want"
}
says() { # FILE TEXT
    grep -qF -- "$2" "$tmp/$1" || wrong "no '$2' on std$1"
}
silent() { # FILE
    [ ! -s "$tmp/$1" ] || wrong "something on std$1"
}
# The JSON error of a usage error, and the same words on stderr.
usage_error() { # MESSAGE ARGS...
    message=$1
    shift
    expect 2 "$@"
    silent out
    says err "$message"
    says err "hint: see 'qstill "
    expect 2 --json "$@" # behind it, it might be an argument
    # all are looked at in one go at the end: an interpreter each is slow
    { printf '%s\t' "$message"; tr -d '\n' <"$tmp/out"; echo; } >>"$tmp/json"
}

"$q" completion table >"$tmp/table" || exit 1
grep -c '^verb' "$tmp/table" >/dev/null || { echo "usage: no verbs"; exit 1; }

# --------------------------------------------------------------- the whole
usage_error "no verb given"
usage_error "unknown option '--nonsense'" --nonsense
usage_error "unknown verb 'frobnicate'" frobnicate
usage_error "(did you mean 'completion'?)" completoin bash
expect 0 --version
says out "qstill $(sed -n 's/^#define QSTILL_VERSION "\(.*\)"/\1/p' include/qstill.h)"
silent err
expect 0 --help
silent err
cut -f2 "$tmp/table" | sort -u >"$tmp/verbs"
while IFS= read -r verb; do
    [ "$verb" = - ] || says out "  $verb "
done <"$tmp/verbs"
cp "$tmp/out" "$tmp/help"
expect 0 help
cmp -s "$tmp/out" "$tmp/help" || wrong "help and --help differ"
expect 0 -h
cmp -s "$tmp/out" "$tmp/help" || wrong "-h and --help differ"
says out "--store DIR"
usage_error "unknown verb 'nosuch'" help nosuch
usage_error "-v and -q exclude each other" -v -q completion bash
usage_error "is none of bash" completion csh

# Scripts count on these names.
for pair in create:save list:ls info:show revert:rollback revert:restore \
    delete:rm; do
    expect 0 "${pair#*:}" --help
    says out "usage: qstill ${pair%:*} VM"
done

# -------------------------------------------------------------- every verb
grep '^verb' "$tmp/table" >"$tmp/verbs"
while IFS=$tab read -r _ verb aliases; do
    # shellcheck disable=SC2086 # "image map" is two words
    expect 0 $verb --help
    silent err
    says out "usage: qstill $verb"
    awk 'length > 79 {exit 1}' "$tmp/out" || wrong "$verb --help: a long line"
    cp "$tmp/out" "$tmp/help"
    # shellcheck disable=SC2086
    expect 0 help $verb
    cmp -s "$tmp/out" "$tmp/help" || wrong "help $verb and --help differ"
    for alias in $(echo "${aliases#-}" | tr , ' '); do
        expect 0 "$alias" --help
        cmp -s "$tmp/out" "$tmp/help" || wrong "$alias is not $verb"
    done
    # shellcheck disable=SC2086
    usage_error "unknown option '--nonsense'" $verb --nonsense
    # shellcheck disable=SC2086
    usage_error "unknown option '-x'" $verb -x
    first=$(awk -F"$tab" -v v="$verb" \
        '$1 == "operand" && $2 == v {print $3, $4; exit}' "$tmp/table")
    case $first in
    *" required")
        # shellcheck disable=SC2086
        usage_error "${first% *} is missing" $verb
        ;;
    esac
    grep -q "^operand$tab$verb$tab.*repeated" "$tmp/table" && continue
    # shellcheck disable=SC2086
    usage_error "too many arguments" $verb a b c d e f
done <"$tmp/verbs"

# ------------------------------------------------------------ every option
grep '^option' "$tmp/table" >"$tmp/options"
while IFS=$tab read -r _ verb option kind argument; do
    [ "$verb" != - ] || verb=
    # shellcheck disable=SC2086
    expect 0 $verb --help
    says out "$option"
    # shellcheck disable=SC2086
    case $kind in
    flag) usage_error "takes no argument" $verb "$option=x" ;;
    *) usage_error "option '$option' needs an argument" $verb "$option" ;;
    esac
    # shellcheck disable=SC2086
    case $kind in
    number) usage_error "is not a number" $verb "$option" x ;;
    size) usage_error "is not a size" $verb "$option" 1X ;;
    choice) usage_error "is none of $argument" $verb "$option" nosuch ;;
    esac
done <"$tmp/options"

usage_error "--max-pause-ms: no pause at all" \
    create vm s --memory --max-pause-ms 0

# ----------------------------------------------------------------- streams
if [ -w /dev/full ]; then
    "$q" --help >/dev/full 2>"$tmp/err"
    got=$?
    : >"$tmp/out"
    [ $got = 7 ] || wrong "a full standard output: exit $got, not 7"
    says err "writing to standard output"
fi
"$q" --help 2>"$tmp/err" | true
[ ! -s "$tmp/err" ] || wrong "words about a reader that went away"
"$q" frobnicate 2>&- >"$tmp/out"
got=$?
[ $got = 2 ] || wrong "a closed standard error: exit $got, not 2"
[ -e "$QSTILL_STORE" ] && wrong "a store was made for nothing"
python3 - "$tmp/json" <<'PY' || bad=1
import json, sys
for line in open(sys.argv[1]):
    message, text = line.rstrip("\n").split("\t", 1)
    e = json.loads(text)["error"]
    assert e["code"] == "usage" and message in e["message"], line
    assert "--help" in e["hint"], line
PY
[ $bad = 0 ] && echo "usage: ok"
exit $bad
