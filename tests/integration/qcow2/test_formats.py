#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Overlays that read a file in another format than the chain does: a qcow2
image as the raw disk that its bytes are, or a raw disk as the qcow2 image that
a guest has put into it. What is taken in for them would be the other content."""

import os
import unittest

import qtools
import test_stuck

NEEDED = qtools.missing("qemu-img", "qemu-io")
HINT = "qemu-img rebase -u gives it the right format"


@unittest.skipIf(NEEDED, NEEDED)
class AnotherFormat(test_stuck.Stuck):
    def overlay(self, name, below, fmt, fill, size=("4M",)):
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b", below,
                    "-F", fmt, self.path(name), *size)
        qtools.must("qemu-io", "-f", "qcow2", "-c",
                    "write -q -P %d 3M 64k" % fill, self.path(name))

    def base(self):
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2",
                    self.path("base"), "4M")
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 4M",
                    self.path("base"))

    def chain(self):
        self.base()
        self.overlay("a", "base", "qcow2", 2)
        self.overlay("top", "a", "qcow2", 3)

    def is_refused(self, drop, words, *more):
        before = self.hashes()
        for direction in test_stuck.DIRECTIONS:
            for dry in ((), ("--dry-run",)):
                with self.subTest(direction=direction, dry=dry):
                    self.refused(self.merge(
                        self.path("top"), "--drop", self.path(drop),
                        "--direction", direction, *more, *dry), before, 6,
                        words, HINT)

    def test_a_dropped_qcow2_layer_read_as_raw(self):
        self.chain()
        self.overlay("side", "a", "raw", 4)
        self.is_refused("a", "side reads .*/a as raw, which is qcow2 here")

    def test_a_dropped_raw_layer_read_as_qcow2(self):
        self.base()
        self.overlay("top", "base", "raw", 3, ("8M",))
        self.overlay("side", "base", "qcow2", 4)
        self.is_refused("base", "side reads .*/base as qcow2, which is raw "
                        "here")

    def test_the_upper_layer_read_as_raw(self):
        """Its file is another afterwards, though it shows the same."""
        self.chain()
        self.overlay("side", "top", "raw", 4)
        self.is_refused("a", "side reads .*/top as raw, which is qcow2 here")

    def test_another_overlay_read_as_raw(self):
        """That takes in what it read: its file changes, too."""
        self.chain()
        self.overlay("other", "a", "qcow2", 5)
        self.overlay("side", "other", "raw", 4)
        self.is_refused("a", "side reads .*/other as raw, which is qcow2 here")

    def test_one_in_another_folder(self):
        self.chain()
        os.mkdir(self.path("B"))
        self.overlay("B/side", "../a", "raw", 4)
        self.is_refused("a", "side reads .*/a as raw, which is qcow2 here",
                        "--child", self.path("B/side"))

    def test_what_stays_may_be_read_in_any_format(self):
        self.chain()
        self.overlay("side", "base", "raw", 4)
        want = {n: qtools.guest_hash(self.path(n), "qcow2")
                for n in ("top", "side")}
        r = self.merge(self.path("top"), "--drop", self.path("a"))
        self.assertEqual(r.rc, 0, str(r))
        for name, view in want.items():
            self.assertEqual(qtools.guest_hash(self.path(name), "qcow2"), view)

    def test_with_the_right_format_it_goes(self):
        self.chain()
        self.overlay("side", "a", "raw", 4)
        qtools.must("qemu-img", "rebase", "-u", "-b", "a", "-F", "qcow2",
                    self.path("side"))
        want = qtools.guest_hash(self.path("side"), "qcow2")
        r = self.merge(self.path("top"), "--drop", self.path("a"))
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(qtools.guest_hash(self.path("side"), "qcow2"), want)


if __name__ == "__main__":
    unittest.main(verbosity=1)
