# SPDX-License-Identifier: MIT
"""bench: the user's own figures. What it measures is not tested here, but that
it measures: each way has its samples or says why not, the numbers are of this
world, and nothing is left behind."""

import contextlib
import os
import signal
import time

from lib import case

REPS = 2


class Bench(case.Case):
    """The base; has no tests of its own."""

    either = True
    limit = 240
    cost = 30

    @classmethod
    def qemus_in(cls, folder):
        """The QEMUs that work there: their names of files are relative."""
        found = []
        for pid in cls.processes("qstill-bench"):
            with contextlib.suppress(OSError):
                if os.readlink("/proc/%d/cwd" % pid).startswith(folder):
                    found.append(pid)
        return found

    def bench(self, what, *args, qemu=True):
        folder = os.path.join(self.tmp, "bench")
        os.makedirs(folder, exist_ok=True)
        args = ["--reps", REPS, "--dir", folder, *args]
        if qemu:
            args += ["--qemu", case.QEMU, "--accel", "tcg"]
        said = self.q("bench", what, *args)
        self.assertEqual([], os.listdir(folder), "files were left")
        self.assertEqual([], self.qemus_in(folder))
        self.assertEqual((what, REPS), (said["benchmark"], said["reps"]))
        for way in said["ways"]:
            if not way["skipped"]:
                self.samples(way["ms"])
                self.assertGreater(way["ratio"], 0)
        return said, {w["name"]: w for w in said["ways"]}

    def samples(self, s):
        self.assertEqual(REPS, len(s["all"]))
        self.assertGreater(s["min"], 0)
        self.assertEqual((min(s["all"]), max(s["all"])), (s["min"], s["max"]))
        self.assertTrue(s["min"] <= s["median"] <= s["max"], s)


class WithVM(Bench):
    def test_memory_measures_ours_and_qemus_ways(self):
        said, ways = self.bench("memory", "--size", "128M", "--shared")
        self.assertEqual((128 << 20, "tcg"), (said["size"], said["accel"]))
        cow = ways["cow"]
        self.assertEqual((True, 1), (cow["ours"], cow["ratio"]))
        # Half of the RAM is random, and is what was stored.
        self.assertGreater(cow["bytes"], 64 << 20)
        self.assertLess(cow["bytes"], 128 << 20)
        self.samples(cow["pauseMs"])
        self.assertLess(cow["pauseMs"]["median"], cow["ms"]["median"])
        stream = ways["QEMU migrate, stream"]
        self.assertIsNone(stream["skipped"])
        # The guest stands still all the time, and the same RAM is stored.
        self.assertEqual(stream["ms"]["all"], stream["pauseMs"]["all"])
        self.assertGreater(stream["bytes"], 64 << 20)
        for name in ("QEMU migrate, mapped-ram",
                     "QEMU migrate, mapped-ram multifd direct-io"):
            if case.QEMU_VERSION == "7.2":
                self.assertRegex(ways[name]["skipped"], "mapped-ram")
            else:
                self.assertIsNone(ways[name]["skipped"])
        stalls = said["stalls"]
        self.assertEqual(4096 * REPS, stalls["slowest"])
        self.assertTrue(0 < stalls["p50Ms"] <= stalls["p99Ms"] <=
                        stalls["worstMs"], stalls)
        self.assertTrue(all(h["writes"] > 0 and h["fromMs"] < h["toMs"]
                            for h in stalls["histogram"]))
        self.assertGreater(said["stallsIdle"]["p50Ms"], 0)

    def test_restore_measures_each_way_back_and_qemus_own(self):
        _, ways = self.bench("restore", "--size", "128M")
        self.assertEqual(["inplace", "mapped", "eager", "QEMU snapshot-load"],
                         list(ways))
        self.assertEqual([], [w for w in ways.values() if w["skipped"]])


class Once(Bench):
    versions = ("7.2",)  # qemu-img is the distribution's

    def test_what_cannot_be_measured_is_said_and_leaves_nothing(self):
        before = sorted(os.listdir(self.tmp))
        self.q.fails("not-found", "no-such-qemu", "bench", "memory", "--dir",
                     self.tmp, "--qemu", "no-such-qemu")
        self.q.fails("failed", "QEMU has ended: .*", "bench", "memory",
                     "--dir", self.tmp, "--qemu", "false")
        self.q.fails("usage", "at least 96 MiB", "bench", "restore", "--size",
                     "64M", "--dir", self.tmp)
        self.q.fails("usage", "at most 100", "bench", "merge", "--reps", 101)
        self.q.fails("not-found", "/nowhere", "bench", "merge", "--dir",
                     "/nowhere")
        self.assertEqual(before, sorted(os.listdir(self.tmp)))

    def test_a_signal_ends_it_and_leaves_nothing(self):
        folder = os.path.join(self.tmp, "bench")
        os.makedirs(folder)
        for what, delay in (("memory", 0.1), ("restore", 1.5),
                            ("merge", 0.5)):
            with self.subTest(what=what, delay=delay):
                p = self.q.start("bench", what, "--reps", 50, "--dir", folder)
                self.wait_for(lambda: os.listdir(folder))
                time.sleep(delay)
                p.send_signal(signal.SIGINT)
                status, out, _ = self.q.finish(p)
                self.assertEqual(10, status, out)
                self.assertEqual([], os.listdir(folder))
                self.assertEqual([], self.qemus_in(folder))

    def test_a_qemu_does_not_outlive_it(self):
        folder = os.path.join(self.tmp, "bench")
        os.makedirs(folder)
        p = self.q.start("bench", "memory", "--reps", 50, "--dir", folder,
                         "--qemu", case.QEMU)
        self.wait_for(lambda: self.qemus_in(folder))
        p.kill()
        p.wait()
        self.wait_for(lambda: not self.qemus_in(folder))

    def test_nor_does_the_qemu_of_a_revert(self):
        folder = os.path.join(self.tmp, "bench")
        os.makedirs(folder)
        # With --accel, so that the second one is no second try.
        p = self.q.start("bench", "restore", "--size", "128M", "--reps", 1,
                         "--dir", folder, "--qemu", case.QEMU, "--accel", "tcg")
        self.wait_for(lambda: self.qemus_in(folder))
        first = self.qemus_in(folder)
        self.wait_for(lambda: set(self.qemus_in(folder)) - set(first))
        p.kill()
        p.wait()
        self.wait_for(lambda: not self.qemus_in(folder))

    def wait_for(self, truth, seconds=20):
        deadline = time.monotonic() + seconds
        while not truth():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_merge_measures_each_direction_and_qemu_img(self):
        _, ways = self.bench("merge", "--size", "64M", qemu=False)
        self.assertEqual(
            ["auto", "up", "down", "qemu-img rebase",
             "qemu-img rebase -t none", "qemu-img commit",
             "qemu-img commit -t none"], list(ways))
        for name in ("auto", "up", "down", "qemu-img rebase",
                     "qemu-img commit"):
            self.assertIsNone(ways[name]["skipped"], ways[name])
        # An eighth of the disk is in the layer that goes.
        self.assertGreaterEqual(ways["up"]["bytes"], 7 << 20)
        self.assertLessEqual(ways["up"]["bytes"], 9 << 20)

    def test_people_get_a_table_and_a_histogram(self):
        text = self.q.text("bench", "memory", "--size", "128M", "--reps", 1,
                           "--dir", self.tmp, "--qemu", case.QEMU)
        self.assertRegex(text, r"(?m)^WAY +MEDIAN +MIN +MAX +PAUSE +RATIO$")
        self.assertRegex(text, r"(?m)^cow +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +1\.")
        mapped = ": not measured: " if case.QEMU_VERSION == "7.2" else \
            r"( +[\d.]+){5}$"
        self.assertRegex(text, "(?m)^QEMU migrate, mapped-ram" + mapped)
        self.assertRegex(text, r"of the 4096 slowest p50 [\d.]+ ms, p99")
        self.assertRegex(text, r"(?m)^ +[\d.]+ to +[\d.]+ ms +\d+ #+$")
