#!/bin/bash
# SPDX-License-Identifier: MIT
# The bash completion, asked as bash asks it.
set -u
cd "$(dirname "$0")/../.." || exit 2
BUILD=${BUILD:-build}
PATH=$PWD/$BUILD:$PATH
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
bad=0
qstill completion bash >"$tmp/script" && bash -n "$tmp/script" || exit 1
# shellcheck disable=SC1091
. "$tmp/script"

# offers "WORDS" EXPECTED...: each of them is among the answers to Tab
offers() {
    local line=$1 word answer
    shift
    read -r -a COMP_WORDS <<<"$line"
    [[ $line == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    _qstill 2>"$tmp/err"
    answer=" ${COMPREPLY[*]} "
    [ -s "$tmp/err" ] && { cat "$tmp/err"; bad=1; }
    for word; do
        if [[ $word == !* ]]; then
            [[ $answer == *" ${word#!} "* ]] || continue
            echo "completion: '$line' offers '${word#!}'"
        else
            [[ $answer == *" $word "* ]] && continue
            echo "completion: '$line' does not offer '$word':$answer"
        fi
        bad=1
    done
}

# Every verb by its first word, every option behind its verb.
while IFS=$'\t' read -r what verb name _; do
    case $what in
    verb) offers "qstill " "${verb%% *}" ;;
    option)
        if [ "$verb" = - ]; then
            offers "qstill --" "$name"
        else
            offers "qstill $verb --" "$name" --json
        fi ;;
    esac
done < <(qstill completion table)
while IFS=$'\t' read -r what verb name kind argument; do
    [ "$what $kind" = "option choice" ] || continue
    offers "qstill $verb $name " "${argument%%|*}" "${argument##*|}"
    offers "qstill $verb $name = ${argument%%|*}" "${argument%%|*}"
done < <(qstill completion table)
offers "qstill compl" completion '!help'
offers "qstill completion " bash table
offers "qstill --json completion b" bash '!table'
offers "qstill --sto" --store '!--json'
touch "$tmp/afile"
offers "qstill --store $tmp/a" "$tmp/afile"
[ $bad = 0 ] && echo "completion: ok"
exit $bad
