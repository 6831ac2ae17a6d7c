#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""--bwlimit is the most in any second, not what it comes to on the whole."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import qtools

MIB = 1 << 20
NEEDED = qtools.missing("qemu-img", "qemu-io")


@unittest.skipIf(NEEDED, NEEDED)
class TheMostPerSecond(unittest.TestCase):
    def setUp(self):
        self.dir = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def commands(self, size):
        """Of each kind of work: it copies so many bytes."""
        for what in ("flatten", "compress", "raw", "up", "down"):
            for name in os.listdir(self.dir):
                os.unlink(self.path(name))
            for name, backing in (("low", None), ("top", "low")):
                qtools.must("qemu-img", "create", "-q", "-f", "qcow2", *(
                    ["-b", backing, "-F", "qcow2"] if backing else []),
                    self.path(name), str(size))
            for name in ("low", "top") if what == "down" else ("low",):
                qtools.must("qemu-io", "-f", "qcow2", "-c",
                            "write -q -P 7 0 %d" % size, self.path(name))
            if what in ("up", "down"):
                argv = ["merge", self.path("top"), "--drop", self.path("low"),
                        "--direction", what]
            else:
                argv = ["flatten", self.path("top"), self.path("out")]
                argv += {"flatten": [], "compress": ["--compress"],
                         "raw": ["--format", "raw"]}[what]
            yield what, [qtools.QSTILL, "-q", "image", *argv]

    def test_small_rates(self):
        """All but the last piece, which is an eighth of a second or a cluster,
        have to be paid for before the end. Where the page cache can be
        bypassed they are others than on tmpfs."""
        self.dir = tempfile.mkdtemp(prefix="qcow2-", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.dir, True)
        for what, argv in self.commands(2 * MIB):
            with self.subTest(what):
                start = time.monotonic()
                qtools.must(*argv, "--bwlimit", "700K")
                self.assertGreater(time.monotonic() - start, 2.6)

    def test_a_standstill_is_not_made_up_for(self):
        for what, argv in self.commands(16 * MIB):
            with self.subTest(what):
                p = subprocess.Popen([*argv, "--bwlimit", "8M"])
                self.addCleanup(p.kill)
                time.sleep(0.7)
                p.send_signal(signal.SIGSTOP)
                time.sleep(2)
                start = time.monotonic()
                p.send_signal(signal.SIGCONT)
                self.assertEqual(p.wait(60), 0)
                self.assertGreater(time.monotonic() - start, 0.9)


if __name__ == "__main__":
    unittest.main(verbosity=1)
