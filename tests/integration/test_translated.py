# SPDX-License-Identifier: MIT
"""revert in the running QEMU process, with code that TCG has translated."""

from lib.case import QEMU_VERSION
from test_inplace import Reverts


class Translations(Reverts):
    """TCG's translations of code that is no longer there."""
    cost = 40
    limit = 180

    def test_a_way_back_over_a_reboot_runs_the_snapshots_code(self):
        vm = self.running_vm(append="JUNK=24 SYNC=vda,vdb SYNCMS=2",
                             disks=self.two_disks())
        vm.serial.wait("JUNK-READY")
        ticks, nonce = self.snapshot(vm)
        keeps = tuple(map(int, QEMU_VERSION.split("."))) >= (10, 2)
        for _ in range(2):
            self.reset_boots(vm, nonce)
            since = vm.serial.mark()
            vm.serial.wait(r"sync count=\d+ bad=0", since)
            if keeps:
                with self.nothing_changes(vm):
                    self.q.fails("precondition", "keep its translations",
                                 "revert", "vm", "one", "--restore", "inplace")
            pid, since = vm.pid(), vm.serial.mark()
            said = self.q("revert", "vm", "one")
            self.assertEqual("mapped" if keeps else "inplace", said["restore"])
            self.assertEqual(not keeps, pid == vm.pid())
            self.goes_on_from(vm, ticks[0], nonce, since)
            vm.serial.wait(r"sync count=\d+ bad=0", vm.serial.mark())
