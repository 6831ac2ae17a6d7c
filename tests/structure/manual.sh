#!/bin/sh
# SPDX-License-Identifier: MIT
# The manual against the command's tables and the header: each verb, operand,
# alias, option, argument and exit status is in both or in neither. A section
# of a verb that the command does not have is an offence, too.
set -u
cd "$(dirname "$0")/../.." || exit 2
BUILD=${BUILD:-build}
pod=docs/man/qstill.1.pod
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
bad=0

# As "verb NAME", "alias VERB ALIAS" and "option VERB --NAME ARGUMENT", the
# verb "-" for global options.
"$BUILD/qstill" completion table | awk -F'\t' '
    $1 == "verb" {print "verb", $2; n = $3 == "-" ? 0 : split($3, a, ",")
        for (i = 1; i <= n; i++) print "alias", $2 ":", a[i]}
    $1 == "operand" {print "operand", $2 ":", $3, ($4 == "optional" ? "?" : ""),
        (NF > 4 ? "..." : "")}
    $1 == "option" {print "option", $2 ":", $3, $5}' |
    sed 's/  */ /g; s/ $//' | sort >"$tmp/table"
[ -s "$tmp/table" ] || { echo "manual: no table"; exit 1; }

# shellcheck disable=SC2016
awk '
    function plain(s) { gsub(/[BICF]</, "", s); gsub(/>/, "", s); return s }
    /^=head1 / { section = substr($0, 8); verb = section == "GLOBAL OPTIONS" ? "-" : "" }
    /^=head2 / && section == "VERBS" {
        line = plain(substr($0, 8)); n = split(line, w, " "); verb = w[1]; i = 2
        if (verb == "image" || verb == "bench") verb = verb " " w[i++]
        print "verb", verb
        for (; i <= n; i++) {
            more = sub(/\.\.\.]?$/, "", w[i]); maybe = sub(/^\[/, "", w[i])
            sub(/]$/, "", w[i])
            print "operand", verb ":", w[i], (maybe ? "?" : ""), (more ? "..." : "")
        }
    }
    verb != "" && /^=item B<--/ {
        line = plain(substr($0, 7)); sub(/, -[a-z]$/, "", line)
        n = split(line, w, " ")
        print "option", verb ":", w[1], (n > 1 ? w[2] : "-")
    }
    verb != "" { text = text " " $0 }
    /^$/ {
        if (match(text, /[Aa]lso called B<[a-z]+>( and B<[a-z]+>)?/)) {
            n = split(plain(substr(text, RSTART + 12, RLENGTH - 12)), w, " and ")
            for (i = 1; i <= n; i++) print "alias", verb ":", w[i]
        }
        text = ""
    }' "$pod" | sed 's/  */ /g; s/ $//' | sort >"$tmp/manual"
if ! diff "$tmp/table" "$tmp/manual" >"$tmp/diff"; then
    echo "manual: $pod and the command differ (< command, > manual):"
    cat "$tmp/diff"
    bad=1
fi

# Exit codes: value and name, as in the header.
sed -n 's/^    QSTILL_\(E_\)\?\([A-Z_]*\) = -\?\([0-9]*\).*/\3 \2/p' \
    include/qstill.h | tr 'A-Z_' 'a-z-' >"$tmp/codes"
sed -n 's/^=item B<\([0-9]*\)> \([a-z-]*\)$/\1 \2/p' "$pod" >"$tmp/items"
if ! diff "$tmp/codes" "$tmp/items" >"$tmp/diff"; then
    echo "manual: the exit codes of include/qstill.h and $pod differ:"
    cat "$tmp/diff"
    bad=1
fi

sed -n 's/^=for example //p' docs/man/*.pod >"$tmp/examples"
while IFS= read -r f; do
    [ -f "$f" ] || { echo "manual: no $f"; bad=1; }
done <"$tmp/examples"
if command -v podchecker >/dev/null; then
    podchecker -warnings -warnings docs/man/*.pod >"$tmp/words" 2>&1 ||
        { cat "$tmp/words"; bad=1; }
fi
[ $bad = 0 ] && echo "manual: ok"
exit $bad
