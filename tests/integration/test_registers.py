# SPDX-License-Identifier: MIT
"""Registers that the guest's firmware writes, and that QEMU shows as if they
were properties of a device."""

import json
import re
import time

from lib.calls import Calls
from lib.case import Case


class Registers(Case):
    cost = 10

    def test_a_register_that_the_firmware_sets_is_no_other_device(self):
        """Properties in `info qtree` of PIIX4_PM and q35-pcihost."""
        for machine, name in (("pc", "smb_io_base"), ("q35", "MCFG")):
            with self.subTest(machine):
                def register(name=name):
                    tree = vm.hmp("info qtree")
                    return re.search(name + r" = .*", tree).group()
                vm = self.tiny_vm(machine, machine=machine, paused=True)
                before = register()
                self.q("create", machine, "one", "--memory")
                vm.cmd("cont")
                deadline = time.monotonic() + 30
                while register() == before:
                    self.assertLess(time.monotonic(), deadline)
                self.assertEqual("inplace", self.q(
                    "revert", machine, "one", "--start")["restore"])

    def test_a_snapshot_of_before_has_these_registers_in_its_sums(self):
        for machine, device in (("pc", "PIIX4_PM"), ("q35", "q35-pcihost")):
            with self.subTest(machine):
                vm = self.tiny_vm(machine, machine=machine)
                self.q("create", machine, "one", "--memory")
                calls = Calls(self)
                calls("open", vm.qmp, 10000)
                lines = calls("topology_before")
                calls("close")
                path = self.q.manifest_path(machine,
                                            self.q.info(machine, "one")["id"])
                with open(path) as f:
                    manifest = json.load(f)
                now = manifest["memory"]["devices"]
                other = [a for a, b in zip(now, lines) if a != b]
                self.assertEqual(1, len(other))
                self.assertIn(device, other[0])
                manifest["memory"]["devices"] = lines
                manifest["sum"] = None
                with open(path, "w") as f:
                    json.dump(manifest, f)
                self.assertEqual([], self.q.check(machine, "--memory")["problems"])
                self.assertEqual("inplace", self.q(
                    "revert", machine, "one", "--restore",
                    "inplace")["restore"])

    def test_another_property_of_it_is_another_device(self):
        vm = self.tiny_vm()
        self.q("create", "vm", "one", "--memory")
        vm.quit()
        vm.extra = ["-global", "PIIX4_PM.disable_s3=1"]
        vm.disks[0].path, = self.head_paths(vm)
        vm.start()
        self.q.fails("precondition", "PIIX4_PM.* has other properties",
                     "revert", "vm", "one", "--restore", "inplace")
