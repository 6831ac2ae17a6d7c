# SPDX-License-Identifier: MIT
"""A first image that has a backing file of its own, and a command line that
says so: what is below the image is what its header names, or is refused."""

import json
import os
import shutil

from lib import image
from lib.golden import GOLDEN, OTHER, SIZE, OnGolden
from lib.tiny import content


class Backed(OnGolden):
    def goes_round(self):
        """Every way to a new process, before and after snapshots go."""
        self.assertEqual([], self.q.check("vm", "--memory")["problems"])
        self.q("create", "vm", "one", "--memory")
        self.assertEqual([], self.q.check("vm", "--memory")["problems"])
        self.io("write -q -P 9 0 64k")
        self.q("create", "vm", "two")
        for way in ("eager", "mapped", "inplace"):
            self.q("revert", "vm", "one", "--restore", way)
            self.reads(GOLDEN, GOLDEN)
        self.q("revert", "vm", "two", "--stopped")
        self.q("start", "vm")
        self.reads(9, GOLDEN)
        self.vm.quit()
        self.q("revert", "vm", "one")
        self.reads(GOLDEN, GOLDEN)
        self.io("write -q -P 8 64k 64k")
        self.vm.quit()
        self.q("delete", "vm", "one")
        self.q("start", "vm")
        self.reads(GOLDEN, 8)
        self.q("create", "vm", "three")
        self.q("delete", "vm", "two", "three")
        self.assertEqual([GOLDEN, 8], content(self.head(), "qcow2")[:2])
        self.vm.quit()
        self.q("start", "vm")
        self.reads(GOLDEN, 8)

    def test_the_nodes_of_libvirt(self):
        self.run_vm(self.libvirt())
        self.goes_round()
        self.assertEqual(self.top, self.head())

    def test_nodes_inside_of_one_another(self):
        self.run_vm(["-blockdev", json.dumps({
            "driver": "qcow2", "node-name": "t", "file": {
                "driver": "file", "filename": self.top},
            "backing": {"driver": "qcow2", "read-only": True, "file": {
                "driver": "file", "filename": self.path("golden.qcow2")}}})],
            "t")
        self.goes_round()

    def test_of_a_drive(self):
        self.run_vm(["-drive", "if=none,id=t,format=qcow2,file=%s,"
                     "backing.file.filename=%s" % (
                         self.top, self.path("golden.qcow2"))], "t")
        self.goes_round()

    def test_a_node_that_two_disks_stand_on(self):
        second = os.path.join(self.dir, "second.qcow2")
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
                  self.path("golden.qcow2"), "-F", "qcow2", second)
        self.run_vm(self.libvirt() + self.node(
            "libvirt-3", second, read_only=False,
            backing="libvirt-2-format") +
            ["-device", "virtio-blk-pci,drive=libvirt-3-format,id=w"])
        self.q("create", "vm", "one", "--memory")
        self.q("revert", "vm", "one", "--restore", "eager")
        self.reads(GOLDEN)

    def test_a_base_of_two_disks_that_could_be_written(self):
        """Without read-only=on; both disks let go of it."""
        second = os.path.join(self.dir, "second.qcow2")
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
                  self.path("golden.qcow2"), "-F", "qcow2", second)
        self.run_vm(self.node("b", self.path("golden.qcow2")) +
                    self.node("libvirt-1", self.top, backing="b-format") +
                    self.node("w", second, backing="b-format") +
                    ["-device", "virtio-blk-pci,drive=w-format,id=w"])
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("create", "vm", "one", "--memory")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("revert", "vm", "one", "--restore", "eager")
        self.reads(GOLDEN)
        self.q("create", "vm", "two")
        self.vm.quit()
        self.q("start", "vm")
        self.reads(GOLDEN)

    def test_a_base_that_could_be_written(self):
        """QEMU has it open for writing, though nobody writes. It goes when
        nothing else names it, and is refused else: two nodes cannot have it
        open so."""
        base = ["-blockdev", json.dumps({
            "driver": "qcow2", "node-name": "d", "file": {
                "driver": "file", "filename": self.path("golden.qcow2")}})]
        self.run_vm(base + self.nodes("d"), "t")
        self.goes_round()
        self.vm.quit()
        self.q("detach", "vm")
        self.vm.extra = base + self.nodes("d") + self.vm.extra[-2:] + [
            "-global", "nvme.drive=d"]
        self.vm.start()
        self.attach(self.vm)
        problem, = self.q.check("vm")["problems"]
        self.assertEqual("not-startable", problem["code"])
        self.assertIn("a base that another option", problem["message"])

    def test_check_tells_before_the_first_snapshot(self):
        """Of a command line that no new head can be put in, and which starts
        the VM as long as there is no snapshot."""
        self.run_vm(["-drive", "if=none,id=t,format=qcow2,file=" + self.top,
                     "-set", "drive.t.werror=stop"], "t")
        problem, = self.q.check("vm")["problems"]
        self.assertEqual("not-startable", problem["code"])
        self.assertIn("options with -set", problem["message"])
        self.vm.quit()
        self.q("start", "vm")
        self.reads(GOLDEN)

    # ------------------------------------------- another chain than the headers'

    def nodes(self, backing):
        return ["-blockdev", json.dumps({
            "driver": "qcow2", "node-name": "t", "backing": backing, "file": {
                "driver": "file", "filename": self.top}})]

    def others(self):
        """Command lines, and what is below the disk by them."""
        raw = {"driver": "raw", "file": {
            "driver": "file", "filename": self.path("golden.qcow2")}}
        other = self.path("other.qcow2")
        return {
            "null": (self.nodes(None), "nothing"),
            "other": (self.libvirt("other.qcow2"), other),
            "drive": (self.drive("backing.file.filename=" + other), other),
            "raw": (self.nodes(raw), "golden.qcow2 as raw"),
        }

    def test_another_chain_is_refused(self):
        for name, (args, has) in self.others().items():
            with self.subTest(name):
                vm = self.run_vm(args, "libvirt-1-format" if name == "other"
                                 else "t", attach=False)
                failure = self.q.fails(
                    "precondition", "disk v: .*%s.*%s.*golden.qcow2" % (
                        self.top, has), "attach", "vm", "--qmp", vm.qmp)
                self.assertIn("rebase", failure.hint)
                self.vms.remove(vm)
                vm.quit()

    def test_a_part_of_the_base_is_refused(self):
        golden = self.path("golden.raw")
        image.run("qemu-img", "create", "-q", "-f", "raw", golden, str(SIZE))
        image.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", golden,
                  "-F", "raw", self.top)
        node = {"driver": "raw", "read-only": True, "file": {
            "driver": "file", "filename": golden}}
        vm = self.run_vm(self.nodes({**node, "size": SIZE // 2}), "t",
                         attach=False)
        self.q.fails("precondition", "has a part of %s" % golden, "attach",
                     "vm", "--qmp", vm.qmp)
        self.vms.remove(vm)
        vm.quit()
        self.run_vm(self.nodes(node), "t")
        self.q("create", "vm", "one", "--memory")
        self.q("revert", "vm", "one", "--restore", "eager")

    def is_told(self, move, back):
        """Another file gets the name of the base while the VM runs."""
        self.run_vm(self.drive("cache=writeback"), "t")
        self.q("create", "vm", "one", "--memory")
        self.assertEqual([], self.q.check("vm", "--memory")["problems"])
        move()
        says = "disk v: .*/golden.qcow2 .* another file now"
        problem, = self.q.check("vm", "--memory")["problems"]
        self.assertEqual("wrong-base", problem["code"])
        self.assertRegex(problem["message"], says)
        for command in (["create", "vm", "two", "--memory"],
                        ["create", "vm", "two"],
                        ["delete", "vm", "one"],
                        ["delete", "vm", "one", "--force"],
                        ["revert", "vm", "one", "--restore", "eager"],
                        ["revert", "vm", "one", "--restore", "inplace"],
                        ["revert", "vm", "one", "--stopped"]):
            with self.nothing_changes(self.vm):
                self.q.fails("precondition", says, *command)
        self.reads(GOLDEN)
        back()
        self.assertEqual([], self.q.check("vm", "--memory")["problems"])
        self.q("revert", "vm", "one", "--restore", "eager")
        self.reads(GOLDEN)
        move()
        self.q.fails("precondition", says, "undo", "vm")
        back()
        self.q("undo", "vm")
        self.reads(GOLDEN)

    def test_a_base_behind_a_link_that_is_moved(self):
        _, lead_to = image.behind_a_link(self.path(""), "golden", "other")
        lead_to("golden")
        image.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b",
                  self.path("current/golden.qcow2"), "-F", "qcow2", self.top)
        self.is_told(lambda: lead_to("other"), lambda: lead_to("golden"))

    def test_a_base_in_whose_place_another_is_put(self):
        golden = self.path("golden.qcow2")

        def move():
            os.rename(golden, golden + ".old")
            shutil.copy(self.path("other.qcow2"), golden)
        self.is_told(move, lambda: os.rename(golden + ".old", golden))

    def test_another_base_of_the_base_is_refused(self):
        golden = self.path("golden.qcow2")
        image.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b",
                  self.path("other.qcow2"), "-F", "qcow2", golden)
        vm = self.run_vm(self.nodes({
            "driver": "qcow2", "backing": None, "read-only": True, "file": {
                "driver": "file", "filename": golden}}), "t", attach=False)
        self.q.fails("precondition", "below %s QEMU has nothing.*other.qcow2" %
                     golden, "attach", "vm", "--qmp", vm.qmp)

    def stacked(self, backing):
        """The disk's own header gives its base another backing than that
        image's header does."""
        base = self.path("base.qcow2")
        image.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b",
                  self.path("gone.qcow2"), "-F", "qcow2", base, str(SIZE))
        named = {"driver": "qcow2",
                 "file": {"driver": "file", "filename": base}, **backing}
        image.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b",
                  "json:" + json.dumps(named), "-F", "qcow2", self.top,
                  str(SIZE))
        return base

    def on_golden(self):
        return {"driver": "qcow2", "file": {
            "driver": "file", "filename": self.path("golden.qcow2")}}

    def test_a_chain_that_a_header_spells_out(self):
        # qemu-img info opens each image alone, and refuses such a name then
        self.damaged_on_purpose.add("vm")
        for name, backing, byte in (
                ("image", {"backing": self.on_golden()}, GOLDEN),
                ("none", {"backing": None}, 0)):
            with self.subTest(name):
                self.stacked(backing)
                self.run_vm(self.drive("cache=writeback"), "t", attach=False)
                self.reads(byte)
                self.q("attach", "vm", "--qmp", self.vm.qmp)
                self.q("create", "vm", "one")
                self.io("write -q -P 9 0 64k")
                self.assertEqual([], self.q.check("vm")["problems"])
                self.q("revert", "vm", "one", "--start")
                self.reads(byte)
                self.vm.quit()
                self.q("start", "vm")
                self.reads(byte)
                self.q("delete", "vm", "one")
                self.reads(byte)
                self.vm.quit()
                self.q("detach", "vm")
                self.vms.remove(self.vm)

    def test_another_chain_than_a_header_spells_out(self):
        base = self.stacked({"backing": self.on_golden()})
        self.run_vm(self.drive(
            "backing.driver=qcow2,backing.file.driver=file,"
            "backing.file.filename=%s,backing.backing.driver=qcow2,"
            "backing.backing.file.driver=file,"
            "backing.backing.file.filename=%s" % (
                base, self.path("other.qcow2"))), "t", attach=False)
        self.reads(OTHER)
        self.q.fails("precondition", "below .*base.qcow2 QEMU has .*other",
                     "attach", "vm", "--qmp", self.vm.qmp)

    def test_another_chain_that_came_later(self):
        other = ",backing.file.filename=" + self.path("other.qcow2")
        vm = self.run_vm(self.drive("cache=writeback"), "t")
        self.q("create", "vm", "one")
        self.q("delete", "vm", "one")
        vm.quit()
        vm.extra[1] += other
        vm.start()
        says = "%s.*other.qcow2.*golden.qcow2" % self.top
        problem, = [p for p in self.q.check("vm")["problems"]
                    if p["code"] == "image-shape"]
        self.assertRegex(problem["message"], says)
        # the first one writes down the new command line
        self.q.fails("precondition", says, "create", "vm", "two")
        for more in ([], ["--memory"]):
            with self.nothing_changes(vm):
                self.q.fails("precondition", says, "create", "vm", "two", *more)
