#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random merges of random chains: nothing that survives changes.

COUNT (default 12) chains from SEED (default 1) on. A merge may be refused
(exit 6) only where `excuses` knows a reason; then nothing may have changed.
"""

import collections
import os
import random
import unittest

import qchain
import qimage
import qmerge
import qtools

SEED = int(os.environ.get("SEED", "1"))
COUNT = int(os.environ.get("COUNT", "12"))


def excuses(chain, merge, direction):
    """Why this merge may be refused: words, or nothing."""
    out = set()
    touched = set(merge.drop)
    for path in merge.state:
        if merge.dropped_below(path):
            touched.add(path)
    by_path = {f.path: f for f in chain.files()}
    for path in touched:
        out |= by_path[path].notes & {"snapshots", "shared"}
        if by_path[path].fmt == "qcow2" and \
                qimage.Image(path).incompat & qimage.INCOMPAT_CORRUPT:
            out.add("marked corrupt by QEMU")  # 7.2 does, seed 1109
        if by_path[path].fmt == "qcow2" and \
                qimage.Image(path).cs < 1024 and \
                any(len(p) > 300 for p in by_path):
            out.add("no room for a name")
    if direction == "down":
        if any(by_path[p].fmt == "raw" for p in merge.drop):
            out.add("raw below")
        for p in merge.drop:
            users = [c for c, b in merge.parent.items() if b == p]
            if len(users) > 1:
                out.add("several children")
    return out


def told_before(plan, done):
    """The dry run tells the bytes that will be moved, and the way."""
    p, d = plan.json(), done.json()
    moved = d["bytesMoved"] + d["bytesShared"]
    if (p["direction"], p["bytesMoved"]) != (d["direction"], moved):
        return ["the dry run says %r, done was %r" % (p, d)]
    return []


class Refusals(collections.Counter):
    def __str__(self):
        return ", ".join("%s: %d" % i for i in self.most_common())


def choose(chain):
    """A set of layers to drop and a direction, by the chain's seed."""
    rng = random.Random("merge %d" % chain.seed)
    candidates = [f.path for f in chain.layers[:-1]]
    n = rng.choice((1, 1, 1, 2, 3, len(candidates)))
    drop = rng.sample(candidates, min(n, len(candidates)))
    direction = rng.choice(("auto", "auto", "up", "down", "new"))
    known = {os.path.dirname(f.path) for f in chain.layers}
    children = [c.path for c in chain.children
                if os.path.dirname(c.path) not in known or rng.random() < 0.5]
    return drop, direction, children


def check_as_made(chain):
    """QEMU 7.2 now and then writes compressed data into a cluster that it
    marks as COPIED (seed 517)."""
    for f in chain.files():
        if f.fmt == "qcow2" and (qtools.qemu_check(f.path) or (1,))[0]:
            raise qtools.Unreadable("%s is damaged as made" % f.path)


def one_merge(seed, directory, refusals):
    chain = qchain.Chain.make(seed, directory,
                              random.Random(seed).choice((2, 2, 3, 3, 4, 5)))
    check_as_made(chain)
    drop, direction, children = choose(chain)
    m = qmerge.Merge(directory, chain.files(), [f.path for f in chain.layers],
                     drop, children)
    behind = m.behind()
    plan = m.run(direction, "--dry-run")
    bad = ["dry run: " + b for b in m.untouched()]
    r = m.run(direction)
    if plan.rc != r.rc:
        bad.append("the dry run and the merge differ:\n%s\n%s" % (plan, r))
    if r.rc == qmerge.REFUSED:
        why = excuses(chain, m, direction)
        refusals[" ".join(sorted(why)) or "NO EXCUSE"] += 1
        if not why:
            bad.append("refused without an excuse: %s" % r)
        if not r.err.strip().startswith("qstill: "):
            bad.append("no reason given: %s" % r)
        bad += m.untouched()
    elif r.rc:
        bad += [str(r)] + m.untouched()
    else:
        bad += m.merged() + m.account(direction) + told_before(plan, r)
        bad += m.grown(behind)
        # QEMU itself leaves the other address of a cluster without its mark
        if not bad and not any("shared" in f.notes for f in chain.files()):
            bad += m.still_writable(seed)
    return chain, [str(m.argv(direction))] * bool(bad) + bad


@unittest.skipIf(qtools.missing(), qtools.missing())
class MergesLoseNothing(unittest.TestCase):
    def test_random_merges(self):
        refusals = Refusals()
        qmerge.each_seed(self, SEED, COUNT,
                         lambda seed, d: one_merge(seed, d, refusals))
        print("merges: %d, refused: %d (%s)" % (
            COUNT, sum(refusals.values()), refusals))


if __name__ == "__main__":
    unittest.main(verbosity=1)
