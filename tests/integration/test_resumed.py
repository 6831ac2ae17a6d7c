# SPDX-License-Identifier: MIT
"""Somebody else at the VM's monitor lets the guest run while its memory is taken
or written back."""

import json
import os
import signal
import time

from lib.qmp import QMPError
from test_inplace import Reverts


class Resumed(Reverts):
    limit = 180
    cost = 40

    def resumed_when_stopped(self, vm, *args):
        """(status, stderr) of a verb that stops the guest, which another one
        starts again at once."""
        with vm.monitor() as other:
            p = self.q.start(*args)
            self.until(other, "STOP")
            other.cmd("cont")
            status, _, err = self.q.finish(p)
        return status, err

    @staticmethod
    def until(monitor, event, status=None):
        while True:
            said = json.loads(monitor.line())
            if said.get("event") == event and (
                    not status or said["data"]["status"] == status):
                return

    def refused(self, status, err):
        self.assertEqual(5, status, err)
        self.assertIn("resumed by somebody else", err)
        self.assertEqual([], self.q("list", "vm")["snapshots"])

    def test_in_a_capture_of_a_running_guest(self):
        vm = self.running_vm()
        status, err = self.resumed_when_stopped(
            vm, "create", "vm", "one", "--memory", "--mode", "paused",
            "--bwlimit", "16M")
        self.refused(status, err)
        self.goes_on(vm)

    def test_before_the_instant_of_a_background_snapshot(self):
        """QEMU stops the guest itself then: for the second time."""
        vm = self.running_vm(append="JUNK=160")
        vm.serial.wait("JUNK-READY")
        for _ in range(10):  # on a busy machine QEMU may be the first
            with vm.monitor() as other:
                p = self.q.start("create", "vm", "one", "--memory", "--mode",
                                 "background")
                self.until(other, "MIGRATION", "setup")
                other.cmd("cont")
                status, _, err = self.q.finish(p)
                other.cmd("query-status")
                after = [e["event"] for e in other.events
                         if e["event"] in ("STOP", "RESUME")]
            if after[:2] == ["RESUME", "STOP"]:
                break
            if status == 0:
                self.q("delete", "vm", "one")
        self.assertEqual(["RESUME", "STOP"], after[:2],
                         "QEMU did not stop it again: nothing is tried")
        self.refused(status, err)
        self.goes_on(vm)

    def test_before_the_end_of_a_precopy_qemu_does_not_let_them(self):
        vm = self.running_vm(append="JUNK=40")
        vm.serial.wait("JUNK-READY")
        with vm.monitor() as other:
            p = self.q.start("create", "vm", "one", "--memory", "--mode",
                             "precopy")
            self.until(other, "MIGRATION", "pre-switchover")
            with self.assertRaisesRegex(QMPError, "not finalized"):
                other.cmd("cont")
            status, _, err = self.q.finish(p)
        self.assertEqual(0, status, err)
        self.goes_on(vm)

    def test_in_a_capture_of_a_paused_guest(self):
        vm = self.running_vm()
        vm.cmd("stop")
        p = self.q.start("create", "vm", "one", "--memory", "--bwlimit", "16M")
        self.q.wait_journal("vm", p)
        time.sleep(0.5)
        vm.cmd("cont")
        status, _, err = self.q.finish(p)
        self.refused(status, err)
        self.goes_on(vm)

    def test_while_memory_is_written_back(self):
        """What the guest wrote then is overwritten, too."""
        vm = self.running_vm(append="JUNK=24", memory="memfd")
        vm.serial.wait("JUNK-READY")
        ticks, nonce = self.snapshot(vm)
        self.goes_on(vm)
        status, err = self.resumed_when_stopped(
            vm, "revert", "vm", "one", "--restore", "inplace", "--paused")
        self.assertEqual(0, status, err)
        self.assertIn("resumed by somebody else", err)
        self.assertEqual("paused", vm.state())
        self.q("create", "vm", "two", "--memory", "--mode", "paused")
        self.assert_same_memory(vm, "one", "two")
        since = vm.serial.mark()
        vm.cmd("cont")
        self.goes_on_from(vm, ticks[0], nonce, since)


class Stopped(Reverts):
    """Somebody else stops the guest while a snapshot of it is prepared."""
    limit = 180
    cost = 60

    def stopped_meanwhile(self, vm, mode, *more):
        """(status, stderr) of a create; qstill stood still while the guest was
        stopped, and had not stopped it itself."""
        for _ in range(20):
            with vm.monitor() as other:
                p = self.q.start("create", "vm", "one", "--memory", "--mode",
                                 mode, *more)
                self.q.wait_journal("vm", p)
                os.kill(p.pid, signal.SIGSTOP)
                first = other.cmd("query-status")["status"] == "running"
                if first:
                    other.cmd("stop")
                os.kill(p.pid, signal.SIGCONT)
                status, _, err = self.q.finish(p)
                if first:
                    self.assertEqual("paused",
                                     other.cmd("query-status")["status"])
                    return status, err
                self.q("delete", "vm", "one")
        self.fail("qstill was too fast each time")

    def test_it_stays_so(self):
        vm = self.running_vm(append="JUNK=160")
        vm.serial.wait("JUNK-READY")
        self.paused_on_purpose.add("vm")
        for mode, more in (("cow", ()), ("paused", ()),
                           ("precopy", ("--bwlimit", "100M"))):
            with self.subTest(mode=mode):
                status, err = self.stopped_meanwhile(vm, mode, *more)
                if mode == "precopy":
                    self.assertEqual(5, status, err)
                    self.assertIn("was stopped by somebody else", err)
                    self.assertEqual([], self.q("list", "vm")["snapshots"])
                else:
                    self.assertEqual(0, status, err)
                    one = self.q.info("vm", "one")
                    with open(self.q.manifest_path("vm", one["id"])) as f:
                        self.assertEqual("paused", json.load(f)["runState"])
                    self.q("delete", "vm", "one")
                self.stands_still(vm)
                vm.cmd("cont")
                self.goes_on(vm)
        self.paused_on_purpose.discard("vm")

    def test_a_guest_that_shuts_down_meanwhile_owes_nothing(self):
        vm = self.running_vm(append="JUNK=160", extra=[
            "-action", "reboot=shutdown,shutdown=pause"])
        vm.serial.wait("JUNK-READY")
        self.paused_on_purpose.add("vm")
        p = self.q.start("create", "vm", "one", "--memory")
        self.q.wait_journal("vm", p)
        vm.cmd("system_reset")
        status, _, err = self.q.finish(p)
        self.assertEqual("shutdown", vm.state())
        self.assertEqual(6, status, err)
        self.assertIn("in state shutdown", err)
        self.assertEqual([], self.q("list", "vm")["snapshots"])
        self.assertFalse(os.path.exists(os.path.join(
            self.store, "vm", "journal.json")))
        vm.end()

    def test_a_reset_in_the_pause(self):
        """RAM and device state would not be of one instant."""
        vm = self.running_vm()
        with vm.monitor() as other:
            p = self.q.start("create", "vm", "one", "--memory", "--mode",
                             "paused", "--bwlimit", "16M")
            Resumed.until(other, "STOP")
            other.cmd("system_reset")
            status, _, err = self.q.finish(p)
        self.assertEqual(5, status, err)
        self.assertIn("was reset by somebody else", err)
        self.assertEqual([], self.q("list", "vm")["snapshots"])
