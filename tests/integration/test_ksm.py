# SPDX-License-Identifier: MIT
"""A host whose KSM is at work: a page that it merges loses its write
protection. KSM is the host's, so qstill sees another one here, in a mount
namespace of its own; tests/unit/test_ksm.c has the pages."""

import os
import shutil
import subprocess

from lib.case import Case

KSM = "/sys/kernel/mm/ksm"
WHY = r"KSM is at work.*mem-merge=off"


class Ksm(Case):
    cost = 20

    def setUp(self):
        super().setUp()
        self.ksm = os.path.join(self.tmp, "ksm")
        os.makedirs(self.ksm, exist_ok=True)
        self.tell(run=0, full_scans=3, pages_scanned=4096)
        within = ["unshare", "--mount", "sh", "-c",
                  'mount --bind "$0" %s && exec "$@"' % KSM, self.ksm]
        if not shutil.which("unshare") or subprocess.run(
                within + ["true"], stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("needs root, a mount namespace, and KSM")
        plain = self.q.argv
        self.q.argv = lambda *args, **kw: within + plain(*args, **kw)

    def tell(self, **numbers):
        for name, number in numbers.items():
            with open(os.path.join(self.ksm, name), "w") as f:
                f.write("%d\n" % number)

    def test_modes_that_write_protect_are_refused(self):
        vm = self.running_vm(append="JUNK=8")
        self.assertIsNone(self.q.check("vm", "--memory")["captureModes"]["cow"])
        self.tell(run=1)
        with self.nothing_changes(vm):
            said = self.q.check("vm", "--memory")["captureModes"]
            for mode in ("cow", "background"):
                self.assertRegex(said[mode], WHY)
                self.q.fails("precondition", WHY, "create", "vm", "one",
                             "--memory", "--mode", mode)
            self.assertIsNone(said["precopy"])
            self.assertIsNone(said["paused"])
        made = self.q("create", "vm", "one", "--memory")
        self.assertEqual("precopy", made["mode"])
        self.assertRegex(self.q.stderr + made.get("modeReason", ""), WHY)
        self.q("verify", "vm", "one")
        self.goes_on(vm)
        self.tell(run=2)  # unmerges, and merges nothing
        made = self.q("create", "vm", "two", "--memory")
        self.assertEqual("cow", made["mode"])

    def test_ram_that_is_not_merged_is_captured_as_ever(self):
        vm = self.running_vm(append="JUNK=8", extra=["-machine",
                                                     "mem-merge=off"])
        self.tell(run=1)
        for mode in ("cow", "background"):
            self.q("create", "vm", mode, "--memory", "--mode", mode)
        self.goes_on(vm)

    def test_background_fails_when_it_is_switched_on_meanwhile(self):
        vm = self.running_vm(append="JUNK=40")
        vm.serial.wait("JUNK-READY")
        # on until the end; or off again by then
        for after in ({"run": 1}, {"full_scans": 4}, {"pages_scanned": 8192}):
            with self.subTest(**after), self.nothing_changes(vm):
                self.tell(run=0, full_scans=3, pages_scanned=4096)
                args = ("create", "vm", "one", "--memory", "--mode",
                        "background", "--bwlimit", "40M")
                p = self.q.start(*args)
                self.q.wait_journal("vm", p)
                self.tell(**after)
                self.q.failed("precondition",
                              "switched on while the memory was captured",
                              args, *self.q.finish(p))
                self.assertEqual([], self.q.snapshots("vm"))
                self.goes_on(vm)
        self.check_nothing_left(vm)
