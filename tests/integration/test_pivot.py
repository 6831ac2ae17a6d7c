# SPDX-License-Identifier: MIT
"""A fold of the head into the layer below it: at the pivot the guest goes over
to the other file, and what it writes from then on must be found there."""

import signal

from lib.case import Case, QUICK
from lib.tiny import content


class Record(Case):
    """The guest runs on, but vm.json could not be written; then QEMU dies
    before any command has come."""
    either = True
    cost = 40

    def vm_with_one(self, name):
        vm = self.tiny_vm(name, disks=[self.disk(
            vm=name, size=2 << 20, pattern=False)])
        vm.write(vm.disks[0], 0, 1)
        self.q("create", name, "one")
        vm.write(vm.disks[0], 1, 2)
        return vm

    def with_two(self, name):
        """Its undo brings a head back that stands on a layer of nobody's."""
        vm = self.vm_with_one(name)
        self.q("create", name, "two")
        vm.write(vm.disks[0], 1, 2)
        self.q("revert", name, "one", "--keep-trash", "9")
        self.q("delete", name, "two")
        return vm

    def with_half_a_snapshot(self, name):
        """Its recovery folds the new head back."""
        vm = self.tiny_vm(name, disks=[self.disk(
            vm=name, size=2 << 20, pattern=False)])
        vm.write(vm.disks[0], 0, 1)
        p, calls = self.traced(["create", name, "one"], "--at", "99999")
        self.assertEqual(0, p.returncode, p.stdout)
        self.q("delete", name, "one")
        (at,) = [c.split()[0] for c in calls if " renameat2" in c]
        self.traced(["create", name, "one"], "--at", at)
        vm.write(vm.disks[0], 1, 2)
        return vm

    def each_cont(self, make, *argv):
        """The command is killed at the pivot, the guest runs on by hand and
        writes, QEMU dies: nothing of what it wrote is lost."""
        make("count")
        p, calls = self.traced([argv[0], "count", *argv[1:]], "--at", "99999")
        self.assertEqual(0, p.returncode, p.stdout)
        stop, cont = (max(i for i, c in enumerate(calls)
                          if '"%s"' % word in c) for word in ("stop", "cont"))
        self.assertLess(stop, cont)
        wrote = waited = 0
        for call in (calls[stop + 1:cont + 1:3 if QUICK else 1] +
                     calls[cont + 1:-1:12 if QUICK else 6]):
            at = call.split()[0]
            with self.subTest(call):
                vm = make("vm" + at)
                p, _ = self.traced([argv[0], vm.name, *argv[1:]], "--at", at)
                if p.returncode == 0 and call in calls[cont + 1:]:
                    vm.end()  # it has asked QEMU less often than the first
                    continue
                self.assertEqual(128 + signal.SIGKILL, p.returncode, p.stdout)
                vm.cmd("cont")
                held = [j for j in vm.cmd("query-jobs")
                        if j["status"] == "pending"]
                waited += len(held)
                if not held:  # else each write of the guest's waits
                    vm.write(vm.disks[0], 1, 3)
                    wrote += 1
                vm.end()
                self.q("recover", vm.name)
                (head,) = self.head_paths(vm)
                self.assertEqual([1, 2 if held else 3],
                                 content(head, "qcow2")[:2])
                self.q("start", vm.name)
                vm.end()
        self.assertGreater(wrote, 2)
        self.assertGreater(waited, 0)

    def test_a_cont_by_hand_after_it(self):
        """Whoever let the guest run on was none of ours."""
        self.each_cont(self.vm_with_one, "delete", "one")

    def test_a_cont_by_hand_in_an_undo(self):
        self.each_cont(self.with_two, "undo")

    def test_a_cont_by_hand_in_a_recovery(self):
        self.each_cont(self.with_half_a_snapshot, "recover")

    def killed_at(self, word, vm, argv, calls, after=0):
        (at, *_) = [i for i, c in enumerate(calls) if word in c]
        p, _ = self.traced([argv[0], vm.name, *argv[1:]], "--at",
                           calls[at + after].split()[0])
        self.assertEqual(128 + signal.SIGKILL, p.returncode, p.stdout)

    def test_a_guest_that_somebody_stopped_since_stays_so(self):
        """Only who was stopped for the operation is let run again."""
        create = ("create", "two", "--memory", "--mode", "paused")
        delete = ("delete", "one")
        for name, argv, word, after, wanted in (
                ("before", delete, '"block-commit"', 1, "paused"),
                ("stopped", delete, '"stop"', 1, "running"),
                ("behind", create, " renameat2", 0, "paused"),
                ("instant", create, '"stop"', 1, "running")):
            with self.subTest(name):
                count = self.vm_with_one("count-" + name)
                p, calls = self.traced([argv[0], count.name, *argv[1:]],
                                       "--at", "99999")
                self.assertEqual(0, p.returncode, p.stdout)
                vm = self.vm_with_one(name)
                self.killed_at(word, vm, argv, calls, after)
                if wanted == "paused":
                    self.assertEqual("running", vm.state())
                    vm.cmd("stop")
                    self.paused_on_purpose.add(name)
                said = self.q("recover", name, "--dry-run")["actions"]
                self.assertEqual(wanted == "running",
                                 any("have the guest run" in s for s in said))
                self.q("recover", name)
                self.assertEqual(wanted, vm.state())
                (head,) = self.head_paths(vm)
                self.assertEqual([1, 2], content(head, "qcow2")[:2])

    def test_what_the_guest_writes_after_it_is_kept(self):
        self.vm_with_one("count")
        eio = ["--errno", "EIO"]
        p, calls = self.traced(["delete", "count", "one"], "--at", "99999",
                               *eio)
        self.assertEqual(0, p.returncode, p.stdout)
        points = [c.split()[0] for c in calls
                  if c.endswith("/.vm.json.new") and "fsync" in c]
        self.assertGreater(len(points), 2, calls)
        for at in points:
            with self.subTest(at=at):
                vm = self.vm_with_one("vm" + at)
                p, _ = self.traced(["delete", vm.name, "one"], "--at", at,
                                   *eio)
                self.assertNotEqual(0, p.returncode, p.stdout)
                self.assertEqual("running", vm.state())
                vm.write(vm.disks[0], 1, 3)
                vm.end()
                self.q("recover", vm.name)
                (head,) = self.head_paths(vm)
                self.assertEqual([1, 3], content(head, "qcow2")[:2])
                self.q("start", vm.name)
                self.assertEqual([], self.q.names(vm.name))
