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
