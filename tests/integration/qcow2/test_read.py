#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""info, map, check and compare agree with qemu-img on random chains.

COUNT (default 12) chains from SEED (default 1) on; a failure prints the seed,
the commands that made the images, and keeps the directory.
"""

import os
import random
import shutil
import unittest

import qchain
import qcompare
import qmerge
import qtools

SEED = int(os.environ.get("SEED", "1"))
COUNT = int(os.environ.get("COUNT", "12"))


def each_chain(test, check):
    def one(seed, directory):
        chain = qchain.Chain.make(seed, directory)
        return chain, check(chain)
    qmerge.each_seed(test, SEED, COUNT, one)


@unittest.skipIf(qtools.missing(), qtools.missing())
class ReadsAsQemuDoes(unittest.TestCase):
    def test_info_map_and_check_of_random_chains(self):
        def check(chain):
            bad = []
            for f in chain.files():
                bad += qcompare.same_info(f.path, f.fmt)
                bad += qcompare.same_map(f.path, f.fmt, loose_zero=True)
                if f.fmt == "qcow2":
                    bad += qcompare.same_check(f.path)
            return bad
        each_chain(self, check)

    def test_info_of_what_is_not_merged(self):
        """Data in another file, encryption: named as qemu-img names them."""
        work = qtools.scratch()
        self.addCleanup(shutil.rmtree, work, True)
        secret = ["--object", "secret,id=s,data=x"]
        for name, before, options in (
                ("data", [], "data_file=%s/d.img" % work),
                ("raw", [], "data_file=%s/r.img,data_file_raw=on" % work),
                ("luks", secret, "encrypt.format=luks,encrypt.key-secret=s,"
                 "encrypt.iter-time=10"),
                ("aes", secret, "encrypt.format=aes,encrypt.key-secret=s")):
            with self.subTest(name):
                path = os.path.join(work, name)
                for _ in range(9):
                    # it measures the host's CPU for LUKS, and may fail to
                    r = qtools.run("qemu-img", "create", "-q", "-f", "qcow2",
                                   *before, "-o", options, path, "4M")
                    if r.rc == 0:
                        break
                self.assertEqual(0, r.rc, str(r))
                self.assertEqual([], qcompare.same_info(path, "qcow2"))
                said = qtools.must(qtools.QSTILL, "image", "info", path).out
                if "data_file" in options:
                    self.assertIn("data file", said)
                    self.assertIn(options.split("=")[1].split(",")[0], said)
                else:
                    self.assertRegex(said, r"encryption +%s\n" % name)

    def test_compare_of_random_chains(self):
        def check(chain):
            rng, top, bad = random.Random(chain.seed), chain.top.path, []
            flat = os.path.join(chain.dir, "flat.img")
            r = qtools.run("qemu-img", "convert", "-O", "raw", "-f",
                           chain.top.fmt, top, flat)
            if r.rc:  # seed 31: QEMU cannot read what it wrote
                return bad
            argv = ["--format", chain.top.fmt, "--format-b", "raw", top, flat]
            r = qtools.image("compare", *argv)
            if r.rc != 0:
                bad.append(str(r))
            size = os.path.getsize(flat)
            at = rng.choice((0, size - 1, rng.randrange(size)))
            with open(flat, "r+b") as f:
                f.seek(at)
                byte = f.read(1)
                f.seek(at)
                f.write(bytes([byte[0] ^ 0x40]))
            r = qtools.image("compare", *argv)
            if r.rc != 1 or r.json().get("offset") != at // 512 * 512:
                bad.append("a changed byte at %d: %s" % (at, r))
            return bad
        each_chain(self, check)


if __name__ == "__main__":
    unittest.main(verbosity=1)
