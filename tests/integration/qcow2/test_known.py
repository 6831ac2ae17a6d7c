#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Merges that are known to go wrong, each a case of its own.

First those that QEMU 7.2 itself gets wrong (measured: a layer shorter than its
neighbours, block-commit and rebase), then zero clusters, last partial
clusters, names, permissions, bitmaps, children, refusals.
"""

import os
import random
import shutil
import struct
import subprocess
import unittest

import qbuild
import qimage
import qmerge
import qtools

KIB, MIB = 1024, 1 << 20
DIRECTIONS = ("up", "down", "new", "auto")


class File:
    def __init__(self, path, fmt):
        self.path, self.fmt = path, fmt


def fmt_of(path):
    with open(path, "rb") as f:
        return "qcow2" if f.read(4) == qimage.MAGIC else "raw"


@unittest.skipIf(qtools.missing(), qtools.missing())
class MergeCase(unittest.TestCase):
    """Helpers: images by a few words, a merge in every direction."""

    def setUp(self):
        self.dir = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def create(self, name, size, backing=None, options="", writes=()):
        path = self.path(name)
        argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if options:
            argv += ["-o", options]
        if backing:
            argv += ["-b", backing, "-F", fmt_of(os.path.join(
                os.path.dirname(path), backing))]
        qtools.must(*argv, path, str(size))
        self.io(path, *writes)
        return path

    def io(self, path, *commands, fmt="qcow2"):
        if commands:
            argv = ["qemu-io", "-f", fmt, "-d", "unmap"]
            for c in commands:
                argv += ["-c", c]
            r = qtools.must(*argv, path)
            self.assertNotIn("failed", r.out + r.err)

    def view(self, path):
        return qtools.guest_bytes(path, fmt_of(path))

    def merge_each(self, build, judge=None, directions=DIRECTIONS,
                   may_refuse=()):
        """build() makes files in an empty directory and returns (chain, drop,
        children); every direction starts from fresh files."""
        for direction in qtools.sample(directions, self.id()):
            with self.subTest(direction=direction):
                for n in os.listdir(self.dir):
                    p = self.path(n)
                    shutil.rmtree(p) if os.path.isdir(p) else os.unlink(p)
                chain, drop, children = build()
                files = [File(p, fmt_of(p)) for p in chain + children]
                m = qmerge.Merge(self.dir, files, chain, drop, [])
                r = m.run(direction)
                if r.rc == qmerge.REFUSED and direction in may_refuse:
                    self.assertTrue(r.err.startswith("qstill: "), str(r))
                    self.assertEqual(m.untouched(), [])
                    continue
                self.assertEqual(r.rc, 0, str(r))
                self.assertEqual(m.merged() + m.account(direction), [])
                if judge:
                    judge(m, direction)
                self.assertEqual(m.still_writable(1), [])


class QemuGetsTheseWrong(MergeCase):
    def test_short_middle_layer_hides_the_base_behind_its_end(self):
        """Spec 2.2: QEMU's block-commit shows the base's old bytes."""
        def build():
            base = self.create("base", 2 * MIB, writes=["write -q -P 1 0 2M"])
            mid = self.create("mid", MIB, "base",
                              writes=["write -q -P 2 0 64k"])
            top = self.create("top", 2 * MIB, "mid")
            return [base, mid, top], [mid], []

        def judge(m, direction):
            got = self.view(self.path("top"))
            self.assertEqual(got[MIB:], bytes(MIB), "stale base shows")
            self.assertEqual(got[64 * KIB:MIB], b"\1" * (MIB - 64 * KIB))
        self.merge_each(build, judge)

    def test_short_dropped_base(self):
        def build():
            base = self.create("base", 100 * 512,
                               writes=["write -q -P 1 0 50k"])
            top = self.create("top", MIB, "base",
                              writes=["write -q -P 2 60k 8k"])
            return [base, top], [base], []
        self.merge_each(build)

    def test_long_base_below_a_short_dropped_layer(self):
        def build():
            b0 = self.create("b0", 4 * MIB, writes=["write -q -P 1 0 4M"])
            b1 = self.create("b1", MIB + 512, "b0",
                             writes=["write -q -P 2 1M 512"])
            b2 = self.create("b2", 4 * MIB, "b1",
                             writes=["write -q -P 3 3M 64k"])
            return [b0, b1, b2], [b1], []
        self.merge_each(build)

    def test_two_short_layers_dropped_at_once(self):
        def build():
            b0 = self.create("b0", 3 * MIB, writes=["write -q -P 1 0 3M"])
            b1 = self.create("b1", 2 * MIB, "b0",
                             writes=["write -q -P 2 1M 1M"])
            b2 = self.create("b2", MIB, "b1", writes=["write -q -P 3 0 4k"])
            b3 = self.create("b3", 3 * MIB, "b2")
            return [b0, b1, b2, b3], [b1, b2], []
        self.merge_each(build)

    def test_a_top_shorter_than_what_it_stands_on(self):
        """Its child must read zeros behind its end, not the dropped layer."""
        def build():
            b0 = self.create("b0", 2 * MIB, writes=["write -q -P 1 0 2M"])
            b1 = self.create("b1", 2 * MIB, "b0",
                             writes=["write -q -P 2 0 2M"])
            b2 = self.create("b2", MIB, "b1", writes=["write -q -P 3 0 4k"])
            b3 = self.create("b3", 2 * MIB, "b2")
            return [b0, b1, b2, b3], [b1], []
        self.merge_each(build)

    def test_a_top_shorter_than_the_dropped_base(self):
        def build():
            b1 = self.create("b1", 2 * MIB, writes=["write -q -P 2 0 2M"])
            b2 = self.create("b2", MIB + 512, "b1",
                             writes=["write -q -P 3 0 4k"])
            b3 = self.create("b3", 2 * MIB, "b2")
            return [b1, b2, b3], [b1], []
        self.merge_each(build)

    def test_bytes_behind_the_end_in_the_last_cluster_never_show(self):
        """T4: the dropped layer's last cluster holds bytes past its end."""
        def build():
            b = qbuild.Builder(random.Random(1), MIB + 512, 16)
            b.data(16, b"LEAK" * 16384)
            base = b.write(self.path("base"))
            top = self.create("top", 2 * MIB, "base")
            return [base, top], [base], []

        def judge(m, direction):
            with open(self.path("top"), "rb") as f:
                img = qimage.Image(self.path("top"))
            self.assertEqual(self.view(img.path)[MIB + 512:],
                             bytes(MIB - 512))
        self.merge_each(build, judge)

    def test_compressed_last_cluster_of_a_shorter_layer(self):
        def build():
            b = qbuild.Builder(random.Random(1), MIB + 1024, 16)
            b.compressed(16, b"LEAK" * 16384)
            base = b.write(self.path("base"))
            top = self.create("top", 2 * MIB, "base")
            return [base, top], [base], []
        self.merge_each(build)

    def test_raw_base_with_an_odd_size(self):
        def build():
            base = self.path("base.img")
            with open(base, "wb") as f:
                f.write(b"R" * (300 * KIB + 512))
            top = self.create("top", MIB, "base.img",
                              writes=["write -q -P 3 64k 4k"])
            return [base, top], [base], []
        self.merge_each(build, may_refuse=("down",))


class ZerosStayZeros(MergeCase):
    def chain(self, lower, upper, options="", upper_options="", size=MIB):
        b0 = self.create("b0", size, writes=["write -q -P 1 0 1M"])
        b1 = self.create("b1", size, "b0", options, lower)
        b2 = self.create("b2", size, "b1", upper_options or options, upper)
        return [b0, b1, b2], [b1], []

    def test_zero_flag_over_data(self):
        self.merge_each(lambda: self.chain(["write -q -P 2 0 512k"],
                                           ["write -q -z -u 64k 128k"]))

    def test_allocated_zero_over_data(self):
        self.merge_each(lambda: self.chain(
            ["write -q -P 2 0 512k"],
            ["write -q -P 9 0 256k", "write -q -z 64k 128k"]))

    def test_zero_flag_in_the_dropped_layer(self):
        self.merge_each(lambda: self.chain(["write -q -z -u 0 512k"],
                                           ["write -q -P 3 0 64k"]))

    def test_zeros_into_version_2(self):
        """Version 2 has no zero flag: zeros must be written."""
        self.merge_each(lambda: self.chain(["write -q -z -u 0 512k"],
                                           ["write -q -P 3 0 64k"],
                                           upper_options="compat=0.10"))

    def test_zeros_out_of_version_3_into_version_2_below(self):
        self.merge_each(lambda: self.chain(["write -q -P 2 0 512k"],
                                           ["write -q -z -u 64k 128k"],
                                           options="compat=0.10",
                                           upper_options="compat=1.1"))

    def test_discarded_clusters(self):
        self.merge_each(lambda: self.chain(
            ["write -q -P 2 0 512k"],
            ["write -q -P 3 0 512k", "discard -q 128k 128k"]))

    def test_stale_bytes_of_allocated_zeros_never_show(self):
        def build():
            b = qbuild.Builder(random.Random(1), MIB, 16)
            for i in range(8):
                b.zero_alloc(i)
            base = b.write(self.path("base"))
            top = self.create("top", MIB, "base",
                              writes=["write -q -P 5 32k 64k"])
            return [base, top], [base], []
        self.merge_each(build)

    def test_subcluster_zeros_of_every_kind(self):
        def build():
            ext = "extended_l2=on,cluster_size=128k"
            b0 = self.create("b0", MIB, writes=["write -q -P 1 0 1M"])
            b1 = self.create("b1", MIB, "b0", ext,
                             ["write -q -P 2 4k 8k", "write -q -z 32k 8k",
                              "write -q -P 6 128k 128k"])
            b2 = self.create("b2", MIB, "b1", ext,
                             ["write -q -P 3 8k 12k", "write -q -z 0 4k",
                              "write -q -z 132k 4k",
                              "write -q -z -u 256k 128k"])
            return [b0, b1, b2], [b1], []
        self.merge_each(build)

    def test_subclusters_into_plain_clusters_and_back(self):
        ext = "extended_l2=on,cluster_size=64k"
        for lower, upper in ((ext, "cluster_size=16k"),
                             ("cluster_size=4k", ext)):
            def build():
                b0 = self.create("b0", MIB, writes=["write -q -P 1 0 1M"])
                b1 = self.create("b1", MIB, "b0", lower,
                                 ["write -q -P 2 2k 6k",
                                  "write -q -z 80k 10k"])
                b2 = self.create("b2", MIB, "b1", upper,
                                 ["write -q -P 3 4k 2k",
                                  "write -q -z 84k 2k"])
                return [b0, b1, b2], [b1], []
            self.merge_each(build)


class NothingButTheLayerGoes(MergeCase):
    def test_owner_mode_and_xattrs_are_the_upper_files(self):
        def build():
            base = self.create("base", MIB, writes=["write -q -P 1 0 1M"])
            top = self.create("top", MIB, "base",
                              writes=["write -q -P 2 0 64k"])
            os.chmod(base, 0o600)
            os.chmod(top, 0o664)
            os.setxattr(base, "user.who", b"base")
            os.setxattr(top, "user.me", b"top")
            if os.geteuid() == 0:
                os.chown(base, 0, 0)
                os.chown(top, 65534, 65534)
            return [base, top], [base], []
        self.merge_each(build)

    def test_relative_names_hold_from_every_directory(self):
        """T10: a name is relative to the directory of who stores it."""
        def build():
            for d in ("lower", "mid/deep", "upper"):
                os.makedirs(self.path(d))
            b0 = self.create("lower/b0", MIB, writes=["write -q -P 1 0 1M"])
            b1 = self.create("mid/deep/b1", MIB, "../../lower/b0",
                             writes=["write -q -P 2 0 64k"])
            b2 = self.create("upper/b2", MIB, "../mid/deep/b1",
                             writes=["write -q -P 3 64k 64k"])
            return [b0, b1, b2], [b1], []
        self.merge_each(build)

    def test_unknown_header_extensions_are_kept_or_told(self):
        b0 = self.create("b0", MIB)
        b1 = self.create("b1", MIB, "b0", writes=["write -q -P 2 0 512k"])
        top = self.create("top", MIB, "b1", writes=["write -q -P 3 64k 64k"])
        with open(top, "r+b") as f:
            head = f.read(4096)
            at, n = struct.unpack(">QI", head[8:20])
            end = at - 8  # the end mark
            f.seek(end)
            f.write(struct.pack(">IIQII", 0x12345678, 8, 42, 0, 0))
            f.seek(2048)
            f.write(head[at:at + n])
            f.seek(8)
            f.write(struct.pack(">Q", 2048))
        self.assertEqual(head[end:at], bytes(8))
        for direction in ("down", "new"):
            r = qtools.image("merge", top, "--drop", b1, "--direction",
                             direction, "--dry-run")
            self.assertEqual(r.rc, 0, str(r))
            self.assertRegex(r.out + r.err, "extensions of .*top that .*not kept")
        r = qtools.image("merge", top, "--drop", b1, "--direction", "up", "-v")
        self.assertEqual(r.rc, 0, str(r))
        self.assertNotIn("not kept", r.out + r.err)
        with open(top, "rb") as f:
            self.assertIn(struct.pack(">IIQ", 0x12345678, 8, 42), f.read(4096))

    def test_names_with_needless_slashes_and_dots(self):
        """".//b0" is no "/b0"."""
        def build():
            os.makedirs(self.path("x"))
            b0 = self.create("b0", MIB, writes=["write -q -P 1 0 1M"])
            b1 = self.create("b1", MIB, ".//b0",
                             writes=["write -q -P 2 0 64k"])
            b2 = self.create("x/b2", MIB, "..//.//b1",
                             writes=["write -q -P 3 64k 64k"])
            b3 = self.create("x/b3", MIB, "././/b2")
            kid = self.create("kid", MIB, ".//b1")
            return [b0, b1, b2, b3], [b1], [kid]
        self.merge_each(build)

    def test_a_layer_named_with_a_colon(self):
        def build():
            b0 = self.create("a:b0", MIB, writes=["write -q -P 1 0 1M"])
            b1 = self.create("b1", MIB, "./a:b0",
                             writes=["write -q -P 2 0 64k"])
            b2 = self.create("b2", MIB, "b1")
            return [b0, b1, b2], [b1], []
        self.merge_each(build)

    def test_every_child_of_a_dropped_layer_keeps_its_content(self):
        def build():
            b0 = self.create("b0", MIB, writes=["write -q -P 1 0 1M"])
            b1 = self.create("b1", MIB, "b0",
                             writes=["write -q -P 2 0 512k"])
            top = self.create("top", MIB, "b1",
                              writes=["write -q -P 3 64k 64k"])
            kids = [self.create("kid%d" % i, MIB, "b1",
                                writes=["write -q -P %d %dk 4k" % (4 + i % 9, i)])
                    for i in (0, 40, 900)]
            return [b0, b1, top], [b1], kids
        self.merge_each(build, may_refuse=("down",))

    def test_children_of_the_survivors_keep_their_content(self):
        def build():
            b0 = self.create("b0", MIB, writes=["write -q -P 1 0 1M"])
            b1 = self.create("b1", MIB, "b0",
                             writes=["write -q -P 2 0 512k"])
            b2 = self.create("b2", MIB, "b1",
                             writes=["write -q -P 3 64k 64k"])
            top = self.create("top", MIB, "b2")
            kids = [self.create("kid", MIB, "b2",
                                writes=["write -q -P 8 0 4k"]),
                    self.create("nephew", MIB, "b0",
                                writes=["write -q -P 9 0 4k"])]
            return [b0, b1, b2, top], [b1], kids
        self.merge_each(build)

    def test_an_empty_upper_layer_moves_no_data(self):
        def build():
            b0 = self.create("b0", 8 * MIB, writes=["write -q -P 1 0 8M"])
            b1 = self.create("b1", 8 * MIB, "b0",
                             writes=["write -q -P 2 0 4M"])
            top = self.create("top", 8 * MIB, "b1")
            return [b0, b1, top], [b1], []

        def judge(m, direction):
            self.assertEqual(m.result.json()["bytesMoved"], 0)
        self.merge_each(build, judge, ("auto",))

    def test_a_dropped_layer_that_is_all_hidden_moves_no_data(self):
        def build():
            b0 = self.create("b0", 8 * MIB, writes=["write -q -P 1 0 8M"])
            b1 = self.create("b1", 8 * MIB, "b0",
                             writes=["write -q -P 2 1M 2M"])
            top = self.create("top", 8 * MIB, "b1",
                              writes=["write -q -P 3 0 6M"])
            return [b0, b1, top], [b1], []

        def judge(m, direction):
            self.assertEqual(m.result.json()["bytesMoved"], 0)
        self.merge_each(build, judge, ("auto", "up"))

    def test_compressed_clusters_are_carried_as_they_are(self):
        def build():
            b0 = self.create("b0", 4 * MIB)
            b1 = self.create("b1", 4 * MIB, "b0", writes=[
                "write -q -c -P %d %dk 64k" % (i + 1, i * 64)
                for i in range(40)])
            top = self.create("top", 4 * MIB, "b1",
                              writes=["write -q -P 99 0 4k"])
            return [b0, b1, top], [b1], []

        def judge(m, direction):
            img = qimage.Image(self.path("top"))
            n = sum(bool(w & qimage.COMPRESSED) for e in img.l1() if e
                    for w, _ in img.l2(e & qimage.OFFSET))
            self.assertGreaterEqual(n, 39, "they were inflated")
        self.merge_each(build, judge)


class BitmapsAreNeverWrong(MergeCase):
    def ranges(self, name):
        img = qimage.Image(self.path("top"))
        for b in img.bitmaps():
            if b.name == name and not b.in_use:
                return img.bitmap_ranges(b)
        return None

    def build(self):
        base = self.create("base", 4 * MIB)
        b1 = self.create("b1", 4 * MIB, "base")
        qtools.must("qemu-img", "bitmap", "--add", b1, "both")
        qtools.must("qemu-img", "bitmap", "--add", b1, "lower")
        self.io(b1, "write -q -P 1 1M 64k")
        top = self.create("top", 4 * MIB, "b1")
        qtools.must("qemu-img", "bitmap", "--add", top, "both")
        qtools.must("qemu-img", "bitmap", "--add", top, "upper")
        self.io(top, "write -q -P 2 3M 64k")
        return [base, b1, top], [b1], []

    def test_bitmaps_are_joined_or_made_void(self):
        low, high = (MIB, MIB + 65536), (3 * MIB, 3 * MIB + 65536)

        def judge(m, direction):
            for name, want in (("both", [low, high]), ("upper", [high]),
                               ("lower", [low, high])):
                got = self.ranges(name)
                self.assertIsNotNone(got, "%s is gone" % name)
                self.assertTrue(qtools.covers(got, want), (name, got))
                self.assertLess(sum(b - a for a, b in got), MIB, name)
        self.merge_each(self.build, judge)

    def spoil(self, path, name):
        """Gives the bitmap 4 bytes of extra data, which nobody knows; its
        entry has room for them."""
        with open(path, "r+b") as f:
            data = bytearray(f.read())
            want = name.encode()
            found = [i for i in range(0, len(data) - 31, 8)
                     if struct.unpack_from(">HI", data, i + 18) ==
                     (len(want), 0) and data[i + 24:i + 24 + len(want)] ==
                     want and data[i + 16] == 1]  # old directories, too
            self.assertTrue(found)
            for at in found:
                struct.pack_into(">I", data, at + 20, 4)
                data[at + 24:at + 32] = b"\0\0\0\0" + want.ljust(4, b"\0")
            f.seek(0)
            f.write(data)

    def test_of_what_is_lost_in_part_nothing_is_kept(self):
        """Else the part would pass for the whole, and a backup miss blocks.
        (QEMU does not open an image with such a bitmap.)"""
        for direction in ("up", "down", "new"):
            with self.subTest(direction=direction):
                for name in os.listdir(self.dir):
                    os.unlink(self.path(name))
                base = self.create("base", 4 * MIB)
                b1 = self.create("b1", 4 * MIB, "base")
                qtools.must("qemu-img", "bitmap", "--add", b1, "both")
                self.io(b1, "write -q -P 1 1M 64k")
                top = self.create("top", 4 * MIB, "b1")
                for name in ("both", "mine"):
                    qtools.must("qemu-img", "bitmap", "--add", top, name)
                self.io(top, "write -q -P 2 3M 64k")
                self.spoil(b1, "both")
                r = qtools.image("merge", top, "--drop", b1, "--direction",
                                 direction)
                self.assertEqual(r.rc, 0, str(r))
                self.assertEqual(r.json()["bitmapsDropped"], 1)
                self.assertIsNone(self.ranges("both"))
                self.assertIsNotNone(self.ranges("mine"))
                self.assertEqual(qimage.Image(top).backing_path(), base)

    def test_many_large_bitmaps(self):
        """What they take together is bounded, too."""
        base = self.create("base", 256 << 30)
        for i in range(12):
            qtools.must("qemu-img", "bitmap", "--add", "-g", "512", base,
                        "b%d" % i)
        self.io(base, "write -q -P 1 0 64k")
        top = self.create("top", 256 << 30, "base")
        self.io(top, "write -q -P 1 1M 64k")
        r = qtools.run_measured(qtools.QSTILL, "--json", "image", "merge", top,
                                "--drop", base)
        self.assertEqual(r.rc, 0, str(r))
        self.assertGreater(r.json()["bitmapsDropped"], 0)
        self.assertLess(r.rss_kib, 250 << 10)

    def test_qemu_agrees_about_what_is_left(self):
        """No bitmap may be there that QEMU refuses to read."""
        def judge(m, direction):
            r, j = qtools.qemu_json("info", "--output=json", self.path("top"))
            self.assertEqual(r.rc, 0, str(r))
            self.assertEqual(r.err, "", "QEMU warns")
            names = {b["name"] for b in j["format-specific"]["data"]
                     ["bitmaps"]}
            self.assertEqual(names, {"both", "lower", "upper"})
        self.merge_each(self.build, judge)


class TheCheapestPlan(MergeCase):
    def test_of_compressed_clusters_in_pieces(self):
        """Counted once for each piece, one of 2 MiB passed for eight."""
        size = 8 * MIB
        r = random.Random(1)
        raw = self.path("raw")
        with open(raw, "wb") as f:
            f.write(b"".join(r.randbytes(1000) + bytes([7]) * 1048
                             for _ in range(size // 2048)))
        d, u = self.path("d"), self.path("u")
        qtools.must("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2",
                    "-o", "cluster_size=2M", raw, d)
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b", d, "-F",
                    "qcow2", u, str(size))
        qtools.must("qemu-io", "-f", "qcow2", *[
            x for i in range(size // MIB) for k in (0, 2, 4, 6)
            for x in ("-c", "write -q -P 5 %d 64k" % (i * MIB + 65536 * k))],
            u)
        moved = {}
        for direction in ("auto", "up", "down", "new"):
            said = qtools.image("merge", u, "--drop", d, "--dry-run",
                                "--direction", direction)
            self.assertEqual(said.rc, 0, str(said))
            moved[direction] = said.json()["bytesMoved"]
        auto = moved.pop("auto")
        self.assertEqual(auto, min(moved.values()), moved)
        self.assertLess(auto, moved["down"])


class MergesAreRefused(MergeCase):
    def chain3(self):
        b0 = self.create("b0", MIB, writes=["write -q -P 1 0 1M"])
        b1 = self.create("b1", MIB, "b0", writes=["write -q -P 2 0 64k"])
        top = self.create("top", MIB, "b1", writes=["write -q -P 3 64k 64k"])
        return b0, b1, top

    def hashes(self):
        return {n: qtools.file_hash(self.path(n))
                for n in os.listdir(self.dir) if os.path.isfile(self.path(n))}

    def refused(self, rc, words, *argv, **kw):
        before = self.hashes()
        r = qtools.image("merge", *argv, **kw)
        self.assertEqual(r.rc, rc, str(r))
        self.assertRegex(r.err, words)
        self.assertEqual(before, self.hashes())
        return r

    def test_a_layer_that_is_not_there(self):
        b0, b1, top = self.chain3()
        self.refused(4, "nothere", top, "--drop", self.path("nothere"))

    def test_a_file_that_is_not_in_the_chain(self):
        b0, b1, top = self.chain3()
        other = self.create("other", MIB)
        self.refused(4, "other", top, "--drop", other)

    def test_the_top_itself(self):
        b0, b1, top = self.chain3()
        r = qtools.image("merge", top, "--drop", top)
        self.assertIn(r.rc, (2, 6), str(r))
        self.assertTrue(os.path.exists(top))

    def test_no_layer_at_all(self):
        b0, b1, top = self.chain3()
        self.refused(2, "drop", top)

    def test_an_unknown_direction(self):
        b0, b1, top = self.chain3()
        self.refused(2, "sideways", top, "--drop", b1, "--direction",
                     "sideways")

    def test_down_into_a_layer_with_two_children_feeds_the_other_first(self):
        b0, b1, top = self.chain3()
        kid = self.create("kid", MIB, "b1", writes=["write -q -P 7 4k 4k"])
        want = {p: self.view(p) for p in (top, kid)}
        r = qtools.image("merge", top, "--drop", b1, "--direction", "down")
        self.assertEqual(r.rc, 0, str(r))
        self.assertFalse(os.path.exists(b1))
        self.assertEqual(want, {p: self.view(p) for p in (top, kid)})
        for p in (top, kid):
            self.assertEqual(qimage.Image(p).backing_path(), b0)

    def test_an_image_qemu_has_open_for_writing(self):
        b0, b1, top = self.chain3()
        with Holder("-f", "qcow2", top):
            self.refused(5, "top", top, "--drop", b1)

    def test_a_layer_below_an_image_that_qemu_writes(self):
        b0, b1, top = self.chain3()
        kid = self.create("kid", MIB, "b1")
        with Holder("-f", "qcow2", kid):
            self.refused(5, "b1|kid", top, "--drop", b1)

    def test_a_layer_that_qemu_reads(self):
        b0, b1, top = self.chain3()
        with Holder("-r", "-f", "qcow2", b1):
            for direction in ("up", "down"):
                self.refused(5, "b1|top", top, "--drop", b1, "--direction",
                             direction)

    def test_an_image_with_the_corrupt_bit(self):
        b0, b1, top = self.chain3()
        with open(top, "r+b") as f:
            f.seek(79)
            f.write(b"\2")
        self.refused(6, "corrupt", top, "--drop", b1)
        r = qtools.image("flatten", top, self.path("flat"))
        self.assertEqual(r.rc, 0, str(r))
        self.assertRegex(r.out + r.err, "top is marked as corrupt")

    def test_a_symbolic_link_as_layer(self):
        b0, b1, top = self.chain3()
        os.rename(b1, self.path("real"))
        os.symlink("real", b1)
        for drop in (b1, b0, self.path("real")):
            r = qtools.image("merge", top, "--drop", drop)
            self.assertEqual(r.rc, 6, str(r))
            self.assertIn("symbolic link", r.err)
        self.assertTrue(os.path.islink(b1))

    def test_a_base_that_is_found_by_a_symbolic_link(self):
        """As a golden image is named by a link to its present version, which
        has a backing file beside itself."""
        for direction in ("up", "down", "new", "auto"):
            with self.subTest(direction=direction):
                d = self.path(direction)
                os.makedirs(os.path.join(d, "images"))
                under, golden, mid, top = (os.path.join(d, n) for n in (
                    "under", "golden", "mid", "top"))
                real = os.path.join(d, "images", "v3")
                # from the link's folder, as QEMU has it
                for i, (path, name) in enumerate((
                        (under, None), (real, "under"), (mid, "golden"),
                        (top, "mid"))):
                    qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-u",
                                *(["-b", name, "-F", "qcow2"] if name else []),
                                path, "4M")
                    if path == real:
                        os.symlink("images/v3", golden)
                        path = golden
                    qtools.must("qemu-io", "-f", "qcow2", "-c",
                                "write -q -P %d %dk 1M" % (i + 1, i * 640),
                                path)
                want = qtools.guest_hash(top, "qcow2")
                r = qtools.image("flatten", top, os.path.join(d, "flat"))
                self.assertEqual(r.rc, 0, str(r))
                self.assertEqual(want, qtools.guest_hash(
                    os.path.join(d, "flat"), "qcow2"))
                r = qtools.image("merge", top, "--drop", mid, "--direction",
                                 direction)
                self.assertEqual(r.rc, 0, str(r))
                self.assertEqual(want, qtools.guest_hash(top, "qcow2"))
                self.assertFalse(os.path.exists(mid))
                self.assertEqual("golden", qtools.must(
                    "qemu-img", "info", "--output=json", top).json()[
                        "backing-filename"])
                self.assertTrue(os.path.islink(golden))

    def linked_child(self, backing):
        """kid, a link beside the chain to an overlay of b1 elsewhere, whose
        name of it QEMU takes from where the link stands."""
        b0, b1, top = self.chain3()
        elsewhere = qtools.scratch()
        self.addCleanup(shutil.rmtree, elsewhere, True)
        real, link = os.path.join(elsewhere, "real"), self.path("kid")
        os.rename(self.create("kid", MIB, "b1"), real)
        qtools.must("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2",
                    "-b", backing or b1, real)
        os.symlink(real, link)
        return top, b1, real, link

    def test_a_name_of_a_layer_above_that_is_another_image(self):
        """From where the link stands its backing file is the one that goes."""
        for link in (os.symlink, os.link):
            for direction in ("up", "new", "auto"):
                with self.subTest(link=link.__name__, direction=direction):
                    for d in ("A", "B"):
                        shutil.rmtree(self.path(d), ignore_errors=True)
                        os.makedirs(self.path(d))
                    low = self.create("B/base", MIB,
                                      writes=["write -q -P 1 0 1M"])
                    self.create("A/base", MIB, "../B/base",
                                writes=["write -q -P 2 0 64k"])
                    top = self.create("A/top", MIB, "base",
                                      writes=["write -q -P 3 64k 64k"])
                    link(top, self.path("B/top"))
                    view = qtools.guest_hash(self.path("B/top"), "qcow2")
                    self.refused(6, "B/top is a name of .*A/top", top,
                                 "--drop", low, "--direction", direction)
                    self.assertEqual(view, qtools.guest_hash(
                        self.path("B/top"), "qcow2"))

    def test_a_link_that_shows_another_image(self):
        """Also of an overlay that would get another name for its layer."""
        for name in ("top", "kid"):
            with self.subTest(name):
                for d in ("A", "B"):
                    shutil.rmtree(self.path(d), ignore_errors=True)
                    os.makedirs(self.path(d))
                self.create("B/low", MIB, writes=["write -q -P 1 0 1M"])
                self.create("B/mid", MIB, writes=["write -q -P 2 0 1M"])
                mid = self.create("A/mid", MIB, "../B/low",
                                  writes=["write -q -P 3 0 64k"])
                top = self.create("A/top", MIB, "mid")
                self.create("A/kid", MIB, "mid")
                os.symlink("../A/" + name, self.path("B/" + name))
                self.refused(6, "B/%s is a name of .*A/%s" % (name, name), top,
                             "--drop", mid)
                os.unlink(self.path("B/" + name))
                # from a folder where nothing has that name it is no image
                os.unlink(self.path("B/mid"))
                os.symlink("../A/" + name, self.path("B/" + name))
                r = qtools.image("merge", top, "--drop", mid)
                self.assertEqual(r.rc, 0, str(r))

    def farm(self, names):
        """A chain in A whose lowest layer is in B, and links to `names` of it
        there: from them QEMU finds the very same images."""
        for d in ("A", "B"):
            shutil.rmtree(self.path(d), ignore_errors=True)
            os.makedirs(self.path(d))
        self.create("B/base", MIB, writes=["write -q -P 1 0 1M"])
        self.create("A/low", MIB, "../B/base",
                    writes=["write -q -P 6 512k 64k"])
        self.create("A/m1", MIB, "low", writes=["write -q -P 2 0 64k"])
        mid = self.create("A/mid", MIB, "m1", writes=["write -q -P 3 64k 64k"])
        top = self.create("A/top", MIB, "mid",
                          writes=["write -q -P 4 128k 64k"])
        self.create("A/kid", MIB, "mid", writes=["write -q -P 5 192k 64k"])
        for n in names:
            os.symlink("../A/" + n, self.path("B/" + n))
        return top, mid, self.path("A/m1")

    def test_links_that_lead_to_the_same_images(self):
        links = ("top", "mid", "m1", "low", "kid")
        for direction in ("up", "down", "new", "auto"):
            for both in (True, False):
                with self.subTest(direction=direction, both=both):
                    top, mid, m1 = self.farm(links)
                    seen = [self.path("B/" + n) for n in ("top", "kid")]
                    want = [self.view(p) for p in seen]
                    drop = ["--drop", mid] + both * ["--drop", m1]
                    r = qtools.image("merge", top, "--direction", direction,
                                     *drop)
                    self.assertEqual(r.rc, 0, str(r))
                    self.assertEqual([self.view(p) for p in seen], want)

    def test_links_from_where_the_new_name_is_another(self):
        """A copy of the lower layer, or the layer itself."""
        for name in ("top", "kid"):
            with self.subTest(name):
                top, mid, m1 = self.farm((name, "mid", "m1"))
                shutil.copy(self.path("A/low"), self.path("B/low"))
                self.refused(6, "B/%s is a name of .*A/%s" % (name, name), top,
                             "--drop", mid)
                os.unlink(self.path("B/low"))
                os.symlink("../A/low", self.path("B/low"))
                r = qtools.image("merge", top, "--drop", mid)
                self.assertEqual(r.rc, 0, str(r))

    def test_an_overlay_whose_name_leads_nowhere_from_here(self):
        """Another host, or a container, may see the layer there."""
        b0, b1, top = self.chain3()
        other = self.path("other")
        qtools.must("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b",
                    "/elsewhere/b1", "-F", "qcow2", other, "1M")
        self.refused(6, "other may stand on .*b1", top, "--drop", b1)
        qtools.must("qemu-img", "rebase", "-u", "-f", "qcow2", "-b",
                    "/elsewhere/b2", "-F", "qcow2", other)
        r = qtools.image("merge", top, "--drop", b1)
        self.assertEqual(r.rc, 0, str(r))

    def test_a_child_behind_a_symbolic_link(self):
        for backing in ("b1", None):
            with self.subTest(backing=backing):
                top, b1, real, link = self.linked_child(backing)
                self.refused(6, "kid.*symbolic link.*b1", top, "--drop", b1)
                os.unlink(link)

    def named(self, name):
        """kid, an overlay of b1 by that name, which only QEMU understands."""
        b0, b1, top = self.chain3()
        os.symlink("b1", self.path("alias"))
        kid = self.create("kid", MIB)
        qtools.must("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2",
                    "-b", name % self.dir, kid)
        return kid, top, b1

    def test_a_child_whose_backing_name_is_no_plain_one(self):
        """By an escape, through a link, by a protocol, in a json: in it; and
        one that cannot be read."""
        at = '{"driver":"file","filename":"%s"}'
        for name, words in (
                ('json:{"driver":"qcow2","file":' + at % r"%s/\u0062\u0031" +
                 "}", "kid.*stands on"),
                ('json:{"driver":"qcow2","file":' + at % "%s/alias" + "}",
                 "kid.*stands on"),
                ('json:{"driver":"qcow2","file.filename":"%s/alias"}',
                 "kid.*stands on"),
                ('json:{"file.filename":"file:%s/alias"}', "kid.*stands on"),
                (r'json:{"file.filename":"json:{\"filename\":\"%s/alias\"}"}',
                 "kid.*stands on"),
                ("file:%s/alias", "kid.*stands on"),
                ("blkdebug::%s/alias", "kid.*stands on"),
                ("blkdebug:conf:file:%s/alias", "kid.*stands on"),
                ("blkverify:%s/alias:other", "kid.*stands on"),
                ("json:{'driver':'qcow2','file.filename':'%s/alias'}",
                 "kid.*cannot be told")):
            with self.subTest(name=name):
                for n in os.listdir(self.dir):
                    os.unlink(self.path(n))
                kid, top, b1 = self.named(name)
                self.refused(6, words, top, "--drop", b1)

    def test_names_that_lead_elsewhere(self):
        for name in ('json:{"driver":"qcow2","file.filename":"%s/other"}',
                     "file:%s/other", "nbd://nowhere/%s",
                     "blkdebug::%s/other"):
            with self.subTest(name=name):
                for n in os.listdir(self.dir):
                    os.unlink(self.path(n))
                kid, top, b1 = self.named(name)
                r = qtools.image("merge", top, "--drop", b1)
                self.assertEqual(r.rc, 0, str(r))

    def data_file(self, name, where=None):
        """A raw image below an overlay is the external data file of x."""
        for n in os.listdir(self.dir):
            if os.path.isdir(self.path(n)):
                shutil.rmtree(self.path(n))
            else:
                os.unlink(self.path(n))
        raw, top = self.path("d.raw"), self.path("top")
        os.mkdir(self.path("elsewhere"))
        x = self.path(where or "x")
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    "data_file=%s,data_file_raw=on" % (name % self.dir), x,
                    "1M", cwd=self.dir)
        qtools.must("qemu-io", "-c", "write -q -P 7 0 1M", x, cwd=self.dir)
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F",
                    "raw", top)
        qtools.must("qemu-io", "-c", "write -q -P 3 512k 64k", top)
        return raw, top, x

    def test_the_external_data_file_of_another_image(self):
        """By each name; seen through a link; with a name that is no more."""
        for name in ("%s/d.raw", "d.raw%.0s", "file:%s/d.raw"):
            for direction in ("up", "down", "new"):
                with self.subTest(name=name, direction=direction):
                    raw, top, x = self.data_file(name)
                    self.refused(6, "x has its data in .*d.raw", top, "--drop",
                                 raw, "--direction", direction)
                    qtools.must("qemu-io", "-c", "read -q -P 7 0 1M", x,
                                cwd=self.dir)
        raw, top, x = self.data_file("%s/d.raw", "elsewhere/x")
        os.symlink(x, self.path("link"))
        self.refused(6, "link has its data in .*d.raw", top, "--drop", raw)
        raw, top, x = self.data_file("%s/d.raw")
        with open(x, "r+b") as f: # the extension's type
            f.seek(112)
            self.assertEqual(f.read(4), b"DATA")
            f.seek(112)
            f.write(b"XATA")
        self.refused(6, "x may have its data in .*d.raw", top, "--drop", raw)

    def test_the_extent_of_a_vmdk(self):
        for subformat, extent in (("monolithicFlat", "x-flat.vmdk"),
                                  ("twoGbMaxExtentFlat", "x-f001.vmdk")):
            for direction in ("up", "down", "new"):
                with self.subTest(subformat=subformat, direction=direction):
                    for n in os.listdir(self.dir):
                        os.unlink(self.path(n))
                    x, raw = self.path("x.vmdk"), self.path(extent)
                    qtools.must("qemu-img", "create", "-q", "-f", "vmdk", "-o",
                                "subformat=" + subformat, x, "1M")
                    qtools.must("qemu-io", "-c", "write -q -P 7 0 1M", x)
                    top = self.create("top", MIB, writes=[
                        "write -q -P 3 512k 64k"])
                    qtools.must("qemu-img", "rebase", "-u", "-f", "qcow2",
                                "-b", extent, "-F", "raw", top)
                    self.refused(6, "x.vmdk has its data in .*" + extent, top,
                                 "--drop", raw, "--direction", direction)
                    qtools.must("qemu-io", "-c", "read -q -P 7 0 1M", x)

    def test_an_external_data_file_that_is_no_layer(self):
        raw, top, x = self.data_file("%s/d.raw", "elsewhere/x")
        r = qtools.image("merge", top, "--drop", raw, "--direction", "new")
        self.assertEqual(r.rc, 0, str(r)) # nobody looks elsewhere
        for i in range(2):
            raw, top, x = self.data_file("%s/d.raw")
            shutil.copy(raw, self.path("other.raw"))
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                        "data_file=other.raw,data_file_raw=on", x, "1M",
                        cwd=self.dir)
            r = qtools.image("merge", top, "--drop", raw)
            self.assertEqual(r.rc, 0, str(r))
            qtools.must("qemu-io", "-c", "read -q -P 0 0 1M", x, cwd=self.dir)

    def test_a_child_behind_a_link_that_is_named_itself(self):
        top, b1, real, link = self.linked_child(None)
        r = qtools.image("merge", top, "--drop", b1, "--child", real)
        self.assertEqual(r.rc, 0, str(r))
        self.io(link, "read -P 2 0 64k", "read -P 1 64k 960k")

    def test_links_that_are_nobodys_overlay(self):
        b0, b1, top = self.chain3()
        kid = self.create("z", MIB, "b1")
        for name, to in (("a", "z"), ("b", "b1"), ("c", "top"), ("d", "."),
                         ("e", "nothere"), ("f", "f"), ("g", "/dev/null"),
                         ("h", "b0")):
            os.symlink(to, self.path(name))
        r = qtools.image("merge", top, "--drop", b1)
        self.assertEqual(r.rc, 0, str(r))
        self.io(kid, "read -P 2 0 64k", "read -P 1 64k 960k")

    def hard_linked(self, name, direction, words=None):
        """A merge of b2 and b1 into top, one of which has a second name;
        refused with `words`, or the second name shows what it did."""
        with self.subTest(name=name, direction=direction):
            for n in os.listdir(self.dir):
                os.unlink(self.path(n))
            self.create("b0", MIB, writes=["write -q -P 1 0 1M"])
            b1 = self.create("b1", MIB, "b0", writes=["write -q -P 2 0 512k"])
            b2 = self.create("b2", MIB, "b1", writes=["write -q -P 3 0 64k"])
            top = self.create("top", MIB, "b2", writes=["write -q -P 4 0 4k"])
            other = self.path("other")
            os.link(self.path(name), other)
            want = {p: self.view(p) for p in (top, other)}
            argv = (top, "--drop", b1, "--drop", b2, "--direction", direction)
            if words:
                r = self.refused(6, words, *argv)
                self.assertRegex(r.err, "samefile")
                return
            r = qtools.image("merge", *argv)
            self.assertEqual(r.rc, 0, str(r))
            self.assertEqual(want, {p: self.view(p) for p in (top, other)})

    def test_hard_links(self):
        """What has another name is not written over, and keeps its backing
        file."""
        for name, refused in (("top", DIRECTIONS), ("b2", DIRECTIONS),
                              ("b1", ("down",)), ("b0", ())):
            for direction in qtools.sample(DIRECTIONS, self.id() + name):
                self.hard_linked(name, direction, direction in refused and
                                 name + ".*hard link")

    def test_a_hard_link_to_a_child(self):
        """Elsewhere its backing file may be another one of that name."""
        b0, b1, top = self.chain3()
        kid = self.create("kid", MIB, "b1", writes=["write -q -P 7 4k 4k"])
        elsewhere = qtools.scratch()
        self.addCleanup(shutil.rmtree, elsewhere, True)
        os.link(kid, os.path.join(elsewhere, "kid"))
        want = self.view(kid)
        self.refused(6, "kid.*hard link", top, "--drop", b1)
        self.assertEqual(want, self.view(kid))

    def test_a_hard_link_to_the_top_with_snapshots(self):
        """Neither may its file be rewritten nor its name be taken."""
        b0, b1, top = self.chain3()
        qtools.must("qemu-img", "snapshot", "-c", "s", top)
        os.link(top, self.path("other"))
        self.refused(6, "top", top, "--drop", b1)

    def odd_child(self, change):
        """A child that we may be unable to handle must not be orphaned."""
        b0, b1, top = self.chain3()
        kid = self.create("kid", MIB, "b1", writes=["write -q -P 7 4k 4k"])
        want = self.view(kid)
        change(kid)
        before = {n: qtools.file_hash(self.path(n))
                  for n in os.listdir(self.dir)}
        r = qtools.image("merge", top, "--drop", b1)
        if r.rc:
            self.assertIn(r.rc, (3, 6), str(r))
            self.assertRegex(r.err, "kid")
            self.assertEqual(before, {n: qtools.file_hash(self.path(n))
                                      for n in os.listdir(self.dir)})
            return
        self.assertEqual(self.view(kid), want, str(r))

    def patch(self, path, at, data):
        with open(path, "r+b") as f:
            f.seek(at)
            f.write(data)

    def test_a_child_that_does_not_say_the_format_of_its_backing_file(self):
        """As QEMU before 6.1 made them; QEMU would probe."""
        def change(kid):
            with open(kid, "rb") as f:
                at = f.read(4096).index(bytes.fromhex("e2792aca"))
            self.patch(kid, at, bytes.fromhex("12345678"))
        self.odd_child(change)

    def test_a_child_with_an_unknown_incompatible_feature(self):
        self.odd_child(lambda kid: self.patch(kid, 72, b"\x80"))

    def test_an_encrypted_child(self):
        self.odd_child(lambda kid: self.patch(kid, 35, b"\1"))

    def test_a_child_with_the_corrupt_bit(self):
        self.odd_child(lambda kid: self.patch(kid, 79, b"\2"))

    def test_a_child_with_damaged_tables(self):
        def change(kid):
            at = qimage.Image(kid).l1_offset
            self.patch(kid, at, b"\x80\x00\x7f\xff\xff\xff\x00\x00")
        self.odd_child(change)

    def test_a_child_that_names_its_backing_file_by_json(self):
        def change(kid):
            name = b'json:{"driver":"qcow2","file":{"filename":"b1"}}'
            self.patch(kid, 4096, name)
            self.patch(kid, 8, (4096).to_bytes(8, "big"))
            self.patch(kid, 16, len(name).to_bytes(4, "big"))
        self.odd_child(change)

    def test_a_child_of_another_format(self):
        """qemu-img makes qed images on top of qcow2 ones."""
        b0, b1, top = self.chain3()
        kid = self.path("kid")
        r = qtools.run("qemu-img", "create", "-q", "-f", "qed", "-b", "b1",
                       "-F", "qcow2", kid)
        if r.rc:
            self.skipTest("this qemu-img knows no qed: " + r.err)
        self.refused(6, "kid", top, "--drop", b1)

    def test_damage_that_a_fold_meets_half_way(self):
        """Compressed bytes of the top that cannot be unpacked, found when
        clusters of the base are written over: what the top shows stays, and
        the broken merge stands in nobody's way."""
        b0 = self.create("b0", MIB, writes=["write -q -P 1 0 1M"])
        top = self.path("top")
        b = qbuild.Builder(random.Random(1), MIB, 15, backing="b0",
                           backing_format="qcow2")
        for i in range(4):
            b.data(i, b"\2" * b.cs)
        self.assertTrue(b.compressed(16, b"\3" * b.cs))
        b.write(top)
        self.patch(top, b.guest[16][0] & ((1 << 48) - 1), b"\xff" * 64)
        reads = ("read -P 2 0 128k", "read -P 1 128k 384k",
                 "read -P 1 544k 480k")
        self.io(top, *reads)
        for left in (3, 2):
            r = qtools.image("merge", top, "--drop", b0, "--direction", "down")
            self.assertEqual(r.rc, 3, str(r))
            self.assertEqual(len(os.listdir(self.dir)), left, str(r))
            self.io(top, *reads)
        r = qtools.image("merge", top, "--drop", b0, "--direction", "up")
        self.assertEqual(r.rc, 0, str(r))
        self.io(top, *reads)

    def test_snapshots_that_see_what_the_present_state_hides(self):
        """The top's table masks all of b1, its snapshot's nothing: taking b1
        away would change the snapshot."""
        for direction in ("up", "auto"):
            for n in os.listdir(self.dir):
                os.unlink(self.path(n))
            self.create("b0", MIB, writes=["write -q -P 1 0 1M"])
            b1 = self.create("b1", MIB, "b0", writes=["write -q -P 2 0 64k"])
            top = self.create("top", MIB, "b1")
            qtools.must("qemu-img", "snapshot", "-c", "s", top)
            self.io(top, "write -q -P 3 0 1M")
            self.refused(6, "snapshot", top, "--drop", b1, "--direction",
                         direction)

    @unittest.skipUnless(os.geteuid() == 0, "needs root to be another user")
    def test_a_file_beside_them_that_cannot_be_opened_may_be_an_overlay(self):
        b0, b1, top = self.chain3()
        self.create("kid", MIB, "b1")
        kid = self.path("kid")
        os.chmod(self.dir, 0o777)
        for n in os.listdir(self.dir):
            os.chown(self.path(n), 65534, 65534)
        os.chown(kid, 0, 0)
        os.chmod(kid, 0o600)
        p = qtools.as_nobody("image", "merge", top, "--drop", b1)
        self.assertEqual(p.returncode, 8, p.stderr)
        self.assertRegex(p.stderr, "kid")
        self.assertTrue(os.path.exists(b1))

    def test_internal_snapshots_are_kept_or_the_merge_is_refused(self):
        for holder in ("b1", "top"):
            for direction in DIRECTIONS:
                with self.subTest(holder=holder, direction=direction):
                    for n in os.listdir(self.dir):
                        os.unlink(self.path(n))
                    chain = list(self.chain3())
                    qtools.must("qemu-img", "snapshot", "-c", "s",
                                self.path(holder))
                    m = qmerge.Merge(self.dir, [File(p, "qcow2")
                                                for p in chain], chain,
                                     [chain[1]])
                    view = qtools.guest_hash(self.path(holder), "qcow2", "1")
                    r = m.run(direction)
                    if r.rc == 0:  # the holder's file is the one that stays
                        self.assertEqual(m.merged(), [])
                        self.assertEqual(view, qtools.guest_hash(
                            self.path("top"), "qcow2", "1"))
                    else:
                        self.assertEqual(r.rc, 6, str(r))
                        self.assertRegex(r.err, "snapshot")
                        self.assertEqual(m.untouched(), [])


class Holder:
    """A qemu-io that has an image open until the block ends."""

    def __init__(self, *argv):
        self.argv = argv

    def __enter__(self):
        self.p = subprocess.Popen(["qemu-io", *self.argv],
                                  stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT)
        self.p.stdin.write(b"length\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        if b"rror" in line or not line:
            raise RuntimeError("qemu-io: %r" % line)
        return self

    def __exit__(self, *exc):
        self.p.stdin.close()
        self.p.stdout.close()
        self.p.wait()


if __name__ == "__main__":
    unittest.main(verbosity=1)
