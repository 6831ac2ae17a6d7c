#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""While a merge runs, somebody gives the name of one of its files to another
one: a backup program that puts a copy in place, a restore, `mv`. No lock keeps
him from it. What he has put there is not replaced, nor taken for what was
there; nobody loses what he reads."""

import os
import shutil
import unittest

import qtools

MIB = 1 << 20
NEEDED = qtools.missing("qemu-img", "qemu-io", "strace")
DIRECTIONS = ("up", "down", "new")
BUSY = 5
# From before the first byte, of the journal, to the last before a name changes.
CALLS = ("fsync", "fdatasync")


class Names(qtools.Scratch, unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.copies = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.copies, True)

    def create(self, name, backing, *writes):
        argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if backing:
            argv += ["-b", backing, "-F", "qcow2"]
        qtools.must(*argv, self.path(name), str(2 * MIB))
        qtools.must("qemu-io", "-f", "qcow2",
                    *(x for w in writes for x in ("-c", "write -q " + w)),
                    self.path(name))

    def chain(self):
        """base <- a <- b <- top; an overlay, `side`, on a."""
        for name in os.listdir(self.dir):
            os.unlink(self.path(name))
        self.create("base", None, "-P 7 0 2M")
        self.create("a", "base", "-P 1 0 1792k")
        self.create("b", "a", "-P 2 640k 256k")
        self.create("top", "b", "-P 3 256k 512k", "-P 4 1984k 64k")
        self.create("side", "a", "-P 5 128k 64k")
        self.inodes = {n: os.stat(self.path(n)).st_ino
                       for n in os.listdir(self.dir)}
        self.want = {n: self.guest(n) for n in ("top", "side")}

    def guest(self, name):
        return qtools.guest_hash(self.path(name), "qcow2")

    def argv(self, direction, drop):
        return ["merge", self.path("top"), "--direction", direction,
                *(x for d in drop for x in ("--drop", self.path(d)))]

    def drops(self, direction):
        return qtools.sample((["b"], ["b", "a"]), self.id() + direction)

    def is_there(self, name):
        return os.path.exists(self.path(name)) and \
            os.stat(self.path(name)).st_ino == self.inodes[name]

    def copy_of(self, name):
        """Equal in all, beside it until it gets the name."""
        shutil.copy2(self.path(name), self.path(name + ".copy"))
        return self.path(name + ".copy")

    def put(self, path, name):
        """An fd of what has the name now."""
        os.rename(path, self.path(name))
        fd = os.open(self.path(name), os.O_RDONLY)
        self.addCleanup(os.close, fd)
        return fd

    def stops(self, direction, drop, body, calls=CALLS):
        """body() behind each such call at which all files have their names;
        then what it returns judges the end."""
        done = 0
        for call in calls:
            at = 1
            while self.stop(direction, drop, call, at, body):
                at += 1
                done += 1
        self.assertGreater(done, 2, "it was stopped nowhere")

    def stop(self, direction, drop, call, at, body):
        self.chain()
        with self.subTest(direction=direction, drop=drop, at=(call, at)):
            judge = None
            try:
                with qtools.Stopped(self.log, None, call, at,
                                    *self.argv(direction, drop)) as s:
                    if all(map(self.is_there, self.inodes)):
                        judge = body()
            except qtools.Stopped.NoSuchCall:
                return False
            if judge:
                judge(s.result)
            return judge is not None
        return True

    def journals(self):
        return [n for n in os.listdir(self.dir) if n.startswith(".q")]

    def all_is_well(self, r):
        for name, want in self.want.items():
            self.assertEqual(want, self.guest(name), "%s\n%s" % (name, r))

    def merge_again(self, direction, drop):
        r = qtools.image(*self.argv(direction, drop))
        self.assertIn(r.rc, (0, 4), str(r))
        self.all_is_well(r)
        self.assertEqual([], self.journals(), str(r))
        for name in self.want:
            self.assertEqual((0, 0, 0), qtools.qemu_check(self.path(name)))


@unittest.skipIf(NEEDED, NEEDED)
class Replaced(Names):
    def test_an_equal_copy_of_any_of_them(self):
        for direction in DIRECTIONS:
            for drop in self.drops(direction):
                for who in qtools.sample(("top", "b", "a", "side"),
                                         self.id() + direction + str(drop)):
                    with self.subTest(who=who):
                        self.copied(direction, drop, who)

    def copied(self, direction, drop, who):
        def body():
            fd = self.put(self.copy_of(who), who)

            def judge(r):
                if r.rc:
                    self.assertEqual(BUSY, r.rc, str(r))
                    self.assertRegex(r.err, "meanwhile")
                self.all_is_well(r)
                self.assertTrue(os.fstat(fd).st_nlink or r.rc == 0 and
                                who in drop, "it was replaced\n%s" % r)
                self.merge_again(direction, drop)
            return judge
        self.stops(direction, drop, body)

    def test_another_image_in_the_place_of_the_top(self):
        """Out of a backup, say: it stays, and what the top was is no loss of
        ours."""
        def body():
            self.create("other", "base", "-P 9 0 1M")
            other = self.guest("other")
            self.put(self.path("other"), "top")

            def judge(r):
                self.assertIn(r.rc, (0, BUSY) if direction == "up"
                              else (BUSY,), str(r))
                self.assertEqual(other, self.guest("top"), str(r))
                self.assertEqual(self.want["side"], self.guest("side"))
            return judge
        for direction in DIRECTIONS:
            for drop in self.drops(direction):
                self.stops(direction, drop, body)

    def test_the_top_is_moved_away(self):
        """It can be opened by its new name, and merged by it; moved back, the
        merge is done."""
        def body():
            os.rename(self.path("top"), self.path("moved"))

            def judge(r):
                self.assertEqual(BUSY, r.rc, str(r))
                self.assertFalse(os.path.exists(self.path("top")))
                self.assertEqual(self.want["top"], self.guest("moved"), str(r))
                if not back:
                    m = qtools.image("merge", self.path("moved"),
                                     *self.argv(direction, drop)[2:])
                    self.assertIn(m.rc, (0, 4), str(m))
                os.rename(self.path("moved"), self.path("top"))
                self.merge_again(direction, drop)
            return judge
        for direction in DIRECTIONS:
            for drop in self.drops(direction):
                for back in (True, False):
                    self.stops(direction, drop, body)

    def test_another_users_file_is_given_no_rights(self):
        """In a folder of his own somebody puts a link to it where the merge
        has its lower image: neither mode nor owner change, nor its name."""
        def body():
            with open(self.path("victim"), "w", encoding="ascii") as f:
                f.write("nobody else's")
            os.chmod(self.path("victim"), 0o600)
            os.rename(self.path("b"), self.path("b.real"))
            os.link(self.path("victim"), self.path("b"))

            def judge(r):
                self.assertNotEqual(0, r.rc, str(r))
                st = os.stat(self.path("victim"))
                self.assertEqual((0o600, 2), (st.st_mode & 0o7777,
                                              st.st_nlink), str(r))
                self.assertTrue(os.path.samefile(self.path("b"),
                                                 self.path("victim")))
            return judge
        self.stops("down", ["b"], body, ("openat",))

    def test_a_dropped_image_is_moved_away(self):
        """And comes back. That it stays away matters where it is to hold the
        result."""
        def body():
            os.rename(self.path(who), self.path("moved"))

            def judge(r):
                if "bytes into %s" % self.path(who) in r.err:
                    self.assertEqual(BUSY, r.rc, str(r))
                    self.assertRegex(r.err, "try again|give it back its name")
                    some.add(direction)
                if r.rc:
                    os.rename(self.path("moved"), self.path(who))
                self.all_is_well(r)
                self.merge_again(direction, drop)
            return judge
        some = set()
        for direction in DIRECTIONS:
            for drop in self.drops(direction):
                for who in drop:
                    self.stops(direction, drop, body)
        self.assertEqual({"down"}, some)


@unittest.skipUnless(os.geteuid() == 0, "needs root for mounts")
@unittest.skipIf(NEEDED, NEEDED)
class ReplacedWhereBlocksAreShared(Replaced):
    """There nothing is written over, and the header flips."""

    def setUp(self):
        super().setUp()
        mount, _ = qtools.loop_mount(self, "xfs", "mkfs.xfs", "-q", "-m",
                                     "reflink=1")
        self.dir = os.path.join(mount, "images")
        os.mkdir(self.dir)


if __name__ == "__main__":
    unittest.main(verbosity=1)
