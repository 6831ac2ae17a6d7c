# SPDX-License-Identifier: MIT
"""VMs that QEMU refuses to migrate, or whose streams it could not load."""

import os
import shutil
import subprocess

from lib.case import Case

BLOCKER = r"vdi format used by node"


class Blocked(Case):
    cost = 25

    def blocked_vm(self):
        vm = self.shared(lambda: self.running_vm(
            append="JUNK=8",
            disks=[self.disk("disk0"), self.disk("disk1", "vdi", size=8 << 20,
                                                 pattern=False)]))
        reasons = vm.cmd("query-migrate").get("blocked-reasons", [])
        self.assertRegex(" ".join(reasons), BLOCKER, "QEMU blocks nothing")
        vm.serial.wait("JUNK-READY")
        return vm

    def test_a_blocked_vm_is_captured_and_reverted(self):
        vm = self.blocked_vm()
        nonce = vm.serial.ticks()[-1].nonce
        with self.nothing_changes(vm):
            said = self.q.check("vm", "--memory")["captureModes"]
            self.assertIsNone(said["paused"])
            for mode in ("background", "precopy"):
                self.assertRegex(said[mode], BLOCKER)
        made = self.q("create", "vm", "one", "--memory", "--mode", "paused")
        self.assertEqual("paused", made["mode"])
        for restore in ("eager", "mapped"):
            with self.subTest(restore=restore):
                self.goes_on(vm)
                tick = self.snapshot_ticks(vm, "one")[0]
                since = vm.serial.mark()
                self.q("revert", "vm", "one", "--restore", restore)
                self.goes_on_from(vm, tick, nonce, since)
                vm.serial.wait(r"junk pass=\d+ bad=0", since)

    def test_auto_takes_a_mode_that_works_and_says_why(self):
        vm = self.blocked_vm()
        made = self.q("create", "vm", "one", "--memory")
        # cow, where it can be had, needs no migration either.
        self.assertIn(made["mode"], ("paused", "cow"))
        if made["mode"] == "paused":
            why = self.q.stderr + made.get("modeReason", "")
            self.assertRegex(why, "background.*" + BLOCKER)
        self.goes_on(vm)

    def test_the_modes_that_migrate_are_refused_with_the_reason(self):
        vm = self.blocked_vm()
        for mode in ("background", "precopy"):
            with self.subTest(mode=mode), self.nothing_changes(vm):
                self.q.fails("precondition", BLOCKER, "create", "vm", "one",
                             "--memory", "--mode", mode)
        self.assertEqual([], self.q.snapshots("vm"))


class NonMigratable(Case):
    """xen-save-devices-state would crash QEMU here: refused before."""
    cost = 15

    def test_a_device_without_a_state_is_refused_by_its_name(self):
        vm = self.running_vm(extra=[
            "-device", "qemu-xhci", "-chardev", "null,id=nul",
            "-device", "usb-serial,chardev=nul"])
        pid = vm.pid()
        for mode in ("auto", "paused", "background", "precopy"):
            with self.subTest(mode=mode), self.nothing_changes(vm):
                self.q.fails("precondition", "usb-serial", "create", "vm",
                             "one", "--memory", "--mode", mode)
        said = self.q.check("vm", "--memory")
        self.assertFalse(said["ok"])
        self.assertTrue(any(p["code"] == "non-migratable-device" and
                            "usb-serial" in p["message"]
                            for p in said["problems"]), said)
        self.assertEqual(pid, vm.pid())
        self.assertTrue(os.path.exists("/proc/%d" % pid))
        with self.subTest("without memory it works"):
            self.q("create", "vm", "disks")
            self.goes_on(vm)


class Kept(Case):
    """revert --keep of a VM whose memory nobody can capture."""
    cost = 5

    def made(self, name="vm", **kw):
        vm = self.tiny_vm(name, **kw)
        vm.write(vm.disks[0], 0, 1)
        self.q("create", name, "base")
        vm.write(vm.disks[0], 0, 2)
        return vm

    def kept(self, vm, why):
        said = self.q("revert", vm.name, "base", "--keep")
        self.assertRegex(self.q.stderr, why + ".*: of what it is now the "
                         "disks alone are kept")
        vm.io(vm.disks[0], "read -q -P 1 0 64k")
        kept, = [s for s in self.q.snapshots(vm.name) if s["name"] != "base"]
        self.assertFalse(kept["memoryIncluded"])
        self.assertEqual((kept["id"], False),
                         (said["kept"]["id"], said["kept"]["memory"]))
        self.assertRegex(said["kept"]["reason"], why)
        self.q("revert", vm.name, kept["name"])
        vm.io(vm.disks[0], "read -q -P 2 0 64k")

    def test_for_its_devices_the_disks_alone(self):
        for name, why, extra in (
                ("usb", "cannot be captured: .*usb-serial",
                 ["-device", "qemu-xhci", "-chardev", "null,id=nul",
                  "-device", "usb-serial,chardev=nul"]),
                ("conf", "no configuration section",
                 ["-global", "migration.send-configuration=off"])):
            with self.subTest(why=why):
                vm = self.made(name, extra=extra)
                with self.nothing_changes(vm):
                    plan = self.q("revert", name, "base", "--keep",
                                  "--dry-run")["plan"]
                self.assertRegex("\n".join(plan), "a snapshot, of the disks "
                                 "alone: .*" + why)
                self.kept(vm, why)

    def test_else_with_memory(self):
        vm = self.made()
        with self.nothing_changes(vm):
            plan = self.q("revert", "vm", "base", "--keep", "--dry-run")["plan"]
        self.assertIn("the present state becomes a snapshot, with memory", plan)
        said = self.q("revert", "vm", "base", "--keep")["kept"]
        self.assertEqual((True, None), (said["memory"], said["reason"]))
        self.assertTrue(self.q.info("vm", said["id"])["memoryIncluded"])
        self.assertIsNone(self.q("revert", "vm", "base")["kept"])
        vm.quit()
        said = self.q("revert", "vm", "base", "--keep")["kept"]
        self.assertEqual((False, None), (said["memory"], said["reason"]))

    def test_what_another_day_could_be_captured_is_refused(self):
        """Two modes need a right that qstill has not got here, the others a
        VM without such an image."""
        setpriv = shutil.which("setpriv")
        if os.geteuid() != 0 or not setpriv:
            self.skipTest("only root, with setpriv, can give up its rights")
        vm = self.made(disks=[
            self.disk(size=2 << 20, pattern=False),
            self.disk("disk1", "vdi", size=8 << 20, pattern=False)])
        argv = ["revert", "vm", "base", "--keep"]
        for more in ([], ["--dry-run"]):
            with self.nothing_changes(vm):
                p = subprocess.run(
                    [setpriv, "--bounding-set=-sys_ptrace",
                     "--inh-caps=-sys_ptrace"] + self.q.argv(argv + more),
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                self.q.failed("precondition", "keeping the present state: "
                              "memory cannot be captured in any mode: .*" +
                              BLOCKER, argv, p.returncode, p.stdout, p.stderr)
        self.assertEqual(["base"], self.q.names("vm"))


class NoConfiguration(Case):
    """A QEMU without configuration sections can load no stream of ours."""
    cost = 5

    def test_it_is_refused_before_anything_is_stopped(self):
        off = ["-global", "migration.send-configuration=off"]
        vm = self.tiny_vm(extra=off)
        said = self.q.check("vm", "--memory")
        self.assertIn("no-configuration-section",
                      [p["code"] for p in said["problems"]])
        for mode in ("auto", "cow", "paused", "precopy"):
            with self.subTest(mode=mode), self.nothing_changes(vm):
                self.q.fails("precondition", "no configuration section",
                             "create", "vm", "one", "--memory", "--mode", mode)
        self.q("create", "vm", "one")

    def test_the_last_argument_counts(self):
        last = []
        for value in ("on", "false"):
            last += ["-global", "migration.send-configuration=" + value]
        self.tiny_vm(extra=last)
        self.q.fails("precondition", "no configuration section",
                     "create", "vm", "one", "--memory")

    def test_an_old_machine_type(self):
        """Its compatibility switches it off; the argument is stronger."""
        old = "pc-i440fx-2.3"
        asks = self.tiny_vm("asks", attach=False)
        if old not in [m["name"] for m in asks.cmd("query-machines")]:
            self.skipTest("this QEMU has no machine type before 2.4")
        vm = self.tiny_vm(extra=["-machine", old])
        with self.nothing_changes(vm):
            self.q.fails("precondition", "no configuration section",
                         "create", "vm", "one", "--memory")
        vm = self.tiny_vm("on", extra=[
            "-machine", old, "-global", "migration.send-configuration=on"])
        self.goes_back(vm)

    def goes_back(self, vm):
        pid = vm.pid()
        self.q("create", vm.name, "one", "--memory")
        self.q("revert", vm.name, "one")
        self.assertEqual(pid, vm.pid())

    def test_an_argument_brings_it_back(self):
        on = ["-global", "migration.send-configuration=on"]
        self.goes_back(self.tiny_vm(extra=on))
