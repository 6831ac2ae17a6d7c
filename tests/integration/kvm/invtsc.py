# SPDX-License-Identifier: MIT
"""The case that QEMU's own ways cannot do: a guest under KVM with the host's
CPU and its invariant TSC, whose state QEMU refuses to migrate. It is captured
live and comes back, in a new process each way and in the running one."""

import json
import re
import subprocess
import time

from lib.case import Case
from lib.qmp import QMPError

PAGE = 4096
CPU = "host,migratable=off,invtsc=on"
REFUSED = r"State blocked by non-migratable CPU device \(invtsc flag\)"
# Without the right to trace another process, as under a service's sandbox.
POWERLESS = ["setpriv", "--bounding-set=-sys_ptrace",
             "--inh-caps=-sys_ptrace"]


def report(**kw):
    """For the outside: one line that the test there reads."""
    print("KVM-REPORT " + json.dumps(kw, sort_keys=True), flush=True)


class Invtsc(Case):
    limit = 600

    def kvm_vm(self, **kw):
        vm = self.running_vm(accel="kvm", cpu=kw.pop("cpu", CPU),
                             append="JUNK=16", **kw)
        vm.serial.wait("JUNK-READY")
        return vm

    def refused_by_migrate(self, vm):
        with self.assertRaisesRegex(QMPError, REFUSED):
            vm.cmd("migrate", uri="exec:cat >/dev/null")
        self.assertEqual("running", vm.state())

    def captured(self, vm):
        """(the snapshot's tick, the guest's uptime then, its nonce)"""
        before = self.goes_on(vm)[-1]
        said = self.q("create", "vm", "one", "--memory", "--mode", "cow")
        after = self.goes_on(vm)[-1]
        self.assertEqual("cow", said["mode"])
        self.assertGreater(said["pauseMs"], 0)
        self.assertGreaterEqual(said["longestStallMs"], 0)
        self.assertGreater(said["memoryWritten"], 16 << 20)
        self.assertEqual(before.nonce, after.nonce)
        tick = self.snapshot_ticks(vm, "one")[0]
        self.assertLessEqual(before.number, tick)
        self.assertGreater(after.number, tick)
        report(what="create", tick=tick, pauseMs=said["pauseMs"],
               longestStallMs=said["longestStallMs"],
               stored=said["memoryWritten"])
        up = [t.up for t in vm.serial.ticks() if t.number == tick]
        return tick, up[0] if up else before.up, before.nonce

    def comes_back(self, vm, restore, snapshot):
        tick, up, nonce = snapshot
        gone = vm.serial.ticks()[-1]
        self.assertGreater(gone.number, tick + 5)
        pid = vm.pid()
        since = vm.serial.mark()
        began = time.monotonic()
        said = self.q("revert", "vm", "one", "--restore", restore)
        took = time.monotonic() - began
        self.assertEqual((restore, "running"),
                         (said["restore"], said["state"]))
        ticks = self.goes_on_from(vm, tick, nonce, since, count=10)
        self.assertEqual(restore == "inplace", pid == vm.pid(),
                         "a new process, but for inplace")
        report(what=restore, tick=ticks[0].number, seconds=round(took, 2),
               ms=said["ms"], upThen=up, upNow=ticks[0].up, upGone=gone.up,
               clocksource=self.clocksource(vm))
        # The guest's clock goes on, and at its old pace: ten ticks are at
        # least nine of the pauses between them.
        ups = [t.up for t in ticks]
        self.assertEqual(sorted(ups), ups, "the guest's clock goes back")
        self.assertGreater(ups[9] - ups[0], 0.85)
        self.refused_by_migrate(vm)

    def ram_is_the_snapshots(self, vm):
        """Paused after a revert in place, RAM is the snapshot's byte for byte,
        but for the pages that KVM itself writes (its clock)."""
        self.q("revert", "vm", "one", "--restore", "inplace", "--paused")
        self.paused_on_purpose.add("vm")
        one = [s for s in self.q.snapshots("vm") if s["name"] == "one"][0]
        with open(self.main_ram(vm, one), "rb") as f:
            want = f.read()
        got = vm.ram_at(0, len(want))
        differ = [a for a in range(0, len(want), PAGE)
                  if want[a:a + PAGE] != got[a:a + PAGE]]
        bytes_ = {hex(a): sum(x != y for x, y in
                              zip(want[a:a + PAGE], got[a:a + PAGE]))
                  for a in differ[:8]}
        report(what="ram", pages=len(want) // PAGE, differ=len(differ),
               bytes=bytes_)
        # The clock pages that KVM itself writes; seen: one page, 7 bytes.
        self.assertLessEqual(len(differ), 2, bytes_)
        self.cont(vm)
        self.goes_on(vm)

    def clocksource(self, vm):
        said = vm.serial.wait(r"clocksource (\S+)\n")
        return said.group(1)

    def test_what_migrate_refuses_is_captured_live_and_comes_back(self):
        vm = self.kvm_vm()
        self.refused_by_migrate(vm)
        said = self.q.check("vm", "--memory")
        self.assertTrue(said["ok"], said)
        modes = said["captureModes"]
        self.assertIsNone(modes["cow"])
        self.assertIsNone(modes["paused"])
        for mode in ("background", "precopy"):
            self.assertRegex(modes[mode], REFUSED)
        snapshot = self.captured(vm)
        for restore in ("inplace", "mapped", "eager"):
            self.goes_on(vm, count=8)
            self.comes_back(vm, restore, snapshot)
        # Eager has brought ordinary RAM back.
        self.goes_on(vm, count=8)
        self.ram_is_the_snapshots(vm)

    def powerless(self, *args):
        """check as one who may not trace QEMU: what it says."""
        p = subprocess.run(POWERLESS + self.q.argv(args),
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True)
        return p.returncode, json.loads(p.stdout)

    def test_check_names_the_argument_that_lets_qemu_migrate(self):
        vm = self.kvm_vm()
        status, said = self.powerless("check", "vm", "--memory")
        self.assertEqual((6, False), (status, said["ok"]), said)
        problem = [p for p in said["problems"] if p["code"] == "invtsc"]
        self.assertEqual(1, len(problem), said)
        self.assertRegex(problem[0]["message"], REFUSED)
        found = re.search(r"-cpu (\S+,tsc-frequency=\d+) ",
                          problem[0]["hint"])
        self.assertTrue(found, problem)
        self.assertTrue(found.group(1).startswith(CPU), problem)
        report(what="check", hint=problem[0]["hint"])
        # It is the truth: with that argument QEMU refuses no more, and check
        # finds a mode that needs no rights.
        vm.quit()
        self.q("detach", "vm")
        vm.cpu = found.group(1)
        vm.start()
        self.attach(vm)
        status, said = self.powerless("check", "vm", "--memory")
        self.assertEqual((0, True), (status, said["ok"]), said)
        self.assertIsNone(said["captureModes"]["background"])
        self.q("create", "vm", "one", "--memory", "--mode", "precopy")
        self.goes_on(vm)
