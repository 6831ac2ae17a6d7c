#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How much memory a merge takes beyond the tables of its images."""

import multiprocessing
import os
import random
import shutil
import struct
import tempfile
import unittest

import qbuild
import qimage
import qtools

MIB = 1 << 20
NEEDED = qtools.missing("qemu-img")


@unittest.skipIf(NEEDED, NEEDED)
class Parts(qtools.Scratch, unittest.TestCase):
    """4 KiB each of many compressed clusters of 2 MiB, so that what fits into
    one write comes from hundreds of them. Their descriptors say 2 MiB, too, as
    for data that hardly gets smaller; the file is sparse."""

    CLUSTERS = 64
    SIZE = 2 * MIB * CLUSTERS
    BOUND = 128 * MIB

    def setUp(self):
        """On a disk: all that is in flight is there, as it is not in memory."""
        super().setUp()
        self.dir = tempfile.mkdtemp(prefix="qcow2-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.dir, True)
        os.mkdir(self.path("aside"))

    def packed(self, compression):
        b = qbuild.Builder(random.Random(1), self.SIZE, 21, backing="b",
                           compression=compression, backing_format="qcow2")
        x = 62 - (21 - 8)
        pack = qbuild.zstd if compression == "zstd" else qbuild.deflate
        for i in range(self.CLUSTERS):
            at = b.alloc()
            b.file[at:at + b.cs] = pack(bytes([i + 1]) * b.cs).ljust(b.cs,
                                                                     b"\0")
            b.guest[i] = (qimage.COMPRESSED | 4095 << x | at, 0)
        b.write(self.path("aside/packed"))

    def parts(self):
        b = qbuild.Builder(random.Random(1), self.SIZE, 12, backing="m",
                           backing_format="qcow2")
        for i in range(self.SIZE >> 12):
            if i % 512 != i // 512:
                b.zero(i)
        b.write(self.path("aside/parts"))
        with open(self.path("aside/want"), "wb") as f:
            f.truncate(self.SIZE)
            for i in range(self.CLUSTERS):
                f.seek(2 * MIB * i + 4096 * i)
                f.write(bytes([i + 1]) * 4096)

    @staticmethod
    def aside(body, *args):
        """What takes memory of this process counts for those that it starts."""
        p = multiprocessing.get_context("fork").Process(target=body, args=args)
        p.start()
        p.join()
        assert p.exitcode == 0

    def run_one(self, result, *argv):
        for name, source in (("m", "aside/packed"), ("u", "aside/parts")):
            qtools.must("cp", "--sparse=always", self.path(source),
                        self.path(name))
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    "cluster_size=4k", self.path("b"), str(self.SIZE))
        r = qtools.run_measured(qtools.QSTILL, "image", *argv)
        self.assertEqual(0, r.rc, str(r))
        self.assertLess(r.rss_kib << 10, self.BOUND)
        qtools.must("qemu-img", "compare", "-F", "raw", "-f",
                    "raw" if result == "raw" else "qcow2", self.path(result),
                    self.path("aside/want"))
        if result != "u":
            os.unlink(self.path(result))

    def test_is_bounded(self):
        u, m, b, out, raw = (self.path(n) for n in ("u", "m", "b", "out",
                                                    "raw"))
        cases = (("u", "merge", u, "--drop", m, "--direction", "up"),
                 ("u", "merge", u, "--drop", m, "--direction", "new"),
                 ("u", "merge", u, "--drop", m, "--drop", b, "--direction",
                  "down"),
                 ("out", "flatten", u, out),
                 ("raw", "flatten", u, raw, "--format", "raw"),
                 ("out", "flatten", u, out, "--compress"))
        self.aside(self.parts)
        for compression in qtools.sample(("zlib", "zstd"), self.id()):
            self.aside(self.packed, compression)
            for result, *argv in qtools.sample(cases, self.id(), 3):
                with self.subTest(compression=compression, argv=argv):
                    self.run_one(result, *argv)


@unittest.skipIf(NEEDED, NEEDED)
class Subclusters(qtools.Scratch, unittest.TestCase):
    """An entry of 16 bytes says of 32 subclusters where each is. Two layers, in
    which every second of one, and two of four of the other, is there: as after
    small writes at random. 262144 entries are 4 MiB of tables in each."""

    BITS = 14
    CS = 1 << BITS
    TABLES = 256
    ENTRIES = CS // 16
    SIZE = TABLES * ENTRIES * CS
    PATTERNS = {"m": 0x55555555, "u": 0x33333333}
    BOUND = 96 * MIB  # half of it for what is in flight

    def setUp(self):
        super().setUp()
        self.dir = tempfile.mkdtemp(prefix="qcow2-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.dir, True)
        with open(self.path("b"), "wb") as f:
            f.truncate(self.SIZE)

    def layer(self, name, backing, fmt, owned):
        """With clusters that have room on the disk; or without any, so that the
        subclusters read as zeros."""
        path = self.path(name)
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b", backing,
                    "-F", fmt, "-o", "extended_l2=on,cluster_size=%d" % self.CS,
                    path, str(self.SIZE))
        bits = self.PATTERNS[name]
        with open(path, "r+b") as f:
            header = f.read(48)
            l1 = int.from_bytes(header[40:48], "big")
            tables = -(-os.fstat(f.fileno()).st_size // self.CS) * self.CS
            host = tables + self.TABLES * self.CS
            f.seek(tables)
            for t in range(self.TABLES):
                f.write(b"".join(
                    struct.pack(">QQ", host + i * self.CS | 1 << 63, bits)
                    if owned else struct.pack(">QQ", 0, bits << 32)
                    for i in range(t * self.ENTRIES, (t + 1) * self.ENTRIES)))
            f.seek(l1)
            f.write(b"".join(struct.pack(">Q", tables + i * self.CS | 1 << 63)
                             for i in range(self.TABLES)))
            if owned:
                os.posix_fallocate(f.fileno(), 0, host + self.SIZE)
        r = qtools.run("qemu-img", "check", "-q", "-r", "all", path)
        self.assertEqual(0, r.rc, str(r))

    def measure(self, *argv):
        r = qtools.run_measured(qtools.QSTILL, "image", *argv)
        with self.subTest(argv=argv):
            self.assertEqual(0, r.rc, str(r))
            self.assertLess(r.rss_kib << 10, self.BOUND)
        return r

    def measure_map(self, path):
        """What it prints is as large as its memory may be."""
        r = qtools.run_measured("sh", "-c", 'exec "$0" image map "$1" >"$2"',
                                qtools.QSTILL, path, self.path("map"))
        self.assertEqual(0, r.rc, str(r))
        self.assertLess(r.rss_kib << 10, self.BOUND)

    def layers(self, owned):
        Parts.aside(self.layer, "m", "b", "raw", owned)
        Parts.aside(self.layer, "u", "m", "qcow2", owned)
        return self.path("m"), self.path("u")

    def test_plans_are_bounded(self):
        """4 GiB in 2^22 pieces of 512 bytes to 1 KiB."""
        m, u = self.layers(True)
        b, raw = self.path("b"), self.path("raw")
        for argv in (("merge", u, "--drop", m, "--direction", "up"),
                     ("merge", u, "--drop", m, "--direction", "down"),
                     ("merge", u, "--drop", m, "--direction", "new"),
                     ("merge", u, "--drop", m, "--drop", b, "--direction",
                      "down"),
                     ("flatten", u, raw, "--format", "raw"),
                     ("flatten", u, raw, "--compress"),
                     ("flatten", u, raw)):
            self.measure(*argv, "--dry-run")

    def test_a_merge_is_bounded(self):
        m, u = self.layers(False)
        self.measure_map(u)
        self.measure("compare", u, self.path("b"))
        self.measure("merge", u, "--drop", m, "--direction", "up")
        r = qtools.must("qemu-img", "check", u)
        self.assertIn("No errors", r.out)
        self.measure_map(u)
        with open(self.path("map")) as f:
            lines = [next(f).split() for _ in range(4)]
        self.assertEqual([["0x0", "0x600", "0", "zero"],
                          ["0x600", "0x200", "1", "zero"],
                          ["0x800", "0x600", "0", "zero"]],
                         [["0x0"] + lines[1][1:]] + lines[2:])


@unittest.skipIf(NEEDED, NEEDED)
class Pieces(qtools.Scratch, unittest.TestCase):
    """64 MiB of tables say of 2^27 pieces, and some, where each is: bytes and
    zeros by turns. All of them lie in one cluster, which only a check sees."""

    CS = 1 << 16
    TABLES = 1025
    SIZE = TABLES * CS // 16 * CS
    BOUND = 512 * MIB

    def make(self):
        path = self.path("u")
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    "extended_l2=on,cluster_size=%d" % self.CS, path,
                    str(self.SIZE))
        with open(path, "r+b") as f:
            header = f.read(48)
            l1 = int.from_bytes(header[40:48], "big")
            tables = -(-os.fstat(f.fileno()).st_size // self.CS) * self.CS
            host = tables + self.TABLES * self.CS
            table = struct.pack(">QQ", host, 0xaaaaaaaa55555555) * (self.CS //
                                                                    16)
            f.seek(tables)
            for _ in range(self.TABLES):
                f.write(table)
            f.write(b"x" * self.CS)
            f.seek(l1)
            f.write(b"".join(struct.pack(">Q", tables + i * self.CS | 1 << 63)
                             for i in range(self.TABLES)))
        return path

    def test_too_many_are_refused(self):
        u = self.make()
        for argv in (("map", u), ("flatten", u, self.path("raw"), "--dry-run")):
            with self.subTest(argv=argv):
                r = qtools.run_measured("sh", "-c", 'exec "$@" >/dev/null',
                                        "sh", qtools.QSTILL, "image", *argv)
                self.assertEqual(6, r.rc, str(r))
                self.assertIn("u holds lies in more than 134217728 pieces",
                              r.err)
                self.assertLess(r.rss_kib << 10, self.BOUND)


if __name__ == "__main__":
    unittest.main()
