#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What may come between a merge that died and the next one, which ends it: the
machine boots, the folder moves, somebody works on the layers."""

import os
import shutil
import subprocess
import unittest

import qtools

MIB = 1 << 20
NEEDED = qtools.missing("qemu-img", "qemu-io", "strace")


class Died(qtools.Scratch, unittest.TestCase):
    def create(self, name, backing=None, *writes):
        argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if backing:
            argv += ["-b", backing, "-F", "qcow2"]
        qtools.must(*argv, self.path(name), str(8 * MIB))
        self.write(name, *writes)
        return self.path(name)

    def write(self, name, *writes):
        argv = [x for w in writes for x in ("-c", "write -q " + w)]
        if argv:
            qtools.must("qemu-io", "-f", "qcow2", *argv, self.path(name))

    def chain(self):
        """c <- d <- u, by names without a folder."""
        self.create("c", None, "-P 7 0 8M")
        self.create("d", "c", "-P 1 0 4M")
        self.create("u", "d", "-P 2 0 1M", "-P 2 6M 64k")
        self.want = self.guest("u")

    def clean(self, name):
        self.assertEqual((0, 0, 0), qtools.qemu_check(self.path(name)))

    def guest(self, name):
        return qtools.guest_hash(self.path(name), "qcow2")

    def killed(self, call, n, *argv):
        """Whether the merge died at its n-th such call, with its journal."""
        subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + call,
             "-e", "inject=%s:signal=KILL:when=%d" % (call, n),
             qtools.QSTILL, "image", "merge", self.path("u"), "--drop",
             self.path("d"), *argv], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=60, check=False)
        return bool(self.journals())

    def journals(self):
        return [n for n in os.listdir(self.dir)
                if n.startswith(".qstill-merge")]

    def merge(self, top, *drop):
        argv = [x for d in drop for x in ("--drop", self.path(d))]
        return qtools.image("merge", self.path(top), *argv)

    def another(self):
        """The merge of another layer of the chain."""
        r = self.merge("u", "c")
        self.assertEqual(r.rc, 0, str(r))
        return r

    def moments(self, call, most, direction, body, before=lambda: None):
        """A chain after each moment at which its merge can die; body() is False
        where it has nothing to say."""
        some = 0
        self.direction = direction
        for n in range(1, most + 1):
            for name in os.listdir(self.dir):
                os.unlink(self.path(name))
            self.chain()
            before()
            with self.subTest(direction=direction, at="%s %d" % (call, n)):
                some += self.killed(call, n, "--direction", direction) and \
                    body() is not False
        self.assertGreater(some, 0, "it died nowhere")


@unittest.skipIf(NEEDED, NEEDED)
class Later(Died):
    def test_the_folder_has_moved(self):
        def body():
            old = self.dir
            self.dir = old + ".moved"
            os.rename(old, self.dir)
            try:
                r = self.merge("u", "c")
                self.assertEqual(r.rc, 0, str(r))
                self.assertEqual(self.journals(), [])
                self.assertEqual(self.guest("u"), self.want)
                self.clean("u")
            finally:
                os.rename(self.dir, old)
                self.dir = old
        for direction in ("up", "down", "new"):
            self.moments("fsync,fdatasync", 5, direction, body)

    def test_a_new_image_has_the_dropped_layers_name(self):
        """And, on many filesystems, its inode's number."""
        def body():
            if os.path.exists(self.path("d")):
                return False
            self.create("d", "u", "-P 9 0 2M")
            mine = self.guest("d")
            r = self.merge("u", "c")
            self.assertEqual(r.rc, 0, str(r))
            self.assertEqual(self.guest("d"), mine)
            self.assertEqual(self.guest("u"), self.want)
            return True
        for direction in ("up", "new"):
            self.moments("ftruncate,unlinkat,unlink", 6, direction, body)

    def goes_back(self, name, make):
        """The layer is used again, and stays."""
        if not os.path.exists(self.path("d")):
            return False
        make()
        mine = self.guest(name)
        stays = "u" if self.direction == "down" else "d"
        undone = stays == "d" and self.stands_on("u") == "d"
        r = self.another()
        self.assertEqual(self.journals(), [])
        self.assertEqual(self.guest(name), mine)
        if not undone:
            self.assertRegex(r.err, "note: .*/%s stays: an unfinished merge was"
                             " to take it away" % stays)
        return True

    def stands_on(self, name):
        info = qtools.qemu_json("info", "--output=json", self.path(name))[1]
        return info.get("backing-filename")

    def test_an_overlay_of_the_dropped_layer(self):
        def body():
            if not self.goes_back("back", lambda: self.create(
                    "back", "d", "-P 9 2M 2M")):
                return False
            self.assertEqual(self.guest("u"), self.want)
            return True
        for direction in ("up", "down", "new"):
            self.moments("renameat2,renameat,rename,unlinkat", 3, direction,
                         body)

    def test_somebody_writes_to_the_dropped_layer(self):
        """A `new` one may not have its name yet: then u still reads it."""
        def body():
            return self.goes_back("d", lambda: self.write("d", "-P 9 2M 2M"))
        for direction in ("up", "new"):
            self.moments("renameat2,renameat,rename,unlinkat", 3, direction,
                         body)

    def test_a_file_that_has_the_new_ones_name(self):
        """It was there before: the merge would have refused."""
        def precious():
            with open(self.path(".u.merge"), "w") as f:
                f.write("precious")

        def body():
            self.another()
            self.assertEqual(self.journals(), [])
            self.assertTrue(os.path.exists(self.path(".u.merge")))
        self.moments("fsync,fdatasync", 3, "new", body, precious)

    def test_a_resize_after_the_flip(self):
        def body():
            said = qtools.must("qemu-img", "info", "-U", self.path("u")).out
            if "backing file: c " not in said + " ":
                return False
            qtools.must("qemu-img", "resize", "-q", self.path("u"), "8T")
            r = self.merge("u", "c")
            self.assertEqual(r.rc, 0, str(r))
            self.assertEqual(self.journals(), [])
            self.clean("u")
            return True
        self.moments("fsync,fdatasync", 6, "up", body)

    def test_a_writer_between_the_look_and_the_lock(self):
        """Another merge finds it and stands still at a read of u, whose tables
        move meanwhile: what was read before the lock is no measure then."""
        def body():
            try:
                with qtools.Stopped(self.log, self.path("u"), "pread64", k,
                                    "merge", self.path("u"), "--drop",
                                    self.path("c")) as other:
                    # what it locked already QEMU cannot open
                    resized = qtools.run("qemu-img", "resize", "-q",
                                         self.path("u"), "8T").rc == 0
            except AssertionError:
                return False  # it has fewer reads
            resizes.add(resized)
            self.assertEqual(other.result.rc, 0, str(other.result))
            self.assertEqual([], self.journals())
            self.clean("u")
            for i, fill in enumerate((2, 2, 1, 1)):
                qtools.must("qemu-io", "-r", "-f", "qcow2", "-c", "read -q -P "
                            "%d %dk 512k" % (fill, 512 * i), self.path("u"))
            return True
        resizes = set()
        for k in range(3, 9):
            self.moments("fsync,fdatasync", 3, "up", body)
        self.assertEqual({True, False}, resizes, "it never came to the lock")

    def test_somebody_has_helped_himself(self):
        """What was torn, or was to go, is away, and the rest is right."""
        def body():
            if direction == "up" and os.path.exists(self.path("d")):
                return False
            qtools.must("qemu-img", "rebase", "-f", "qcow2", "-b", "c", "-F",
                        "qcow2", self.path("u"))
            if os.path.exists(self.path("d")):
                os.unlink(self.path("d"))
            qtools.must("qemu-img", "rebase", "-f", "qcow2", "-b", "",
                        self.path("u"))
            mine = self.guest("u")
            self.create("v", "u")
            r = self.merge("v", "u")
            self.assertEqual(r.rc, 0, str(r))
            self.assertEqual(self.journals(), [])
            self.assertEqual(self.guest("v"), mine)
            return True
        for direction in ("up", "down"):
            self.moments("fsync,fdatasync,ftruncate", 6, direction, body)

    def test_another_chains_is_left_to_it(self):
        """However long it would take: whose it is asks for it. A journal in
        which nothing is left to do may go."""
        def body():
            self.create("other0", None, "-P 3 0 1M")
            self.create("other1", "other0", "-P 4 1M 1M")
            names = [n for n in os.listdir(self.dir) if "other" not in n]
            state = {n: qtools.file_hash(self.path(n)) for n in names}
            r = self.merge("other1", "other0")
            self.assertEqual(r.rc, 0, str(r))
            if "d" not in names and not self.journals():
                return False
            self.assertEqual(sorted([*names, "other1"]),
                             sorted(os.listdir(self.dir)))
            self.assertEqual(state, {n: qtools.file_hash(self.path(n))
                                     for n in names})
            r = self.merge("u", "d")
            self.assertIn(r.rc, (0, 4), str(r))
            self.assertEqual(self.journals(), [])
            self.assertFalse(os.path.exists(self.path("d")))
            self.assertEqual(self.guest("u"), self.want)
            self.clean("u")
            return True
        for direction in ("up", "down", "new"):
            self.moments("fsync,fdatasync", 5, direction, body)

    def test_what_is_gone_is_said_with_the_journals_name(self):
        def body():
            os.rename(self.path("u"), self.path("x"))
            shutil.copy(self.path("x"), self.path("u"))
            r = self.merge("u", "d")
            self.assertEqual(r.rc, 3, str(r))
            self.assertIn("u, and that file is another by now", r.err)
            self.assertIn("remove its journal, %s" % self.path(
                self.journals()[0]), r.err)
        self.moments("fsync,fdatasync", 2, "up", body)


@unittest.skipUnless(os.geteuid() == 0, "needs root for mounts")
@unittest.skipIf(qtools.missing("mkfs.ext4", "mkfs.btrfs", "strace"),
                 qtools.missing("mkfs.ext4", "mkfs.btrfs", "strace"))
class Booted(Died):
    """The filesystem has another device number afterwards."""

    def mount_elsewhere(self, image, place, was):
        """Numbers are given again, and others take and give them back, too: the
        old one is taken until it is not given any more."""
        blocker = os.path.join(self.whole, "other")
        with open(blocker, "wb") as f:
            f.truncate(MIB)
        for i in range(20):
            aside = os.path.join(self.whole, "aside%d" % i)
            os.makedirs(aside, exist_ok=True)
            # ext4 has its loop device's number, btrfs one of those of mounts
            # without a device
            loop = qtools.must("losetup", "-f", "--show", blocker).out.strip()
            self.undo.append(("losetup", "-d", loop))
            qtools.must("mount", "-t", "tmpfs", "none", aside)
            self.undo.append(("umount", aside))
            qtools.must("mount", "-o", "loop", image, place)
            if os.stat(place).st_dev != was:
                return
            qtools.must("umount", place)
        self.fail("it always has the same number")

    def on(self, fs, direction, call, n):
        image, place = (os.path.join(self.dir, x) for x in ("fs", "m"))
        with open(image, "wb") as f:
            f.truncate(400 * MIB)
        qtools.must("mkfs." + fs, "-q", image)
        os.makedirs(place, exist_ok=True)
        self.whole, self.undo = self.dir, [("umount", place)]
        qtools.must("mount", "-o", "loop", image, place)
        try:
            self.dir = place
            self.chain()
            was = os.stat(place).st_dev
            died = self.killed(call, n, "--direction", direction)
            qtools.must("umount", place)
            self.mount_elsewhere(image, place, was)
            if died:
                r = self.merge("u", "c")
                self.assertEqual(r.rc, 0, str(r))
                self.assertEqual(self.journals(), [])
            self.assertEqual(self.guest("u"), self.want)
            self.clean("u")
            return died
        finally:
            self.dir = self.whole
            for argv in self.undo:
                qtools.run(*argv)

    def test_another_device_number(self):
        some = 0
        for fs in ("ext4", "btrfs"):
            for direction in ("up", "down", "new"):
                for n in (2, 3):
                    with self.subTest(fs=fs, direction=direction, n=n):
                        some += self.on(fs, direction, "fsync,fdatasync", n)
        self.assertGreater(some, 6)


@unittest.skipIf(NEEDED, NEEDED)
class NoBirth(Died):
    """A filesystem that does not know when a file was born."""

    def setUp(self):
        mount, _ = qtools.loop_mount(self, "ext4", "mkfs.ext4", "-q", "-I",
                                     "128")
        self.dir = os.path.join(mount, "images")
        os.mkdir(self.dir)

    def test_a_new_file_that_was_not_written_down_yet(self):
        """Nothing is left of it, and the same merge can be done."""
        def body():
            r = self.merge("u", "d") if again else self.another()
            if again:
                self.assertIn(r.rc, (0, 4), str(r))
            self.assertEqual([], self.journals())
            self.assertEqual(set(), set(os.listdir(self.dir)) -
                             {"c", "d", "u"})
            self.assertEqual(self.guest("u"), self.want)
            self.clean("u")
        for again in (True, False):
            self.moments("fsync,fdatasync", 6, "new", body)


if __name__ == "__main__":
    unittest.main()
