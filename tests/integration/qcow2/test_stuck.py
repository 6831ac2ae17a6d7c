#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Layers that cannot be removed or replaced: refused before anything changes.
And merges that cannot be finished: others go on, their own chain does not."""

import fcntl
import os
import shutil
import struct
import subprocess
import unittest

import qtools

MIB = 1 << 20
DIRECTIONS = ("auto", "up", "down", "new")


FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
PROJINHERIT = 0x200


def set_project(path, number):
    """Of a directory, and so of what is made in it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        raw = bytearray(28)
        fcntl.ioctl(fd, FS_IOC_FSGETXATTR, raw)
        flags, = struct.unpack_from("=I", raw, 0)
        struct.pack_into("=I", raw, 0, flags | PROJINHERIT)
        struct.pack_into("=I", raw, 12, number)
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, raw)
    finally:
        os.close(fd)


class Stuck(unittest.TestCase):
    def setUp(self):
        self.dir = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.addCleanup(qtools.run, "chattr", "-R", "-i", "-a", self.dir)

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def create(self, path, backing=None, fill=1, at=0):
        argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if backing:
            argv += ["-b", backing, "-F", "qcow2"]
        qtools.must(*argv, path, str(MIB))
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %dk 64k" %
                    (fill, at), path)
        return path

    def pair(self, d="d", u="u"):
        """Below u, d; both with data, and room to merge either way."""
        return (self.create(self.path(d), None, 1, 0),
                self.create(self.path(u), self.path(d), 2, 64))

    def shows(self, path, *fills):
        qtools.must("qemu-io", "-r", "-f", "qcow2", *[
            x for i, fill in enumerate(fills)
            for x in ("-c", "read -q -P %d %dk 64k" % (fill, 64 * i))], path)

    def hashes(self):
        return {os.path.join(d, n): qtools.file_hash(os.path.join(d, n))
                for d, _, names in os.walk(self.dir) for n in names}

    def merge(self, *argv):
        return qtools.image("merge", *argv)

    def refused(self, r, before, rc, words, hint):
        self.assertEqual(r.rc, rc, str(r))
        self.assertRegex(r.err, words)
        self.assertRegex(r.err, hint)
        self.assertNotIn("not over", r.err)
        self.assertEqual(self.hashes(), before, str(r))


@unittest.skipUnless(os.geteuid() == 0, "needs root for attributes, mounts")
@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "chattr"),
                 qtools.missing("qemu-img", "qemu-io", "chattr"))
class WhatCannotGoIsRefused(Stuck):
    """Nothing is changed, and it is said what to do."""

    def each_direction(self, rc, words, hint, u, d, directions=DIRECTIONS):
        before = self.hashes()
        for direction in directions:
            for more in ((), ("--dry-run",)):
                with self.subTest(direction=direction, more=more):
                    r = self.merge(u, "--drop", d, "--direction", direction,
                                   *more)
                    self.refused(r, before, rc, words, hint)

    def goes_now(self, u, d):
        r = self.merge(u, "--drop", d)
        self.assertEqual(r.rc, 0, str(r))
        self.shows(u, 1, 2, 0)

    def attribute(self, letter, which):
        files = dict(zip("du", self.pair()))
        r = qtools.run("chattr", "+" + letter, files[which])
        if r.rc:
            self.skipTest("no attributes on this filesystem")
        return files

    def test_a_dropped_layer_that_is_immutable(self):
        f = self.attribute("i", "d")
        self.each_direction(8, "/d is immutable", "chattr -i", f["u"], f["d"])
        qtools.must("chattr", "-i", f["d"])
        self.goes_now(f["u"], f["d"])

    def test_an_upper_layer_that_is_immutable(self):
        f = self.attribute("i", "u")
        self.each_direction(8, "/u is immutable", "chattr -i", f["u"], f["d"])
        qtools.must("chattr", "-i", f["u"])
        self.goes_now(f["u"], f["d"])

    def test_append_only_layers(self):
        for which, directions in (("d", DIRECTIONS), ("u", DIRECTIONS)):
            for n in os.listdir(self.dir):
                os.unlink(self.path(n))
            f = self.attribute("a", which)
            self.each_direction(8, "/%s is append-only" % which, "chattr -a",
                                f["u"], f["d"], directions)
            qtools.must("chattr", "-a", f[which])
            self.goes_now(f["u"], f["d"])

    def elsewhere(self):
        """d in a directory of its own."""
        os.makedirs(self.path("p"))
        return self.pair("p/d", "u")

    def test_a_directory_that_is_immutable(self):
        d, u = self.elsewhere()
        if qtools.run("chattr", "+i", self.path("p")).rc:
            self.skipTest("no attributes on this filesystem")
        self.each_direction(8, "p/d .*directory", "chattr -i", u, d)
        qtools.must("chattr", "-i", self.path("p"))
        self.goes_now(u, d)

    def test_a_directory_that_is_append_only(self):
        d, u = self.elsewhere()
        if qtools.run("chattr", "+a", self.path("p")).rc:
            self.skipTest("no attributes on this filesystem")
        self.each_direction(8, "p/d .*directory", "chattr", u, d)
        qtools.must("chattr", "-a", self.path("p"))
        self.goes_now(u, d)

    def mount(self, *argv):
        r = qtools.run("mount", *argv)
        if r.rc:
            self.skipTest("cannot mount: %s" % r)
        self.addCleanup(qtools.run, "umount", argv[-1])

    def test_a_layer_on_a_mount_that_is_read_only(self):
        d, u = self.elsewhere()
        self.mount("--bind", self.path("p"), self.path("p"))
        qtools.must("mount", "-o", "remount,ro,bind", self.path("p"))
        self.each_direction(8, "p/d .*Read-only", "mount", u, d,
                            ("auto", "up", "new"))
        self.each_direction(6, "mounts of one", "merge up", u, d, ("down",))
        qtools.must("mount", "-o", "remount,rw,bind", self.path("p"))
        self.goes_now(u, d)

    def test_a_layer_that_is_a_mount_point(self):
        d, u = self.pair()
        shutil.copy(d, self.path("other"))
        self.mount("--bind", self.path("other"), d)
        self.each_direction(6, "/d is a mount point", "unmount", u, d,
                            ("up", "new", "down"))

    def test_directories_of_two_projects(self):
        """On XFS: Linux has no projects of ext4 without CONFIG_QUOTA."""
        self.dir, _ = qtools.loop_mount(self, "xfs", "mkfs.xfs", "-q")
        for number, name in enumerate("pq"):
            os.makedirs(self.path(name))
            set_project(self.path(name), 100 + number)
        d, u = self.pair("p/d", "q/u")
        self.each_direction(6, "p/d is of another project", "merge up", u, d,
                            ("down",))
        self.goes_now(u, d)
        os.unlink(u)
        d, u = self.pair("p/d", "q/u")
        r = self.merge(u, "--drop", d, "--direction", "new")
        self.assertEqual(r.rc, 0, str(r))
        self.shows(u, 1, 2, 0)

    def test_a_file_from_before_its_directory_had_a_project(self):
        self.dir, _ = qtools.loop_mount(self, "xfs", "mkfs.xfs", "-q")
        d, u = self.pair()
        set_project(self.dir, 100)
        self.each_direction(6, "/d is of another project", "merge up", u, d,
                            ("down",))
        self.goes_now(u, d)

    def test_two_mounts_of_one_filesystem(self):
        """Their names cannot be changed into each other."""
        d, u = self.elsewhere()
        self.mount("--bind", self.path("p"), self.path("p"))
        self.each_direction(6, "p/d and .*/u .*mounts", "merge up", u, d,
                            ("down",))
        self.goes_now(u, d)

    def as_nobody(self, rc, words, hint, u, d, directions=DIRECTIONS):
        before = self.hashes()
        for direction in directions:
            with self.subTest(direction=direction):
                p = qtools.as_nobody("--json", "image", "merge", u, "--drop",
                                     d, "--direction", direction)
                self.refused(qtools.Result(p.args, p.returncode, p.stdout,
                                           p.stderr), before, rc, words, hint)

    def give(self, *paths):
        os.chmod(self.dir, 0o777)
        for p in paths:
            os.chown(p, 65534, 65534)

    def test_a_directory_that_may_not_be_written(self):
        d, u = self.elsewhere()
        self.give(d, u)
        self.as_nobody(8, "p/d .*directory.*Permission denied", "root", u, d)

    def test_a_file_of_another_in_a_sticky_directory(self):
        d, u = self.elsewhere()
        self.give(u)
        os.chmod(d, 0o666)
        os.chmod(self.path("p"), 0o1777)
        self.as_nobody(8, "p/d belongs to user 0.*sticky", "root", u, d,
                       ("auto", "up", "new"))
        os.chown(self.path("p"), 65534, 65534)  # its owner may
        p = qtools.as_nobody("--json", "image", "merge", u, "--drop", d,
                             "--direction", "up")
        self.assertEqual(p.returncode, 0, p.stderr)
        self.shows(u, 1, 2, 0)

    def test_another_direction_is_taken_when_that_one_can(self):
        """u may be written but, being another's in a sticky directory, not
        replaced."""
        d, u = self.pair()
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 192k 512k",
                    d)
        self.give(d)
        os.chmod(u, 0o666)
        os.chmod(self.dir, 0o1777)
        p = qtools.as_nobody("--json", "image", "merge", u, "--drop", d)
        r = qtools.Result(p.args, p.returncode, p.stdout, p.stderr)
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(r.json()["direction"], "up")
        self.shows(u, 1, 2, 0, 1)


@unittest.skipUnless(os.geteuid() == 0, "needs root for attributes")
@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "strace", "chattr"),
                 qtools.missing("qemu-img", "qemu-io", "strace", "chattr"))
class OneMergeThatCannotEnd(Stuck):
    """It is killed when it would remove d, and d is immutable from then on."""

    def stuck(self, u, d, direction="up"):
        before = set(os.listdir(self.dir))
        self.killed(u, d, direction, "unlink,unlinkat")
        if qtools.run("chattr", "+i", d).rc:
            self.skipTest("no attributes on this filesystem")
        journal, = (self.path(n) for n in set(os.listdir(self.dir)) - before)
        return journal

    def killed(self, u, d, direction, call, nth=1):
        """d: one layer or several."""
        drop = [x for name in ([d] if isinstance(d, str) else d)
                for x in ("--drop", name)]
        r = qtools.run("strace", "-f", "-o", "/dev/null", "-e",
                       "inject=%s:signal=KILL:when=%d" % (call, nth),
                       qtools.QSTILL, "image", "merge", u, *drop,
                       "--direction", direction)
        return r.rc != 0

    def hide(self, back=False):
        """All journals, or the next merge would begin with them."""
        for n in os.listdir(self.dir):
            if n.startswith("hidden." if back else ".qstill-merge-"):
                os.rename(self.path(n), self.path(n[6:] if back else
                                                  "hidden" + n))

    def is_told(self, r, journal):
        self.assertEqual(r.rc, 8, str(r))
        self.assertRegex(r.err, "unfinished merge.*/d is immutable")
        self.assertRegex(r.err, "chattr -i")
        self.assertTrue(os.path.exists(journal), str(r))

    def test_others_go_on_and_its_own_chain_does_not(self):
        d, u = self.pair()
        t = self.create(self.path("t"), "u", 3, 128)
        journal = self.stuck(u, d)
        d2, u2 = self.pair("d2", "u2")
        r = self.merge(u2, "--drop", d2)
        self.assertEqual(r.rc, 0, str(r))
        self.shows(u2, 1, 2, 0)
        before = self.hashes()
        self.is_told(self.merge(u, "--drop", d), journal)
        self.is_told(self.merge(t, "--drop", u), journal)
        self.assertEqual(before, self.hashes())
        qtools.must("chattr", "-i", d)
        r = self.merge(t, "--drop", u)
        self.assertEqual(r.rc, 0, str(r))
        self.assertFalse(os.path.exists(journal))
        self.assertFalse(os.path.exists(d))
        self.shows(t, 1, 2, 3)

    def test_others_that_died_are_recovered_whatever_comes_first(self):
        """All are about overlays of the layer that is to go."""
        base = self.create(self.path("base"), None, 4, 192)
        over = self.create(self.path("over"), base, 6, 320)
        for i in ("", *range(4)):
            d = self.create(self.path("d%s" % i), base, 1, 0)
            u = self.create(self.path("u%s" % i), d, 2, 64)
            if i == "":
                stuck = self.stuck(u, d)
            else:
                self.killed(u, d, "up", "unlink,unlinkat")
            self.assertTrue(os.path.exists(d))
            self.hide()
        self.hide(True)
        self.is_told(self.merge(over, "--drop", base), stuck)
        left = {n for n in os.listdir(self.dir) if n.startswith(".")}
        self.assertEqual(left, {os.path.basename(stuck)})
        for i in range(4):
            self.assertFalse(os.path.exists(self.path("d%d" % i)))
            self.shows(self.path("u%d" % i), 1, 2, 0, 4)

    def test_it_keeps_what_its_images_stand_on(self):
        """u is an overlay of what goes: it would have to take that in."""
        base = self.create(self.path("base"), None, 4, 192)
        low = self.create(self.path("low"), base, 5, 256)
        other = self.create(self.path("other"), low, 6, 320)
        d = self.create(self.path("d"), low, 1, 0)
        u = self.create(self.path("u"), d, 2, 64)
        journal = self.stuck(u, d)
        before = self.hashes()
        self.is_told(self.merge(other, "--drop", low), journal)
        self.assertEqual(before, self.hashes())
        qtools.must("chattr", "-i", d)
        r = self.merge(other, "--drop", low)
        self.assertEqual(r.rc, 0, str(r))
        self.shows(u, 1, 2, 0, 4, 5)
        self.shows(other, 0, 0, 0, 4, 5, 6)

    def test_clones_of_one_base_do_not_wait_for_each_other(self):
        base = self.create(self.path("base"), None, 4, 192)
        d = self.create(self.path("d"), base, 1, 0)
        u = self.create(self.path("u"), d, 2, 64)
        self.stuck(u, d)
        mid = self.create(self.path("mid"), base, 5, 256)
        top = self.create(self.path("top"), mid, 6, 320)
        r = self.merge(top, "--drop", mid)
        self.assertEqual(r.rc, 0, str(r))
        self.shows(top, 0, 0, 0, 4, 5, 6)
        self.shows(u, 1, 2, 0, 4)

    def test_a_project_that_was_given_meanwhile(self):
        """The file takes that of its new directory, or stays for ever."""
        self.dir, _ = qtools.loop_mount(self, "xfs", "mkfs.xfs", "-q")
        os.makedirs(self.path("p"))
        os.makedirs(self.path("q"))
        d, u = self.pair("p/d", "q/u")
        self.killed(u, d, "down", "rename,renameat,renameat2")
        self.assertTrue(os.path.exists(d))
        set_project(self.path("q"), 101)
        r = self.merge(u, "--drop", d)
        self.assertEqual(r.rc, 0, str(r))
        self.shows(u, 1, 2, 0)
        self.assertFalse(os.path.exists(d))
        self.assertEqual(["u"], sorted(os.listdir(self.path("q"))))

    def test_a_resize_before_the_flip(self):
        """It moves the L1 table; the old backing name says what was done."""
        undone = 0
        for nth in range(1, 9):
            for n in os.listdir(self.dir):
                os.unlink(self.path(n))
            d, u = self.pair()
            if not self.killed(u, d, "up", "fsync,fdatasync", nth):
                break
            said = qtools.must("qemu-img", "info", "--output=json", u).out
            if "backing-filename" not in said or not [
                    n for n in os.listdir(self.dir) if "journal" in n or
                    n.startswith(".qstill")]:
                continue
            undone += 1
            qtools.must("qemu-img", "resize", "-q", "-f", "qcow2", u, "8T")
            r = self.merge(u, "--drop", d, "--direction", "up")
            self.assertEqual(r.rc, 0, str(r))
            self.shows(u, 1, 2)
            self.assertEqual(["u"], os.listdir(self.dir))
        self.assertGreater(undone, 0)

    def test_the_same_command_again(self):
        """Layers that are no neighbours are two merges: one may be over."""
        layers = ("a", "b", "c", "d", "e")
        done = 0
        for direction in ("up", "down"):
            for call in ("unlink,unlinkat", "rename,renameat,renameat2"):
                for nth in range(1, 9):
                    for n in os.listdir(self.dir):
                        os.unlink(self.path(n))
                    for i, n in enumerate(layers):
                        self.create(self.path(n), layers[i - 1] if i else None,
                                    i + 1, 64 * i)
                    drop = self.path("b"), self.path("d")
                    if not self.killed(self.path("e"), drop, direction, call,
                                       nth):
                        break
                    gone = [n for n in drop if not os.path.exists(n)]
                    r = self.merge(self.path("e"), "--drop", drop[0], "--drop",
                                   drop[1])
                    if r.rc == 4: # nothing was left to finish
                        self.assertRegex(r.err, "cannot find layer.*%s" %
                                         gone[0])
                        self.assertRegex(r.err, "name the others only")
                        r = self.merge(self.path("e"), *[
                            x for n in drop if n not in gone
                            for x in ("--drop", n)])
                    self.assertEqual(r.rc, 0, str(r))
                    self.shows(self.path("e"), 1, 2, 3, 4, 5)
                    self.assertEqual(["a", "c", "e"],
                                     sorted(os.listdir(self.dir)))
                    done += len(gone) == 1
        self.assertGreaterEqual(done, 2)

    def test_a_name_that_is_not_there_is_not_taken_for_done(self):
        """The unfinished one is finished first; that says nothing."""
        d, u = self.pair()
        self.assertTrue(self.killed(u, d, "up", "unlink,unlinkat"))
        r = self.merge(u, "--drop", self.path("typo"))
        self.assertEqual(r.rc, 4, str(r))
        self.assertRegex(r.err, "cannot find layer .*/typo")
        self.assertFalse(os.path.exists(d))
        self.shows(u, 1, 2, 0)

    def test_the_one_that_fails_says_what_helps(self):
        d, u = self.pair()
        r = qtools.run("strace", "-f", "-o", "/dev/null", "-e",
                       "inject=unlink,unlinkat:error=EIO:when=1",
                       qtools.QSTILL, "--json", "image", "merge", u, "--drop",
                       d, "--direction", "up")
        self.assertNotEqual(r.rc, 0, str(r))
        self.assertRegex(r.err, "the merge is not over.*cannot remove d")
        self.assertRegex(r.err, "merge again")
        r = self.merge(u, "--drop", d)
        self.assertEqual(r.rc, 0, str(r))
        self.shows(u, 1, 2, 0)


if __name__ == "__main__":
    unittest.main(verbosity=1)
