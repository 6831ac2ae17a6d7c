# SPDX-License-Identifier: MIT
"""Somebody else at the VM's monitor lets the guest run while its memory is taken
or written back."""

import json
import time

from test_inplace import Reverts


class Resumed(Reverts):
    limit = 180
    cost = 40

    def resumed_when_stopped(self, vm, *args):
        """(status, stderr) of a verb that stops the guest, which another one
        starts again at once."""
        with vm.monitor() as other:
            p = self.q.start(*args)
            while json.loads(other.line()).get("event") != "STOP":
                pass
            other.cmd("cont")
            status, _, err = self.q.finish(p)
        return status, err

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

    def test_between_the_stop_and_the_instant_of_background(self):
        """QEMU takes that instant by itself, and stops who runs meanwhile.
        Whether the other comes at that time is chance: counted."""
        vm = self.running_vm()
        caught = 0
        for n in range(40):
            events = []
            with vm.monitor() as other:
                p = self.q.start("create", "vm", "n%d" % n, "--memory",
                                 "--mode", "background")
                while "STOP" not in events:
                    events.append(json.loads(other.line()).get("event"))
                time.sleep(n % 10 / 2000)
                other.send({"execute": "cont"})
                status, out, err = self.q.finish(p)
                other.send({"execute": "query-status", "id": "end"})
                while True:
                    line = json.loads(other.line())
                    if line.get("id") == "end":
                        break
                    events.append(line.get("event"))
            stops = events.count("STOP")
            resumed = "resumed by somebody else" in err
            self.assertEqual(5 if resumed else 0, status, err)
            if stops > 1: # QEMU stopped it a second time
                self.assertTrue(resumed, "%s: %s" % (events, out))
                caught += 1
            if status == 0:
                self.q("delete", "vm", "n%d" % n)
            if caught == 3:
                break
        self.goes_on(vm)
        self.assertLess(0, caught, "nobody came at that time")

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
