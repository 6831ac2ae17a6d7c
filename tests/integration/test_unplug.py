# SPDX-License-Identifier: MIT
"""A device whose unplug the guest has not acknowledged: QEMU unplugs it at the
next machine reset, and a revert in the running process resets the machine."""

import os
import shutil
import signal
import subprocess
import time

from lib.case import Case
from lib.slowed import Slowed
from lib.tiny import content
from test_inplace import Reverts

BRIDGE = ["-device", "pci-bridge,id=b1,chassis_nr=1"]
RNG = ["-device", "virtio-rng-pci,id=r1"]
ON_BRIDGE = BRIDGE + ["-device", "virtio-rng-pci,id=r1,bus=b1,addr=3"]
USB = ["-device", "piix3-usb-uhci,id=u", "-device",
       "usb-tablet,bus=u.0,id=r1"]
SAYS = "not acknowledged .*r1"


class Unplugs(Case):
    """What the tests below share."""

    def devices(self, vm):
        return {d["name"] for d in vm.cmd("qom-list",
                                          path="/machine/peripheral")}

    def unplug(self, vm, device="r1"):
        """Nobody is there to acknowledge it."""
        vm.cmd("device_del", id=device)
        self.assertIn(device, self.devices(vm))

    def selected(self, vm, port=0xae10):
        return vm.hmp("i /w 0x%x" % port)


class Guest(Reverts, Unplugs):
    limit = 180
    cost = 20

    def test_the_guest_goes_on_with_its_memory(self):
        """One without ACPI acknowledges nothing."""
        vm = self.running_vm(extra=RNG, append="acpi=off")
        ticks, nonce = self.snapshot(vm)
        self.unplug(vm)
        pid = vm.pid()
        with self.nothing_changes(vm):
            problem, = self.q.check("vm")["problems"]
            self.assertEqual("unplug-pending", problem["code"])
            self.assertRegex(problem["message"], SAYS)
            self.q.fails("precondition", SAYS, "revert", "vm", "one",
                         "--restore", "inplace")
        self.assertEqual(pid, vm.pid())
        self.assertEqual(nonce, vm.serial.ticks()[-1].nonce)
        self.assertIn("r1", self.devices(vm))
        since = vm.serial.mark()
        self.assertNotEqual("inplace", self.q("revert", "vm", "one")["restore"])
        self.assertRegex(self.q.stderr, SAYS)
        self.goes_on_from(vm, ticks[0], nonce, since)
        self.assertIn("r1", self.devices(vm))
        self.assertEqual([], self.q.check("vm")["problems"])


class Buses(Unplugs):
    """All that QEMU takes away at a reset, and nothing else."""
    cost = 10

    def refused(self, vm):
        """In place; with what is unplugged still there, and the bus selected
        that the guest had selected."""
        pid, selected = vm.pid(), self.selected(vm)
        with self.nothing_changes(vm):
            self.q.fails("precondition", SAYS, "revert", vm.name, "one",
                         "--restore", "inplace")
        self.assertEqual(pid, vm.pid())
        self.assertEqual(selected, self.selected(vm))
        self.assertIn("r1", self.devices(vm))

    def test_each_bus(self):
        for name, machine, extra in (
                ("root", "pc", RNG), ("bridge", "pc", ON_BRIDGE),
                ("port", "q35", [
                    "-device", "pcie-root-port,id=p1,chassis=1,slot=1",
                    "-device", "pcie-root-port,id=p2,chassis=2,slot=2",
                    "-device", "virtio-rng-pci,id=r1,bus=p2"])):
            for paused in (False, True):
                with self.subTest(name=name, paused=paused):
                    vm = self.tiny_vm(name + str(paused), machine=machine,
                                      extra=extra)
                    self.q("create", vm.name, "one", "--memory")
                    if paused:
                        self.pause(vm)
                    self.unplug(vm)
                    self.refused(vm)
                    if paused:  # each bus can be looked at
                        problem, = self.q.check(vm.name)["problems"]
                        self.assertEqual("unplug-pending", problem["code"])
                    said = self.q("revert", vm.name, "one")
                    self.assertNotEqual("inplace", said["restore"])
                    self.paused_on_purpose.discard(vm.name)
                    self.assertIn("r1", self.devices(vm))
                    vm.end()

    def test_those_that_outlive_a_reset(self):
        for name, machine, extra in (
                ("shpc", "pc", ["-global", "PIIX4_PM.acpi-pci-hotplug-with-"
                                "bridge-support=off"] + BRIDGE[:1] + [
                                    BRIDGE[1] + ",shpc=on"] + ON_BRIDGE[2:]),
                ("pcie", "q35", [
                    "-global",
                    "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
                    "-device", "pcie-root-port,id=p1,chassis=1,slot=1",
                    "-device", "virtio-rng-pci,id=r1,bus=p1"])):
            with self.subTest(name=name):
                vm = self.tiny_vm(name, machine=machine, extra=extra)
                self.q("create", name, "one", "--memory")
                self.unplug(vm)
                self.assertEqual([], self.q.check(name)["problems"])
                self.q("revert", name, "one", "--restore", "inplace")
                self.assertIn("r1", self.devices(vm))
                vm.end()


class Disks(Unplugs):
    """A revert of the disks alone resets the machine, too."""
    cost = 10

    def lost_or_not(self, name, vm):
        pid = vm.pid()
        self.q("create", name, "one")
        head, = vm.heads().values()
        self.unplug(vm, "x")
        said = self.q("revert", name, "one")
        self.assertEqual(("running", "disk"), (said["state"], said["restore"]))
        self.assertRegex(self.q.stderr, "not acknowledged .*,x ")
        self.assertNotEqual(pid, vm.pid())
        self.assertIn("x", self.devices(vm))
        self.assertNotEqual([head], list(vm.heads().values()))

    def test_the_disk_is_not_lost(self):
        for name, more, front in (("root", [], ""),
                                  ("bridge", BRIDGE, ",bus=b1,addr=4")):
            with self.subTest(name=name):
                disk = self.disk(vm=name, size=2 << 20, pattern=False)
                vm = self.tiny_vm(name, disks=[], extra=more + [
                    "-blockdev", "qcow2,node-name=n,file.driver=file,"
                    "file.filename=" + disk.path,
                    "-device", "virtio-blk-pci,drive=n,id=x" + front])
                self.lost_or_not(name, vm)
                vm.end()


class Writing(Unplugs):
    """What the tests below share: a revert that takes its time."""

    def setUp(self):
        super().setUp()
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")

    def make(self, extra, **kw):
        vm = self.vm = self.tiny_vm(extra=extra, **kw)
        vm.write(vm.disks[0], 0, 1)
        self.q("create", "vm", "one", "--memory")
        vm.write(vm.disks[0], 0, 2)
        self.poke(b"now!")
        self.old = vm.pid()

    def poke(self, word, at=0x600000):
        with open("/proc/%d/mem" % self.vm.pid(), "r+b", buffering=0) as f:
            f.seek(self.hva() + at)
            f.write(word)

    def peek(self, at=0x600000):
        return self.vm.ram_at(at, 4)

    def hva(self):
        """Where QEMU has the guest's RAM."""
        return int(self.vm.hmp("gpa2hva 0x0").split()[-1], 16)

    def begin(self, way):
        """A revert that takes its time at the pages."""
        slow = Slowed(os.path.join(self.tmp, "strace"), 100,
                      *self.q.argv(["revert", "vm", "one", "--restore", way]))
        self.addCleanup(slow.process.stdout.close)
        self.addCleanup(slow.process.stderr.close)
        deadline = time.monotonic() + 60
        while not os.path.exists(os.path.join(self.store, "vm", "undo.state")):
            self.assertLess(time.monotonic(), deadline)
            self.assertIsNone(slow.process.poll())
            time.sleep(0.005)
        return slow

    def start_slowly(self, call, ms, *args):
        p = subprocess.Popen(
            ["strace", "-f", "-b", "execve", "-o", "/dev/null",
             "-e", "trace=" + call, "-e",
             "inject=%s:delay_enter=%d" % (call, 1000 * ms),
             *self.q.argv(args)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(p.stdout.close)
        self.addCleanup(p.stderr.close)
        return p

    def is_as_before(self):
        vm = self.vm
        self.assertEqual(self.old, vm.pid())
        self.assertEqual("running", vm.state())
        self.assertEqual(b"now!", self.peek())
        self.assertIn("r1", self.devices(vm))
        path, = vm.heads().values()
        self.assertEqual(2, content(path, "qcow2")[0])

    def is_the_snapshot(self):
        vm = self.vm
        self.assertNotEqual(self.old, vm.pid())
        self.assertEqual("running", vm.state())
        self.assertEqual(bytes(4), self.peek())
        self.assertIn("r1", self.devices(vm))
        path, = vm.heads().values()
        self.assertEqual(1, content(path, "qcow2")[0])


class Meanwhile(Writing):
    """Somebody unplugs a device while the memory is written back."""
    limit = 180
    cost = 20

    def test_one_that_waits_for_the_guest(self):
        self.make(RNG)
        slow = self.begin("inplace")
        self.unplug(self.vm)
        _, err = slow.process.communicate(timeout=60)
        self.assertEqual(6, slow.process.returncode, err)
        self.assertRegex(err, SAYS)
        self.is_as_before()

    def test_the_same_with_auto(self):
        self.make(RNG)
        slow = self.begin("auto")
        self.unplug(self.vm)
        _, err = slow.process.communicate(timeout=60)
        self.assertEqual(0, slow.process.returncode, err)
        self.is_the_snapshot()

    def test_the_same_and_qstill_killed(self):
        self.make(ON_BRIDGE)
        slow = self.begin("inplace")
        self.unplug(self.vm)
        slow.end(signal.SIGKILL)
        self.q("recover", "vm")
        self.is_as_before()

    def test_one_that_is_gone_at_once(self):
        """Neither state can be loaded without it: the snapshot's comes back in
        a process that has it."""
        for way in ("inplace", "auto"):
            with self.subTest(way=way):
                self.make(USB)
                slow = self.begin(way)
                self.vm.cmd("device_del", id="r1")
                _, err = slow.process.communicate(timeout=60)
                self.assertEqual(0, slow.process.returncode, err)
                self.assertIn("restore inplace failed", err)
                self.is_the_snapshot()
                self.vm.end()
                self._remove_scratch()
                os.makedirs(self.tmp)
                self.vms.clear()


class Late(Writing):
    """The same between the last look and the load. In QEMU 7.2 that may never
    end then, and a minute is waited."""
    limit = 300
    cost = 80
    idle = True

    def test_it_is_the_disk(self):
        self.make(RNG)
        loading = os.path.join(self.store, "vm", "undo.loading")
        p = self.start_slowly("sendmsg", 60, "revert", "vm", "one",
                              "--restore", "inplace")
        while not os.path.exists(loading):
            self.assertIsNone(p.poll())
        self.vm.cmd("device_del", id="disk0-dev")
        _, err = p.communicate(timeout=250)
        self.assertEqual(0, p.returncode, err)
        self.assertIn("restore inplace failed", err)
        self.is_the_snapshot()
