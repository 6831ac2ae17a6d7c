# SPDX-License-Identifier: MIT
"""A fold of the head into the layer below it: at the pivot the guest goes over
to the other file, and what it writes from then on must be found there."""

from lib.case import Case
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
