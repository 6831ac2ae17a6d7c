#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A merge of layers that are no neighbours, cut when one has gone and another
has not: what is asked for afterwards, and when it is over."""

import os
import signal
import subprocess
import time
import unittest

import qtools
import test_stuck


@unittest.skipIf(qtools.missing("qemu-img", "qemu-io"), "tool not installed")
class BetweenTwoGroups(test_stuck.Stuck):
    """Layers that are no neighbours are merged one after another: where one is
    gone and the other is not, the same command goes on."""

    def setUp(self):
        super().setUp()
        self.make()

    def make(self):
        self.create(self.path("base"))
        for name, below in (("a", "base"), ("b", "a"), ("c", "b"),
                            ("top", "c")):
            self.create(self.path(name), below, ord(name[0]), 64)
        for name in ("top", "c", "b", "a", "base"):
            qtools.must("qemu-img", "resize", "-q", self.path(name), "16M")
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 2M 8M",
                    self.path("a"))
        self.view = qtools.guest_hash(self.path("top"), "qcow2")

    def argv(self, *more):
        drop = [self.path(n) for n in ("c", "a")]
        return ["merge", self.path("top"), "--direction", self.direction,
                "--drop", drop[0], "--drop", drop[1], *more]

    def cut(self, sig, *more):
        """While the second is copied; how it came to its end."""
        p = subprocess.Popen(
            [qtools.QSTILL, "image", *self.argv("--bwlimit", "2M", *more)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 30
        while os.path.exists(self.path("c")) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)
        p.send_signal(sig)
        out, err = p.communicate(timeout=60)
        self.assertFalse(os.path.exists(self.path("c")), err)
        self.assertTrue(os.path.exists(self.path("a")), err)
        return p.returncode

    def ended(self, left):
        r = qtools.image(*self.argv())
        self.assertEqual(r.rc, 0, str(r))
        self.assertEqual(sorted(os.listdir(self.dir)), left)
        self.assertEqual(qtools.guest_hash(self.path("top"), "qcow2"),
                         self.view)
        self.refuse_all_gone()

    def refuse_all_gone(self):
        """Nothing tells any more that these were ever layers."""
        r = qtools.image(*self.argv())
        self.assertEqual(r.rc, 4, str(r))

    def drop(self, top, *names):
        r = qtools.image("merge", self.path(top), *(
            x for n in names for x in ("--drop", self.path(n))))
        self.assertEqual(r.rc, 0, str(r))

    def other(self):
        """What a merge of quite another chain in the folder does."""
        pair = ("other0", "other1")
        self.create(self.path(pair[0]))
        self.create(self.path(pair[1]), pair[0])
        self.drop(pair[1], pair[0])
        os.unlink(self.path(pair[1]))

    def recover(self):
        """What a merge of this top does before anything else."""
        r = qtools.image("merge", self.path("top"), "--drop",
                         self.path("misspelt"))
        self.assertEqual(r.rc, 4, str(r))

    def names(self):
        return sorted(os.listdir(self.dir))

    def each_cut(self):
        self.direction = "up"
        for sig in (signal.SIGINT, signal.SIGKILL):
            for n in self.names():
                os.unlink(self.path(n))
            self.make()
            self.cut(sig)
            yield

    def test_cancelled(self):
        self.direction = "up"
        self.assertEqual(self.cut(signal.SIGINT), 10)
        self.assertEqual(self.cut(signal.SIGINT), 10)
        self.ended(["b", "base", "top"])

    def test_killed(self):
        self.direction = "up"
        self.assertEqual(self.cut(signal.SIGKILL), -signal.SIGKILL)
        self.assertEqual(self.cut(signal.SIGINT), 10)
        self.ended(["b", "base", "top"])

    def test_into_new_files(self):
        self.direction = "new"
        self.assertEqual(self.cut(signal.SIGINT), 10)
        self.ended(["b", "base", "top"])

    def test_a_dry_run_tells_what_is_left_and_changes_nothing(self):
        self.direction = "up"
        for sig in (signal.SIGINT, signal.SIGKILL):
            self.cut(sig)
            before = {n: qtools.file_hash(self.path(n))
                      for n in os.listdir(self.dir)}
            r = qtools.image(*self.argv("--dry-run"))
            self.assertEqual(r.rc, 0, str(r))
            self.assertIn("%s is not there any more" % self.path("c"), r.out)
            self.assertIn("gone afterwards: %s" % self.path("a"), r.out)
            r = qtools.image(*self.argv("--dry-run", "--drop",
                                        self.path("misspelt")))
            self.assertEqual(r.rc, 4, str(r))
            self.assertEqual(before, {n: qtools.file_hash(self.path(n))
                                      for n in os.listdir(self.dir)})
        self.ended(["b", "base", "top"])

    def test_another_merge_in_between(self):
        """It is about other layers: what it does not know, it leaves."""
        self.direction = "up"
        for sig in (signal.SIGINT, signal.SIGKILL):
            self.cut(sig)
        r = qtools.image("merge", self.path("top"), "--drop", self.path("b"))
        self.assertEqual(r.rc, 0, str(r))
        self.assertFalse(os.path.exists(self.path("b")))
        self.ended(["base", "top"])

    def test_a_merge_of_another_top_in_between(self):
        """Of another chain; and of one that shares layers with it."""
        for _ in self.each_cut():
            self.other()
            self.create(self.path("on_b"), "b")
            self.create(self.path("v"), "on_b")
            self.drop("v", "on_b")
            os.unlink(self.path("v"))
            self.ended(["b", "base", "top"])

    def test_one_that_is_gone_and_another(self):
        for _ in self.each_cut():
            self.drop("top", "c", "b")
            self.assertFalse(os.path.exists(self.path("b")))
            self.ended(["base", "top"])

    def test_one_that_asks_for_what_two_were_asked_for(self):
        for _ in self.each_cut():
            self.drop("top", "b")
            self.drop("top", "c", "b", "a")
            self.assertEqual(self.names(), ["base", "top"])
            self.refuse_all_gone()

    def test_the_rest_is_merged_by_another(self):
        """With that the first command is over, too."""
        for _ in self.each_cut():
            self.drop("top", "b")
            self.assertEqual(len(self.names()), 4)
            self.drop("top", "a")
            self.assertEqual(self.names(), ["base", "top"])
            self.refuse_all_gone()

    def test_the_rest_is_merged_by_way_of_another_top(self):
        for _ in self.each_cut():
            self.create(self.path("v"), "b")
            self.drop("v", "a")
            self.assertEqual(self.names(), ["b", "base", "top", "v"])
            self.assertEqual(qtools.guest_hash(self.path("top"), "qcow2"),
                             self.view)

    def test_the_rest_is_taken_out_by_others(self):
        for _ in self.each_cut():
            self.recover()
            qtools.must("qemu-img", "rebase", "-f", "qcow2", "-b", "base",
                        "-F", "qcow2", self.path("b"))
            self.other()
            self.assertEqual(self.names(), ["a", "b", "base", "top"])
            self.assertEqual(qtools.guest_hash(self.path("top"), "qcow2"),
                             self.view)

    def test_one_that_has_gone_is_made_anew(self):
        for _ in self.each_cut():
            self.recover()
            self.create(self.path("c"), "b", 77, 192)
            qtools.must("qemu-img", "resize", "-q", self.path("c"), "16M")
            qtools.must("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "c",
                        "-F", "qcow2", self.path("top"))
            self.view = qtools.guest_hash(self.path("top"), "qcow2")
            self.ended(["b", "base", "top"])

    def test_the_journal_of_an_older_version(self):
        for _ in self.each_cut():
            self.other()
            journal, = (n for n in self.names() if n.startswith(".qstill-"))
            for text in ("went c\n", "went %s\n" % self.path("c")):
                with open(self.path(journal), "w") as f:
                    f.write(text)
                r = qtools.image(*self.argv("--dry-run"))
                self.assertEqual(r.rc, 0, str(r))
            self.ended(["b", "base", "top"])

    def test_a_name_that_is_none_of_these(self):
        self.direction = "up"
        for sig in (signal.SIGINT, signal.SIGKILL):
            self.cut(sig)
            r = qtools.image(*self.argv("--drop", self.path("misspelt")))
            self.assertEqual(r.rc, 4, str(r))
            self.assertIn("misspelt", r.err)
            self.assertTrue(os.path.exists(self.path("a")))
        self.ended(["b", "base", "top"])


if __name__ == "__main__":
    unittest.main(verbosity=1)
