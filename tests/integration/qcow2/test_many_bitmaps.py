#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""More bitmaps, and more extents above them, than anybody makes: each is legal,
and small; what a merge of them takes must not be one times the other."""

import os
import shutil
import struct
import unittest

import qtools

SECTOR = 512  # a cluster, too
SECONDS = float(os.environ.get("HOSTILE_SECONDS", "10"))


def pad(data, to):
    return data + bytes(-len(data) % to)


def image(path, size, bitmaps=0, half=False, backing=""):
    """With that many bitmaps of one bit; or with every second cluster."""
    tables = size // SECTOR // 64
    l1 = 1
    l2 = l1 + len(pad(bytes(8 * tables), SECTOR)) // SECTOR
    data = l2 + tables
    table = data + (size // SECTOR // 2 if half else 0)
    names = [b"%05d" % i for i in range(bitmaps)]
    entries = b"".join(
        pad(struct.pack(">QIIBBHI", (table + i) * SECTOR, 1, 0, 1, 31, len(n),
                        0) + n, 8) for i, n in enumerate(names))
    directory = table + bitmaps
    used = directory + len(pad(entries, SECTOR)) // SECTOR
    blocks = used // 200 + 2
    reftable_clusters = len(pad(bytes(8 * blocks), SECTOR)) // SECTOR
    reftable, block = used, used + reftable_clusters
    end = block + blocks
    extensions = b""
    if backing:
        extensions += struct.pack(">II", 0xE2792ACA, 5) + pad(b"qcow2", 8)
    if bitmaps:
        extensions += struct.pack(">IIIIQQ", 0x23852875, 24, bitmaps, 0,
                                  len(entries), directory * SECTOR)
    extensions += bytes(8)
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3,
        104 + len(extensions) if backing else 0, len(backing), 9, size, 0,
        tables, l1 * SECTOR, reftable * SECTOR, reftable_clusters, 0, 0, 0, 0,
        1 if bitmaps else 0, 4, 104)
    with open(path, "wb") as f:
        def put(cluster, raw):
            f.seek(cluster * SECTOR)
            f.write(raw)
        put(0, header + extensions + backing.encode())
        put(l1, b"".join(struct.pack(">Q", (l2 + i) * SECTOR | 1 << 63)
                         for i in range(tables)))
        if half:
            put(l2, b"".join(struct.pack(">QQ", (data + i) * SECTOR | 1 << 63,
                                         0)
                             for i in range(size // SECTOR // 2)))
        put(directory, entries)
        put(reftable, b"".join(struct.pack(">Q", (block + i) * SECTOR)
                               for i in range(blocks)))
        put(block, struct.pack(">H", 1) * end)
        f.truncate(end * SECTOR)
    return path


@unittest.skipIf(qtools.missing("qemu-img"), qtools.missing("qemu-img"))
class ManyBitmapsAndManyExtents(unittest.TestCase):
    def setUp(self):
        self.dir = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)

    def test_a_merge_takes_no_time(self):
        low = image(os.path.join(self.dir, "low"), 64 << 20, bitmaps=20000)
        top = image(os.path.join(self.dir, "top"), 64 << 20, half=True,
                    backing="low")
        for path in (low, top):
            self.assertEqual(qtools.qemu_check(path), (0, 0, 0))
        for more in (["--dry-run"], []):
            r = qtools.run_measured(qtools.QSTILL, "--json", "image", "merge",
                                    top, "--drop", low, "--direction", "down",
                                    *more, timeout=2 * SECONDS)
            self.assertEqual(r.rc, 0, str(r))
            self.assertLess(r.seconds, SECONDS, str(r))
        left = qtools.qemu_json("info", "--output=json", top)[1]
        left = left["format-specific"]["data"]["bitmaps"]
        self.assertEqual({b["name"] for b in left},
                         {"%05d" % i for i in range(20000)})
        self.assertEqual(qtools.qemu_check(top), (0, 0, 0))


if __name__ == "__main__":
    unittest.main(verbosity=1)
