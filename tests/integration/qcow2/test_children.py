#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Overlays of a dropped layer that stand in other folders (--child)."""

import os
import shutil
import unittest

import qtools
import test_stuck

NEEDED = qtools.missing("qemu-img", "qemu-io")


@unittest.skipIf(NEEDED, NEEDED)
class AChildElsewhere(test_stuck.Stuck):
    def setUp(self):
        super().setUp()
        for folder in "AB":
            os.mkdir(self.path(folder))
        self.make("A/base", None, 1)
        self.make("A/mid", "base", 2)
        self.make("A/top", "mid", 3)

    def make(self, name, backing, fill):
        """Its k-th has data at the k-th 64 KiB, as they are numbered."""
        argv = ["-b", backing, "-F", "qcow2"] if backing else []
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", *argv,
                    self.path(name), "1M")
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %dk 64k" %
                    (fill, 64 * (fill - 1)), self.path(name))

    def merges(self, child, direction="up", top="A/top", drop="A/mid"):
        return self.merge(self.path(top), "--drop", self.path(drop),
                          "--direction", direction, "--child",
                          self.path(child))

    def is_refused(self, child, words, hint):
        before = self.hashes()
        for direction in test_stuck.DIRECTIONS:
            with self.subTest(child=child, direction=direction):
                self.refused(self.merges(child, direction), before, 6, words,
                             hint)

    def test_a_link_behind_which_the_rest_is_another(self):
        """QEMU takes mid's own backing name from the link's folder."""
        for link in (os.symlink, os.link):
            with self.subTest(link=link.__name__):
                for name in os.listdir(self.path("B")):
                    os.unlink(self.path("B", name))
                self.make("B/base", None, 1)
                qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 1M",
                            self.path("B/base"))
                link(self.path("A/mid"), self.path("B/way"))
                self.make("B/child", "way", 4)
                self.is_refused("B/child", "B/child stands on .*A/mid by a "
                                "link", "image of its own")

    def test_a_link_behind_which_all_is_the_same(self):
        os.symlink("../A/mid", self.path("B/way"))
        os.symlink("../A/base", self.path("B/base"))
        self.make("B/child", "way", 4)
        want = qtools.guest_hash(self.path("B/child"), "qcow2")
        r = self.merges("B/child")
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(qtools.guest_hash(self.path("B/child"), "qcow2"),
                         want)
        self.shows(self.path("A/top"), 1, 2, 3)

    def test_one_that_is_no_overlay_of_what_goes(self):
        """Whoever mistypes a name would lose the overlay that he meant."""
        shutil.copy(self.path("A/mid"), self.path("B/mid"))
        shutil.copy(self.path("A/base"), self.path("B/base"))
        self.make("B/of_a_copy", "mid", 4)
        self.make("B/alone", None, 4)
        with open(self.path("B/raw"), "wb") as f:
            f.truncate(1 << 20)
        for child in ("B/of_a_copy", "B/alone", "B/raw", "A/base", "A/mid",
                      "A/top"):
            self.is_refused(child, "%s does not stand on a layer that is to go"
                            % child, "name the overlay that does")

    def test_one_that_an_earlier_try_has_taken_care_of(self):
        self.make("B/child", "../A/base", 4)
        r = self.merges("B/child")
        self.assertEqual(r.rc, 0, str(r))
        self.shows(self.path("B/child"), 1, 0, 0, 4)

    def died(self, sig, call, n, direction):
        """Whether the merge of all of A into top was cut off; B/child stands on
        the bottom, and on nothing in the end."""
        for name in [*os.listdir(self.path("A")), *os.listdir(self.path("B"))]:
            for folder in "AB":
                if os.path.exists(self.path(folder, name)):
                    os.unlink(self.path(folder, name))
        self.make("A/base", None, 1)
        self.make("A/mid", "base", 2)
        self.make("A/top", "mid", 3)
        self.make("B/child", "../A/base", 4)
        return qtools.run(
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + call,
            "-e", "inject=%s:signal=%s:when=%d" % (call, sig, n),
            qtools.QSTILL, *self.all(), "--direction", direction).rc not in (
                0, 4)

    def all(self):
        return ["image", "merge", self.path("A/top"), "--drop",
                self.path("A/mid"), "--drop", self.path("A/base"), "--child",
                self.path("B/child")]

    @unittest.skipIf(qtools.missing("strace"), qtools.missing("strace"))
    def test_the_same_command_again(self):
        """The child may stand on nothing by then, which it must not else."""
        alone = 0
        for sig, call, direction in qtools.sample(
                [(s, c, d) for s in ("KILL", "INT")
                 for c in ("fsync,fdatasync", "rename,renameat2,unlinkat")
                 for d in ("up", "new")], self.id(), 2):
            for n in range(1, 30):
                if not self.died(sig, call, n, direction):
                    break
                with self.subTest(sig=sig, call=call, direction=direction, n=n):
                    rest = os.path.exists(self.path("A/base"))
                    info = qtools.qemu_json("info", "-U", "--output=json",
                                            self.path("B/child"))[1]
                    alone += rest and "backing-filename" not in info
                    if n % 2: # and once more
                        qtools.image("merge", self.path("A/top"), "--drop",
                                     self.path("A/none"))
                        dry = qtools.run(qtools.QSTILL, *self.all(),
                                         "--dry-run")
                        self.assertIn(dry.rc, (0, 4), str(dry))
                        rest = os.path.exists(self.path("A/base"))
                    r = qtools.run(qtools.QSTILL, *self.all())
                    self.assertIn(r.rc, (0, 4) if not rest else (0,), str(r))
                    self.shows(self.path("A/top"), 1, 2, 3)
                    self.shows(self.path("B/child"), 1, 0, 0, 4)
                    self.assertEqual(["top"], os.listdir(self.path("A")))
                    self.assertEqual(["child"], os.listdir(self.path("B")))
        self.assertGreater(alone, 0)

    def test_one_of_several(self):
        """Each is a child of one of two layers that are no neighbours."""
        self.make("A/head", "top", 4)
        self.make("B/one", "../A/top", 5)
        self.make("B/two", "../A/base", 6)
        r = self.merge(self.path("A/head"), "--drop", self.path("A/top"),
                       "--drop", self.path("A/base"), "--child",
                       self.path("B/one"), "--child", self.path("B/two"))
        self.assertEqual(r.rc, 0, str(r))
        self.shows(self.path("B/one"), 1, 2, 3, 0, 5)
        self.shows(self.path("B/two"), 1, 0, 0, 0, 0, 6)
        self.shows(self.path("A/head"), 1, 2, 3, 4)


if __name__ == "__main__":
    unittest.main(verbosity=1)
