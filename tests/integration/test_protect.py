# SPDX-License-Identifier: MIT
"""Frozen layers are immutable, and what happens to them behind our back is
found."""

import os
import shutil
import subprocess

from lib import image
from lib.case import Case
from lib.tiny import content


def immutable(path):
    said = subprocess.run(["lsattr", path], stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.DEVNULL).stdout
    return "i" in said.split(" ")[0] if said else None


class Protect(Case):
    either = True
    cost = 20

    def setUp(self):
        super().setUp()
        probe = os.path.join(self.tmp, "probe")
        open(probe, "w").close()
        if os.geteuid() != 0 or subprocess.run(
                ["chattr", "+i", probe], stderr=subprocess.DEVNULL).returncode:
            self.skipTest("no immutable attribute on %s" % self.tmp)
        self.unprotect(probe)

    def layers(self, vm, name):
        return [p for p, _ in self.frozen(vm, name).values()]

    def vm_with(self, *names, more=(), **kw):
        vm = self.tiny_vm(disks=[
            self.disk("disk0", size=2 << 20, pattern=False),
            self.disk("disk1", "raw", size=2 << 20, pattern=False)], **kw)
        for i, name in enumerate(names):
            for d in vm.disks:
                vm.write(d, 0, i + 1)
            self.q("create", vm.name, name, *more)
        return vm

    def every_layer_is_protected(self, vm, but=()):
        for name in self.q.names(vm.name):
            for path in self.layers(vm, name):
                self.assertEqual(name not in but, immutable(path),
                                 "%s of %s" % (path, name))
        for path in self.head_paths(vm):
            self.assertFalse(immutable(path), path)

    def test_they_are_while_a_snapshot_needs_them(self):
        vm = self.vm_with("a", "b", "c")
        self.every_layer_is_protected(vm)
        with self.assertRaises(PermissionError):
            open(self.layers(vm, "b")[0], "r+b")
        for argv in (["delete", "b"], ["revert", "a"], ["undo"],
                     ["revert", "a", "--stopped"], ["create", "d"],
                     ["delete", "a"]):
            self.q(argv[0], "vm", *argv[1:])
            self.every_layer_is_protected(vm)
        self.q("delete", "vm", "c", "d")
        self.assertEqual([False, False],
                         [immutable(d.path) for d in vm.disks])

    def test_blockdev_vms_can_do_all_with_protected_layers(self):
        """Their protocol nodes are nobody's children: QEMU leaves them open
        for writing."""
        vm = self.vm_with("a", "b", "c", style="blockdev")
        for argv in (["revert", "a"], ["create", "d"], ["revert", "c"],
                     ["delete", "b"], ["create", "e"], ["delete", "a"],
                     ["revert", "d"], ["revert", "c"], ["delete", "c", "e"]):
            self.q(argv[0], "vm", *argv[1:])
            self.every_layer_is_protected(vm)
            self.assertEqual("running", vm.state())

    def test_not_when_it_was_refused(self):
        vm = self.vm_with("a", more=["--no-protect"])
        self.every_layer_is_protected(vm, but=["a"])
        self.q("create", "vm", "b")
        self.every_layer_is_protected(vm, but=["a"])
        self.q("delete", "vm", "b")
        self.every_layer_is_protected(vm, but=["a"])

    def test_a_delete_that_was_killed_protects_again(self):
        vm = self.vm_with("a", "b", "c")
        path = self.layers(vm, "c")[0]
        self.unprotect(os.path.dirname(path))
        journal = ('{"version": 1, "op": "delete", "phase": "committed", '
                   '"snapshot": "none", "ids": [], "disks": []}')
        with open(self.q.journal_path("vm"), "w") as f:
            f.write(journal)
        self.q("recover", "vm")
        self.every_layer_is_protected(vm)

    def test_a_vm_cannot_be_started_on_one(self):
        vm = self.vm_with("a")
        vm.quit()
        vm.process = None
        p = subprocess.run(vm.argv(), stderr=subprocess.PIPE, text=True,
                           cwd=vm.dir, timeout=20)
        self.assertNotEqual(0, p.returncode)
        self.assertIn("not permitted", p.stderr)
        self.q("start", "vm")

    def test_a_vm_that_was_started_on_one_is_explained(self):
        vm = self.vm_with("a", more=["--no-protect"])
        vm.quit()
        vm.start()  # as the user always did
        said = self.q.check("vm")
        self.assertFalse(said["ok"])
        problem = [p for p in said["problems"] if p["code"] == "wrong-head"][0]
        self.assertIn("the frozen layer of snapshot a", problem["message"])
        self.assertIn("qstill start vm", problem["hint"])
        for argv in (["create", "vm", "b"], ["revert", "vm", "a"],
                     ["delete", "vm", "a"]):
            self.q.fails("precondition|corrupt", "frozen|after it was",
                         *argv)
        vm.quit()
        self.damaged_on_purpose.add("vm")

    def test_a_change_below_is_found_by_check_revert_and_delete(self):
        """Not only in the snapshot's own layer: in any that it reads."""
        vm = self.vm_with("a", "b", "c")
        path = self.layers(vm, "a")[0]
        self.unprotect(path)
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) - 1)
            f.write(b"X")
        said = self.q.check("vm")
        self.assertIn("layer-changed", [p["code"] for p in said["problems"]])
        self.q.fails("corrupt", "written to after", "revert", "vm", "c")
        self.q.fails("corrupt", "below it, snapshot a.*written to after",
                     "verify", "vm", "c")
        self.q.fails("corrupt", "written to after", "delete", "vm", "a")
        self.q("revert", "vm", "c", "--force")
        self.unprotect(self.layers(vm, "c")[0])
        os.utime(self.layers(vm, "c")[0], (1, 1))
        # It would be merged with b, and nobody could tell any more.
        self.q.fails("corrupt", "written to after", "delete", "vm", "b")
        self.damaged_on_purpose.add("vm")

    def test_a_layer_of_a_deleted_snapshot_is_recognised_too(self):
        vm = self.vm_with("root")
        for d in vm.disks:
            vm.write(d, 3, 3)  # what both of a's children need
        self.q("create", "vm", "a")
        self.q("create", "vm", "b")
        self.q("revert", "vm", "a")
        for d in vm.disks:
            vm.write(d, 0, 9)
        self.q("create", "vm", "twig")
        path = self.layers(vm, "a")[0]
        vm.quit()
        # two read it: it stays, and nobody names it any more
        self.q("delete", "vm", "a", "--keep-hidden")
        self.assertTrue(os.path.exists(path))
        self.assertTrue(self.q.check("vm")["ok"])
        self.q("revert", "vm", "b")
        st = os.stat(path)
        self.unprotect(path)
        os.utime(path, (1, 1))
        said = self.q.check("vm")
        self.assertEqual(["layer-changed"], [p["code"] for p in
                                             said["problems"]])
        for argv in (["revert", "vm", "twig"], ["delete", "vm", "b"],
                     ["recover", "vm"]):
            failure = self.q.fails("corrupt", "written to after", *argv)
            self.assertIn("deleted snapshot", failure.message)
        self.q("revert", "vm", "root")
        self.q("revert", "vm", "twig", "--force")
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        self.assertEqual([], self.q.check("vm")["problems"])
        # our own merges are no such change
        self.q("delete", "vm", "b")
        self.assertFalse(os.path.exists(path))
        self.assertTrue(self.q.check("vm")["ok"])
        self.assertEqual(9, content(self.head_paths(vm)[0], "qcow2")[0])

    def test_a_branch_that_does_not_read_it_can_be_used(self):
        vm = self.vm_with("a", "b")
        self.q("revert", "vm", "a")
        vm.write(vm.disks[0], 0, 9)
        self.q("create", "vm", "twig")
        path = self.layers(vm, "b")[0]
        self.unprotect(path)
        os.utime(path, (1, 1))
        self.q.fails("corrupt", "", "revert", "vm", "b")
        self.q("revert", "vm", "twig")
        self.assertEqual(9, content(self.head_paths(vm)[0], "qcow2")[0])
        self.q("delete", "vm", "twig")
        self.damaged_on_purpose.add("vm")


class BackAgain(Case):
    """The VM's folder comes back from a backup: other inodes, all else as it
    was."""

    either = True

    def come_back(self, vm, tar=False):
        vm.quit()
        self.unprotect(vm.dir)
        was = vm.dir + ".was"
        os.rename(vm.dir, was)
        if tar:
            made = os.path.join(self.tmp, "backup.tar")
            os.mkdir(vm.dir)
            subprocess.run(["tar", "-C", was, "--format=gnu", "-cf", made,
                            "."], check=True)
            subprocess.run(["tar", "-C", vm.dir, "-xf", made], check=True)
        else:
            subprocess.run(["cp", "-a", was, vm.dir], check=True)
        shutil.rmtree(was)

    def vm_with_two(self):
        vm = self.tiny_vm()
        for i, name in enumerate(("one", "two")):
            vm.write(vm.disks[0], 0, i + 1)
            self.q("create", "vm", name)
        vm.write(vm.disks[0], 0, 3)
        return vm

    def test_all_verbs_go_on(self):
        self.goes_on_with_all()

    def test_times_in_whole_seconds(self):
        self.goes_on_with_all(tar=True)

    def test_the_number_that_it_had(self):
        vm = self.vm_with_two()
        vm.quit()
        (layer, _), = self.frozen(vm, "two").values()
        self.unprotect(vm.dir)
        st = os.stat(layer)
        self.assertNotEqual(0, st.st_mtime_ns % 10 ** 9)
        os.utime(layer, ns=(st.st_atime_ns,
                            st.st_mtime_ns - st.st_mtime_ns % 10 ** 9))
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("delete", "vm", "two")

    def test_one_layer_in_its_place(self):
        """ext4 gives it the inode that was just freed."""
        vm = self.vm_with_two()
        vm.quit()
        (layer, _), = self.frozen(vm, "two").values()
        name, made = os.path.basename(layer), os.path.join(self.tmp, "b.tar")
        self.unprotect(vm.dir)
        subprocess.run(["tar", "-C", vm.dir, "--format=gnu", "-cf", made, name],
                       check=True)
        os.unlink(layer)
        subprocess.run(["tar", "-C", vm.dir, "-xf", made], check=True)
        self.assertEqual(0, os.stat(layer).st_mtime_ns % 10 ** 9)
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("revert", "vm", "one", "--start")
        self.q("delete", "vm", "two")

    def goes_on_with_all(self, tar=False):
        vm = self.vm_with_two()
        self.come_back(vm, tar)
        self.assertTrue(self.q.check("vm")["ok"])
        self.q("create", "vm", "three")
        self.q("revert", "vm", "one", "--keep")
        self.q("start", "vm")
        vm.io(vm.disks[0], "read -q -P 1 0 64k")
        self.q("delete", "vm", "two")
        self.q("delete", "vm", "one")
        self.q("revert", "vm", "three")
        vm.io(vm.disks[0], "read -q -P 3 0 64k")
        self.q("delete", "vm", *self.q.names("vm"))
        self.assertEqual(1, len(self.disk_files(vm)))

    def test_another_state_of_it_is_found(self):
        vm = self.vm_with_two()
        self.come_back(vm)
        (layer, _), = self.frozen(vm, "two").values()
        st = os.stat(layer)
        image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 8 0 64k", layer)
        second = 10 ** 9
        for when in (st.st_mtime_ns + 1, st.st_mtime_ns + second,
                     (st.st_mtime_ns // second + 1) * second):
            os.utime(layer, ns=(st.st_atime_ns, when))
            self.q.fails("corrupt",
                         "is another file than the one that was frozen",
                         "revert", "vm", "two")
        self.damaged_on_purpose.add("vm")
