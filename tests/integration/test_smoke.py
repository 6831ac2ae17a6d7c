# SPDX-License-Identifier: MIT
"""The main job once, from attach to detach: what check-asan runs."""

from lib import image
from lib.case import Case


class Smoke(Case):
    cost = 15

    def test_create_revert_and_delete_with_memory(self):
        vm = self.running_vm(append="JUNK=8 SYNC=vda",
                             disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        nonce = vm.serial.ticks()[-1].nonce
        self.sync_address(vm)
        made = self.q("create", "vm", "one", "--memory", "--mode", "paused",
                      "--description", "a first one")
        self.assertEqual("one", made["name"])
        self.assertTrue(made["memoryIncluded"])
        self.goes_on(vm)
        tick = self.snapshot_ticks(vm, "one")[0]
        self.q("verify", "vm", "one")
        since = vm.serial.mark()
        for restore in ("eager", "mapped"):
            with self.subTest(restore=restore):
                since = vm.serial.mark()
                said = self.q("revert", "vm", "one", "--restore", restore)
                self.assertEqual(restore, said["restore"])
                self.goes_on_from(vm, tick, nonce, since)
        vm.serial.wait(r"sync count=\d+ bad=0", since)
        head = vm.heads()
        self.q("delete", "vm", "one")
        self.assertEqual([], self.q.snapshots("vm"))
        self.goes_on(vm)
        self.assertEqual(sorted(head), sorted(vm.heads()))
        for path in self.head_paths(vm):
            image.info(path)
        self.q("detach", "vm")
        self.assertEqual([], self.q("vms")["vms"])
