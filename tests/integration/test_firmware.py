# SPDX-License-Identifier: MIT
"""The firmware's variables are part of a snapshot, a TPM is named as not."""

import os

from lib import qemuio
from lib.case import Case
from lib.tiny import content


class Nvram(Case):
    cost = 10

    def round_trip(self, name, *extra):
        code, self.vars = (os.path.join(self.tmp, f) for f in ("code", "vars"))
        for path in (code, self.vars):
            with open(path, "wb") as f:
                f.truncate(512 << 10)
        vm = self.tiny_vm(extra=[e.format(code=code, vars=self.vars)
                                 for e in extra])
        self.assertTrue(self.q.check("vm")["ok"])
        self.assertIn(name, self.disk_names(vm))

        def write(byte):
            with vm.monitor() as m:
                for line in ("write -q -P %d 0 64k" % byte, "flush"):
                    qemuio.run(m, "-d /machine/system.flash1", line)

        def now():
            head = self.q("path", "vm", name)["path"]
            return content(head, "qcow2" if head.endswith("qcow2") else
                           "raw")[0]
        write(1)
        self.q("create", "vm", "one")
        write(2)
        self.q("create", "vm", "two")
        write(3)
        for snap, byte in (("one", 1), ("two", 2), ("one", 1)):
            pid = vm.pid()
            self.q("revert", "vm", snap)
            # In place QEMU would go on with what it once read.
            self.assertNotEqual(pid, vm.pid())
            self.assertEqual(byte, now())
            self.assertEqual("running", vm.state())
        self.q("revert", "vm", "two")
        self.assertEqual(2, now())
        self.q("delete", "vm", "one", "two")
        self.assertEqual(2, now())
        self.assertEqual(self.vars, self.q("path", "vm", name)["path"])

    def test_of_drive_options(self):
        self.round_trip(
            "pflash1",
            "-drive", "if=pflash,unit=0,format=raw,readonly=on,file={code}",
            "-drive", "if=pflash,unit=1,format=raw,file={vars}")

    def test_of_blockdev_nodes(self):
        self.round_trip(
            "fl1",
            "-blockdev", "driver=raw,node-name=fl0,read-only=on,"
            "file.driver=file,file.filename={code}",
            "-blockdev", "driver=raw,node-name=fl1,"
            "file.driver=file,file.filename={vars}",
            "-machine", "pflash0=fl0,pflash1=fl1")


class Recover(Case):
    def test_dry_run_says_what_it_would_do(self):
        vm = self.tiny_vm()
        head = self.head_paths(vm)[0]
        with open(self.q.journal_path("vm"), "w") as f:
            f.write('{"version": 1, "op": "create", "phase": "begun", '
                    '"snapshot": "abcdefghijkl", "ids": [], "wasRunning": '
                    'true, "freezing": true, "disks": [{"disk": "disk0-dev", '
                    '"oldPath": "%s", "oldFormat": "qcow2", "newPath": "%s.x",'
                    ' "newFormat": "qcow2"}]}' % (head, head))
        said = self.q("recover", "vm", "--dry-run")["actions"]
        self.assertEqual([
            "VM vm: an interrupted create",
            "undo the creation of snapshot abcdefghijkl",
            "disk disk0-dev: back from %s.x to %s" % (head, head),
            "remove what was stored of it",
            "have the guest run, if it was stopped for this",
            "thaw the guest"], said)
        self.assertTrue(os.path.exists(self.q.journal_path("vm")))
        os.unlink(self.q.journal_path("vm"))
