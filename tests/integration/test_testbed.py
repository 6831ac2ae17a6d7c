# SPDX-License-Identifier: MIT
"""The testbed itself: what the other tests believe must be so."""

import os
import types

import run
from lib import image
from lib.case import QEMU_VERSION, Case
from lib.guest import SyncPage


class Testbed(Case):
    either = True
    cost = 15

    def test_the_guest_ticks_counts_and_checks_itself(self):
        vm = self.running_vm(attach=False, append="JUNK=8 DIRTY=1 SYNC=vda,vdb",
                             disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        version = vm.cmd("query-version")["qemu"]
        self.assertEqual(QEMU_VERSION, "%d.%d" % (
            version["major"], version["minor"]))
        vm.serial.wait(r"sync count=\d+ bad=0")
        self.goes_on(vm)
        vm.serial.wait(r"junk pass=\d+ bad=0")
        self.pause(vm)
        self.stands_still(vm)
        paddr = vm.serial.text().rsplit("paddr=", 1)[1].split("\n")[0]
        page = SyncPage(vm.ram_at(int(paddr, 16), 4096))
        first = image.ring(vm.disks[0].path, "qcow2", page.nonce)
        second = image.ring(vm.disks[1].path, "raw", page.nonce)
        self.assertLessEqual(page.done, second)
        self.assertLessEqual(second, first)
        self.assertLessEqual(first, page.started)
        self.assertLessEqual(page.started, page.done + 1)
        self.cont(vm)

    def test_what_qemus_io_command_has_to_say_is_heard(self):
        """Of the QEMU of a test, and of one that qstill started."""
        vm = self.tiny_vm(disks=[self.disk(size=2 << 20, pattern=False)])
        disk, = vm.disks
        self.q("create", "vm", "one")
        for start in (lambda: None, lambda: self.q("start", "vm")):
            start()
            vm.write(disk, 1, 7)
            vm.io(disk, "read -q -P 7 64k 64k")
            vm.io(disk, "read -P 0 128k 64k")
            for wrong, why in (("read -q -P 8 64k 64k", "erification failed"),
                               ("read -P 7 64k 128k", "erification failed"),
                               ("write -q -P 9 2M 64k", "write failed"),
                               ("read -q 2M 64k", "read failed"),
                               ("write -q", "command|arguments"),
                               ("nonsense", "not found")):
                with self.subTest(wrong=wrong):
                    self.assertRaisesRegex(AssertionError, why, vm.io, disk,
                                           wrong)
            vm.quit()

    def test_the_guest_sees_a_disk_that_changed_behind_its_back(self):
        vm = self.running_vm(attach=False, disks=[self.disk(fmt="raw")])
        since = vm.serial.mark()
        self.pause(vm)
        with open(vm.disks[0].path, "r+b") as f:
            f.write(b"tick 7 ".ljust(512))
        self.cont(vm)
        vm.serial.wait("DISK-MISMATCH vda want=[0-9]+ got=7", since)

    def test_a_reboot_has_another_nonce_and_starts_at_tick_one(self):
        vm = self.running_vm(attach=False)
        before = vm.serial.wait_ticks(1)[0]
        since = vm.serial.mark()
        vm.cmd("system_reset")
        after = vm.wait_up(since)[0]
        self.assertNotEqual(before.nonce, after.nonce)
        self.assertEqual(1, after.number)

    def test_the_agent_freezes_a_file_system(self):
        vm = self.running_vm(attach=False, agent=True,
                             disks=[self.disk(fmt="raw", fs=True)])
        with vm.guest_agent() as agent:
            self.assertEqual(1, agent.cmd("guest-fsfreeze-freeze"))
            self.assertEqual("frozen", agent.cmd("guest-fsfreeze-status"))
            self.stands_still(vm)
            self.assertEqual(1, agent.cmd("guest-fsfreeze-thaw"))
        self.goes_on(vm)

    def test_each_class_finds_a_qemu_to_run_with(self):
        class Old:
            versions, either = ("7.2",), False

        class Any:
            versions, either = ("7.2", "10.0"), True
        args = types.SimpleNamespace(qemu="7.2,10.0", either=False)
        both, new = {"7.2": "", "10.0": ""}, {"10.0": ""}
        for cls, there, want in (
                (Old, both, ["7.2"]), (Old, new, ["10.0"]),
                (Any, both, ["7.2", "10.0"]), (Any, {}, ["7.2", "10.0"]),
                # what is missing is told as skipped
                (Any, new, ["7.2", "10.0"]), (Old, {}, ["7.2"])):
            self.assertEqual(want, run.versions_of(cls, args, there),
                             (cls, there))
        args.either = True
        for there in (both, new):
            chosen = [v for v in run.versions_of(Any, args, there)
                      if v in there]
            self.assertEqual(1, len(chosen), there)

    def test_processes_are_found_and_ended(self):
        vm = self.running_vm(attach=False, wait=False)
        pid = vm.pid()
        self.assertEqual([pid], list(self._qemus()))
        self._end_processes()
        self.assertFalse(os.path.exists("/proc/%d" % pid))
        self.assertEqual("off", vm.state())
