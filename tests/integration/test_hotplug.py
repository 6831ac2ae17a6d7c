# SPDX-License-Identifier: MIT
"""Memory that comes and goes while the VM runs: between the look at the RAM
and the instant of a snapshot, and what no device uses. Disks that come when
the VM is attached already."""

import json
import os
import re
import time

from lib import image, qemuio
from lib.case import QEMU_VERSION, Case
from lib.tiny import content

FREEZE = "guest-fsfreeze-freeze"


def plug(vm, name):
    vm.cmd("object-add", **{"qom-type": "memory-backend-ram", "id": name,
                            "size": 128 << 20})
    vm.cmd("device_add", driver="pc-dimm", id="dimm-" + name, memdev=name)


class Window(Case):
    """What the agent does in its freeze comes after the look, and before the
    instant."""
    cost = 20

    def make(self, *extra, **kw):
        self.tiny_vm_with_agent(extra=["-m", "8M,slots=8,maxmem=2G", *extra],
                                **kw)

    def in_the_freeze(self, action):
        def behave(name):
            if name == FREEZE:
                self.agent.behave = lambda name: None
                action()
        self.agent.behave = behave

    def create(self, mode):
        return ("create", "vm", mode, "--quiesce", "--memory", "--mode", mode)

    def refused(self, says, mode):
        with self.subTest(mode=mode), self.nothing_changes(self.vm):
            failure = self.q.fails("busy", says, *self.create(mode))
            self.assertIn("again", failure.hint)
        self.agent.wait_thawed()

    def blocks(self, snap):
        path = self.q.manifest_path("vm", self.q.info("vm", snap)["id"])
        with open(path) as f:
            return {b["id"] for b in json.load(f)["memory"]["blocks"]}

    def test_memory_that_is_plugged_in(self):
        self.make()
        # Behind TCG's migration we look at the RAM that we know. (First: QEMU
        # 10.0 may not be asked to migrate the later RAM.)
        refuse = ["precopy", "auto", "cow", "paused"]
        for mode in refuse:
            self.in_the_freeze(lambda: plug(self.vm, "d-" + mode))
            self.refused("RAM block d-%s was plugged in" % mode, mode)
        modes = self.q.check("vm", "--memory")["captureModes"]
        if modes["background"] is None:
            # QEMU's own migration looks at the instant.
            self.in_the_freeze(lambda: plug(self.vm, "d-background"))
            self.q(*self.create("background"))
            self.assertIn("d-background", self.blocks("background"))
        self.q(*self.create("auto"))
        self.assertLessEqual({"d-" + m for m in refuse}, self.blocks("auto"))

    def test_memory_that_is_taken_out(self):
        """A slot without power needs no guest that lets the device go."""
        rom = os.path.join(self.tmp, "rom")
        with open(rom, "wb") as f:
            f.write(b"\x55\xaa" + bytes(65534))
        self.make("-device", "pcie-root-port,id=slot1,chassis=1", "-global",
                  "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
                  machine="q35")
        for mode in ("cow", "paused"):
            self.vm.cmd("device_add", driver="virtio-net-pci", id="net",
                        bus="slot1", romfile=rom)
            self.in_the_freeze(lambda: self.vm.cmd("device_del", id="net"))
            self.refused(r"RAM block .*virtio-net-pci\.rom was taken out",
                         mode)
            self.assertNotIn("virtio-net-pci.rom",
                             self.vm.hmp("info ramblock"))

    def test_memory_that_no_device_uses_is_none(self):
        """Neither plugged in nor taken out; what is no part of a migration is
        none of a snapshot."""
        self.make()
        for mode in ("cow", "paused"):
            self.in_the_freeze(lambda: self.vm.cmd(
                "object-add", **{"qom-type": "memory-backend-ram",
                                 "id": "spare", "size": 4 << 20}))
            self.q(*self.create(mode))
            self.assertNotIn("spare", self.blocks(mode))
            self.vm.cmd("object-del", id="spare")


class Devices(Case):
    """A device state that only the running process can take back."""
    cost = 10

    def plug(self, name):
        self.vm.cmd("device_add", driver="virtio-rng-pci", id=name)

    def not_in_a_new_process(self, says):
        for how in ("eager", "mapped"):
            with self.subTest(how=how), self.nothing_changes(self.vm):
                self.q.fails("precondition", says, "revert", "vm", "one",
                             "--restore", how)

    def test_one_that_was_plugged_in_is_not_in_a_new_process(self):
        self.vm = self.tiny_vm()
        self.q("create", "vm", "before", "--memory")
        self.plug("n1")
        problems = self.q.check("vm", "--memory")["problems"]
        self.assertEqual(["plugged-device"], [p["code"] for p in problems])
        self.assertIn("virtio-rng-pci,n1", problems[0]["message"])
        self.q("create", "vm", "one", "--memory")
        says = r"virtio-rng-pci,n1@\S+ was plugged in, and is not on the"
        for how in ("eager", "mapped"):
            for more in ((), ("--dry-run",)):
                with self.subTest(how=how), self.nothing_changes(self.vm):
                    failure = self.q.fails("precondition", says, "revert",
                                           "vm", "one", "--restore", how,
                                           *more)
                    self.assertIn("--launcher", failure.hint)
        self.assertEqual("inplace", self.q("revert", "vm", "one")["restore"])
        pid = self.vm.pid()
        self.plug("n2")
        with self.nothing_changes(self.vm):
            self.q.fails("precondition", says, "revert", "vm", "one")
        self.assertEqual(pid, self.vm.pid())
        # It is not of this snapshot: a new process has all that it needs.
        self.assertNotEqual("inplace",
                            self.q("revert", "vm", "before")["restore"])
        self.assertEqual("running", self.vm.state())
        # Nobody is left who has it.
        with self.nothing_changes(self.vm):
            self.q.fails("precondition", says, "revert", "vm", "one")

    def test_one_without_an_id(self):
        self.vm = self.tiny_vm(extra=["-device", "virtio-rng-pci"])
        self.assertTrue(self.q.check("vm", "--memory")["ok"])
        self.q("create", "vm", "before", "--memory")
        self.vm.cmd("device_add", driver="virtio-rng-pci")
        problems = self.q.check("vm", "--memory")["problems"]
        self.assertEqual(["plugged-device"], [p["code"] for p in problems])
        says = "1 of 2 devices virtio-rng-pci without an id were plugged in"
        self.assertIn(says, problems[0]["message"])
        self.q("create", "vm", "one", "--memory")
        self.not_in_a_new_process(says)
        self.assertEqual("inplace", self.q("revert", "vm", "one")["restore"])
        self.assertEqual("eager", self.q("revert", "vm", "before", "--restore",
                                         "eager")["restore"])

    def test_a_cpu_that_was_plugged_in_is_not_either(self):
        self.vm = self.tiny_vm(extra=["-smp", "1,maxcpus=2"])
        self.q("create", "vm", "before", "--memory")
        at = [c for c in self.vm.cmd("query-hotpluggable-cpus")
              if "qom-path" not in c][0]
        self.vm.cmd("device_add", driver=at["type"], id="cpu1", **at["props"])
        problems = self.q.check("vm", "--memory")["problems"]
        self.assertEqual(["plugged-device"], [p["code"] for p in problems])
        says = "1 of 2 CPUs were plugged in, and are not on the command line"
        self.assertIn(says, problems[0]["message"])
        self.q("create", "vm", "one", "--memory")
        self.not_in_a_new_process(says)
        self.assertEqual("inplace", self.q("revert", "vm", "one")["restore"])
        self.assertEqual("mapped",
                         self.q("revert", "vm", "before")["restore"])

    def test_those_of_the_command_line_are(self):
        for n, extra in enumerate((
                ["-device", "virtio-rng-pci,id=n1"],
                ["-device", '{"driver":"virtio-rng-pci","id":"n1"}'],
                ["-usb", "-device", "usb-tablet,id=n1"])):
            with self.subTest(extra=extra):
                name = "v%d" % n
                vm = self.tiny_vm(name, extra=extra)
                self.assertTrue(self.q.check(name, "--memory")["ok"])
                self.q("create", name, "one", "--memory")
                for how in ("eager", "mapped"):
                    self.q("revert", name, "one", "--restore", how)
                vm.end()


class Behind(Case):
    """A device that takes memory away, or writes to it, where nobody sees it:
    plugged in after the plan found none."""
    cost = 15

    def shared(self):
        return dict(machine="pc,memory-backend=ram", extra=[
            "-object", "memory-backend-memfd,id=ram,size=8M,share=on"])

    def plug(self, name):
        self.vm.cmd("device_add", driver="virtio-balloon-pci", id=name)

    def test_a_balloon_before_the_instant(self):
        self.tiny_vm_with_agent(**self.shared())

        def behave(name):
            if name == FREEZE:
                self.agent.behave = lambda name: None
                self.plug("early")
        self.agent.behave = behave
        with self.nothing_changes(self.vm):
            failure = self.q.fails(
                "busy", "plugged in while .* a balloon gives shared memory",
                "create", "vm", "one", "--quiesce", "--memory", "--mode",
                "cow")
            self.assertIn("again", failure.hint)
        self.agent.wait_thawed()
        self.assertNotEqual("cow", self.q("create", "vm", "one", "--memory")[
            "mode"])

    def during_the_copy(self, vm):
        with vm.monitor() as other:
            p = self.q.start("create", vm.name, "one", "--memory", "--mode",
                             "cow", "--bwlimit", "40M")
            while json.loads(other.line()).get("event") != "RESUME":
                pass
            time.sleep(0.5)  # what is read right after the instant was read
            self.assertIsNone(p.poll())
            other.cmd("device_add", driver="virtio-balloon-pci", id="late")
            return self.q.finish(p)

    def test_a_balloon_during_the_copy(self):
        """Of private memory the kernel tells beforehand what goes."""
        for memory in ("memfd", "default"):
            with self.subTest(memory=memory):
                vm = self.running_vm(memory, memory=memory, append="JUNK=16")
                vm.serial.wait("JUNK-READY")
                status, out, err = self.during_the_copy(vm)
                if memory == "memfd":
                    self.q.failed("busy", "a balloon gives shared memory",
                                  ["create"], status, out, err)
                    self.assertEqual([], self.q.names(memory))
                else:
                    self.assertEqual(0, status, err)
                self.assertEqual("running", vm.state())


class AfterTheCont(Case):
    """The device list of a snapshot is that of its device state."""
    cost = 10

    def plug_when_it_resumes(self, mode):
        with self.vm.monitor() as other:
            p = self.q.start("create", "vm", mode, "--memory", "--mode", mode)
            while json.loads(other.line()).get("event") != "RESUME":
                pass
            other.cmd("device_add", driver="virtio-rng-pci", id="late-" + mode)
            return self.q.finish(p)

    def test_a_device_that_is_plugged_in(self):
        self.vm = self.tiny_vm()
        for mode in ("cow", "paused"):
            status, _, err = self.plug_when_it_resumes(mode)
            with self.subTest(mode=mode):
                if status:  # it came before the second look
                    self.assertEqual(5, status, err)
                    self.assertRegex(err, r"virtio-rng-pci,late-%s\S* was "
                                     r"plugged in while" % mode)
                    self.assertEqual([], self.q.names("vm"))
                else:
                    with open(self.q.manifest_path("vm", self.q.info(
                            "vm", mode)["id"])) as f:
                        self.assertNotIn("late-" + mode, f.read())
                    self.q("delete", "vm", mode)
        self.q("create", "vm", "all", "--memory")
        self.q("revert", "vm", "all", "--restore", "inplace")


class Spare(Case):
    """A memory backend that no device uses has a RAM block without a name,
    which QEMU does not migrate."""
    cost = 20

    def backend(self, n, size="4M"):
        return ["-object", "memory-backend-ram,id=spare%s,size=%s" % (n, size)]

    def test_it_is_no_part_of_a_snapshot_nor_in_its_way(self):
        vm = self.running_vm(append="JUNK=4 DIRTY=1", extra=[
            *self.backend(1), *self.backend(2, "16M")])
        nonce = vm.serial.ticks()[-1].nonce
        said = self.q.check("vm", "--memory")
        self.assertTrue(said["ok"])
        modes = said["captureModes"]
        if QEMU_VERSION != "7.2":
            # Tried, it ended the VM: QEMU's own bug.
            self.assertRegex(modes["precopy"], r"abort .* RAM block pc\.ram")
        for mode, code in modes.items():
            if code is None:
                with self.subTest(mode=mode):
                    made = self.q("create", "vm", mode, "--memory", "--mode",
                                  mode)
                    self.assertEqual(mode, made["mode"])
                    self.q("verify", "vm", mode)
                    self.assertNotIn("spare", " ".join(os.listdir(
                        self.q.memory_dir("vm", made["id"]))))
        self.assertEqual("cow", self.q("create", "vm", "one",
                                       "--memory")["mode"])
        tick = self.snapshot_ticks(vm, "one")[0]
        for way in ("inplace", "eager", "mapped", "auto"):
            with self.subTest(way=way):
                pid, since = vm.pid(), vm.serial.mark()
                self.q("revert", "vm", "one", "--restore", way)
                self.goes_on_from(vm, tick, nonce, since)
                vm.serial.wait(r"junk pass=\d+ bad=0", since)
                if way == "inplace":
                    self.assertEqual(pid, vm.pid())

    def test_what_is_plugged_in_later_belongs_to_later_snapshots(self):
        """A start from the command line leaves it a spare one again."""
        vm = self.tiny_vm(extra=["-m", "8M,slots=4,maxmem=1G",
                                 *self.backend(1, "128M")])
        self.q("create", "vm", "bare", "--memory")
        self.assertTrue(self.q.check("vm", "--memory")["ok"])
        vm.cmd("device_add", driver="pc-dimm", id="dimm1", memdev="spare1")
        self.problem("spare1", "no device of the command line")
        made = self.q("create", "vm", "plugged", "--memory")
        self.assertIn("spare1.ram", os.listdir(
            self.q.memory_dir("vm", made["id"])))
        pid = vm.pid()
        self.q("revert", "vm", "plugged", "--restore", "inplace")
        self.assertEqual(pid, vm.pid())
        with self.nothing_changes(vm):
            self.q.fails("precondition", "spare1", "revert", "vm", "bare",
                         "--restore", "inplace")
            for way in ("eager", "mapped"):
                self.q.fails("precondition", "spare1 .* no device of the "
                             "command line", "revert", "vm", "plugged",
                             "--restore", way)
        self.assertEqual(pid, vm.pid())
        self.q("revert", "vm", "bare")
        self.assertNotEqual(pid, vm.pid())
        self.assertTrue(self.q.check("vm", "--memory")["ok"])

    def test_check_names_a_dimm_that_no_start_makes(self):
        vm = self.tiny_vm(extra=["-m", "8M,slots=4,maxmem=1G"])
        self.assertTrue(self.q.check("vm", "--memory")["ok"])
        plug(vm, "d0")
        self.problem("d0", "no memory backend of the command line")
        self.assertTrue(self.q.check("vm")["ok"])

    def test_a_launcher_that_does_not_plug_it(self):
        """Nobody can tell before: the disks are the old ones."""
        vm = self.tiny_vm(attach=False, extra=["-m", "8M,slots=4,maxmem=1G"])
        self.attach(vm, *self.launcher())
        plug(vm, "d0")
        self.q("create", "vm", "one", "--memory")
        failure = self.q.fails("failed", "QEMU did not take the memory",
                               "revert", "vm", "one", "--restore", "eager")
        self.assertIn("old disks", failure.hint)
        self.assertEqual("running", vm.state())

    def problem(self, block, says):
        problems = self.q.check("vm", "--memory")["problems"]
        self.assertEqual(["plugged-memory"], [p["code"] for p in problems])
        self.assertRegex(problems[0]["message"],
                         "RAM block %s .*%s" % (block, says))
        self.assertIn("--launcher", problems[0]["hint"])


class ReadOnly(Case):
    """Memory that the guest may not write: an nvdimm of a file."""
    cost = 10

    def check(self, share):
        path = os.path.join(self.tmp, "nv")
        with open(path, "wb") as f:
            f.write(b"nv" * (8 << 20))
        vm = self.tiny_vm(machine="pc,nvdimm=on", extra=[
            "-m", "8M,slots=4,maxmem=1G", "-object",
            "memory-backend-file,id=n0,size=16M,readonly=on,share=%s,"
            "mem-path=%s" % (share, path), "-device",
            "nvdimm,id=nv0,memdev=n0,unarmed=on"])
        modes = self.q.check("vm", "--memory")["captureModes"]
        self.assertRegex(modes["cow"], "'n0'.* mapping of the file")
        self.assertIsNone(modes["paused"])
        pid = vm.pid()
        for snap, mode in ("one", "auto"), ("two", "paused"):
            made = self.q("create", "vm", snap, "--memory", "--mode", mode)
            self.assertIn("n0.ram", os.listdir(
                self.q.memory_dir("vm", made["id"])))
            for way in "auto", "inplace":
                self.q("revert", "vm", snap, "--restore", way)
                self.assertEqual(pid, vm.pid())
        # A new process has what the file holds: QEMU ends when the memory is
        # written.
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertNotEqual(pid, vm.pid())
        self.assertIn("n0 is read-only", self.q.stderr)

    def test_of_a_shared_mapping(self):
        self.check("on")

    def test_of_a_private_mapping(self):
        self.check("off")


class Disks(Case):
    """A disk that came after the attach is in no snapshot: who reverts to one
    would have the memory of then and this disk of now."""
    cost = 10

    def plug(self, vm, name, *options, device=True):
        path = os.path.join(self.tmp, name + ".qcow2")
        image.run("qemu-img", "create", "-q", "-f", "qcow2", path, "2M")
        vm.hmp("drive_add 0 " + ",".join(["if=none", "format=qcow2", "file=" +
                                          path, "id=" + name, *options]))
        if device:
            vm.hmp("device_add virtio-blk-pci,drive=%s,id=%s-dev" %
                   (name, name))
        return path

    def test_one_that_can_be_written_is_refused(self):
        vm = self.tiny_vm()
        self.q("create", "vm", "disks")
        self.q("create", "vm", "base", "--memory")
        words = "x-dev.*%s.*no snapshot" % self.plug(vm, "x")
        for more in ([], ["--memory"]):
            problem, = self.q.check("vm", *more)["problems"]
            self.assertEqual("unknown-disk", problem["code"])
            self.assertRegex(problem["message"], words)
            self.assertRegex(problem["hint"], "unplug it")
        for argv, hint in ((["create", "vm", "new"], "attach"),
                           (["create", "vm", "new", "--memory"], "attach"),
                           (["revert", "vm", "base"], "--force"),
                           (["revert", "vm", "base", "--restore", "eager"],
                            "--force"),
                           (["revert", "vm", "disks", "--keep"], "attach")):
            with self.subTest(argv=argv), self.nothing_changes(vm):
                failure = self.q.fails("precondition", words, *argv)
                self.assertRegex(failure.hint, "unplug it.*" + hint)
        # Without memory the guest boots, and is told so.
        self.q("revert", "vm", "disks")
        self.assertRegex(self.q.stderr, words + ".*stays as it is")
        self.q("revert", "vm", "base", "--force")
        self.assertRegex(self.q.stderr, words + ".*stays as it is")
        # A new process was started as the VM was at its attach.
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("create", "vm", "new", "--memory")

    def test_one_that_comes_in_the_freeze(self):
        """After the look at the disks, and before the instant."""
        self.tiny_vm_with_agent()
        vm = self.vm
        for n, more in enumerate(([], ["--memory"])):
            came = []

            def behave(name):
                if name == FREEZE and not came:
                    came.append(self.plug(vm, "x%d" % n))
            self.agent.behave = behave
            files = self.disk_files(vm)
            self.q.fails("precondition", "x%d-dev.*no snapshot" % n, "create",
                         "vm", "new", "--quiesce", *more)
            self.agent.wait_thawed()
            self.assertEqual(1, len(came))
            self.assertEqual(files, self.disk_files(vm))
            self.assertEqual([], self.q.names("vm"))
            vm.end()
            vm.start()

    def test_with_snapshots_the_hint_leads_to_a_new_attach(self):
        vm = self.tiny_vm()
        self.q("create", "vm", "one", "--memory")
        self.q("create", "vm", "two")
        self.plug(vm, "x")
        failure = self.q.fails("precondition", "x-dev", "create", "vm", "new")
        self.assertRegex(failure.hint, "delete the snapshots, detach and attach")
        self.q("delete", "vm", "one", "two")
        self.q("detach", "vm")
        self.attach(vm)
        self.q("create", "vm", "new", "--memory")
        self.assertEqual(2, len(self.q.info("vm", "new")["disks"]))
        with vm.monitor() as m:
            qemuio.run(m, "-d /machine/peripheral/x-dev/virtio-backend",
                       "write -q -P 7 0 65536")
        self.q("revert", "vm", "new")
        self.assertEqual(0, content(vm.heads()["x-dev"], "qcow2")[0])

    def test_one_is_taken_in_by_a_new_attach(self):
        vm = self.tiny_vm()
        self.plug(vm, "x")
        failure = self.q.fails("precondition", "x-dev", "create", "vm", "new")
        self.assertIn("detach and attach", failure.hint)
        self.q("detach", "vm")
        self.attach(vm)
        made = self.q("create", "vm", "new", "--memory")
        self.assertEqual({"disk0-dev", "x-dev"}, {
            d["name"] for d in self.q.info("vm", made["id"])["disks"]})

    def test_what_no_guest_writes_to_is_no_reason(self):
        """A disk for reading, a drive without a medium, one that no device
        has. Only that a new process would be without the devices."""
        vm = self.tiny_vm(extra=["-device", "virtio-scsi-pci,id=scsi"])
        self.plug(vm, "x", "readonly=on")
        self.plug(vm, "spare", device=False)
        vm.hmp("device_add scsi-cd,bus=scsi.0,id=cd")
        self.assertEqual([], self.q.check("vm")["problems"])
        problem, = self.q.check("vm", "--memory")["problems"]
        self.assertEqual("plugged-device", problem["code"])
        self.q("create", "vm", "one", "--memory")
        pid = vm.pid()
        self.q("revert", "vm", "one", "--restore", "inplace")
        self.assertEqual(pid, vm.pid())
