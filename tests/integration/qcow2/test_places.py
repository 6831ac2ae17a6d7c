#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Merges in special places: filesystems with reflinks (loop-mounted), locks
seen by QEMU while a merge runs, images that change before they are locked, a
user who owns nothing."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import unittest

import qmerge
import qtools

MIB = 1 << 20


class File:
    def __init__(self, path, fmt="qcow2"):
        self.path, self.fmt = path, fmt


def chain(directory, data=64 * MIB, run=MIB, size=256 * MIB):
    """base, mid and top of `size` bytes; mid and top with `data` bytes each."""
    rng, paths = random.Random(1), []
    noise = os.path.join(directory, "noise")
    with open(noise, "wb") as f:
        f.write(rng.randbytes(run))
    slots = list(range(size // run))
    rng.shuffle(slots)
    for name in ("base", "mid", "top"):
        path = os.path.join(directory, name)
        argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if paths:
            argv += ["-b", os.path.basename(paths[-1]), "-F", "qcow2"]
        qtools.must(*argv, path, str(size))
        io = ["qemu-io", "-f", "qcow2"]
        for _ in range(data // run):
            io += ["-c", "write -q -s %s %d %d" % (noise, slots.pop() * run,
                                                   run)]
        qtools.must(*io, path)
        paths.append(path)
    os.unlink(noise)
    return paths


@unittest.skipUnless(os.geteuid() == 0, "needs root to mount")
@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "losetup"),
                 qtools.missing("qemu-img", "qemu-io", "losetup"))
class Reflinks(unittest.TestCase):
    """Where blocks can be shared no data moves at all."""

    def mounted(self, fs, *mkfs):
        return qtools.loop_mount(self, fs, *mkfs)

    def written(self, device):
        os.sync()
        with open("/sys/block/%s/stat" % device) as f:
            return int(f.read().split()[6]) * 512

    def each_direction(self, mount, device):
        for direction in qtools.sample(("auto", "up", "down", "new"),
                                       self.id()):
            with self.subTest(direction=direction):
                d = os.path.join(mount, direction)
                os.makedirs(d)
                paths = chain(d, *((16 * MIB, MIB, 64 * MIB)
                                   if qtools.SAMPLE else ()))
                m = qmerge.Merge(d, [File(p) for p in paths], paths,
                                 [paths[1]])
                plan = m.run(direction, "--dry-run").json()
                before = self.written(device)
                r = m.run(direction)
                wrote = self.written(device) - before
                self.assertEqual(r.rc, 0, str(r))
                self.assertEqual(m.merged() + m.account(direction), [])
                j = r.json()
                for key in ("direction", "bytesMoved", "bytesShared"):
                    self.assertEqual(j[key], plan[key], key)
                self.assertLess(wrote, 6 * MIB, "data was copied: %r" % j)
                self.assertEqual(m.still_writable(1), [])
                shutil.rmtree(d)

    def test_xfs(self):
        self.each_direction(*self.mounted("xfs", "mkfs.xfs", "-q", "-m",
                                          "reflink=1"))

    def test_btrfs(self):
        self.each_direction(*self.mounted("btrfs", "mkfs.btrfs", "-q"))

    def what_shares_is_cheaper_than_what_copies_less(self, mount, device):
        """Into the large clusters of the lower image the few of the upper one
        would have to be copied, with what is around them."""
        d = os.path.join(mount, "sizes")
        os.makedirs(d)
        b, c = os.path.join(d, "b"), os.path.join(d, "c")
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    "cluster_size=2M", b, "128M")
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 64M", b)
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b", b, "-F",
                    "qcow2", c)
        for at in range(5):
            qtools.must("qemu-io", "-f", "qcow2", "-c",
                        "write -q -P 9 %dM 64k" % (70 + 7 * at), c)
        m = qmerge.Merge(d, [File(b), File(c)], [b, c], [b])
        plan = m.run("auto", "--dry-run").json()
        self.assertEqual(0, plan["bytesMoved"], plan)
        before = self.written(device)
        r = m.run("auto")
        wrote = self.written(device) - before
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(m.merged(), [])
        for key in ("direction", "bytesMoved", "bytesShared"):
            self.assertEqual(r.json()[key], plan[key], key)
        self.assertLess(wrote, 6 * MIB, "data was copied: %s" % r)

    def test_what_shares_is_cheaper_on_xfs(self):
        self.what_shares_is_cheaper_than_what_copies_less(
            *self.mounted("xfs", "mkfs.xfs", "-q", "-m", "reflink=1"))

    def test_what_shares_is_cheaper_on_btrfs(self):
        self.what_shares_is_cheaper_than_what_copies_less(
            *self.mounted("btrfs", "mkfs.btrfs", "-q"))

    def test_files_that_are_not_copied_on_write_stay_so(self):
        """chattr +C: btrfs shares blocks between two such files, or between
        two that are not."""
        mount, device = self.mounted("btrfs", "mkfs.btrfs", "-q")
        for direction in ("up", "down", "new"):
            d = os.path.join(mount, direction)
            os.makedirs(d)
            paths = [os.path.join(d, n) for n in ("base", "mid", "top")]
            for i, path in enumerate(paths):
                qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                            "nocow=on", *(["-b", paths[i - 1], "-F", "qcow2"]
                                          if i else []), path, "64M")
                qtools.must("qemu-io", "-f", "qcow2", "-c",
                            "write -q -P 1 %dM 16M" % (16 * i), path)
            with self.subTest(direction=direction):
                m = qmerge.Merge(d, [File(p) for p in paths], paths,
                                 [paths[1]])
                r = m.run(direction)
                self.assertEqual(r.rc, 0, str(r))
                self.assertEqual(0, r.json()["bytesMoved"], str(r))
                self.assertEqual(m.merged(), [])
                self.assertIn("C", qtools.must("lsattr", paths[2]).out.split()
                              [0])

    def test_pieces_of_blocks_next_to_whole_ones(self):
        """Clusters of 1 KiB on blocks of 4 KiB: some moves can be shared, and
        are not copied along with their neighbours."""
        mount, device = self.mounted("xfs", "mkfs.xfs", "-q", "-m",
                                     "reflink=1")
        d = os.path.join(mount, "small")
        os.makedirs(d)
        paths = [os.path.join(d, n) for n in ("a", "b", "c")]
        writes = [["write -q -P 1 0 16M"],
                  ["write -q -P %d %dk 64k" % (2 + i, i * 192)
                   for i in range(150)],
                  ["write -q -P %d %dk 64k" % (60 + i % 50, i * 256)
                   for i in range(150)]]
        for i, path in enumerate(paths):
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                        "cluster_size=1024", *(
                            ["-b", paths[i - 1], "-F", "qcow2"]
                            if i else []), path, "64M")
            qtools.must("qemu-io", "-f", "qcow2",
                        *[x for w in writes[i] for x in ("-c", w)], path)
        os.sync()
        m = qmerge.Merge(d, [File(p) for p in paths], paths, [paths[1]])
        plan = m.run("up", "--dry-run").json()
        self.assertGreater(plan["bytesMoved"], 0)
        self.assertGreater(plan["bytesShared"], 0)
        free = os.statvfs(mount)
        r = m.run("up")
        self.assertEqual(r.rc, 0, str(r))
        for key in ("bytesMoved", "bytesShared"):
            self.assertEqual(r.json()[key], plan[key], key)
        self.assertEqual(m.merged(), [])
        os.sync()
        # beside what the copies took
        given = (os.statvfs(mount).f_bavail - free.f_bavail) * free.f_frsize \
            + plan["bytesMoved"]
        self.assertLess(abs(r.json()["bytesFreed"] - given), 4 * MIB, given)

    def only_what_cannot_be_shared_is_copied(self, mount):
        """The end of a raw disk within a block, and a compressed cluster: of
        contiguous data they are pieces."""
        for direction in ("up", "new"):
            d = os.path.join(mount, direction)
            os.makedirs(d)
            raw, top = os.path.join(d, "raw"), os.path.join(d, "top")
            with open(raw, "wb") as f:
                f.write(os.urandom(16 * MIB + 512))
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b", raw,
                        "-F", "raw", top)
            qtools.must("qemu-io", "-f", "qcow2",
                        "-c", "write -q -c -P 1 5M 64k",
                        "-c", "write -q -P 2 9M 64k", top)
            os.sync()
            for kind in ("raw", "qcow2"):
                out = os.path.join(d, "out." + kind)
                r = qtools.image("flatten", top, out, "--format", kind)
                self.assertEqual(r.rc, 0, str(r))
                j = r.json()
                self.assertLessEqual(j["bytesMoved"], 192 * 1024, j)
                self.assertGreater(j["bytesShared"], 15 * MIB, j)
                qtools.must("qemu-img", "compare", "-f", "qcow2", "-F", kind,
                            top, out)
            m = qmerge.Merge(d, [File(raw, "raw"), File(top)], [raw, top],
                             [raw])
            plan = m.run(direction, "--dry-run").json()
            r = m.run(direction)
            self.assertEqual(r.rc, 0, str(r))
            self.assertEqual(m.merged(), [])
            for key in ("bytesMoved", "bytesShared"):
                self.assertEqual(r.json()[key], plan[key], key)
            self.assertLessEqual(plan["bytesMoved"], 192 * 1024, plan)
            self.assertGreater(plan["bytesShared"], 15 * MIB, plan)

    def test_only_what_cannot_be_shared_is_copied_on_xfs(self):
        self.only_what_cannot_be_shared_is_copied(
            self.mounted("xfs", "mkfs.xfs", "-q", "-m", "reflink=1")[0])

    def test_only_what_cannot_be_shared_is_copied_on_btrfs(self):
        self.only_what_cannot_be_shared_is_copied(
            self.mounted("btrfs", "mkfs.btrfs", "-q")[0])

    def test_some_files_are_not_copied_on_write(self):
        """Each choice of the file that stays is asked about by itself."""
        mount, device = self.mounted("btrfs", "mkfs.btrfs", "-q")
        for kinds in ("off on off", "off off on", "on on off", "on off on"):
            d = os.path.join(mount, kinds.replace(" ", "-"))
            os.makedirs(d)
            paths = [os.path.join(d, n) for n in ("a", "b", "c")]
            for i, (path, kind) in enumerate(zip(paths, kinds.split())):
                qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                            "nocow=" + kind, *(
                                ["-b", paths[i - 1], "-F", "qcow2"]
                                if i else []), path, "64M")
                qtools.must("qemu-io", "-f", "qcow2", "-c",
                            "write -q -P 1 %dM %dM" % (i, 4 + 5 * (i == 2)),
                            path)
            with self.subTest(kinds):
                m = qmerge.Merge(d, [File(p) for p in paths], paths,
                                 [paths[1]])
                plan = m.run("auto", "--dry-run").json()
                r = m.run("auto")
                self.assertEqual(r.rc, 0, str(r))
                for key in ("direction", "bytesMoved", "bytesShared"):
                    self.assertEqual(r.json()[key], plan[key], key)
                self.assertLessEqual(plan["bytesMoved"], 4 * MIB)
                self.assertEqual(m.merged(), [])

    def interleaved(self, d):
        """Neighbours in mid lie apart from each other and over data of base;
        top has freed clusters below clusters in use."""
        paths = [os.path.join(d, n) for n in ("base", "mid", "top")]
        writes = [["write -q -P 1 0 16M"],
                  ["write -q -P 2 %dk 64k" % k
                   for k in range(1984, 1023, -64)],
                  ["write -q -P 3 32M 16M", "discard -q 32M 4M"]]
        for i, path in enumerate(paths):
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2",
                        *(["-b", paths[i - 1], "-F", "qcow2"] if i else []),
                        path, "64M")
            qtools.must("qemu-io", "-f", "qcow2", "-d", "unmap",
                        *[x for w in writes[i] for x in ("-c", w)], path)
        return paths

    def test_blocks_are_shared_next_to_blocks_in_use(self):
        mount, device = self.mounted("xfs", "mkfs.xfs", "-q", "-m",
                                     "reflink=1")
        for direction in ("up", "down", "new"):
            with self.subTest(direction=direction):
                d = os.path.join(mount, direction)
                os.makedirs(d)
                paths = self.interleaved(d)
                m = qmerge.Merge(d, [File(p) for p in paths], paths,
                                 paths[:2])
                before = self.written(device)
                r = m.run(direction)
                wrote = self.written(device) - before
                self.assertEqual(r.rc, 0, str(r))
                self.assertEqual(m.merged(), [])
                self.assertLess(wrote, 6 * MIB, "data was copied: %s" % r)

    def room_for_what_is_copied(self, mount):
        """A layer on another filesystem: that its data has no room here is seen
        before any is moved; what is shared needs none."""
        for first in (True, False):
            with self.subTest(first=first):
                self.room_for_a_copy(mount, *((0, 64) if first else (32, 0)))

    def room_for_a_copy(self, mount, copied, shared):
        home = qtools.scratch()
        self.addCleanup(shutil.rmtree, home, True)
        paths = [os.path.join(home, "base"), os.path.join(mount, "mid"),
                 os.path.join(mount, "top")]
        for i, (path, at) in enumerate(zip(paths, (copied, shared, 96))):
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2",
                        *(["-b", paths[i - 1], "-F", "qcow2"] if i else []),
                        path, "128M")
            qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %dM %dM"
                        % (i + 1, at, 16 if i else 64), path)
        full, more = (os.path.join(mount, n) for n in ("full", "more"))
        os.sync()
        st = os.statvfs(mount)
        for path, size in ((more, 48 * MIB), (full, st.f_bavail * st.f_frsize -
                                              72 * MIB)):
            with open(path, "wb") as f:
                os.posix_fallocate(f.fileno(), 0, size)
        m = qmerge.Merge(home, [File(p) for p in paths], paths, paths[:2])
        before = [qtools.file_hash(p) for p in paths]
        for direction in ("up", "new"):
            r = m.run(direction)
            self.assertEqual(r.rc, 7, str(r))
            self.assertRegex(r.err, "cannot reserve [67].{7} bytes")
            self.assertEqual(before, [qtools.file_hash(p) for p in paths])
            self.assertEqual(["full", "mid", "more", "top"],
                             sorted(os.listdir(mount)))
        os.unlink(more)
        os.sync() # btrfs gives blocks back with its next transaction
        r = m.run("up")
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(m.merged(), [])
        os.unlink(full)
        os.unlink(paths[2])
        self.assertEqual((64 * MIB, 16 * MIB), (r.json()["bytesMoved"],
                                                r.json()["bytesShared"]))

    def test_room_for_what_is_copied_on_xfs(self):
        self.room_for_what_is_copied(
            self.mounted("xfs", "mkfs.xfs", "-q", "-m", "reflink=1")[0])

    def test_room_for_what_is_copied_on_btrfs(self):
        self.room_for_what_is_copied(
            self.mounted("btrfs", "mkfs.btrfs", "-q")[0])

    def test_xfs_without_reflink_copies(self):
        mount, device = self.mounted("xfs", "mkfs.xfs", "-q", "-m",
                                     "reflink=0")
        paths = chain(mount, data=8 * MIB)
        m = qmerge.Merge(mount, [File(p) for p in paths], paths, [paths[1]])
        r = m.run("auto")
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(m.merged(), [])


@unittest.skipUnless(os.geteuid() == 0, "needs root to mount")
@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "losetup", "chattr"),
                 qtools.missing("qemu-img", "qemu-io", "losetup", "chattr"))
class Flags(unittest.TestCase):
    """Of chattr: the result has those of the upper layer."""

    def merge(self, d, below, upper, *more):
        os.makedirs(d)
        paths = chain(d, MIB, 256 << 10, 4 * MIB)
        for path, flags in ((paths[1], below), (paths[2], upper)):
            if flags:
                qtools.must("chattr", "+" + flags, path)
        for path, value in more:
            os.setxattr(os.path.join(d, path), "btrfs.compression", value)
        return qmerge.Merge(d, [File(p) for p in paths], paths, [paths[1]])

    def kept(self, m, direction):
        r = m.run(direction)
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(m.merged(), [])

    def test_ext4(self):
        mount, _ = qtools.loop_mount(self, "ext4", "mkfs.ext4", "-q")
        for direction in ("up", "down", "new"):
            for below, upper in (("du", "ASsc"), ("As", ""), ("", "d")):
                with self.subTest(direction=direction, upper=upper):
                    d = os.path.join(mount, direction + upper)
                    m = self.merge(d, below, upper)
                    want = qtools.flags(m.chain[-1])
                    self.assertEqual(len(upper), bin(want).count("1"))
                    self.kept(m, direction)

    def test_btrfs(self):
        """There some are extended attributes, too."""
        mount, _ = qtools.loop_mount(self, "btrfs", "mkfs.btrfs", "-q")
        for direction in ("up", "down", "new"):
            for i, (below, upper, *more) in enumerate((
                    ("c", "Ad"), ("dm", "c"), ("S", "Am"),
                    ("A", "d", ("mid", b"zlib"), ("top", b"zstd")),
                    ("", "d", ("mid", b"lzo")),
                    ("", "A", ("top", b"lzo")))):
                with self.subTest(direction=direction, i=i):
                    d = os.path.join(mount, "%s%d" % (direction, i))
                    self.kept(self.merge(d, below, upper, *more), direction)

    def test_what_the_other_file_cannot_take(self):
        """What is not copied on write is not compressed, either."""
        mount, _ = qtools.loop_mount(self, "btrfs", "mkfs.btrfs", "-q")
        os.makedirs(os.path.join(mount, "d"))
        d, u = (os.path.join(mount, "d", n) for n in "du")
        for path, *more in ((d, "-o", "nocow=on"), (u, "-b", d, "-F",
                                                    "qcow2")):
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", *more, path,
                        "1M")
        qtools.must("chattr", "+Ac", u)
        r = qtools.image("merge", u, "--drop", d, "--direction", "down")
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(0x80, qtools.flags(u))
        self.assertEqual(["u"], os.listdir(os.path.dirname(u)))


@unittest.skipUnless(os.geteuid() == 0, "needs root to mount")
@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "losetup", "mkfs.xfs"),
                 qtools.missing("qemu-img", "qemu-io", "losetup", "mkfs.xfs"))
class AnEndedRun(unittest.TestCase):
    """Of tests, by a signal."""

    def test_leaves_nothing_behind(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                d = qtools.scratch()
                self.addCleanup(shutil.rmtree, d, True)
                self.ended(d, number)
                self.assertEqual(self.mounts(d), [])
                self.assertNotIn(d, qtools.must("losetup", "-a").out)
                self.assertEqual(os.listdir(d), [])

    def mounts(self, below):
        with open("/proc/mounts") as f:
            return [l for l in f if below in l]

    def ended(self, d, number):
        run = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                           "run.py")
        p = subprocess.Popen([sys.executable, run, "Reflinks"],
                             env=dict(os.environ, QCOW2_TMP=d),
                             stdin=subprocess.DEVNULL, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            while p.poll() is None and not self.mounts(d):
                time.sleep(0.02)
            if p.poll() is not None:
                self.skipTest("nothing was mounted: " + p.stdout.read())
        finally:
            if p.poll() is None:
                p.send_signal(number)
            out, _ = p.communicate(timeout=60)
        self.assertEqual(p.returncode, 128 + number, out)


@unittest.skipIf(qtools.missing(), qtools.missing())
class WhileAMergeRuns(unittest.TestCase):
    """A merge slowed down to seconds; QEMU is kept out, and out only."""

    def setUp(self):
        self.dir = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.paths = chain(self.dir, data=4 * MIB, run=256 << 10)

    def start(self, direction):
        p = subprocess.Popen(
            [qtools.QSTILL, "--json", "image", "merge", self.paths[2],
             "--drop", self.paths[1], "--direction", direction, "--bwlimit",
             "1000000"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        self.addCleanup(p.kill)
        time.sleep(0.7)
        self.assertIsNone(p.poll(), "the merge was over at once")
        return p

    def stop(self, p):
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=30)
        self.assertEqual(p.returncode, 10, out + err)

    def test_qemu_cannot_open_what_is_merged(self):
        for direction in ("up", "down", "new"):
            with self.subTest(direction=direction):
                p = self.start(direction)
                top = self.paths[2]
                r = qtools.run("qemu-io", "-f", "qcow2", "-c", "read 0 512",
                               top)
                if direction != "new":
                    self.assertIn("lock", r.out + r.err)
                w = qtools.run("qemu-io", "-f", "qcow2", "-c",
                               "write 0 512", top)
                self.assertIn("lock", w.out + w.err)
                w = qtools.run("qemu-io", "-f", "qcow2", "-c",
                               "write 0 512", self.paths[1])
                self.assertIn("lock", w.out + w.err)
                self.stop(p)

    def test_what_is_written_over_is_not_read_either(self):
        """Nor by those who share everything (-U): they would see a layer that
        is neither old nor new."""
        top, mid = self.paths[2], self.paths[1]
        for path in self.paths[1:]:
            qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q 0 16M", path)
        read = ("qemu-io", "-r", "-U", "-f", "qcow2", "-c", "read 0 64k")
        p = self.start("down")
        for argv in ((*read, mid), (*read, top),
                     ("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw",
                      mid, os.path.join(self.dir, "raw"))):
            r = qtools.run(*argv)
            self.assertIn("lock", r.out + r.err, str(r))
        self.stop(p)
        qtools.must(*read, top)

    def test_a_reader_keeps_it_from_being_written_over(self):
        top, mid = self.paths[2], self.paths[1]
        for path in self.paths[1:]:
            qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q 0 16M", path)
        for shared in ((), ("-U",)):
            with self.subTest(shared=shared):
                reader = subprocess.Popen(
                    ["qemu-io", "-r", *shared, "-f", "qcow2", mid],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                reader.stdin.write("read 0 512\n")
                reader.stdin.flush()
                reader.stdout.readline()
                before = [qtools.file_hash(x) for x in self.paths]
                r = qtools.image("merge", top, "--drop", mid, "--direction",
                                 "down")
                reader.communicate("quit\n", timeout=30)
                self.assertEqual(r.rc, 5, str(r))
                self.assertEqual(before, [qtools.file_hash(x)
                                          for x in self.paths])
                self.assertEqual(sorted(os.listdir(self.dir)),
                                 ["base", "mid", "top"])

    def test_an_overlay_that_is_made_meanwhile(self):
        """QEMU's locks do not hinder that; without its layer it were lost."""
        for p in self.paths:
            os.unlink(p)
        chain(self.dir, data=2 * MIB, run=256 << 10, size=32 * MIB)
        new = os.path.join(self.dir, "new.qcow2")
        for direction in ("up", "new"):
            with self.subTest(direction=direction):
                before = [qtools.guest_hash(p, "qcow2") for p in self.paths]
                p = self.start(direction)
                qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b",
                            self.paths[1], "-F", "qcow2", new)
                out, err = p.communicate(timeout=60)
                self.assertEqual(p.returncode, 5, out + err)
                self.assertRegex(err, "new.qcow2 was made meanwhile, and "
                                 "stands on .*mid\n.*try again")
                self.assertEqual(before[1], qtools.guest_hash(new, "qcow2"))
                self.assertEqual(before, [qtools.guest_hash(p, "qcow2")
                                          for p in self.paths])
                self.assertEqual(sorted(os.listdir(self.dir)),
                                 sorted(map(os.path.basename,
                                            self.paths + [new])))
                for p in self.paths:
                    self.assertEqual(qtools.qemu_check(p), (0, 0, 0))
                os.unlink(new)

    def test_what_goes_gets_another_time(self):
        """By touch, rsync -t, a backup program: nobody has written to it."""
        for direction in ("up", "down", "new"):
            with self.subTest(direction=direction):
                for p in self.paths:
                    if os.path.exists(p):
                        os.unlink(p)
                chain(self.dir, data=2 * MIB, run=256 << 10, size=32 * MIB)
                want = qtools.guest_hash(self.paths[2], "qcow2")
                p = self.start(direction)
                for path in self.paths[1:]:
                    os.utime(path)
                out, err = p.communicate(timeout=60)
                self.assertEqual(p.returncode, 0, out + err)
                self.assertEqual(sorted(os.listdir(self.dir)), ["base", "top"])
                self.assertEqual(want, qtools.guest_hash(self.paths[2],
                                                         "qcow2"))

    def test_a_second_merge_is_refused(self):
        p = self.start("up")
        r = qtools.image("merge", self.paths[2], "--drop", self.paths[1])
        self.assertEqual(r.rc, 5, str(r))
        self.stop(p)

    def test_reads_without_locks_go_on(self):
        p = self.start("up")
        for verb in ("info",):
            r = qtools.image(verb, self.paths[2])
            self.assertEqual(r.rc, 0, str(r))
        self.stop(p)


@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "strace"),
                 qtools.missing("qemu-img", "qemu-io", "strace"))
class BeforeTheLocks(qtools.Scratch, unittest.TestCase):
    """A merge reads the headers, looks for overlays, and takes the locks:
    stopped while it looks, it must see what others did until it locks."""

    # Overlays are opened by their paths as soon as they are found, for good
    # when all of a group are: kid is the only one of the first, other of the
    # second.
    FOUND, ALL_OPEN = "kid", "other"

    def make(self):
        for n in os.listdir(self.dir):
            os.unlink(self.path(n))
        for name, backing, fill in (("low", None, 9), ("base", "low", 1),
                                    ("other", "low", 5), ("mid", "base", 2),
                                    ("top", "mid", 3), ("kid", "mid", 4)):
            argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
            if backing:
                argv += ["-b", backing, "-F", "qcow2"]
            qtools.must(*argv, self.path(name), str(4 * MIB))
            qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %d %d"
                        % (fill, fill * 65536, 65536), self.path(name))

    def files(self):
        return {n: qtools.file_hash(self.path(n))
                for n in os.listdir(self.dir)}

    def stopped(self, name, direction="up"):
        """When the merge opens the file by its path for the first time."""
        return qtools.Stopped(self.log, self.path(name), "openat", 1, "merge",
                              self.path("top"), "--drop", self.path("mid"),
                              "--drop", self.path("low"), "--direction",
                              direction)

    def race(self, change, where=ALL_OPEN, direction="up"):
        """The merge's result, and the files as `change` left them."""
        return self.race_of(lambda: self.stopped(where, direction), change)

    def race_of(self, stopped, change):
        self.make()
        with stopped() as s:
            change()
            after = self.files()
        return s.result, after

    def qemu_img(self, *argv):
        return lambda: qtools.must("qemu-img", *argv[:-1],
                                   self.path(argv[-1]))

    def replace(self, name):
        def change():
            shutil.copy(self.path(name), self.path("copy"))
            os.rename(self.path("copy"), self.path(name))
        return change

    def test_what_was_changed_meanwhile_is_not_merged(self):
        rebase = ("rebase", "-u", "-F", "qcow2", "-b")
        write = "write -q -P 7 %d 64k" % (2 * MIB)
        for what, change in {
                "a snapshot of the top": self.qemu_img("snapshot", "-c", "s",
                                                       "top"),
                "a snapshot of the layer": self.qemu_img("snapshot", "-c", "s",
                                                         "mid"),
                "a snapshot of an overlay": self.qemu_img("snapshot", "-c",
                                                          "s", "kid"),
                "a longer top": lambda: qtools.must(
                    "qemu-img", "resize", "-q", self.path("top"), "8M"),
                "a longer overlay": lambda: qtools.must(
                    "qemu-img", "resize", "-q", self.path("kid"), "8M"),
                "a longer layer": lambda: qtools.must(
                    "qemu-img", "resize", "-q", self.path("mid"), "8M"),
                # a name of the same length, behind the first sector
                "a layer elsewhere": self.qemu_img(*rebase, "some", "mid"),
                "an overlay elsewhere": self.qemu_img(*rebase, "base", "kid"),
                "a write": lambda: qtools.must("qemu-io", "-f", "qcow2", "-c",
                                               write, self.path("top")),
                "another file": self.replace("top"),
                "another layer": self.replace("mid"),
                "another overlay": self.replace("kid"),
        }.items():
            with self.subTest(what):
                r, after = self.race(change)
                self.assertEqual(r.rc, 5, str(r))
                self.assertRegex(r.err, "meanwhile")
                self.assertRegex(r.err, "try again")
                self.assertEqual(self.files(), after)

    def test_an_overlay_that_stands_elsewhere_when_it_is_opened(self):
        r, after = self.race(self.qemu_img("rebase", "-u", "-F", "qcow2", "-b",
                                           "base", "kid"), self.FOUND)
        self.assertEqual(r.rc, 5, str(r))
        self.assertRegex(r.err, "another backing file")
        self.assertEqual(self.files(), after)

    def test_an_overlay_that_is_made_after_the_look(self):
        """In time also where there is no way back once it has begun."""
        def change():
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid",
                        "-F", "qcow2", self.path("new"))
        for direction in ("up", "down", "new"):
            with self.subTest(direction=direction):
                r, after = self.race(change, direction=direction)
                self.assertEqual(r.rc, 5, str(r))
                self.assertRegex(r.err, "new was made meanwhile, and stands "
                                 "on .*mid")
                kept = {n: h for n, h in after.items()
                        if n not in ("kid", "other")}
                now = self.files()
                self.assertEqual(kept, {n: now.get(n) for n in kept})

    def test_nothing_changed(self):
        r, _ = self.race(lambda: None)
        self.assertEqual(r.rc, 0, str(r))

    def test_what_only_reads_has_read_the_header_before_the_lock(self):
        """Its third read of the file is the header as a whole: what a writer
        that ends before the lock does to it is none of the header's."""
        def longer():
            """Its L1 table moves."""
            qtools.must("qemu-img", "resize", "-q", self.path("mid"), "4T")

        for name, verb, *more in (("mid", "flatten", "out"), ("mid", "check"),
                                  ("mid", "map"), ("mid", "compare", "kid")):
            argv = [verb, self.path(name), *map(self.path, more)]
            for change, wanted in ((longer, 5), (lambda: None, None)):
                with self.subTest(verb=verb, wanted=wanted):
                    r, after = self.race_of(lambda: qtools.Stopped(
                        self.log, self.path(name), "pread64", 3, *argv),
                        change)
                    if wanted is None:
                        self.assertIn(r.rc, (0, 1), str(r))
                        continue
                    self.assertEqual(r.rc, wanted, str(r))
                    self.assertIn("meanwhile", r.err)
                    self.assertEqual(self.files(), after)


@unittest.skipUnless(os.geteuid() == 0, "needs root to become another user")
@unittest.skipIf(qtools.missing(), qtools.missing())
class AsNobody(unittest.TestCase):
    def merge(self, prepare):
        d = qtools.scratch()
        self.addCleanup(shutil.rmtree, d, True)
        os.chmod(d, 0o777)
        paths = chain(d, data=MIB, run=256 << 10, size=4 * MIB)
        for p in paths:
            os.chown(p, 65534, 65534)
        prepare(d, paths)
        m = qmerge.Merge(d, [File(p) for p in paths], paths, [paths[1]])
        p = qtools.as_nobody("--json", "image", "merge", *m.argv("auto"))
        m.result = qtools.Result(p.args, p.returncode, p.stdout, p.stderr)
        return m

    def test_ones_own_images_are_merged(self):
        m = self.merge(lambda d, p: None)
        self.assertEqual(m.result.rc, 0, str(m.result))
        self.assertEqual(m.merged(), [])

    def test_an_image_that_may_not_be_written_is_refused_untouched(self):
        def foreign(d, paths):
            os.chown(paths[2], 0, 0)
            os.chmod(paths[2], 0o644)
        m = self.merge(foreign)
        self.assertEqual(m.result.rc, 8, str(m.result))
        self.assertEqual(m.untouched(), [])

    def test_a_lower_image_that_may_not_be_written_is_merged_upwards(self):
        """Though it holds more."""
        def fill(d, paths):
            qtools.must("qemu-io", "-f", "qcow2", "-c",
                        "write -q -P 7 0 4M", paths[1])
            os.chmod(paths[1], 0o444)
        m = self.merge(fill)
        self.assertEqual(m.result.rc, 0, str(m.result))
        self.assertNotEqual(m.result.json()["direction"], "down")
        self.assertEqual(m.merged(), [])

    def test_a_directory_that_may_not_be_written_is_refused_untouched(self):
        m = self.merge(lambda d, p: os.chmod(d, 0o755))
        self.assertEqual(m.result.rc, 8, str(m.result))
        self.assertEqual(m.untouched(), [])


if __name__ == "__main__":
    unittest.main(verbosity=1)
