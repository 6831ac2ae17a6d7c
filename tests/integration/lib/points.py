# SPDX-License-Identifier: MIT
"""Which points of which operation were tried, kept in a file: a long series is
run in parts, and what was run is counted and not guessed.

    points.py FILE      prints the table

Each line is JSON: {"of", "total"} says how many points an operation has,
{"of", "point", "how"} that one was tried: how is run, same (as the one before
it) or broken (then with "text"); {"of", "end"} that there are no more."""

import collections
import json
import os
import sys
import time

FILE = os.environ.get("QSTILL_TEST_POINTS")
# In seconds since 1970: no point is begun after it.
UNTIL = float(os.environ.get("QSTILL_TEST_UNTIL", "inf"))


def time_is_up():
    return time.time() > UNTIL


def read(path):
    """{of: (total, {point: how}, over)}"""
    found = {}
    if path and os.path.exists(path):
        with open(path) as f:
            for line in f:
                said = json.loads(line)
                total, points, over = found.get(said["of"], (0, {}, False))
                if "point" in said:
                    points[said["point"]] = said["how"]
                total = said.get("total", total)
                found[said["of"]] = total, points, over or "end" in said
    return found


class Points:
    """Those of one operation."""

    def __init__(self, of):
        self.of = of
        self.total, self.points, self.over = read(FILE).get(
            of, (0, {}, False))

    def _write(self, **said):
        if FILE:
            with open(FILE, "a") as f:  # one write: others append, too
                f.write(json.dumps({"of": self.of, **said}) + "\n")

    def begin(self, total):
        if not self.total:
            self.total = total
            self._write(total=total)

    def knows(self, point):
        return self.points.get(point) in ("run", "same")

    def todo(self, points):
        """Those that are not known, while there is time."""
        for n in points:
            if self.knows(n):
                continue
            if time_is_up():
                return
            yield n

    def rounds(self, total):
        """1 to total: one that was gone on from is done, and not tried again
        by who goes on with the file."""
        self.begin(total)
        for n in self.todo(range(1, total + 1)):
            yield n
            self.add(n, "run")
        if all(self.knows(n) for n in range(1, total + 1)):
            self.end(total)

    def add(self, point, how, text=""):
        self.points[point] = how
        self._write(point=point, how=how, **({"text": text} if text else {}))

    def end(self, point):
        self.over = True
        self._write(end=point)

    def text(self):
        return line(self.of, self.total, self.points, self.over)


def line(of, total, points, over):
    counts = collections.Counter(points.values())
    return "%s: %d points%s: %d run, %d same, %d broken" % (
        of, total, "" if over else ", not yet all", counts["run"],
        counts["same"], counts["broken"])


def main():
    sums = collections.Counter()
    for of, (total, points, over) in sorted(read(sys.argv[1]).items()):
        print(line(of, total, points, over))
        sums.update(points.values())
        # some calls more or less from run to run
        sums["points"] += max([total, *points])
        sums["open"] += not over
    print("%d points: %d run, %d same, %d broken; operations not at their "
          "end: %d" % (sums["points"], sums["run"], sums["same"],
                       sums["broken"], sums["open"]))
    return 1 if sums["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
