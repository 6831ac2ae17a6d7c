# SPDX-License-Identifier: MIT
"""Disks whose first image has a format that qstill does not read: the layers
above it are merged as others are, and --paranoid compares them."""

from lib import image
from lib.case import Case
from lib.slowed import l2_table

MIB = 1 << 20
FORMATS = ("vdi", "vmdk", "qed")


class Foreign(Case):
    cost = 20
    NAMES = "abcdef"

    def made(self, fmt, **kw):
        """Each snapshot writes a part of its own, over the one before, and
        zeros over what only the first image has."""
        vm = self.tiny_vm(fmt, disks=[self.disk(
            vm=fmt, fmt=fmt, size=8 * MIB, pattern=False)], **kw)
        disk, = vm.disks
        vm.io(disk, "write -q -P 99 0 8M")
        for i, name in enumerate(self.NAMES):
            vm.io(disk, "write -q -P %d %dk 96k" % (i + 1, i * 64))
            vm.io(disk, "write -q -z %dM 256k" % (i + 1))
            vm.io(disk, "flush")
            self.q("create", fmt, name)
        vm.io(disk, "write -q -P 50 1M 4k")
        vm.io(disk, "flush")
        self.want = {n: self.digest(vm, n) for n in self.NAMES}
        return vm

    def digest(self, vm, name):
        (path, fmt), = self.frozen(vm, name).values()
        return image.digest(path, fmt)

    def delete(self, vm, *names):
        head, = self.head_paths(vm)
        now = image.digest(head, "qcow2")
        plan = "\n".join(self.q("delete", vm.name, *names, "--dry-run")["plan"])
        self.q("delete", vm.name, *names, "--paranoid")
        self.assertNotIn("stays", self.q.stderr)
        self.assertNotIn("not compared", self.q.stderr)
        for name in names:
            del self.want[name]
        self.assertEqual(sorted(self.want), sorted(self.q.names(vm.name)))
        self.assertEqual(self.want,
                         {n: self.digest(vm, n) for n in self.want})
        head, = self.head_paths(vm)
        if self.want:
            self.assertEqual(now, image.digest(head, "qcow2"))
        self.check_nothing_left(vm)
        return plan

    def test_deletes_with_the_vm_on_and_off(self):
        for fmt, style in zip(FORMATS, ("drive", "blockdev", "blockdev")):
            with self.subTest(fmt):
                vm = self.made(fmt, style=style)
                first, = (d.path for d in vm.disks)
                self.delete(vm, "b")
                vm.quit()
                self.assertIn("merge ", self.delete(vm, "c"))
                self.q("start", fmt)
                # its nodes have names now: our own merge, swapped in
                self.assertIn("merge into a new file", self.delete(vm, "d"))
                self.assertEqual(3, len(self.frozen_files(vm)))
                self.delete(vm, "f")
                disk, = vm.disks
                vm.io(disk, "read -q -P 50 1M 4k")
                vm.io(disk, "read -q -P 99 7M 128k")
                self.delete(vm, "a", "e")
                self.assertEqual([first], self.head_paths(vm))

    def test_what_waits_for_the_vm_to_run_says_so(self):
        """Only QEMU can fold a head into such an image."""
        vm = self.tiny_vm("vdi", disks=[self.disk(
            vm="vdi", fmt="vdi", size=8 * MIB, pattern=False)])
        disk, = vm.disks
        vm.io(disk, "write -q -P 9 0 8M")
        self.q("create", "vdi", "a")
        vm.io(disk, "write -q -P 5 1M 64k")
        vm.io(disk, "flush")
        vm.quit()
        now = image.digest(self.head_paths(vm)[0], "qcow2")
        for verb in ("delete", "vdi", "a"), ("recover", "vdi"):
            self.q(*verb)
            self.assertRegex(self.q.stderr, "%s stays: .*QEMU alone.*; start "
                             "the VM, then: qstill recover vdi" % disk.path)
        self.assertEqual(now, image.digest(self.head_paths(vm)[0], "qcow2"))
        self.q("start", "vdi")
        self.q("recover", "vdi")
        self.assertEqual([disk.path], self.head_paths(vm))
        vm.quit()
        self.assertEqual(now, image.digest(disk.path, "vdi"))
        self.q("detach", "vdi")

    def frozen_files(self, vm):
        return {p for n in self.want for p, _ in self.frozen(vm, n).values()}

    def test_paranoid_finds_what_falls_through_to_it_now(self):
        """Somebody takes zeros of a layer that stays away meanwhile."""
        vm = self.made("vdi")
        disk, = vm.disks
        vm.io(disk, "write -q -P 7 3M 2M")
        vm.io(disk, "flush")
        self.q("create", "vdi", "g")
        vm.io(disk, "write -q -P 8 5M 1M")
        vm.io(disk, "flush")
        self.q("create", "vdi", "h")
        vm.quit()
        (path, _), = self.frozen(vm, "b").values()
        process = self.q.start("delete", "vdi", "g", "--paranoid", "--bwlimit",
                               "256k")
        self.q.wait_journal("vdi", process)
        self.unprotect(path)
        with open(path, "r+b") as f:
            entry = l2_table(path) + 8 * (2 * MIB >> 16)
            f.seek(entry)
            self.assertEqual(1, int.from_bytes(f.read(8), "big") & 1)
            f.seek(entry)
            f.write(bytes(8))
        status, out, err = self.q.finish(process, 60)
        self.q.failed("corrupt", "disk disk0.* of snapshot b reads differently",
                      ["delete"], status, out, err)
        self.damaged_on_purpose.add("vdi")

    def test_a_grown_disk_on_a_format_that_cannot_grow(self):
        """It keeps its hidden layer, and all verbs go on."""
        for fmt in FORMATS:
            with self.subTest(fmt):
                vm = self.tiny_vm(fmt, disks=[self.disk(
                    vm=fmt, fmt=fmt, size=2 * MIB, pattern=False)])
                disk, = vm.disks
                vm.io(disk, "write -q -P 9 0 2M")
                self.q("create", fmt, "a")
                node, = [b["inserted"]["node-name"] for b in
                         vm.cmd("query-block") if b.get("inserted")]
                vm.cmd("block_resize", **{"node-name": node, "size": 4 * MIB})
                vm.io(disk, "write -q -P 10 3M 64k")
                said = self.q("delete", fmt, "a", "--dry-run")["plan"]
                self.assertIn("cannot grow", "\n".join(said))
                self.q("delete", fmt, "a")
                self.q("recover", fmt)
                self.q("create", fmt, "b")
                vm.io(disk, "write -q -P 11 3M 64k")
                self.q("create", fmt, "c")
                self.q("delete", fmt, "b")
                self.q("revert", fmt, "c")
                for want in "9 1M 1M", "0 2M 1M", "11 3M 64k":
                    vm.io(disk, "read -q -P " + want)
                self.q("delete", fmt, "c")
                vm.quit()
                self.q("recover", fmt)
                self.q("start", fmt)
                for want in "9 1M 1M", "0 2M 1M", "11 3M 64k":
                    vm.io(disk, "read -q -P " + want)
                self.assertEqual([], self.q.check(fmt)["problems"])
