#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Layers with what a killed or a careless writer leaves behind: refcounts that
are too high, the dirty bit, clusters with two addresses. No harm to what the
guest sees; the result of a merge has none of it."""

import random
import struct
import unittest

import qbuild
import qimage
import qtools
import test_known

KIB, MIB = 1024, 1 << 20


def forget_snapshots(path):
    """As if killed right before the header that `qemu-img snapshot -c` writes
    last: all the guest's clusters have a refcount of 2, none is COPIED."""
    qtools.must("qemu-img", "snapshot", "-c", "s", path)
    with open(path, "r+b") as f:
        f.seek(60)
        f.write(bytes(12))


def set_dirty(path):
    with open(path, "r+b") as f:
        f.seek(72)
        bits, = struct.unpack(">Q", f.read(8))
        f.seek(72)
        f.write(struct.pack(">Q", bits | qimage.INCOMPAT_DIRTY))


def is_dirty(path):
    return qimage.Image(path).incompat & qimage.INCOMPAT_DIRTY


class Leftovers(test_known.MergeCase):
    def pair(self, options, d_writes=("write -q -P 1 0 2M",),
             u_writes=("write -q -P 2 2M 64k", "write -q -P 3 100k 3k")):
        d = self.create("d", 3 * MIB, options=options, writes=d_writes)
        u = self.create("u", 3 * MIB, "d", options=options, writes=u_writes)
        return d, u

    def leaks(self, options, leaky, spoil=forget_snapshots, **kw):
        def build():
            paths = self.pair(options, **kw)
            for i in leaky:
                spoil(paths[i])
            return list(paths), [paths[0]], []
        self.merge_each(build)

    def test_a_snapshot_that_broke_off(self):
        for options in qtools.sample(
                ("cluster_size=512", "cluster_size=64k",
                 "cluster_size=64k,extended_l2=on", "compat=0.10",
                 "cluster_size=4k,refcount_bits=2"), self.id(), 2):
            for leaky in ((0,), (1,), (0, 1)):
                with self.subTest(options=options, leaky=leaky):
                    self.leaks(options, leaky)

    def test_into_an_upper_image_that_holds_most(self):
        """It keeps its file, most of its tables too."""
        self.leaks("cluster_size=512", (1,), d_writes=["write -q -P 1 9k 1k"],
                   u_writes=["write -q -P 2 64k 2M"])

    def test_a_layer_of_which_nothing_is_needed(self):
        """No data moves; the leaks go."""
        self.leaks("cluster_size=4k", (0, 1), d_writes=(),
                   u_writes=["write -q -P 2 64k 2M"])
        self.leaks("cluster_size=4k", (0, 1), u_writes=())

    def test_a_dirty_image_with_leaks(self):
        def spoil(path):
            forget_snapshots(path)
            set_dirty(path)
        for leaky in ((0,), (1,)):
            with self.subTest(leaky=leaky):
                self.leaks("cluster_size=4k,lazy_refcounts=on", leaky, spoil)

    def test_a_dirty_image_whose_refcounts_were_never_written(self):
        def spoil(path):
            qtools.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 200k",
                       "-c", "flush", "-c", "write -q -P 8 2900k 9k",
                       "-c", "sigraise 9", path)
            self.assertTrue(is_dirty(path))
        for leaky in ((0,), (1,), (0, 1)):
            with self.subTest(leaky=leaky):
                self.leaks("cluster_size=4k,lazy_refcounts=on", leaky, spoil)

    def test_a_cluster_with_two_addresses(self):
        """Legal; the one that is left when the other goes is the owner."""
        for bits, other, extended in ((12, 8, False), (9, 200, False),
                                      (14, 9, True)):
            def build(bits=bits, other=other, extended=extended):
                rng = random.Random(1)
                d = qbuild.Builder(rng, 256 * KIB, bits, extended=extended)
                for i in (3, 5):
                    d.data(i, rng.randbytes(1 << bits))
                self.assertTrue(d.share(other, 3))
                d.write(self.path("d"))
                u = self.create("u", 256 * KIB, "d", writes=[
                    "write -q -P 5 %d %d" % (3 << bits, 1 << bits)],
                    options="cluster_size=%d" % (1 << bits))
                return [self.path("d"), u], [self.path("d")], []
            with self.subTest(bits=bits, other=other):
                self.merge_each(build)


if __name__ == "__main__":
    unittest.main(verbosity=1)
