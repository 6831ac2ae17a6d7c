#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Folders with rights of their own, and those of several users."""

import os
import re
import shutil
import struct
import subprocess
import time
import unittest

import qtools
import test_stuck
from test_flatten import ACL

MIB = 1 << 20


@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "strace"),
                 "tool not installed")
class ADefaultAcl(qtools.Scratch, unittest.TestCase):
    def test_a_new_file_is_not_open_meanwhile(self):
        """Its mode comes when the ACL that it was made with is gone."""
        names = ("base", "top")
        for name, below in zip(names, ((), ("-b", "base", "-F", "qcow2"))):
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", *below,
                        self.path(name), "1M")
            os.chmod(self.path(name), 0o640)
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 1M",
                    self.path("base"))
        os.setxattr(self.dir, "system.posix_acl_default", ACL)
        qtools.must("strace", "-f", "-o", self.log, "-e",
                    "trace=fchmod,fremovexattr", qtools.QSTILL, "image",
                    "merge", self.path("top"), "--drop", self.path("base"),
                    "--direction", "new")
        with open(self.log) as f:
            calls = re.findall(r"fchmod\(\d+, 0640|fremovexattr", f.read())
        self.assertEqual(["fremovexattr", "fchmod"],
                         [c.split("(")[0] for c in calls])
        self.assertNotIn("system.posix_acl_access",
                         os.listxattr(self.path("top")))
        self.assertEqual(os.stat(self.path("top")).st_mode & 0o777, 0o640)


DAEMON, NOBODY = 1, 65534  # users; DAEMON has a group of that number
# The owner rw, NOBODY r, the group and others nothing: a mode of 0640.
LETS_NOBODY = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 2, 4, NOBODY,
                          4, 0, 2**32 - 1, 16, 4, 2**32 - 1, 32, 0, 2**32 - 1)


@unittest.skipUnless(os.geteuid() == 0, "needs root for files of others")
class ForWhom(test_stuck.Stuck):
    """An image names its backing file by itself: whoever made it need not be
    able to read that."""

    def setUp(self):
        super().setUp()
        os.chmod(self.dir, 0o1777)

    def owner(self, name, uid, gid, mode):
        os.chown(self.path(name), uid, gid)
        os.chmod(self.path(name), mode)

    def make(self, name, below=None, fill=1, at=0, bits=16):
        fmt = ("-b", below, "-F", "qcow2") if below else ()
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    "cluster_size=%d" % (1 << bits), *fmt, self.path(name),
                    "4M")
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %dk 4k" %
                    (fill, at), self.path(name))

    def views(self, *names):
        return {n: qtools.guest_hash(self.path(n), "qcow2") for n in names}

    def goes(self, want, *argv, by=None):
        if by:
            p = self.as_user(by, *argv)
            self.assertEqual(p.returncode, 0, p.stderr)
        else:
            r = self.merge(*argv)
            self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(self.views(*want), want)

    def as_user(self, uid, *argv):
        d = qtools.scratch()
        try:
            os.chmod(d, 0o755)
            return subprocess.run(
                [shutil.copy(qtools.QSTILL, d), "image", "merge", *argv],
                user=uid, group=uid, extra_groups=[], cwd=d, text=True,
                capture_output=True)
        finally:
            shutil.rmtree(d, True)

    # ------------------------------------------------- overlays that are found

    def side(self, layer, side):
        """Below top, a; and side, which somebody has put there. Each of the
        two with an owner, a group and a mode."""
        for name in os.listdir(self.dir):
            os.unlink(self.path(name))
        self.make("base")
        self.make("a", "base", 2, 64)
        self.make("top", "a", 3, 128)
        self.make("side", "a", 4, 192)
        for name in ("base", "a", "top"):
            self.owner(name, *layer)
        self.owner("side", *side)
        return self.views("top", "side")

    def argv(self, *more):
        return (self.path("top"), "--drop", self.path("a"), *more)

    def test_an_overlay_whose_owner_may_not_read_the_layer(self):
        words = r"side would take in data of .*/a, which its owner .user %d"
        for layer, side in (
                ((DAEMON, DAEMON, 0o600), (NOBODY, NOBODY, 0o666)),
                ((DAEMON, DAEMON, 0o640), (NOBODY, NOBODY, 0o600)),
                ((0, 0, 0o600), (NOBODY, NOBODY, 0o600)),
                # in a folder that gives its group to all that is made there
                ((DAEMON, DAEMON, 0o640), (NOBODY, DAEMON, 0o660))):
            with self.subTest(layer=layer, side=side):
                want = self.side(layer, side)
                before = self.hashes()
                for more in ((), ("--dry-run",), ("--direction", "down")):
                    self.refused(self.merge(*self.argv(*more)), before, 6,
                                 words % NOBODY, "--child .*/side gives it")
                if layer[0] == DAEMON and side[2] & 6:
                    p = self.as_user(DAEMON, *self.argv())
                    self.assertEqual(p.returncode, 6, p.stderr)
                    self.assertRegex(p.stderr, words % NOBODY)
                    self.assertEqual(self.hashes(), before)
                self.goes(want, *self.argv("--child", self.path("side")))

    def test_an_overlay_that_more_may_read_than_the_layer(self):
        want = self.side((0, DAEMON, 0o640), (DAEMON, DAEMON, 0o644))
        self.refused(self.merge(*self.argv()), self.hashes(), 6,
                     "side would take in data of .*/a, and not all who may",
                     "chmod")
        os.chmod(self.path("side"), 0o640)
        self.goes(want, *self.argv())

    def test_overlays_that_may_have_it(self):
        for layer, side, by in (
                # all of one owner, whatever he lets others do
                ((DAEMON, DAEMON, 0o600), (DAEMON, DAEMON, 0o600), None),
                ((DAEMON, DAEMON, 0o600), (DAEMON, DAEMON, 0o644), DAEMON),
                # a VM that is off, and its images are root's again
                ((DAEMON, DAEMON, 0o600), (0, 0, 0o600), None),
                # a base of root's for all, or for the user's group
                ((0, 0, 0o644), (DAEMON, DAEMON, 0o644), None),
                ((0, 0, 0o444), (NOBODY, DAEMON, 0o600), None),
                ((0, DAEMON, 0o640), (DAEMON, NOBODY, 0o600), None)):
            with self.subTest(layer=layer, side=side, by=by):
                want = self.side(layer, side)
                self.goes(want, *self.argv(), by=by)

    def test_a_layer_whose_acl_lets_the_user_read_it(self):
        want = self.side((0, 0, 0o600), (NOBODY, NOBODY, 0o600))
        for name in ("base", "a"):
            os.setxattr(self.path(name), "system.posix_acl_access", LETS_NOBODY)
        self.goes(want, *self.argv())
        want = self.side((0, 0, 0o600), (DAEMON, DAEMON, 0o600))
        os.setxattr(self.path("a"), "system.posix_acl_access", LETS_NOBODY)
        self.refused(self.merge(*self.argv()), self.hashes(), 6, "may not read",
                     "--child")

    # ----------------------------------------- what the lowest of them stands on

    def secret(self, folder=0o700, mode=0o600, owner=0):
        """Below top, d of smaller clusters, and what that stands on."""
        shutil.rmtree(self.path("secret"), True)
        shutil.rmtree(self.path("vm"), True)
        os.mkdir(self.path("secret"))
        os.mkdir(self.path("vm"))
        self.make("secret/disk", None, 9, 16)
        self.make("vm/d", "../secret/disk", 1, 0, 12)
        self.make("vm/top", "d", 2, 1024)
        for name in ("vm/d", "vm/top"):
            self.owner(name, DAEMON, DAEMON, 0o600)
        os.chown(self.path("vm"), DAEMON, DAEMON)
        os.chmod(self.path("secret"), folder)
        self.owner("secret/disk", owner, owner, mode)
        return self.views("vm/top")

    def up(self, *more):
        return (self.path("vm/top"), "--drop", self.path("vm/d"), "--direction",
                "up", *more)

    def test_an_image_below_that_its_owner_may_not_read(self):
        for folder, mode in ((0o700, 0o600), (0o755, 0o600), (0o700, 0o644)):
            with self.subTest(folder=oct(folder), mode=oct(mode)):
                want = self.secret(folder, mode)
                before = self.hashes()
                for more in ((), ("--dry-run",)):
                    self.refused(self.merge(*self.up(*more)), before, 6,
                                 "vm/top would take in data of "
                                 ".*/secret/disk, which its owner .user 1",
                                 "image flatten")
                # smaller clusters need not be filled
                self.goes(want, *self.up()[:3])
                with open(self.path("vm/top"), "rb") as f:
                    self.assertFalse(b"\x09" * 512 in f.read())

    def test_an_image_below_that_he_may_read(self):
        for folder, mode, owner in ((0o711, 0o644, 0), (0o755, 0o644, NOBODY),
                                    (0o755, 0o600, DAEMON)):
            with self.subTest(folder=oct(folder), mode=oct(mode), owner=owner):
                want = self.secret(folder, mode, owner)
                self.goes(want, *self.up())

    def test_a_journal_says_nothing_about_rights(self):
        """Whoever can write to the folder can put one there."""
        os.mkdir(self.path("vm"))
        below = ()
        for name, bits, *writes in (
                ("disk", 16, "write -q -P 9 0 16M"),
                ("vm/d", 16, "write -q -P 1 0 8M"),
                ("vm/top", 12, "write -q -P 2 0 8M", "write -q -P 3 12M 4k")):
            path = self.path(name)
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", *below, "-o",
                        "cluster_size=%d" % (1 << bits), path, "16M")
            qtools.must("qemu-io", "-f", "qcow2", *(
                x for w in writes for x in ("-c", w)), path)
            below = ("-b", path, "-F", "qcow2")
        for name in ("vm", "vm/d", "vm/top"):
            os.chown(self.path(name), DAEMON, DAEMON)
        os.chmod(self.path("disk"), 0o644)
        want = self.views("vm/top")
        argv = (self.path("vm/top"), "--drop", self.path("vm/d"))
        p = subprocess.Popen([qtools.QSTILL, "image", "merge", *argv,
                              "--direction", "down", "--bwlimit", "2M"],
                             stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL)
        time.sleep(1)
        p.kill()
        self.assertEqual(p.wait(), -9)
        self.assertIn("corrupt: true", qtools.must(
            "qemu-img", "info", self.path("vm/d")).out)
        os.chmod(self.path("disk"), 0o600)
        self.merge(*argv)  # the other way goes, without a byte of the disk
        self.assertFalse(os.path.exists(self.path("vm/d")))
        self.assertEqual(self.views("vm/top"), want)
        with open(self.path("vm/top"), "rb") as f:
            self.assertFalse(b"\x09" * 512 in f.read())

    def test_of_root_it_may_be_in_any_folder(self):
        want = self.secret()
        self.owner("vm/top", 0, 0, 0o600)
        self.goes(want, *self.up())


if __name__ == "__main__":
    unittest.main(verbosity=1)
