#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Clusters in use that are holes of their file: zeros that need not be copied,
and that hide what is below.

QEMU makes them with preallocated metadata, cp --sparse and fallocate -d out of
zeros that a guest wrote."""

import os
import random
import unittest

import qimage
import qmerge
import qtools
import test_known
from test_known import DIRECTIONS, KIB, MIB

OPTIONS = ("cluster_size=512", "cluster_size=4k", "cluster_size=64k",
           "cluster_size=2M", "compat=0.10", "cluster_size=16k,extended_l2=on")


def used(directory):
    os.sync()
    return sum(os.stat(os.path.join(directory, n)).st_blocks * 512
               for n in os.listdir(directory))


class Holes(test_known.MergeCase):
    def setUp(self):
        super().setUp()
        with open(self.path("probe"), "wb") as f:
            f.truncate(MIB)
            if os.lseek(f.fileno(), 0, os.SEEK_HOLE) != 0:
                self.skipTest("no filesystem that tells of holes")
        os.unlink(self.path("probe"))

    def judged(self, direction, chain, drop, **kw):
        """The merge and its dry run; the bytes that were moved."""
        files = [test_known.File(p, test_known.fmt_of(p)) for p in chain]
        files += kw.get("others", [])
        m = qmerge.Merge(self.dir, files, chain, drop)
        plan = m.run(direction, "--dry-run")
        self.assertEqual([], m.untouched(), str(plan))
        r = m.run(direction)
        self.assertEqual(0, r.rc, str(r))
        self.assertEqual([], m.merged() + m.account(direction))
        moved = r.json()["bytesMoved"] + r.json()["bytesShared"]
        self.assertEqual(plan.json()["bytesMoved"], moved)
        if kw.get("write", True):
            self.assertEqual([], m.still_writable(1))
        return moved

    def clear(self):
        for n in os.listdir(self.dir):
            os.unlink(self.path(n))


class PreallocatedMetadata(Holes):
    def writes(self, seed, size):
        rng = random.Random(seed)
        return ["write -q -P %d %d %d" % (
            rng.randrange(1, 256), rng.randrange(0, size - 256 * KIB),
            rng.choice((512, 4096, 20000, 200000))) for _ in range(10)]

    def most(self, writes, options):
        """Bytes of whole clusters that they touch. Of 512 bytes, some share
        the blocks of the file with tables."""
        cs = 2 * MIB if "2M" in options else 64 * KIB
        more = 12 * MIB if "512" in options else 0
        return more + sum(int(w.split()[-1]) // cs * cs + 2 * cs
                          for w in writes)

    def test_only_what_is_there_is_copied(self):
        size = 24 * MIB + 512
        for i, options in enumerate(qtools.sample(OPTIONS, self.id(), 2)):
            for k, direction in enumerate(qtools.sample(
                    DIRECTIONS, self.id() + options)):
                with self.subTest(options=options, direction=direction):
                    self.clear()
                    w = [self.writes(10 * i + k + 100 * j, size)
                         for j in range(3)]
                    base = self.create(
                        "base", size, options="preallocation=metadata," +
                        options, writes=w[0])
                    mid = self.create("mid", size, "base", writes=w[1])
                    top = self.create("top", size, "mid", writes=w[2],
                                      options=options)
                    before = used(self.dir)
                    moved = self.judged(direction, [base, mid, top],
                                        [base, mid], write=False)
                    most = self.most(w[0] + w[1] + w[2], options)
                    self.assertLess(moved, most)
                    self.assertLess(used(self.dir), before + most)

    def test_of_a_base_with_two_overlays(self):
        size = 1 << 30
        for direction in ("up", "new", "auto"):
            with self.subTest(direction):
                self.clear()
                base = self.create("base", size,
                                   options="preallocation=metadata",
                                   writes=["write -q -P 1 300M 1M"])
                top = self.create("top", size, "base",
                                  writes=["write -q -P 2 700M 1M"])
                other = self.create("other", size, "base",
                                    writes=["write -q -P 3 900M 1M"])
                before = used(self.dir)
                r = qtools.image("merge", top, "--drop", base, "--direction",
                                 direction)
                self.assertEqual(0, r.rc, str(r))
                own = direction == "new"
                self.assertEqual((2 + own) * MIB, r.json()["bytesMoved"] +
                                 r.json()["bytesShared"])
                self.assertFalse(os.path.exists(base))
                self.assertLess(used(self.dir), before + 3 * MIB)
                for image, own, at in ((top, 2, "700M"), (other, 3, "900M")):
                    self.assertEqual((0, 0, 0), qtools.qemu_check(image))
                    self.io(image, "read -q -P 1 300M 1M",
                            "read -q -P %d %s 1M" % (own, at),
                            "read -q -P 0 0 300M", "read -q -P 0 301M 300M")

    def test_a_terabyte(self):
        for direction in ("up", "new"):
            with self.subTest(direction):
                self.clear()
                base = self.create(
                    "base", 1 << 40, writes=["write -q -P 1 5G 2M"],
                    options="preallocation=metadata,cluster_size=2M")
                top = self.create("top", 1 << 40, "base",
                                  options="cluster_size=2M")
                r = qtools.image("merge", top, "--drop", base, "--direction",
                                 direction)
                self.assertEqual(0, r.rc, str(r))
                self.assertEqual(2 * MIB, r.json()["bytesMoved"] +
                                 r.json()["bytesShared"])
                self.assertEqual((0, 0, 0), qtools.qemu_check(top))
                self.io(top, "read -q -P 1 5G 2M", "read -q -P 0 6G 64M")


class TheyHideWhatIsBelow(Holes):
    SIZE = 8 * MIB + 512

    def layers(self, options, lower="qcow2"):
        """A base full of ones; a layer of zeros, as data, with a few bytes; a
        top with holes of its own."""
        if lower == "raw":
            base = self.path("base")
            with open(base, "wb") as f:
                f.write(b"\1" * self.SIZE)
        else:
            base = self.create("base", self.SIZE,
                               writes=["write -q -P 1 0 %d" % self.SIZE])
        mid = self.create("mid", self.SIZE, "base", options=options, writes=[
            "write -q -P 0 1M 4M", "write -q -P 2 2M 70000",
            "write -q -P 0 %d 1536" % (self.SIZE - 1536)])
        top = self.create("top", self.SIZE, "mid", writes=[
            "write -q -P 3 3M 5000", "write -q -P 0 6M 256k",
            "write -q -z 1500k 300000"], options=options)
        for path in (mid, top):
            qtools.must("fallocate", "-d", path)
        return [base, mid, top]

    def each(self, lower, drop, change=None, directions=None):
        """All options; each with its direction, or with those."""
        for i, options in enumerate(qtools.sample(OPTIONS, self.id(), 2)):
            for direction in directions or (DIRECTIONS[i % 4],):
                with self.subTest(options=options, direction=direction):
                    self.clear()
                    chain = self.layers(options, lower)
                    if change:
                        change(chain)
                    was = qtools.guest_bytes(chain[-1], "qcow2")
                    self.assertEqual(b"\0", was[MIB + 5:MIB + 6])
                    yield options, direction, self.judged(
                        direction, chain, drop(chain))

    def test_in_the_middle(self):
        for options, direction, moved in self.each(
                "qcow2", lambda c: c[1:2],
                directions=qtools.sample(DIRECTIONS, self.id())):
            if "2M" not in options and "0.10" not in options:
                self.assertLess(moved, MIB)

    def test_down_to_a_base_that_goes(self):
        for _ in self.each("qcow2", lambda c: c[:2]):
            pass

    def test_above_a_raw_base(self):
        for _ in self.each("raw", lambda c: c[1:2]):
            pass

    def test_blocks_that_are_there_and_were_never_written(self):
        """Some of the holes have room (fallocate): they read as zeros."""
        def change(chain):
            size = os.path.getsize(chain[1])
            qtools.must("fallocate", "-l", str(size // 2), chain[1])
            qtools.must("fallocate", "-o", "65536", "-l", "300000", chain[2])
        for _ in self.each("qcow2", lambda c: c[1:2], change):
            pass

    def test_all_of_a_file_has_room(self):
        def change(chain):
            qtools.must("fallocate", "-l", str(os.path.getsize(chain[1])),
                        chain[1])
        for _ in self.each("qcow2", lambda c: c[1:2], change):
            pass

    def test_what_was_written_a_moment_ago(self):
        """No block has its place on the disk yet."""
        def change(chain):
            at = qimage.Image(chain[1]).allocated_ranges()
            r, found = qtools.qemu_json("map", "--output=json", "-f", "qcow2",
                                        chain[1])
            self.assertTrue(at and found, str(r))
            at = [e["offset"] for e in found if e["data"] and e["depth"] == 0]
            with open(chain[1], "r+b") as f:
                f.seek(at[-1])
                f.write(b"\7" * 512)
        for _ in self.each("qcow2", lambda c: c[1:2], change):
            pass


if __name__ == "__main__":
    unittest.main(verbosity=1)
