# SPDX-License-Identifier: MIT
"""A delete while the VM is off, killed at each system call that changes
something: qstill's own merges do all of it, and the first images get their
content or their names back. Afterwards the tree is the old or the new one, with
the right contents; nothing is left over, and when all snapshots are deleted the
first images are what the owner's command line names again.

`make check` tries a few of the points, most of them at the ends of the merges,
where names and backing files change; make check-crash all of them, as it does
those of test_kill.py."""

import json
import os
import random
import shutil
import subprocess

from lib.case import Case
from lib.tiny import PART
from model.images import Reader
from test_kill import EVERY, FROM, TO

NEAR = 16  # the end of a merge, in calls: flip, names, backing files
NAMES = 12  # of these points, and of the others
OTHERS = 3
POINT = int(os.environ.get("POINT", "0"))


class OurselvesKilledWhileOff(Case):
    """The first images: one that is less than what was written since, so that
    its content goes up; one that is more; and a raw one."""

    limit = 3600 if EVERY else 240
    cost = 60
    versions = ("7.2",)  # QEMU takes no part

    def setUp(self):
        super().setUp()
        self.disks = [
            self.disk("up", "qcow2", size=2 << 20, pattern=False),
            self.disk("down", "qcow2", size=2 << 20, pattern=False),
            self.disk("raw", "raw", size=2 << 20, pattern=False)]
        self.vm = self.tiny_vm(disks=self.disks, style="blockdev")
        self.names = self.disk_names(self.vm)
        self.byte = 0

    def write(self, first, count):
        self.byte += 1
        for d in self.disks:
            parts = range(first, first + count)
            if d.id == "down":  # more of it below than above
                parts = range(8) if first == 0 else range(1)
            for part in parts:
                self.vm.write(d, part, self.byte)

    def build(self, fork):
        self.write(0, 1)
        self.q("create", "vm", "oldest")
        self.write(1, 5)
        self.q("create", "vm", "middle")
        self.write(6, 1)
        if fork:
            self.q("create", "vm", "leaf")
            self.q("revert", "vm", "middle", "--keep-trash", "0")
            self.write(7, 1)
        self.vm.quit()
        self.kept = os.path.join(self.tmp, "kept")
        self.copy(self.tmp, self.kept)

    def copy(self, source, to):
        self.unprotect(to)
        for folder in ("vm", "store"):
            shutil.rmtree(os.path.join(to, folder), ignore_errors=True)
            os.makedirs(to, exist_ok=True)
            subprocess.run(["cp", "-a", os.path.join(source, folder), to],
                           check=True)

    def record(self):
        with open(os.path.join(self.store, "vm", "vm.json")) as f:
            return json.load(f)

    def state(self):
        reader = Reader()

        def content(path, fmt):
            return reader.content(path, fmt)[:8 * PART]
        return {**{s["name"]: [content(d["path"], d["format"])
                               for d in s["disks"]]
                   for s in self.q.snapshots("vm")},
                "": [content(d["headPath"], d["headFormat"])
                     for d in self.record()["disks"]]}

    def nothing_left(self):
        record, reader = self.record(), Reader()
        tops = [(d["headPath"], d["headFormat"]) for d in record["disks"]]
        tops += [(d["path"], d["format"]) for s in self.q.snapshots("vm")
                 for d in s["disks"]]
        needed = {layer.path for top in tops for layer in reader.chain(*top)}
        self.assertEqual(self.disk_files(self.vm), needed)
        self.assertEqual([], [h["path"] for h in record["hidden"]])
        self.assertEqual([], reader.problems())

    def good(self, before, after):
        self.q("recover", "vm")
        found = self.state()
        self.assertIn(found, (before, after))
        said = self.q.check("vm")
        self.assertTrue(said["ok"], said)
        self.nothing_left()
        names = [name for name in found if name]
        for name in names:
            self.q("verify", "vm", name)
        if names:
            self.q("delete", "vm", *names)
        self.nothing_left()
        self.assertEqual([d.path for d in self.disks],
                         [d["headPath"] for d in self.record()["disks"]])
        self.assertEqual({"": found[""]}, self.state())

    def points(self, calls):
        """As numbers of `calls`, whose last line is their count."""
        total = len(calls) - 1
        if POINT:
            return [POINT]
        if EVERY:
            return range(FROM, min(TO or total, total) + 1, EVERY)
        # two runs differ by a few calls that wait
        near = {n for end, c in enumerate(calls, 1) if c.endswith("/.merge") and
                "ftruncate " in c for n in range(end - NEAR, end + 2)}
        rest = sorted(set(range(1, total + 1)) - near)
        return sorted(random.sample(sorted(near), min(NAMES, len(near))) +
                      random.sample(rest, OTHERS))

    def delete(self, *gone, fork=False):
        self.build(fork)
        argv = ["delete", "vm", *gone]
        before = self.state()
        p, calls = self.traced(argv)
        self.assertEqual(0, p.returncode, p.stdout)
        seed = int(os.environ.get("SEED", "0")) or random.randrange(1, 1 << 30)
        random.seed(seed)
        points = self.points(calls)
        after = self.state()
        self.good(after, after)
        broken = []
        for n in points:
            self.copy(self.kept, self.tmp)
            _, calls = self.traced(argv, "--at", str(n))
            try:
                self.good(before, after)
            except (AssertionError, subprocess.SubprocessError) as e:
                broken.append("point %d: %s\n%s" % (n, e, "\n".join(
                    calls[-4:])))
                print("BROKEN", broken[-1], flush=True)
        self.assertEqual([], broken, "seed %d" % seed)

    def test_in_a_delete_of_the_oldest_one(self):
        self.delete("oldest")

    def test_in_a_delete_below_a_fork(self):
        """Two images get the new backing file, one after the other."""
        self.delete("oldest", fork=True)

    def test_in_a_delete_of_all(self):
        self.delete("oldest", "middle")
