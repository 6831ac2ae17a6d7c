# SPDX-License-Identifier: MIT
"""What QEMU was lent (add-fd) by a qstill that was killed is taken back by
whoever comes next with the VM's lock; what others gave it stays."""

import json
import os
import signal
import socket
import time

from lib.case import QEMU_VERSION, Case


class Lent(Case):
    cost = 5

    def killed_before(self, monitor, kind, word, *argv, undo=()):
        """The command, killed about its call that has that word, between an
        add-fd and the remove-fd of it; `undo` makes room for it to be run
        again. No two runs make the same calls: until that was left."""
        p, calls = self.traced([*argv])
        self.assertEqual(0, p.returncode, p.stdout)
        lent = next(i for i, c in enumerate(calls) if '"add-fd"' in c)
        found = [int(c.split()[0]) for c in calls[lent:] if word in c]
        self.assertTrue(found, "\n".join(calls))
        if undo:
            self.q(*undo)
        for away in range(24):
            at = found[len(found) // 2] + (-1) ** away * (away // 2)
            p, _ = self.traced([*argv], "--at", str(at))
            self.assertEqual(128 + signal.SIGKILL, p.returncode, p.stdout)
            if kind in self.sets(monitor):
                return
            self.q("recover", "vm")

    def sets(self, monitor):
        return sorted(fd["opaque"] for s in monitor.cmd("query-fdsets")
                      for fd in s["fds"])

    def give(self, monitor, opaque):
        """As another management does."""
        with open("/dev/null") as f:
            socket.send_fds(monitor.sock, [json.dumps({
                "execute": "add-fd",
                "arguments": {"opaque": opaque}}).encode()], [f.fileno()])
        while "return" not in json.loads(monitor.line()):
            pass

    def comes_back(self, monitor, kind, *next_command):
        """It was left; what the user gave stays."""
        self.assertIn(kind, self.sets(monitor))
        self.q(*next_command)
        self.assertEqual(["mine"], self.sets(monitor))
        self.assertEqual([], [n for n in self.files() if "qstill" in n])

    def files(self):
        fds = "/proc/%d/fd" % self.vm.pid()
        return [os.readlink(os.path.join(fds, n)) for n in os.listdir(fds)]

    def test_the_device_state_of_a_create(self):
        self.vm = self.tiny_vm()
        with self.vm.monitor() as m:
            self.give(m, "mine")
            self.killed_before(m, "qstill device state", "xen-save-devices",
                               "create", "vm", "one", "--memory", "--mode",
                               "cow", undo=("delete", "vm", "one"))
            self.comes_back(m, "qstill device state", "recover", "vm")

    def test_a_paused_vm_has_nothing_left_of_a_create(self):
        """It is not resumed, and other monitors keep what is in QEMU. (7.2
        closes what was taken back when the VM runs.)"""
        self.vm = self.tiny_vm()
        with self.vm.monitor() as m:
            m.cmd("stop")
            for mode in ("paused", "cow", "auto"):
                self.q("create", "vm", mode, "--memory", "--mode", mode)
                self.assertNotIn("took back", self.q.stderr)
                if QEMU_VERSION != "7.2":
                    self.assertEqual([], self.sets(m))
            m.cmd("cont")
            self.q("check", "vm")  # takes nothing back by itself
            self.assertEqual([], self.sets(m))

    def test_the_state_that_a_revert_loads(self):
        self.vm = self.tiny_vm()
        with self.vm.monitor() as m:
            self.give(m, "mine")
            self.q("create", "vm", "one", "--memory")
            self.killed_before(m, "qstill-vmstate", "snapshot-load", "revert",
                               "vm", "one", "--restore", "inplace")
            # a command that takes no lock: what was left is recovered first
            self.comes_back(m, "qstill-vmstate", "list", "vm")

    def test_the_device_that_makes_a_userfaultfd(self):
        nobody = self.as_nobody()
        disk = self.disk(size=2 << 20, pattern=False)
        os.chown(disk.path, 65534, 65534)
        os.chmod(os.path.dirname(disk.path), 0o777)
        self.vm = self.tiny_vm(disks=[disk], qemu=self.behind(*nobody))
        with self.vm.monitor() as m:
            self.give(m, "mine")
            self.killed_before(m, "qstill userfaultfd", "ptrace", "create",
                               "vm", "one", "--memory", "--mode", "cow",
                               undo=("delete", "vm", "one"))
            self.assertIn("/dev/userfaultfd", self.files())
            self.comes_back(m, "qstill userfaultfd", "create", "vm", "two")
            self.assertNotIn("/dev/userfaultfd", self.files())

    def test_what_was_left_without_a_journal(self):
        """As by versions that took nothing back."""
        self.vm = self.tiny_vm()
        with self.vm.monitor() as m:
            self.give(m, "mine")
            for command in (("recover", "vm"), ("create", "vm", "one")):
                self.give(m, "qstill device state")
                self.give(m, "qstill device state")
                self.q("list", "vm")
                self.q("recover", "vm", "--dry-run")
                self.assertEqual(3, len(self.sets(m)))
                self.q(*command)
                self.assertEqual(["mine"], self.sets(m))

    def wait_resumed(self, process):
        """Until it copies, and lends nothing more."""
        while process.poll() is None:
            with open(self.q.journal_path("vm")) as f:
                if json.load(f).get("resumed"):
                    return
            time.sleep(0.01)
        self.fail("it has ended")

    def test_what_one_that_lives_has_lent_stays(self):
        self.vm = self.tiny_vm()
        with self.vm.monitor() as m:
            process = self.q.start("create", "vm", "one", "--memory", "--mode",
                                   "cow", "--bwlimit", "1M")
            self.q.wait_journal("vm", process)
            self.give(m, "qstill device state")
            self.wait_resumed(process)
            before = self.sets(m)
            self.q.fails("busy", "", "recover", "vm")
            self.q("list", "vm")
            self.assertEqual(before, self.sets(m))
            self.assertIn("qstill device state", before)
            self.assertEqual(0, self.q.finish(process)[0])
            self.assertEqual(["qstill device state"], self.sets(m))
            self.q("recover", "vm")
            self.assertEqual([], self.sets(m))
