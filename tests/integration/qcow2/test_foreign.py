#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Merges above an image of a format that qstill does not read (vdi, vmdk, qed):
what falls through to it still does, and zeros above it stay zeros."""

import json
import os
import random
import shutil
import unittest

import qtools

MIB = 1 << 20
KIB = 1 << 10
BASES = ("vdi", "vmdk", "qed")


@unittest.skipIf(qtools.missing("qemu-img", "qemu-io"), "tool not installed")
class Foreign(qtools.Scratch, unittest.TestCase):
    def create(self, name, below, fmt, size, cluster):
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    "cluster_size=%d" % cluster, "-b", below, "-F", fmt,
                    self.path(name), str(size))

    def base(self, fmt, size=8 * MIB):
        qtools.must("qemu-img", "create", "-q", "-f", fmt, self.path("base"),
                    str(size))
        qtools.must("qemu-io", "-f", fmt, "-c", "write -q -P 1 0 %d" %
                    (size * 3 // 4), self.path("base"))
        self.fmt = fmt
        self.base_hash = qtools.file_hash(self.path("base"))

    def fill(self, name, size, r):
        argv = []
        for _ in range(r.randint(2, 8)):
            at = r.randrange(size // (4 * KIB)) * 4 * KIB
            length = min(r.choice((4, 12, 64, 64, 192, 1024)) * KIB, size - at)
            if r.random() < 0.5:
                at -= at % (64 * KIB)
            argv += ["-c", "%s %d %d" % (
                r.choice(("write -q -P %d" % r.randint(2, 255), "write -q -z",
                          "write -q -z -u", "discard -q")), at, length)]
        qtools.must("qemu-io", "-f", "qcow2", *argv, self.path(name))

    def guest(self, name):
        return qtools.guest_hash(self.path(name), "qcow2")

    def below(self, name):
        info = json.loads(qtools.must(
            "qemu-img", "info", "--output=json", self.path(name)).out)
        return (os.path.basename(info["backing-filename"]),
                info["backing-filename-format"])

    def is_whole(self, want):
        for name, view in want.items():
            self.assertEqual(view, self.guest(name), name)
            qtools.must("qemu-img", "check", "-q", "-f", "qcow2",
                        self.path(name))
        self.assertEqual(self.base_hash, qtools.file_hash(self.path("base")))

    def merge(self, direction, *names):
        return qtools.image(
            "merge", self.path("top"), "--direction", direction,
            *(x for n in names for x in ("--drop", self.path(n))))

    def chain(self, r, sizes, clusters):
        """base <- a <- b <- top, and `side` on b."""
        below, fmt = "base", self.fmt
        for name, size, cluster in zip(("a", "b", "top"), sizes, clusters):
            self.create(name, below, fmt, size, cluster)
            self.fill(name, size, r)
            below, fmt = name, "qcow2"
        self.create("side", "b", "qcow2", sizes[2], clusters[2])
        self.fill("side", sizes[2], r)
        return {n: self.guest(n) for n in ("top", "side")}

    def clear(self):
        for name in os.listdir(self.dir):
            if name != "y":
                os.unlink(self.path(name))

    def rounds(self, seeds, sizes, clusters):
        done = 0
        for seed in seeds:
            r = random.Random(seed)
            self.clear()
            self.base(r.choice(BASES), r.choice((8, 8, 6)) * MIB)
            want = self.chain(r, [r.choice(sizes) for _ in range(3)],
                              [r.choice(clusters) for _ in range(3)])
            names = r.choice((["a"], ["b"], ["a", "b"]))
            direction = r.choice(("up", "down", "new", "auto"))
            files = {n: qtools.file_hash(self.path(n))
                     for n in os.listdir(self.dir)}
            with self.subTest(seed=seed, drop=names, direction=direction):
                said = self.merge(direction, *names)
                self.is_whole(want)
                if said.rc == 6 and len(clusters) > 1:
                    self.assertEqual(files, {
                        n: qtools.file_hash(self.path(n)) for n in files})
                    continue
                self.assertEqual(0, said.rc, str(said))
                done += 1
                for name in names:
                    self.assertFalse(os.path.exists(self.path(name)))
                for name in ("a", "b", "top", "side"):
                    if not os.path.exists(self.path(name)):
                        continue
                    self.assertEqual(self.fmt if self.below(name)[0] == "base"
                                     else "qcow2", self.below(name)[1])
        return done

    def test_what_falls_through_still_does(self):
        self.rounds(range(40), (8 * MIB,), (64 * KIB,))

    def test_of_other_sizes(self):
        self.rounds(range(100, 140), (4 * MIB, 8 * MIB, 12 * MIB), (64 * KIB,))

    def test_clusters_of_other_sizes(self):
        """A cluster that would have to be filled from it is no candidate."""
        done = self.rounds(range(200, 240), (8 * MIB,),
                           (4 * KIB, 64 * KIB, 256 * KIB))
        self.assertGreater(done, 5)

    def grown(self, name):
        """What it shows once it is larger."""
        shutil.copy(self.path(name), self.path("copy"))
        qtools.must("qemu-img", "resize", "-q", "-f", "qcow2",
                    self.path("copy"), str(8 * MIB))
        return self.guest("copy")

    def test_what_is_behind_the_end_does_not_come_back(self):
        """QEMU writes zeros where it grows above a longer image, and not above
        a shorter one; how long this one is we do not know."""
        for fmt in BASES + ("raw",):
            for size in (4 * MIB, 8 * MIB):
                with self.subTest(fmt=fmt, size=size):
                    self.clear()
                    self.base(fmt, size)
                    self.create("a", "base", fmt, 8 * MIB, 64 * KIB)
                    self.create("top", "a", "qcow2", 8 * MIB, 64 * KIB)
                    qtools.must("qemu-io", "-f", "qcow2", "-c",
                                "write -q -P 3 5M 64k", self.path("top"))
                    qtools.must("qemu-img", "resize", "-q", "--shrink", "-f",
                                "qcow2", self.path("top"), str(5 * MIB + 512))
                    want, larger = self.guest("top"), self.grown("top")
                    said = self.merge("up", "a")
                    self.assertEqual(0, said.rc, str(said))
                    self.is_whole({"top": want})
                    self.assertEqual(larger, self.grown("top"))

    @unittest.skipIf(qtools.missing("strace"), "strace is not installed")
    def test_killed_it_is_ended_by_the_next_one(self):
        died = 0
        for call, most in (("pwrite64", 12), ("fdatasync,fsync", 6),
                           ("renameat,renameat2,rename", 3),
                           ("unlinkat,unlink", 4)):
            for n in range(1, most + 1):
                self.clear()
                r = random.Random("%s %d" % (call, n))
                self.base(r.choice(BASES))
                want = self.chain(r, [8 * MIB] * 3, [64 * KIB] * 3)
                direction = r.choice(("up", "down", "new"))
                with self.subTest(call=call, n=n, direction=direction):
                    p = qtools.run(
                        "strace", "-f", "-qq", "-o", "/dev/null", "-e",
                        "trace=" + call, "-e",
                        "inject=%s:signal=KILL:when=%d" % (call, n),
                        qtools.QSTILL, "image", "merge", self.path("top"),
                        "--direction", direction, "--drop", self.path("a"),
                        "--drop", self.path("b"))
                    died += p.rc != 0
                    if p.rc != 0:
                        again = self.merge("auto", "a", "b")
                        # 4: all was done but for the end of the journal
                        self.assertIn(again.rc, (0, 4), str(again))
                    self.is_whole(want)
                    self.assertEqual(("base", self.fmt), self.below("top"))
                    self.assertEqual(["base", "side", "top"],
                                     sorted(os.listdir(self.dir)))
        self.assertGreater(died, 8)

    @unittest.skipIf(qtools.missing("strace"), "strace is not installed")
    def test_an_overlay_elsewhere_is_named_again(self):
        """It stands on that image by then."""
        os.mkdir(self.path("y"))
        stood = 0
        for fmt in BASES:
            for n in range(1, 9):
                self.clear()
                self.base(fmt)
                want = self.chain(random.Random(fmt), [8 * MIB] * 3,
                                  [64 * KIB] * 3)
                os.rename(self.path("side"), self.path("y/side"))
                qtools.must("qemu-img", "rebase", "-u", "-b", "../b", "-F",
                            "qcow2", self.path("y/side"))
                want["y/side"] = want.pop("side")
                argv = ("merge", self.path("top"), "--drop", self.path("a"),
                        "--drop", self.path("b"), "--child",
                        self.path("y/side"))
                with self.subTest(fmt=fmt, n=n):
                    p = qtools.run(
                        "strace", "-f", "-qq", "-o", "/dev/null", "-e",
                        "trace=fdatasync,fsync", "-e",
                        "inject=fdatasync,fsync:signal=KILL:when=%d" % n,
                        qtools.QSTILL, "image", *argv)
                    gone = not os.path.exists(self.path("b"))
                    stood += not gone and self.below("y/side")[0] == "base"
                    if p.rc != 0:
                        again = qtools.image(*argv)
                        # 4: nothing is left to go
                        self.assertIn(again.rc, (0, 4) if gone else (0,),
                                      str(again))
                    self.is_whole(want)
                    self.assertEqual(["base", "top", "y"],
                                     sorted(os.listdir(self.dir)))
        self.assertGreater(stood, 3)

    def test_it_is_neither_read_nor_merged(self):
        for fmt in BASES:
            with self.subTest(fmt):
                self.clear()
                self.base(fmt)
                want = self.chain(random.Random(fmt), [8 * MIB] * 3,
                                  [64 * KIB] * 3)
                top = self.path("top")
                for argv in (("merge", top, "--drop", self.path("base"),
                              "--drop", self.path("a"), "--drop",
                              self.path("b")),
                             ("map", top), ("compare", top, top),
                             ("flatten", top, self.path("flat"))):
                    said = qtools.image(*argv)
                    self.assertEqual(6, said.rc, str(said))
                    self.assertIn("not known here", said.out + said.err)
                    self.is_whole(want)


if __name__ == "__main__":
    unittest.main()
