#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Signals that come while an image is only read: the tables first, then the
data. What has to read long ends soon, by exit code 10, and leaves nothing."""

import os
import shutil
import signal
import sys
import unittest

import qtools

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from lib.slowed import Slowed, l2_table  # noqa: E402

MIB = 1 << 20
LAYERS = 8
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "strace"),
                 qtools.missing("qemu-img", "qemu-io", "strace"))
class Cancelled(unittest.TestCase):
    def setUp(self):
        self.dir = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.log = self.dir + ".log"
        self.addCleanup(lambda: os.path.exists(self.log) and
                        os.unlink(self.log))

    def path(self, name):
        return os.path.join(self.dir, name)

    def chain(self):
        """Of layers with a table each, and a raw copy of what they show."""
        paths = [self.path("layer%d" % i) for i in range(LAYERS)]
        for i, path in enumerate(paths):
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", *(
                ["-b", paths[i - 1], "-F", "qcow2"] if i else []), path, "64M")
            qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %dM 8M"
                        % (i + 1, 8 * i), path)
        qtools.must("qemu-img", "convert", "-O", "raw", paths[-1],
                    self.path("raw"))
        return paths

    def cut_short(self, number, ms, wanted, *argv):
        """While reads like that go on; they, at the end."""
        before = set(os.listdir(self.dir))
        if os.path.exists(self.log):
            os.unlink(self.log)
        slowed = Slowed(self.log, ms, qtools.QSTILL, "--json", "image", *argv)
        self.addCleanup(slowed.process.kill)
        slowed.wait(wanted)
        r = qtools.Result(argv, *slowed.end(number))
        self.assertEqual(r.rc, 10, str(r))
        self.assertEqual(r.json()["error"]["code"], "cancelled")
        self.assertLess(slowed.seconds, 5, str(r))
        self.assertEqual(before, set(os.listdir(self.dir)))
        return [x for x in slowed.reads() if wanted(*x)]

    def while_tables_are_read(self, *argv):
        paths = self.chain()
        tables = {p: l2_table(p) for p in paths}
        for number in SIGNALS:
            with self.subTest(number):
                read = self.cut_short(number, 100,
                                      lambda p, n, at: tables.get(p) == at,
                                      *[a.format(top=paths[-1]) for a in argv])
                self.assertLessEqual(len(read), LAYERS // 2)

    def test_flatten_while_tables_are_read(self):
        self.while_tables_are_read("flatten", "{top}", self.path("out"))

    def test_dry_run_while_tables_are_read(self):
        self.while_tables_are_read("flatten", "{top}", self.path("out"),
                                   "--dry-run")

    def test_compare_while_tables_are_read(self):
        self.while_tables_are_read("compare", "{top}", self.path("raw"))

    def test_compare_while_data_is_read(self):
        paths = self.chain()
        for number in SIGNALS:
            with self.subTest(number):
                read = self.cut_short(number, 40,
                                      lambda p, n, at: n >= MIB // 2,
                                      "compare", paths[-1], self.path("raw"))
                self.assertLess(len(read), 64)


if __name__ == "__main__":
    unittest.main(verbosity=1)
