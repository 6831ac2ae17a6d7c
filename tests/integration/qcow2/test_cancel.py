#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Signals that come while an image is only read: the tables first, then the
data. What has to read long ends soon, by exit code 10, and leaves nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
import unittest

import qtools

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from lib.slowed import Slowed, l2_table  # noqa: E402

MIB = 1 << 20
LAYERS = 8
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def setUpModule():
    """Who starts the tests with nohup, or behind a shell's "&", has told all
    below it to ignore some of them; and qstill goes by that."""
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "strace"),
                 qtools.missing("qemu-img", "qemu-io", "strace"))
class Cancelled(qtools.Scratch, unittest.TestCase):
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


@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "strace"),
                 qtools.missing("qemu-img", "qemu-io", "strace"))
class AFoldThatWasCancelled(unittest.TestCase):
    """It can only go on. The next merge does that as it does its own work: as
    fast as it may, told, and until a signal."""

    def setUp(self):
        self.dir = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)
        for name, backing in (("d", None), ("u", "d"), ("y", "u")):
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", *(
                ["-b", backing, "-F", "qcow2"] if backing else []),
                self.path(name), "64M")
        for name, fill in (("d", 1), ("u", 2)):
            qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P %d 0 64M"
                        % fill, self.path(name))
        self.want = qtools.guest_hash(self.path("u"), "qcow2")
        self.assertEqual(self.cut("--bwlimit", "8M", after=1)[0], 10)
        self.assertEqual(len(self.journals()), 1)

    def path(self, name):
        return os.path.join(self.dir, name)

    def journals(self):
        return [n for n in os.listdir(self.dir)
                if n.startswith(".qstill-merge")]

    def argv(self, *more, top="u", drop="d"):
        return [qtools.QSTILL, "-v", "image", "merge", self.path(top),
                "--drop", self.path(drop), "--direction", "down", *more]

    def cut(self, *more, after, prefix=(), **which):
        """(exit code, stderr, seconds from the signal on)."""
        p = subprocess.Popen([*prefix, *self.argv(*more, **which)],
                             stdout=subprocess.DEVNULL, text=True,
                             stderr=subprocess.PIPE)
        self.addCleanup(p.kill)
        if callable(after):
            after(p)
        else:
            time.sleep(after)
            p.send_signal(signal.SIGINT)
        start = time.monotonic()
        err = p.communicate(timeout=60)[1]
        return p.returncode, err, time.monotonic() - start

    def is_whole(self):
        self.assertEqual(self.journals(), [])
        self.assertFalse(os.path.exists(self.path("d")))
        self.assertEqual(qtools.guest_hash(self.path("u"), "qcow2"), self.want)
        self.assertEqual(qtools.qemu_check(self.path("u")), (0, 0, 0))

    def test_it_can_be_cancelled_again_and_goes_on(self):
        for which in ({}, {"top": "y", "drop": "u"}):
            for _ in range(2):
                rc, err, seconds = self.cut("--bwlimit", "8M", after=2.5,
                                            **which)
                self.assertEqual(rc, 10, err)
                self.assertLess(seconds, 4, err)
                self.assertRegex(err, r"plan +\d+%  .* of 64 MiB")
                self.assertIn("next merge of these images goes on with it", err)
                self.assertEqual(len(self.journals()), 1)
                self.assertEqual(qtools.guest_hash(self.path("u"), "qcow2"),
                                 self.want)
        start = time.monotonic()
        qtools.must(*self.argv("--bwlimit", "32M"))
        self.assertGreater(time.monotonic() - start, 1.5)
        self.is_whole()

    def test_what_it_did_is_told(self):
        """By the command that finished it; beside its own, where it has any."""
        r = qtools.image("merge", self.path("u"), "--drop", self.path("d"))
        self.assertEqual(r.rc, 0, str(r))
        said = r.json()
        self.assertEqual(("down", 64 * MIB),
                         (said["direction"], said["bytesMoved"]))
        self.assertGreater(said["bytesFreed"], 63 * MIB)
        self.assertGreater(said["ms"], 1)
        self.is_whole()

    def test_what_it_did_beside_its_own_is_told(self):
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P 3 0 2M",
                    self.path("y"))
        r = qtools.image("merge", self.path("y"), "--drop", self.path("u"),
                         "--direction", "down")
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(66 * MIB, r.json()["bytesMoved"])
        self.assertEqual([], self.journals())

    def test_a_cancel_that_comes_too_late_is_none(self):
        """While the dropped layer is removed."""
        log = self.path("log")

        def after(_):
            until = time.monotonic() + 60
            while time.monotonic() < until:
                if os.path.exists(log) and os.path.getsize(log):
                    with open(log) as f:
                        pid = int(f.readline().split()[0])
                    os.kill(pid, signal.SIGINT)
                    return
                time.sleep(0.01)
            self.fail("nothing was renamed or removed")
        rc, err, _ = self.cut(after=after, prefix=(
            "strace", "-f", "-qq", "-o", log, "-e", "signal=none", "-e",
            "trace=rename,renameat,renameat2", "-e",
            "inject=rename,renameat,renameat2:delay_enter=1000000"))
        os.unlink(log)
        self.assertEqual(rc, 0, err)
        self.is_whole()


if __name__ == "__main__":
    unittest.main(verbosity=1)
