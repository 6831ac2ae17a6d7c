#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How much memory a merge takes beyond the tables of its images."""

import multiprocessing
import os
import random
import shutil
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


if __name__ == "__main__":
    unittest.main()
