#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Backing file names as long as a header takes them."""

import os
import unittest

import qtools
import test_stuck

NEEDED = qtools.missing("qemu-img", "qemu-io")


@unittest.skipIf(NEEDED, NEEDED)
class ANameThatDoesNotChange(test_stuck.Stuck):
    """The header that has it has the room, whatever the size of a cluster and
    wherever QEMU has put it."""

    def make(self, cluster, length):
        """base <- mid <- top; the name in mid has that many bytes."""
        for n in os.listdir(self.dir):
            qtools.must("rm", "-rf", self.path(n))
        name = ("d" * 60 + "/") * (length // 61)
        name += "b" * (length - len(name))
        os.makedirs(self.path(os.path.dirname(name)), exist_ok=True)
        for image, backing, fill in ((name, None, 1), ("mid", name, 2),
                                     ("top", "mid", 3)):
            argv = ["-b", backing, "-F", "qcow2"] if backing else []
            r = qtools.run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                           "cluster_size=%d" % cluster, *argv,
                           self.path(image), "1M")
            if r.rc:
                return False
            qtools.must("qemu-io", "-f", "qcow2", "-c",
                        "write -q -P %d %dk 64k" % (fill, 64 * (fill - 1)),
                        self.path(image))
        self.assertEqual(self.backing("mid"), name)
        return name

    def backing(self, image):
        return qtools.qemu_json("info", "--output=json", "-f", "qcow2",
                                self.path(image))[1].get("backing-filename")

    def test_each_direction(self):
        some = 0
        for cluster in (512, 1024, 2048, 4096, 65536):
            for length in (*qtools.sample((100, 250, 500), str(cluster)),
                           *qtools.sample((800, 1023), str(cluster))):
                for direction in ("down", "auto"):
                    name = self.make(cluster, length)
                    if not name:
                        continue
                    with self.subTest(cluster=cluster, length=length,
                                      direction=direction):
                        r = self.merge(self.path("top"), "--drop",
                                       self.path("mid"), "--direction",
                                       direction)
                        self.assertEqual(r.rc, 0, str(r))
                        self.assertEqual(self.backing("top"), name)
                        self.shows(self.path("top"), 1, 2, 3, 0)
                        self.assertEqual(qtools.qemu_check(self.path("top")),
                                         (0, 0, 0))
                        some += length > 500 and cluster < 4096
        self.assertGreater(some, 1 if qtools.SAMPLE else 2)


if __name__ == "__main__":
    unittest.main(verbosity=1)
