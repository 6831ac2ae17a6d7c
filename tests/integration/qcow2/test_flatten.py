#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random flattens of random chains: the new image reads as the top did.

COUNT (default 8) chains from SEED (default 1) on.
"""

import os
import random
import unittest

import qchain
import qmerge
import qtools

SEED = int(os.environ.get("SEED", "1"))
COUNT = int(os.environ.get("COUNT", "8"))


def one_flatten(seed, directory):
    chain = qchain.Chain.make(seed, directory)
    rng = random.Random("flatten %d" % seed)
    before = {f.path: qtools.file_hash(f.path) for f in chain.files()}
    fmt = rng.choice(("qcow2", "qcow2", "raw"))
    argv = ["--format", fmt]
    if fmt == "qcow2" and rng.random() < 0.4:
        argv.append("--compress")
    out = os.path.join(directory, "flat." + fmt)
    view = qtools.FileState(chain.top.path, chain.top.fmt).view
    r = qtools.image("flatten", chain.top.path, out, *argv)
    if r.rc:
        return chain, [str(r)]
    bad = ["%s was changed" % p for p, h in before.items()
           if qtools.file_hash(p) != h]
    if qtools.guest_hash(out, fmt) != view:
        bad.append("flattened content differs (%s)" % argv)
    if fmt == "qcow2":
        check = qtools.qemu_check(out)
        if check != (0, 0, 0):
            bad.append("flattened image: qemu-img check says %r" % (check,))
        _, info = qtools.qemu_json("info", "--output=json", out)
        if "backing-filename" in info:
            bad.append("the flattened image has a backing file")
    again = qtools.image("flatten", chain.top.path, out, *argv)
    if again.rc != 5:
        bad.append("over an existing file: %s" % again)
    return chain, bad


@unittest.skipIf(qtools.missing(), qtools.missing())
class FlattensLoseNothing(unittest.TestCase):
    def test_random_flattens(self):
        qmerge.each_seed(self, SEED, COUNT, one_flatten)


if __name__ == "__main__":
    unittest.main(verbosity=1)
