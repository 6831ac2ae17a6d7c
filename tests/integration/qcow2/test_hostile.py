#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Images made to harm us (hostile.py): each use of each is refused with a
reason and the right exit code, in bounded time and memory, and changes
nothing; what is legal though odd works."""

import os
import random
import shutil
import unittest

import hostile
import qbuild
import qcompare
import qmerge
import qtools

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "10"))
MIB = int(os.environ.get("HOSTILE_MIB", "256"))
CODES = {hostile.DAMAGED: {3}, hostile.ASIDE: {3}, hostile.FOREIGN: {6}}


FLATTEN = os.access(qtools.QSTILL, os.X_OK) and \
    "flatten" in qtools.run(qtools.QSTILL, "image", "--help").out


class File:
    def __init__(self, path, fmt="qcow2"):
        self.path, self.fmt = path, fmt


@unittest.skipIf(qtools.missing(), qtools.missing())
class HostileImagesAreRefused(unittest.TestCase):
    def setUp(self):
        self.dir = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)

    def use(self, *argv):
        r = qtools.run_measured(qtools.QSTILL, "--json", "image", *argv,
                                timeout=SECONDS * 2)
        self.assertIn(r.rc, range(0, 11), "crash or hang: %s" % r)
        self.assertLess(r.seconds, SECONDS, str(r))
        self.assertLess(r.rss_kib, MIB * 1024, str(r))
        if r.rc == 3 and argv[0] == "check" and r.out.startswith('{"file'):
            self.assertGreater(r.json()["corruptions"], 0, str(r))
            self.assertTrue(r.json()["messages"], str(r))
        elif r.rc not in (0, 1):
            self.assertRegex(r.err, "(?m)^qstill: ", str(r))
            for c in r.err:
                self.assertTrue(c.isprintable() or c == "\n",
                                "raw control characters: %r" % r.err)
        return r

    def place(self, case):
        """The image, a good one to compare with, and an overlay on it."""
        d = os.path.join(self.dir, case.name)
        os.makedirs(d)
        path = hostile.make(case.name, d)
        good = hostile.good().write(os.path.join(d, "good"))
        b = qbuild.Builder(random.Random(3), 40 << 12, 12,
                           backing=os.path.basename(path),
                           backing_format="qcow2")
        b.data(3, b"over" * 1024)
        return d, path, good, b.write(os.path.join(d, "overlay"))

    def uses(self, d, path, good, overlay):
        """(what, result) of every verb that reads or writes the image."""
        flat = os.path.join(d, "flat.qcow2")
        yield "map", self.use("map", path)
        yield "check", self.use("check", path)
        yield "compare", self.use("compare", path, good)
        if FLATTEN:
            yield "flatten", self.use("flatten", path, flat)
        if os.path.exists(flat):
            os.unlink(flat)
        yield "map of an overlay", self.use("map", overlay)
        for direction in ("up", "down", "new", "auto"):
            if os.path.exists(path):
                yield "merge " + direction, self.use(
                    "merge", overlay, "--drop", path, "--direction",
                    direction)

    def refused(self, case, what, r):
        codes = set(CODES[case.kind])
        if case.name.startswith("backing-"):
            codes |= {3, 4, 6}
        self.assertIn(r.rc, codes, "%s of %s: %s" % (what, case.name, r))
        text = (r.err + r.out).lower()
        self.assertTrue(any(w.lower() in text for w in case.words),
                        "%s of %s does not say why (%s): %s" % (
                            what, case.name, case.words, r))

    def each(self, kind, check):
        for case in hostile.CASES.values():
            if case.kind == kind:
                with self.subTest(case.name):
                    d, path, good, overlay = self.place(case)
                    self.use("info", path)
                    check(case, d, path, good, overlay)
                    shutil.rmtree(d, True)

    def test_damaged_images_are_refused_by_every_verb(self):
        def check(case, d, path, good, overlay):
            before = {p: qtools.file_hash(p) for p in (path, overlay)}
            for what, r in self.uses(d, path, good, overlay):
                if what != "check" or not case.name.startswith("backing-raw"):
                    self.refused(case, what, r)
            for p, h in before.items():
                self.assertEqual(h, qtools.file_hash(p), p)
        self.each(hostile.DAMAGED, check)

    def test_foreign_images_are_not_merged(self):
        def check(case, d, path, good, overlay):
            listing = qmerge.tree(d)
            before = {p: qtools.file_hash(p) for p in (path, overlay)}
            for what, r in self.uses(d, path, good, overlay):
                # what is marked as corrupt may be saved into another file
                if what.startswith("merge") or (
                        what == "flatten" and case.name != "corrupt-bit"):
                    self.refused(case, what, r)
            for p, h in before.items():
                self.assertEqual(h, qtools.file_hash(p), p)
            self.assertEqual(listing, qmerge.tree(d))
        self.each(hostile.FOREIGN, check)

    def test_damage_aside_is_told_and_never_written_over(self):
        """A merge may read around it into another file, or refuses."""
        def check(case, d, path, good, overlay):
            self.refused(case, "check", self.use("check", path))
            for direction in ("up", "down", "new", "auto"):
                shutil.rmtree(d)
                d, path, good, overlay = self.place(case)
                before = qtools.file_hash(path)
                view = self.view(overlay)
                r = self.use("merge", overlay, "--drop", path, "--direction",
                             direction)
                self.judge_aside(case, path, overlay, r, before, view)
        self.each(hostile.ASIDE, check)

    def view(self, overlay):
        """None where QEMU itself does not open it."""
        try:
            return qtools.guest_hash(overlay, "qcow2")
        except RuntimeError:
            return None

    def judge_aside(self, case, path, overlay, r, before, view):
        if r.rc == 0:
            self.assertEqual(qtools.qemu_check(overlay), (0, 0, 0), str(r))
            if view:
                self.assertEqual(self.view(overlay), view)
            self.assertNotIn("snapshot", case.name, str(r))
        else:
            self.assertIn(r.rc, (3, 6), str(r))
            self.assertEqual(before, qtools.file_hash(path), str(r))

    def test_low_refcounts_are_refused_or_mended_never_trusted(self):
        def check(case, d, path, good, overlay):
            for direction in ("up", "down", "new"):
                shutil.rmtree(d)
                d, path, good, overlay = self.place(case)
                bottom = hostile.good().write(os.path.join(d, "bottom"))
                qtools.must("qemu-img", "rebase", "-u", "-f", "qcow2", "-F",
                            "qcow2", "-b", "bottom", path)
                hostile.CASES[case.name].make(path)
                hostile.patch(path, 0, "4s", b"QFI\xfb")
                r = self.use("merge", overlay, "--drop", path, "--direction",
                             direction)
                self.judge_low(case, path, overlay, r)
        self.each(hostile.READONLY, check)

    def judge_low(self, case, path, overlay, r):
        if r.rc == 0:
            self.assertEqual(qtools.qemu_check(overlay), (0, 0, 0), str(r))
        else:
            self.assertIn(r.rc, (3, 6), str(r))
            self.assertTrue(any(w in r.err for w in case.words), str(r))
            self.assertTrue(os.path.exists(path))

    def test_tables_that_are_not_there_take_no_time(self):
        path = os.path.join(self.dir, "wide")
        hostile.l2_tables_in_holes(path, 1 << 20)
        top = os.path.join(self.dir, "top")
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
                    "-b", path, top, "1G")
        self.assertEqual(0, self.use("map", path).rc)
        self.assertEqual(3, self.use("check", path).rc)
        self.use("merge", top, "--drop", path, "--dry-run")

    def test_a_compressed_cluster_in_many_parts(self):
        """Of 2 MiB, and said to have 4 MiB of data; each second sector is
        covered by the layer above. (It takes qemu-img minutes.)"""
        top, raw, flat, base = (os.path.join(self.dir, n)
                                for n in ("top", "raw", "flat", "base"))
        size, content = 8 << 20, bytearray(hostile.compressed_in_holes(base, 4))
        b = qbuild.Builder(random.Random(1), size, 9, backing="base",
                           backing_format="qcow2")
        for i in range(0, size // 512, 2):
            data = bytes([i % 251 + 1]) * 512
            content[512 * i:512 * i + 512] = data
            b.data(i, data)
        b.write(top)
        with open(raw, "wb") as f:
            f.write(content)
        self.assertEqual(0, self.use("map", top).rc)
        self.assertEqual(0, self.use("flatten", top, flat).rc)
        self.assertEqual(bytes(content), qtools.guest_bytes(flat, "qcow2"))
        for other in (flat, raw):
            self.assertEqual(0, self.use("compare", top, other).rc)
        os.unlink(flat)
        self.assertEqual(0, self.use("flatten", top, flat, "--compress").rc)
        self.assertEqual(0, self.use("compare", flat, raw).rc)

    def test_what_the_file_is_long_enough_for_takes_no_memory(self):
        path = os.path.join(self.dir, "long")
        hostile.sparse_with_a_snapshot(path)
        good = hostile.good(bits=9).write(os.path.join(self.dir, "good"))
        self.assertEqual(0, self.use("check", path).rc)
        self.assertEqual(0, self.use("map", path).rc)
        self.assertEqual(0, self.use("compare", path, good).rc)

    @unittest.skipIf(qtools.missing("strace"), qtools.missing("strace"))
    def test_the_filesystem_is_asked_for_holes_once(self):
        """Each answer can take it as long as the data has pieces."""
        path, log = (os.path.join(self.dir, n) for n in ("half", "log"))
        hostile.half_a_hole(path, 1024)
        self.assertEqual([], qcompare.same_map(path, "qcow2"))
        qtools.must("strace", "-f", "-o", log, "-e", "trace=lseek",
                    qtools.QSTILL, "--json", "image", "map", path)
        with open(log) as f:
            self.assertLess(f.read().count("SEEK_"), 64)

    def test_data_that_is_not_there_is_not_read(self):
        """4 TiB of clusters in use, all but three of them holes."""
        path, flat, empty = (os.path.join(self.dir, n)
                             for n in ("path", "flat", "empty"))
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                    "preallocation=metadata,cluster_size=2M", path, "4T")
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", empty, "4T")
        parts = ("7 0 64k", "8 %dk 4k" % (1 << 30), "9 %dk 1M" %
                 ((1 << 30) + 1600))
        for part in parts:
            qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P " + part,
                        path)
        r = self.use("flatten", path, flat)
        self.assertEqual(0, r.rc, str(r))
        self.assertEqual(3 * (2 << 20), r.json()["bytesMoved"])
        self.assertEqual((0, 0, 0), qtools.qemu_check(flat))
        for part in parts:
            self.assertNotIn("failed", qtools.must(
                "qemu-io", "-r", "-f", "qcow2", "-c", "read -q -P " + part,
                flat).out)
        self.assertEqual(0, self.use("compare", path, flat).rc)
        r = self.use("compare", empty, path)
        self.assertEqual(1, r.rc, str(r))
        self.assertEqual(0, r.json()["offset"])

    def test_odd_but_legal_images_work(self):
        def check(case, d, path, good, overlay):
            fmt = "qcow2"
            self.assertEqual(qcompare.same_map(path, fmt, True), [])
            huge = os.path.getsize(path) > 1 << 30 or "8-tib" in case.name
            if huge:
                return
            files = [File(path), File(overlay)]
            m = qmerge.Merge(d, files, [path, overlay], [path])
            m.listing = {p for p in m.listing if p in (path, overlay)}
            r = m.run("auto")
            self.assertEqual(r.rc, 0 if "control" not in case.name else r.rc,
                             str(r))
        self.each(hostile.ODD, check)


if __name__ == "__main__":
    unittest.main(verbosity=1)
