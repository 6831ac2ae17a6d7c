#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The real command, killed at every system call that changes something, with
every one of them failing (ENOSPC, EIO), with every allocation failing, with a
full filesystem, and cancelled: afterwards, and after the recovery that the
next command makes, every image still listed has its content.

A surviving file's content never changes by a merge, so "old or new" is: all
survivors read as before, and the dropped layers are either all there and read
as before, or all gone. Without DEEP=1 only some of the points are tried; then
PART=k takes each PARTS-th of them.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import unittest

import qcompare
import qimage
import qmerge
import qtools
import test_known
import test_places

MIB = 1 << 20
DEEP = bool(os.environ.get("DEEP"))
PARTS = 16 if DEEP else 1
PART = int(os.environ.get("PART") or 0)
MUTATORS = ("pwrite64", "pwritev", "pwritev2", "write", "fdatasync", "fsync",
            "ftruncate", "fallocate", "renameat", "renameat2", "rename",
            "unlink", "unlinkat", "ioctl", "io_uring_enter", "openat",
            "fchmod", "fchown", "fsetxattr", "fremovexattr",
            "copy_file_range", "linkat")
# Calls that a fault makes fail; openat and write do too much else.
FAILING = ("pwrite64", "pwritev", "pwritev2", "fdatasync", "fsync",
           "ftruncate", "fallocate", "renameat", "renameat2", "unlinkat",
           "copy_file_range", "io_uring_enter", "fchmod", "fchown",
           "fsetxattr", "fremovexattr")
FAILALLOC = os.path.join(os.path.dirname(qtools.QSTILL),
                         "crash/failalloc.so")


class File:
    def __init__(self, path):
        self.path, self.fmt = path, "qcow2"


def chain(directory, seed=1):
    """A base, two layers, a top and a child, with something of everything:
    small, because every point of a merge makes it anew."""
    rng = random.Random(seed)
    os.makedirs(directory)
    size, paths = 1 << 20, []
    for i, opts in enumerate(("cluster_size=4k", "cluster_size=16k",
                              "cluster_size=16k,compat=1.1",
                              "cluster_size=16k")):
        path = os.path.join(directory, "l%d" % i)
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", opts]
        if paths:
            argv += ["-b", "l%d" % (i - 1), "-F", "qcow2"]
        qtools.must(*argv, path, str(size))
        io = ["qemu-io", "-f", "qcow2"]
        for k in range(6):
            at, n = rng.randrange(60) * 16384, rng.choice((16384, 5000))
            io += ["-c", rng.choice((
                "write -q -P %d %d %d" % (rng.randrange(1, 255), at, n),
                "write -q -z -u %d %d" % (at, n)))]
        io += ["-c", "write -q -c -P %d 1032192 16384" % (i + 1)]
        qtools.run(*io, path)
        paths.append(path)
    return paths


class Template:
    """Files to start from again and again, and their states."""

    def __init__(self, root, drop, mode):
        self.source = os.path.join(root, "template")
        self.work = os.path.join(root, "trial")
        self.paths = [p.replace("/template/", "/trial/")
                      for p in chain(self.source)]
        self.fresh()
        self.merge = qmerge.Merge(self.work, [File(p) for p in self.paths],
                                  self.paths,
                                  [self.paths[i] for i in drop])
        self.mode = mode

    def fresh(self):
        shutil.rmtree(self.work, True)
        shutil.copytree(self.source, self.work)

    def argv(self, *more):
        return [qtools.QSTILL, "--json", "image", "merge",
                *self.merge.argv(self.mode), *more]

    # -- judging --------------------------------------------------------

    def recover(self):
        """What a person does after a crash: any command on the chain. Its
        result is not judged, the files are."""
        return qtools.image("merge", *self.merge.argv(self.mode))

    def whole(self, recovered):
        """Complaints about the files as they are now. Before the recovery a
        layer that goes may be half written over, which nobody sees through."""
        m, bad = self.merge, []
        there = [p for p in m.drop if recovered and os.path.exists(p)]
        if there and len(there) != len(m.drop):
            bad.append("half of the layers are gone: %s stay" % there)
        for s in m.survivors() + [m.state[p] for p in there]:
            try:
                if qtools.guest_hash(s.path, s.fmt) != s.view:
                    bad.append("%s reads differently" % s.path)
            except RuntimeError as e:
                bad.append(str(e))
            if not bad and recovered:
                bad += self.clean(s.path)
        if recovered:
            bad += ["left behind: " + p
                    for p in qmerge.tree(self.work) - m.listing]
        return bad

    def clean(self, path):
        check = qtools.qemu_check(path)
        if check is None or check[0] or check[2]:
            return ["%s: qemu-img check says %r" % (path, check)]
        return []


MERGES = (([1], "up"), ([1], "down"), ([1], "new"), ([1, 2], "up"),
          ([0, 1], "down"), ([1, 2], "new"))


@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "strace"),
                 qtools.missing("qemu-img", "qemu-io", "strace"))
class MergesSurviveFaults(unittest.TestCase):
    def setUp(self):
        self.root = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.root, True)
        self.points = self.turns = 0

    def tearDown(self):
        print("kills: %d points in %s" % (self.points, self.id()))

    def ours(self):
        """Whether the next point is one of this part."""
        self.turns += 1
        return self.turns % PARTS == PART

    def each_merge(self, body):
        for drop, mode in qtools.sample(MERGES if DEEP else MERGES[:3],
                                        self.id()):
            with self.subTest(drop=drop, direction=mode):
                shutil.rmtree(self.root)
                os.makedirs(self.root)
                body(Template(self.root, drop, mode))

    def strace(self, t, *options):
        return qtools.run("strace", "-f", "-qq", "-o", "/dev/null", *options,
                          *t.argv())

    def calls(self, t):
        """{system call: how often} of an undisturbed merge."""
        t.fresh()
        log = os.path.join(self.root, "log")
        r = qtools.run("strace", "-f", "-qq", "-o", log, "-e",
                       "trace=" + ",".join(MUTATORS), *t.argv())
        self.assertEqual(r.rc, 0, str(r))
        count = {}
        with open(log, errors="replace") as f:
            for line in f:
                m = re.match(r"\d+ +(\w+)\(", line)
                if m:
                    count[m[1]] = count.get(m[1], 0) + 1
        os.unlink(log)
        return count

    def some(self, n):
        """All points, or without DEEP the first, the last and one between."""
        if qtools.SAMPLE:
            return [(n + 1) // 2]
        return range(1, n + 1) if DEEP else sorted({1, (n + 1) // 2, n})

    def judge(self, t, what, r):
        self.points += 1
        before = t.whole(False)
        self.assertEqual(before, [], "%s, before recovery\n%s" % (what, r))
        again = t.recover()
        self.assertEqual(t.whole(True), [], "%s\n%s\nthen %s" % (what, r,
                                                                 again))

    def test_killed_at_every_call_that_changes_something(self):
        def body(t):
            for name, count in self.calls(t).items():
                for n in filter(lambda _: self.ours(), self.some(count)):
                    t.fresh()
                    r = self.strace(t, "-e", "trace=" + name, "-e",
                                    "inject=%s:signal=KILL:when=%d" %
                                    (name, n))
                    self.judge(t, "killed at %s %d" % (name, n), r)
        self.each_merge(body)

    def test_every_call_that_changes_something_fails(self):
        def body(t):
            for name, count in self.calls(t).items():
                for n in self.some(count) if name in FAILING else ():
                    for error in ("ENOSPC", "EIO"):
                        if not self.ours():
                            continue
                        t.fresh()
                        r = self.strace(t, "-e", "trace=" + name, "-e",
                                        "inject=%s:error=%s:when=%d" %
                                        (name, error, n))
                        what = "%s %d: %s" % (name, n, error)
                        self.assertIn(r.rc, range(0, 11), "%s\n%s" % (what, r))
                        self.judge(t, what, r)
        self.each_merge(body)

    @unittest.skipUnless(os.geteuid() == 0, "needs root for another's file")
    @unittest.skipIf(PART, "done by part 0")
    def test_a_journal_that_another_may_have_written_is_refused(self):
        """It says what to remove and what to rename: nothing is done for it,
        until whoever runs the command has made it theirs."""
        t = Template(self.root, [1], "down")
        self.strace(t, "-e", "trace=fdatasync", "-e",
                    "inject=fdatasync:signal=KILL:when=1")
        journal, = (os.path.join(t.work, n) for n in os.listdir(t.work)
                    if n.startswith(".qstill-merge-"))
        other = os.path.join(self.root, "other")

        def second_name():
            os.link(journal, other)
            os.chmod(t.work, 0o777)

        def linked():
            os.rename(journal, other)
            os.symlink(other, journal)
        for spoil, undo in (
                (lambda: os.chown(journal, 65534, 65534),
                 lambda: os.chown(journal, 0, 0)),
                (lambda: os.chmod(journal, 0o620),
                 lambda: os.chmod(journal, 0o600)),
                (lambda: os.chmod(journal, 0o602),
                 lambda: os.chmod(journal, 0o600)),
                (second_name, lambda: (os.unlink(other),
                                       os.chmod(t.work, 0o755))),
                (linked, lambda: os.replace(other, journal))):
            spoil()
            before = {p: qtools.file_hash(p) for p in qmerge.tree(t.work)}
            r = t.recover()
            self.assertEqual(r.rc, qmerge.REFUSED, str(r))
            self.assertIn(os.path.basename(journal), r.err)
            self.assertIn("chown", r.err)
            self.assertEqual(before, {p: qtools.file_hash(p)
                                      for p in qmerge.tree(t.work)}, str(r))
            undo()
        r = t.recover()
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(t.whole(True), [], str(r))

    @unittest.skipUnless(os.path.exists(FAILALLOC), "failalloc.so: make it")
    def test_every_allocation_fails(self):
        def body(t):
            t.fresh()
            count = os.path.join(self.root, "count")
            env = dict(qtools.ENV, LD_PRELOAD=FAILALLOC)
            r = qtools.run(*t.argv(), env=dict(env, FAILALLOC_COUNT=count))
            self.assertEqual(r.rc, 0, str(r))
            with open(count) as f:
                total = int(f.read())
            os.unlink(count)
            points = range(1, total + 1) if DEEP else \
                sorted(random.Random(total).sample(range(1, total + 1),
                                                   min(total, 5 if
                                                       qtools.SAMPLE else
                                                       15)))
            for n in filter(lambda _: self.ours(), points):
                t.fresh()
                r = qtools.run(*t.argv(), env=dict(env, FAILALLOC_AT=str(n)))
                self.assertIn(r.rc, range(0, 11), "allocation %d\n%s" %
                              (n, r))
                self.judge(t, "allocation %d failed" % n, r)
        self.each_merge(body)

    @unittest.skipUnless(os.path.exists(FAILALLOC), "failalloc.so: make it")
    def test_no_memory_is_not_told_as_damage(self):
        d = os.path.join(self.root, "packed")
        os.makedirs(d)
        env = dict(qtools.ENV, LD_PRELOAD=FAILALLOC)
        for kind in ("zlib", "zstd"):
            top, out = os.path.join(d, kind), os.path.join(d, "out")
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                        "compression_type=" + kind, top, "1M")
            qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -c -P 1 0 64k",
                        top)
            argv = (qtools.QSTILL, "image", "flatten", top, out)
            count = os.path.join(d, "count")
            qtools.must(*argv, env=dict(env, FAILALLOC_COUNT=count))
            with open(count) as f:
                total = int(f.read())
            self.assertGreater(total, 30)
            for n in range(1, total + 1):
                if os.path.exists(out):
                    os.unlink(out)
                r = qtools.run(*argv, env=dict(env, FAILALLOC_AT=str(n)))
                self.assertIn(r.rc, (0, 1), "%s, allocation %d\n%s" %
                              (kind, n, r))
            if os.path.exists(out):
                os.unlink(out)

    @unittest.skipUnless(os.geteuid() == 0, "needs root for a mount")
    def test_a_full_filesystem(self):
        """Room for all sizes from nothing to enough: exit 7 or 0."""
        def body(t):
            mount = os.path.join(self.root, "small")
            os.makedirs(mount)
            for room in range(0, 1024, 16 if DEEP else
                              512 if qtools.SAMPLE else 128):
                if not self.ours():
                    continue
                qtools.must("mount", "-t", "tmpfs", "-o", "size=64m", "none",
                            mount)
                try:
                    for n in os.listdir(t.source):
                        shutil.copy(os.path.join(t.source, n), mount)
                    v = os.statvfs(mount)
                    used = (v.f_blocks - v.f_bfree) * v.f_frsize
                    qtools.must("mount", "-o", "remount,size=%dk" %
                                (used // 1024 + room), mount)
                    self.full(t, mount)
                finally:
                    qtools.must("umount", mount)
            os.rmdir(mount)
        self.each_merge(body)

    def full(self, t, mount):
        self.points += 1
        argv = [a.replace(t.work, mount) for a in t.argv()]
        r = qtools.run(*argv)
        self.assertIn(r.rc, (0, 7), str(r))
        for s in t.merge.state.values():
            path = s.path.replace(t.work, mount)
            if r.rc == 7 or s.path not in t.merge.drop:
                self.assertEqual(qtools.guest_hash(path, "qcow2"), s.view,
                                 "%s\n%s" % (path, r))
        if r.rc == 7:
            self.assertEqual(set(os.listdir(mount)),
                             set(os.listdir(t.source)), str(r))

    def test_cancelled_by_sigint_at_any_time(self):
        def body(t):
            t.fresh()
            start = time.monotonic()
            r = qtools.run(*t.argv())
            took = time.monotonic() - start
            self.assertEqual(r.rc, 0, str(r))
            rounds = 40 if DEEP else 2 if qtools.SAMPLE else 6
            for i in filter(lambda _: self.ours(), range(rounds)):
                t.fresh()
                p = subprocess.Popen(t.argv(), stdin=subprocess.DEVNULL,
                                     stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, text=True)
                time.sleep(took * (i + 1) / (rounds + 2))
                p.send_signal(signal.SIGINT)
                out, err = p.communicate(timeout=60)
                r = qtools.Result(p.args, p.returncode, out, err)
                self.assertIn(r.rc, (0, 10, -signal.SIGINT), str(r))
                self.judge(t, "SIGINT after %d/%d" % (i + 1, rounds + 2), r)
        self.each_merge(body)

    @unittest.skipIf(PART, "done by part 0")
    def test_bwlimit_holds_and_cancel_stops_at_once(self):
        d = os.path.join(self.root, "limited")
        os.makedirs(d)
        paths = test_places.chain(d, data=6 * MIB, run=MIB)
        m = qmerge.Merge(d, [File(p) for p in paths], paths, [paths[1]])
        argv = [qtools.QSTILL, "--json", "image", "merge",
                *m.argv("up", "--bwlimit", "2M")]
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
        time.sleep(1.0)
        self.assertIsNone(p.poll(), "a limit of 2 MiB/s made no difference")
        start = time.monotonic()
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=20)
        r = qtools.Result(argv, p.returncode, out, err)
        self.assertEqual(r.rc, 10, str(r))
        self.assertLess(time.monotonic() - start, 5)
        self.assertEqual(m.untouched(), [], str(r))
        start = time.monotonic()
        r = m.run("up", "--bwlimit", "2M")
        took = time.monotonic() - start
        self.assertEqual(r.rc, 0, str(r))
        self.assertGreater(took, 2.3, "6 MiB at 2 MiB/s, a first MiB ahead")
        self.assertEqual(m.merged(), [])

    def is_marked_as_torn(self, path):
        """Nobody can take it for an image of its own."""
        r = qtools.run("qemu-io", "-f", "qcow2", "-c", "read 0 512", path)
        self.assertNotEqual(r.rc, 0, str(r))
        self.assertIn("corrupt", r.err)
        for argv in (["map", path], ["compare", path, path],
                     ["flatten", path, path + ".flat"]):
            r = qtools.image(*argv)
            self.assertEqual(r.rc, 6, str(r))
            self.assertIn("neither old nor new", r.err)
        info = json.loads(qtools.must("qemu-img", "info", "--output=json",
                                      path).out)
        self.assertIs(info["format-specific"]["data"]["corrupt"], True)

    def fold(self, *options):
        """The merge of the middle one of three down, and the command for it
        with a limit that lets it be stopped half way."""
        d = os.path.join(self.root, "fold")
        os.makedirs(d)
        paths = [os.path.join(d, n) for n in ("base", "mid", "top")]
        for i, path in enumerate(paths):
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", *options,
                        *(["-b", paths[i - 1], "-F", "qcow2"] if i else []),
                        path, "16M")
            qtools.must("qemu-io", "-f", "qcow2", "-c",
                        "write -q -P %d %dM 6M" % (i + 1, i), path)
        m = qmerge.Merge(d, [File(p) for p in paths], paths, [paths[1]])
        return m, paths, [qtools.QSTILL, "--json", "image", "merge",
                          *m.argv("down", "--bwlimit", "2M")]

    def interrupted(self, argv):
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
        time.sleep(1.0)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=20)
        r = qtools.Result(argv, p.returncode, out, err)
        self.assertEqual(r.rc, 10, str(r))
        return r

    @unittest.skipIf(PART, "done by part 0")
    def test_a_cancelled_fold_into_version_2_goes_back(self):
        """It has no room for the mark, so it is not written over."""
        m, paths, argv = self.fold("-o", "compat=0.10")
        before = qtools.guest_hash(paths[1], "qcow2")
        r = self.interrupted(argv)
        self.assertNotIn("can only go on", r.err)
        self.assertEqual(sorted(os.listdir(os.path.dirname(paths[0]))),
                         ["base", "mid", "top"])
        self.assertEqual(qtools.guest_hash(paths[1], "qcow2"), before)
        for s in m.survivors():
            self.assertEqual(qtools.guest_hash(s.path, s.fmt), s.view)
        r = m.run("down")
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(m.merged(), [])

    @unittest.skipIf(PART, "done by part 0")
    def test_a_cancelled_fold_goes_on(self):
        """It writes over the lower image: the same command, given again,
        finishes it, and what the top shows is right in between. When a VM has
        the chain open by then, it is left alone, and can be done later."""
        m, paths, argv = self.fold()
        d = os.path.dirname(paths[0])
        r = self.interrupted(argv)
        for s in m.survivors():
            self.assertEqual(qtools.guest_hash(s.path, s.fmt), s.view, str(r))
        if "can only go on" not in r.err:
            self.skipTest("blocks are shared here")
        self.is_marked_as_torn(paths[1])
        journals = [n for n in os.listdir(d) if n.startswith(".qstill")]
        self.assertEqual(len(journals), 1)
        with test_known.Holder("-f", "qcow2", paths[2]):
            r = m.run("down")
            self.assertEqual(r.rc, 5, str(r))
            self.assertEqual([n for n in os.listdir(d)
                              if n.startswith(".qstill")], [],
                             "it stands in the way of a VM that runs")
        for s in m.survivors():
            self.assertEqual(qtools.guest_hash(s.path, s.fmt), s.view, str(r))
        self.is_marked_as_torn(paths[1])
        r = qtools.image("merge", paths[1], "--drop", paths[0])
        self.assertEqual(r.rc, 6, str(r))
        self.assertIn("neither old nor new", r.err)
        self.interrupted(argv)
        r = m.run("down")
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(m.merged(), [])

    @unittest.skipIf(PART, "done by part 0")
    def test_a_cancelled_fold_that_cannot_go_on(self):
        """The top has a snapshot by then; or the lower image, which is a
        mixture, has another overlay, which must not take that in."""
        m, paths, argv = self.fold()
        kid = os.path.join(os.path.dirname(paths[0]), "kid")
        if "can only go on" not in self.interrupted(argv).err:
            self.skipTest("blocks are shared here")
        qtools.must("qemu-img", "snapshot", "-c", "s", paths[2])
        r = m.run("down")
        self.assertEqual(r.rc, 6, str(r))
        self.assertRegex(r.err, "internal snapshots of .*top see what .*mid")
        qtools.must("qemu-img", "snapshot", "-d", "s", paths[2])
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b", paths[1],
                    "-F", "qcow2", kid)
        before = qtools.file_hash(kid)
        for direction in ("down", "up", "auto"):
            r = m.run(direction)
            self.assertEqual(r.rc, 6, str(r))
            self.assertRegex(r.err, "kid stands on .*mid.*neither old nor new")
        self.assertEqual(before, qtools.file_hash(kid))
        self.is_marked_as_torn(paths[1])
        for s in m.survivors():
            self.assertEqual(qtools.guest_hash(s.path, s.fmt), s.view)
        for path in (paths[2], kid): # nobody can tell which masks it
            r = qtools.qstill("image", "flatten", path, path + ".flat")
            self.assertEqual(r.rc, 0, str(r))
            self.assertRegex(r.err, "note: .*mid was being folded into .* "
                             "right if .*%s was" % os.path.basename(path))
        self.assertEqual(qtools.guest_hash(paths[2] + ".flat", "qcow2"),
                         qtools.guest_hash(paths[2], "qcow2"))
        for path in (paths[2] + ".flat", kid + ".flat", kid):
            os.unlink(path)
        r = m.run("down")
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(m.merged(), [])


if __name__ == "__main__":
    unittest.main(verbosity=1)
