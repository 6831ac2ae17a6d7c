#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A folder of several users: what lies there and does not concern a merge does
not keep it from its work, readable or not; and it is left alone."""

import os
import shutil
import subprocess
import tempfile
import unittest

import qtools

MIB = 1 << 20
NEEDED = qtools.missing("qemu-img", "qemu-io", "strace")
NOBODY, OTHER = 65534, 65533


@unittest.skipIf(NEEDED, NEEDED)
@unittest.skipUnless(os.geteuid() == 0, "needs root to be several users")
class Shared(qtools.Scratch, unittest.TestCase):
    def setUp(self):
        super().setUp()
        os.chmod(self.dir, 0o1777)

    def make(self, name, uid=NOBODY, backing=None, mode=0o600):
        argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if backing:
            argv += ["-b", backing, "-F", "qcow2"]
        path = self.path(name)
        qtools.must(*argv, path, str(4 * MIB))
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %dk 64k" %
                    (len(name), 64 * (ord(name[-1]) % 32)), path)
        os.chown(path, uid, uid)
        os.chmod(path, mode)
        return path

    def chain(self, *names, **kw):
        for below, name in zip((None, *names), names):
            self.make(name, backing=below, **kw)

    def die(self, top, drop, *argv, call="fdatasync", n=2):
        """The merge of another user is killed."""
        before = set(self.journals())
        uid = os.stat(self.path(top)).st_uid
        d = tempfile.mkdtemp(prefix="qcow2-other-")
        self.addCleanup(shutil.rmtree, d, True)
        os.chmod(d, 0o755)
        program = shutil.copy(qtools.QSTILL, d)
        log = os.path.join(d, "log")
        os.close(os.open(log, os.O_CREAT, 0o666))
        os.chmod(log, 0o666)
        subprocess.run(
            ["strace", "-f", "-qq", "-o", log, "-e", "trace=" + call, "-e",
             "inject=%s:signal=KILL:when=%d" % (call, n), program, "image",
             "merge", self.path(top), "--drop", self.path(drop), *argv],
            user=uid, group=uid, extra_groups=[], cwd=d, timeout=60,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        new = set(self.journals()) - before
        self.assertEqual(1, len(new), "it did not die")
        return new.pop()

    def journals(self):
        return [n for n in os.listdir(self.dir)
                if n.startswith(".qstill-merge")]

    def merge(self, top, *drop):
        argv = [x for d in drop for x in ("--drop", self.path(d))]
        return qtools.as_nobody("image", "merge", self.path(top), *argv)

    def state(self, *names):
        out = {}
        for n in names:
            st = os.stat(self.path(n))
            out[n] = (st.st_ino, st.st_mtime_ns, st.st_size,
                      qtools.file_hash(self.path(n)))
        return out

    def merges(self, top, *drop, keeps=()):
        """It does, and changes nothing of the others."""
        view = qtools.guest_hash(self.path(top), "qcow2")
        before = self.state(*keeps)
        r = self.merge(top, *drop)
        self.assertEqual(0, r.returncode, r.stderr)
        self.assertEqual(view, qtools.guest_hash(self.path(top), "qcow2"))
        for d in drop:
            self.assertFalse(os.path.exists(self.path(d)))
        self.assertEqual(before, self.state(*keeps))

    def refuses(self, rc, word, top, *drop):
        before = self.state(*os.listdir(self.dir))
        r = self.merge(top, *drop)
        self.assertEqual(rc, r.returncode, r.stderr)
        self.assertIn(word, r.stderr)
        self.assertEqual(before, self.state(*os.listdir(self.dir)))

    # ------------------------------------------------------------ journals

    def test_anothers_journal_and_images(self):
        self.chain("b0", "b1", "b2", uid=OTHER)
        j = self.die("b2", "b1")
        self.chain("a0", "a1", "a2")
        self.merges("a2", "a1", keeps=(j, "b0", "b2"))

    def test_anothers_that_can_be_read(self):
        self.chain("b0", "b1", "b2", uid=OTHER, mode=0o644)
        j = self.die("b2", "b1")
        self.chain("a0", "a1", "a2", mode=0o644)
        for mode in (0o600, 0o644):
            os.chmod(self.path(j), mode)
            self.merges("a2", "a1", keeps=(j, "b0", "b2"))
            self.make("a1", backing="a0", mode=0o644)
            self.make("a2", backing="a1", mode=0o644)

    def test_it_is_left_to_its_owner(self):
        self.chain("b0", "b1", "b2", uid=OTHER)
        view = qtools.guest_hash(self.path("b2"), "qcow2")
        self.die("b2", "b1")
        self.chain("a0", "a1", "a2")
        self.merges("a2", "a1")
        r = qtools.image("merge", self.path("b2"), "--drop", self.path("b1"))
        self.assertEqual(6, r.rc, str(r))  # another user's word
        os.chown(self.path(self.journals()[0]), 0, 0)
        r = qtools.image("merge", self.path("b2"), "--drop", self.path("b1"))
        self.assertEqual(0, r.rc, str(r))
        self.assertEqual([], self.journals())
        self.assertEqual(view, qtools.guest_hash(self.path("b2"), "qcow2"))
        self.assertEqual((0, 0, 0), qtools.qemu_check(self.path("b2")))

    def test_root_beside_anothers(self):
        self.chain("b0", "b1", "b2", uid=OTHER)
        j = self.die("b2", "b1")
        self.chain("a0", "a1", "a2", uid=0)
        keeps = self.state(j, "b0", "b2")
        r = qtools.image("merge", self.path("a2"), "--drop", self.path("a1"))
        self.assertEqual(0, r.rc, str(r))
        self.assertEqual(keeps, self.state(j, "b0", "b2"))

    def test_a_live_one(self):
        self.chain("a0", "a1", "a2")
        self.chain("b0", "b1", "b2", uid=OTHER)
        os.chmod(self.dir, 0o777)
        with qtools.Stopped(self.log, self.path("b2"), "fdatasync", 1,
                            "merge", self.path("b2"), "--drop",
                            self.path("b1")):
            j = self.journals()[0]
            os.chown(self.path(j), OTHER, OTHER)
            self.merges("a2", "a1", keeps=(j, "b0"))
        self.assertEqual([], self.journals())

    def test_roots_about_ours(self):
        """By the name of its journal it is ours, or has a layer of ours."""
        self.chain("a0", "a1", "a2", "a3")
        self.die("a3", "a2")
        j = self.path(self.journals()[0])
        os.chown(j, 0, 0)
        self.refuses(8, ".qstill-merge", "a3", "a2")
        self.refuses(8, ".qstill-merge", "a2", "a1")
        os.chown(j, NOBODY, NOBODY)
        self.merges("a3", "a2", "a1")

    def test_roots_about_others(self):
        self.chain("b0", "b1", "b2", uid=0, mode=0o644)
        j = self.die("b2", "b1")
        self.chain("a0", "a1", "a2")
        os.chmod(self.path(j), 0o600)
        self.merges("a2", "a1", keeps=(j, "b0", "b2"))

    def test_roots_about_nobody_knows_what(self):
        self.chain("b0", "b1", "b2", uid=0)
        self.die("b2", "b1")
        self.chain("a0", "a1", "a2")
        self.refuses(8, ".qstill-merge", "a2", "a1")
        os.chmod(self.path("b2"), 0o644)
        os.rename(self.path("b2"), self.path("b3"))
        self.refuses(8, ".qstill-merge", "a2", "a1")

    def test_of_who_may_write_to_ours(self):
        self.chain("b0", "b1", "b2", uid=OTHER)
        self.die("b2", "b1")
        self.chain("a0", "a1", "a2")
        os.chmod(self.path("a1"), 0o666)
        self.refuses(8, ".qstill-merge", "a2", "a1")

    # -------------------------------------------------------------- images

    def test_an_image_of_who_can_read_the_layer(self):
        self.chain("a0", "a1", "a2", mode=0o644)
        self.make("b", uid=OTHER)
        self.refuses(8, "it may stand on a layer that goes", "a2", "a1")
        for n in ("a0", "a1", "a2"):
            os.chmod(self.path(n), 0o640)
        self.refuses(8, "it may stand on a layer that goes", "a2", "a1")
        os.chmod(self.path("a1"), 0o600)
        self.merges("a2", "a1", keeps="b")

    def test_an_image_of_root(self):
        self.chain("a0", "a1", "a2")
        self.make("b", uid=0)
        self.refuses(8, "it may stand on a layer that goes", "a2", "a1")

    def test_an_image_by_a_link(self):
        self.chain("a0", "a1", "a2")
        self.make("b", uid=OTHER)
        os.symlink("b", self.path("c"))
        self.merges("a2", "a1", keeps="b")


if __name__ == "__main__":
    unittest.main()
