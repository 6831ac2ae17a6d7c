#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Layers with what a killed or a careless writer leaves behind: refcounts that
are too high, the dirty bit, clusters with two addresses, bytes behind the end
of the disk. No harm to what the guest sees; the result of a merge has none of
it."""

import random
import struct
import unittest

import qbuild
import qimage
import qtools
import test_known

KIB, MIB = 1024, 1 << 20


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

    def leaks(self, options, leaky, spoil=qtools.forget_snapshots, **kw):
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
            qtools.forget_snapshots(path)
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

    # -- behind the end ---------------------------------------------------

    def grows_into_zeros(self, size, shrink, options="", moves=None):
        """shrink(path) makes a layer of `size` with something behind that; an
        upper image that holds nothing takes it in, and is made larger."""
        def build():
            d = self.path("d")
            shrink(d)
            return [d, self.create("u", size, "d", options=options)], [d], []

        def judge(m, direction):
            if moves is not None and direction in ("down", "auto"):
                self.assertEqual(m.result.json()["bytesMoved"], moves)
            u = self.path("u")
            qtools.must("qemu-img", "resize", "-q", "-f", "qcow2", u,
                        str(size + 3 * MIB))
            got = self.view(u)[size:]
            self.assertEqual(got.count(0), len(got), "old bytes show")
            qtools.must("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink",
                        u, str(size))
        self.merge_each(build, judge)

    def shrunk(self, size, options, *writes, before=MIB):
        def shrink(path):
            self.create("d", before, options=options, writes=writes)
            qtools.must("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink",
                        path, str(size))
        return shrink

    def test_a_shrunk_layer(self):
        for options, size in (("cluster_size=64k", 96 * KIB),
                              ("cluster_size=2M", 512),
                              ("extended_l2=on", 96 * KIB),
                              ("extended_l2=on", 97 * KIB)):
            with self.subTest(options=options, size=size):
                self.grows_into_zeros(size, self.shrunk(
                    size, options, "write -q -P 8 0 1M"), options)

    def test_a_shrunk_layer_of_compressed_clusters(self):
        for options in ("cluster_size=64k", "extended_l2=on"):
            for size in (96 * KIB, 97 * KIB):
                with self.subTest(options=options, size=size):
                    self.grows_into_zeros(size, self.shrunk(
                        size, options, "write -q -c -P 8 0 64k",
                        "write -q -c -P 9 64k 64k"), options)

    def test_a_larger_layer(self):
        """It is not shrunk, but the upper image ends before."""
        for options in ("cluster_size=64k", "extended_l2=on"):
            for write in ("write -q -P 8 0 1M", "write -q -c -P 8 64k 64k"):
                def make(path, options=options, write=write):
                    self.create("d", MIB, options=options, writes=[write])
                with self.subTest(options=options, write=write):
                    self.grows_into_zeros(96 * KIB, make, options)

    def test_tables_behind_the_end(self):
        for bits in (9, 12):
            def make(path, bits=bits):
                rng = random.Random(1)
                d = qbuild.Builder(rng, 256 * KIB, bits)
                for i in range(0, 256 * KIB >> bits, 3):
                    d.data(i, rng.randbytes(1 << bits))
                d.write(path)
                with open(path, "r+b") as f:
                    f.seek(24)
                    f.write(struct.pack(">Q", 99 * 512))
            with self.subTest(bits=bits):
                self.grows_into_zeros(99 * 512, make,
                                      "cluster_size=%d" % (1 << bits))

    def test_a_shrunk_upper_image_of_a_longer_layer(self):
        """QEMU writes zeros before it grows such an image; not without what it
        stood on. What is merged is `u` and `d`, with nothing or `b` below."""
        def check(size, options, writes, below):
            def build():
                chain = []
                if below:
                    chain.append(self.create("b", below, options=options,
                                             writes=["write -q -P 3 0 32k"]))
                chain.append(self.create("d", MIB, "b" if below else None,
                                         options=options,
                                         writes=["write -q -P 4 64k 512k"]))
                u = self.create("u", 2 * MIB, "d", options=options,
                                writes=writes)
                qtools.must("qemu-img", "resize", "-q", "-f", "qcow2",
                            "--shrink", u, str(size))
                return chain + [u], chain[-1:], []

            def judge(m, direction):
                u = self.path("u")
                qtools.must("qemu-img", "resize", "-q", "-f", "qcow2", u,
                            str(size + 3 * MIB))
                got = self.view(u)[size:]
                self.assertEqual(got.count(0), len(got), "old bytes show")
                qtools.must("qemu-img", "resize", "-q", "-f", "qcow2",
                            "--shrink", u, str(size))
            self.merge_each(build, judge)

        plain, packed = "write -q -P 8 0 2M", "write -q -c -P 8 64k 64k"
        for options, size, write, below in (
                ("cluster_size=64k", 96 * KIB, plain, None),
                ("cluster_size=64k", 96 * KIB, plain, 64 * KIB),
                ("cluster_size=64k", 96 * KIB, plain, 2 * MIB),
                ("cluster_size=64k", 128 * KIB, plain, None),
                ("cluster_size=64k", 96 * KIB, packed, None),
                ("cluster_size=512", 97 * KIB, plain, None),
                ("extended_l2=on", 96 * KIB, plain, None),
                ("extended_l2=on", 97 * KIB, plain, 64 * KIB),
                ("extended_l2=on", 97 * KIB, packed, None)):
            with self.subTest(options=options, size=size, write=write,
                              below=below):
                check(size, options, [write], below)

    def test_zeros_behind_the_end_are_no_work(self):
        for options in ("cluster_size=64k", "extended_l2=on"):
            def make(path, options=options):
                self.create("d", 97 * KIB, options=options,
                            writes=["write -q -P 8 0 97k"])
            with self.subTest(options=options):
                self.grows_into_zeros(97 * KIB, make, options, moves=0)


if __name__ == "__main__":
    unittest.main(verbosity=1)
