# SPDX-License-Identifier: MIT
"""A VM that stands on the layers of another VM of the store: what that one's
own work changes of the files is no other base, what anybody else changes is."""

import fcntl
import os
import shutil
import struct
import subprocess

from lib import image
from lib.case import Case

OFD_SETLK = 37


class Shared(Case):
    """root - middle - leaf - head of VM a, each with a byte; b's disk stands on
    one of these layers, and has a snapshot of its own."""

    either = True
    cost = 15
    NAMES = ("root", "middle", "leaf")

    def setUp(self):
        super().setUp()
        self.a = self.tiny_vm("a")
        for n, name in enumerate(self.NAMES):
            self.write(self.a, n, n + 1)
            self.q("create", "a", name)
        self.write(self.a, 3, 9)

    def write(self, vm, part, byte):
        vm.write(vm.disks[0], part, byte)

    def layer(self, name, vm=None):
        (path, _), = self.frozen(vm or self.a, name).values()
        return path

    def stand_on(self, path, name="b", snap="in-b"):
        """VM `name`, running."""
        disk = self.disk(vm=name, size=2 << 20, pattern=False)
        image.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F",
                  "qcow2", "-b", path, disk.path, "2M")
        vm = self.tiny_vm(name, disks=[disk])
        self.write(vm, 4, 7)
        self.q("create", name, snap)
        self.write(vm, 5, 8)
        return vm

    def sums(self, vm, *names):
        """What a guest sees in each snapshot, and in the head."""
        return [image.digest(path, "qcow2") for path in
                [self.layer(n, vm) for n in names] + self.head_paths(vm)]

    def off(self, *vms):
        for vm in vms:
            vm.quit()

    def problems(self, name):
        return [p["code"] for p in self.q.check(name)["problems"]]

    def is_fine(self, vm, *names, want=None):
        """It says nothing, and shows what it showed."""
        name = vm.name
        self.assertEqual([], self.problems(name))
        for each in names:
            self.q("verify", name, each)
        self.assertEqual(want or self.want, self.sums(vm, *names))

    # --------------------------------------------------- the other VM's deletes

    def delete(self, victim):
        """Of a's; it may be refused. What is left shows what it showed."""
        left = [n for n in self.NAMES if n != victim]
        before = self.sums(self.a, *left)
        p = subprocess.run(self.q.argv(["delete", "a", victim]),
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
        self.assertEqual(before, self.sums(self.a, *left), p.stderr)
        if p.returncode == 0:
            self.assertNotIn(victim, self.q.names("a"))
        else:
            self.assertIn(p.returncode, (5, 6), p.stderr)
            self.assertIn(victim, self.q.names("a"))
        return p.returncode == 0

    def below(self, on, victim, running, done):
        b = self.stand_on(self.layer(on))
        self.q("create", "b", "second")
        if running != "b":
            self.off(b)
        if running != "a":
            self.off(self.a)
        self.want = self.sums(b, "in-b", "second")
        self.assertEqual(done, self.delete(victim))
        self.is_fine(b, "in-b", "second")
        self.q("delete", "b", "in-b")
        self.is_fine(b, "second", want=self.want[1:])
        if running == "b":
            self.q("revert", "b", "second")
            self.assertEqual(self.want[1], self.sums(b)[0])
        self.off(*{"a": [self.a], "b": [b]}.get(running, []))
        self.q("start", "b")
        b.io(b.disks[0], "read -q -P 1 0 64k")

    # ---------------------------------------------------------- anybody else's

    def merge_below(self, on="leaf", victim="middle"):
        """b on a layer that a has rewritten; both are off."""
        b = self.stand_on(self.layer(on))
        self.off(b, self.a)
        self.want = self.sums(b, "in-b")
        self.q("delete", "a", victim)
        return b

    def is_told(self, says, vm="b", snap="in-b"):
        problem, = [p for p in self.q.check(vm)["problems"]
                    if p["code"] == "wrong-base"]
        self.assertRegex(problem["message"], says)
        for verb in ("verify", "revert", "delete"):
            failure = self.q.fails("corrupt", says, verb, vm, snap)
        self.assertIn("--force", failure.hint)

    def replaced(self, path):
        """Another content by the same name."""
        self.unprotect(os.path.dirname(path))
        os.rename(path, path + ".old")
        shutil.copy(path + ".old", path)
        image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 99 1M 64k", path)

    def test_a_foreign_hand_is_told(self):
        b = self.merge_below()
        for name in ("leaf", "root"):
            with self.subTest(name):
                path = self.layer(name)
                self.replaced(path)
                self.is_told("%s (is another file than|was written to)" % path
                             if name == "leaf" else self.layer("leaf"))
                os.rename(path + ".old", path)
                self.is_fine(b, "in-b")

    def test_a_foreign_hand_that_rewrote_the_same_file(self):
        b = self.merge_below("leaf", "root")
        path = self.layer("leaf")
        self.unprotect(os.path.dirname(path))
        image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 99 1M 64k", path)
        self.is_told("disk0.*.qcow2 (was written to|is another file|has "
                     "another header)")
        self.q("revert", "b", "in-b", "--force")
        self.assertIn("below disk", self.q.stderr)
        self.assertEqual(1, len(self.q.names("b")), b.name)

    def test_a_change_that_the_other_one_has_accepted(self):
        """From then on it is right there; not for what was made before."""
        b = self.stand_on(self.layer("leaf"))
        self.off(b, self.a)
        path = self.layer("leaf")
        self.unprotect(os.path.dirname(path))
        image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 99 1M 64k", path)
        self.q("recover", "a", "--force")
        self.assertEqual(["layer-shared"], self.problems("a"))
        self.assertEqual(["wrong-base"], self.problems("b"))
        self.q("create", "b", "later")
        self.q("delete", "a", "middle")
        self.q("verify", "b", "later")
        self.is_told("disk0.*.qcow2 (was written to|is another file|has "
                     "another header)")

    def test_what_the_other_one_did_unseen(self):
        """It could not know that somebody stands on it: its first image is what
        its records say, and shows another snapshot."""
        b = self.stand_on(self.layer("root"))
        self.off(b, self.a)
        aside = b.disks[0].path + ".aside"
        head, = self.head_paths(b)
        for path in (b.disks[0].path, head):
            self.unprotect(b.dir)
            os.rename(path, path + ".aside")
        self.q("delete", "a", "root")
        self.assertEqual([], self.problems("a"))
        for path in (b.disks[0].path, head):
            os.rename(path + ".aside", path)
        self.assertFalse(os.path.exists(aside))
        self.is_told("disk0.qcow2 (was written to|is another file)")

    def test_a_layer_that_the_other_one_has_removed_unseen(self):
        b = self.stand_on(self.layer("middle"))
        self.off(b, self.a)
        head, = self.head_paths(b)
        for path in (b.disks[0].path, head):
            self.unprotect(b.dir)
            os.rename(path, path + ".aside")
        middle = self.layer("middle")
        self.q("delete", "a", "middle")
        self.assertFalse(os.path.exists(middle))
        for path in (b.disks[0].path, head):
            os.rename(path + ".aside", path)
        self.q.fails("not-found|corrupt", "", "revert", "b", "in-b")
        self.assertIn("wrong-base", self.problems("b"))
        self.damaged_on_purpose.add("b")

    def test_nobody_can_tell_while_the_other_one_is_at_work(self):
        b = self.merge_below()
        journal = self.q.journal_path("a")
        with open(journal, "w") as f:
            f.write("{")
        said = "cannot be told now: it is a layer of VM a"
        self.assertNotIn("wrong-base", self.problems("b"))
        self.assertIn(said, self.q.stderr)
        for verb in ("verify", "revert", "delete"):
            failure = self.q.fails("busy", said, verb, "b", "in-b")
            self.assertIn("qstill recover a", failure.hint)
        os.unlink(journal)
        with open(os.path.join(self.store, "a", "lock"), "r+") as f:
            fcntl.fcntl(f, OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0,
                                                  0, 0, 0))
            failure = self.q.fails("busy", said, "verify", "b", "in-b")
            self.assertIn("again", failure.hint)
        self.is_fine(b, "in-b")

    def test_three_vms_on_each_other_and_on_an_image(self):
        golden = os.path.join(self.tmp, "golden.qcow2")
        image.create(golden, "qcow2", 2 << 20, pattern=False)
        self.off(self.a)
        self.q("delete", "a", *self.NAMES)
        image.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2",
                  "-b", golden, self.a.disks[0].path)
        self.q("start", "a")
        for n, name in enumerate(self.NAMES):
            self.write(self.a, n, n + 1)
            self.q("create", "a", name)
        b = self.stand_on(self.layer("leaf"))
        self.q("create", "b", "second")
        self.q("create", "b", "third")
        c = self.stand_on(self.layer("third", b), "c", "in-c")
        self.off(c, b, self.a)
        names = "in-b", "second", "third"
        self.want = self.sums(b, *names)
        of_c = self.sums(c, "in-c")
        self.q("delete", "a", "middle")
        self.is_fine(c, "in-c", want=of_c)
        self.assertEqual(self.want, self.sums(b, *names))
        self.assertEqual(["layer-shared"], self.problems("b"))
        self.q("delete", "b", "second")
        self.is_fine(c, "in-c", want=of_c)
        self.q.fails("precondition", "must stay", "delete", "a", "root")
        self.q("verify", "b", "third")
        self.is_fine(c, "in-c", want=of_c)
        os.rename(golden, golden + ".old")
        shutil.copy(golden + ".old", golden)
        self.is_told("golden.qcow2 is another file", "c", "in-c")
        self.is_told("golden.qcow2 is another file", "b", "third")
        os.rename(golden + ".old", golden)
        self.replaced(self.layer("leaf"))
        self.is_told(self.layer("leaf"), "c", "in-c")


def _each(on, victim, running, done):
    def test(self):
        self.below(on, victim, running, done)
    name = "test_%s_goes_below_a_vm_on_%s_%s" % (
        victim, on, running + "_running" if running else "both_off")
    setattr(Shared, name, test)


# What would change what b shows is refused.
_DONE = {
    "": {"root": "middle leaf", "middle": "leaf", "leaf": "root middle"},
    "a": {"root": "middle leaf", "middle": "root leaf", "leaf": "root"},
    "b": {"root": "middle leaf", "middle": "leaf", "leaf": "root middle"},
}
for _running, _ons in _DONE.items():
    for _on, _done in _ons.items():
        for _victim in Shared.NAMES:
            _each(_on, _victim, _running, _victim in _done.split())
