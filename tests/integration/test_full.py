# SPDX-License-Identifier: MIT
"""A store without a free byte, on one file system with the disks: what is
deleted there makes room, also when the command dies in the middle."""

import contextlib
import json
import os
import subprocess

from lib import tiny
from lib.case import SPARE, Case


class Full(Case):
    """On a tmpfs."""

    dealt = True
    cost = 30
    limit = 240
    # The kills: each K-th call of those that change something.
    STEP = 7

    def make_room(self):
        self.mount_tmpfs(self.room, "size=48m")

    def setUp(self):
        super().setUp()
        self.room = os.path.join(self.tmp, "vm")
        self.make_room()
        self.store = self.q.store = os.path.join(self.room, "store")
        self.build()

    def build(self):
        """one - two (memory) - three - head; their first parts tell."""
        self.vm = self.tiny_vm(disks=[self.disk(
            i, f, size=2 << 20, pattern=False)
            for i, f in (("disk0", "qcow2"), ("disk1", "raw"))])
        self.held = {}
        for n, name in enumerate(("one", "two", "three", "head")):
            for d in self.vm.disks:
                self.vm.write(d, 0, n + 1)
                self.vm.write(d, n + 1, n + 1)
            self.held[name] = None
            if name != "head":
                self.q("create", "vm", name,
                       *(("--memory",) if name == "two" else ()))
        for name in ("one", "two", "three"):
            self.held[name] = self.holds(name)

    def holds(self, name):
        return [tiny.content(p, f) for p, f in
                self.frozen(self.vm, name).values()]

    def fill(self):
        """No byte is left, and no file can be made that is not empty."""
        with open(os.path.join(self.room, "fill"), "ab", 0) as f:
            for _ in range(3):  # what is written late has its room by then
                with contextlib.suppress(OSError):
                    while True:
                        f.write(b"x" * 4096)
                os.sync()
        self.assertEqual(0, os.statvfs(self.room).f_bavail)

    def unfill(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.room, "fill"))

    def free(self):
        st = os.statvfs(self.room)
        return st.f_bavail * st.f_bsize

    def remain(self, *names):
        self.assertEqual(sorted(names), sorted(self.q.names("vm")))
        for name in set(names) & set(self.held):
            self.assertEqual(self.held[name], self.holds(name), name)
            self.q("verify", "vm", name)

    def whole(self):
        """And it goes on from there."""
        self.unfill()
        self.q("recover", "vm")
        self.check_nothing_left(self.vm)
        self.q("create", "vm", "another")
        self.q("delete", "vm", "another")
        self.check_nothing_left(self.vm)

    def test_a_leaf_goes(self):
        self.q("revert", "vm", "two")
        self.q("delete", "vm", "three", "--keep-trash", "0")
        self.held.pop("three")
        self.q("create", "vm", "leaf")
        self.held["leaf"] = self.holds("leaf")
        self.q("revert", "vm", "two", "--keep-trash", "0")
        self.fill()
        self.q("delete", "vm", "leaf")
        self.assertGreater(self.free(), 0)
        self.remain("one", "two")
        self.whole()

    def test_one_with_memory_goes(self):
        memory = 8 << 20
        self.fill()
        self.q("delete", "vm", "two")
        self.assertGreater(self.free(), memory // 32)
        self.remain("one", "three")
        self.whole()

    def test_all_go(self):
        self.fill()
        self.q("delete", "vm", "one", "two", "three")
        self.assertGreater(self.free(), 0)
        self.remain()
        self.whole()

    def test_with_the_vm_off(self):
        self.vm.end()
        self.fill()
        self.q("delete", "vm", "one", "three")
        self.remain("two")
        self.assertGreater(self.free(), 0)
        self.unfill()
        self.q("start", "vm")
        self.q("recover", "vm")
        self.check_nothing_left(self.vm)

    def test_again_and_again(self):
        """Each delete leaves the next one what it needs."""
        for name in ("three", "two", "one"):
            self.fill()
            self.q("delete", "vm", name)
        self.remain()
        self.whole()

    def test_spare_room_that_cannot_grow_is_kept(self):
        """With each snapshot more is wanted of it; a full disk has no more."""
        for name in SPARE:
            os.truncate(os.path.join(self.store, "vm", name), 8192)
        self.fill()
        self.q.fails("no-space", None, "create", "vm", "four")
        for name in SPARE:
            self.assertEqual(8192, os.stat(os.path.join(
                self.store, "vm", name)).st_size)
        self.q("delete", "vm", "three")
        self.remain("one", "two")
        self.whole()

    def hidden(self):
        with open(os.path.join(self.store, "vm", "vm.json")) as f:
            return json.load(f)["hidden"]

    def test_a_merge_that_needs_next_to_nothing_is_done(self):
        self.q("create", "vm", "four")
        self.vm.end()
        self.fill()
        self.q("delete", "vm", "four")
        self.assertEqual([], self.hidden())
        self.remain("one", "two", "three")
        self.unfill()
        self.q("start", "vm")

    def test_what_qemu_has_no_room_to_merge_waits(self):
        """More has been written to the head than its layer holds: that is
        pulled up."""
        self.q("create", "vm", "four")
        self.held["four"] = self.holds("four")
        for d in self.vm.disks:
            self.vm.write(d, 7, 7)
        self.q("create", "vm", "five")
        for d in self.vm.disks:
            for part in range(5):
                self.vm.write(d, part, 9)
        head = [tiny.content(p, "qcow2") for p in self.head_paths(self.vm)]
        self.fill()
        self.q("delete", "vm", "five")
        self.assertEqual(2, len(self.hidden()))
        self.assertRegex(self.q.stderr, "no room to merge it: make some, then "
                         "run qstill recover vm")
        self.remain("one", "two", "three", "four")
        self.unfill()
        self.q("recover", "vm")
        self.assertEqual([], self.hidden())
        self.assertEqual(head, [tiny.content(p, "qcow2") for p in
                                self.head_paths(self.vm)])
        self.remain("one", "two", "three", "four")
        self.whole()

    def test_killed_in_the_middle(self):
        """The old or the new tree, and the next command finishes."""
        at = 1
        while True:
            self.fill()
            p, calls = self.traced(["delete", "vm", "two"],
                                   "--at", str(at))
            said = "call %d: %s%s" % (at, p.stdout, calls[-3:])
            if at % 2:  # others have taken the room by now
                self.fill()
                self.q.finish(self.q.start("recover", "vm"))
                self.unfill()
            self.q("recover", "vm")
            self.assertEqual(
                [], [f for f in os.listdir(os.path.join(
                    self.store, "vm")) if f.startswith(".") and
                    f not in SPARE], said)
            names = self.q.names("vm")
            self.assertIn(names, (["one", "two", "three"], ["one", "three"]),
                          said)
            self.remain(*names)
            if "two" in names and not at % 2:
                self.q("delete", "vm", "two")
                self.remain("one", "three")
            self.whole()
            if not p.returncode:
                break
            at += self.STEP
            self.vm.end()
            self.vms.clear()
            self.unprotect(self.room)
            subprocess.run("rm -rf %s/*" % self.room, shell=True, check=True)
            self.build()


class FullExt4(Full):
    """On an ext4 of its own."""

    def make_room(self):
        self.mount_ext4(self.room, "48M")
