# SPDX-License-Identifier: MIT
"""create --quiesce: the guest's filesystems are clean on the frozen layer, and
thawed whatever happens."""

import json
import os
import signal
import subprocess
import tempfile
import time

from lib import image
from lib.case import Case


class Quiesce(Case):
    either = True
    cost = 30

    def fs_vm(self, **kw):
        def make():
            return self.running_vm(agent=True, disks=[
                self.disk("disk0"), self.disk("disk1", "raw", fs=True)], **kw)
        return make() if kw else self.shared(make)

    def needs_recovery(self, path, fmt):
        """Whether ext4 would have to replay its journal. Checks the rest."""
        with tempfile.NamedTemporaryFile() as raw:
            image.run("qemu-img", "convert", "-U", "-f", fmt, "-O", "raw",
                      path, raw.name)
            features = image.run("dumpe2fs", "-h", raw.name)
            subprocess.run(["e2fsck", "-fy", raw.name], check=False,
                           stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            image.run("e2fsck", "-fn", raw.name)
        return "needs_recovery" in features

    def thawed(self, vm):
        with vm.guest_agent() as agent:
            self.assertEqual("thawed", agent.cmd("guest-fsfreeze-status"))
        self.goes_on(vm)

    def test_the_file_system_is_clean_on_the_frozen_layer(self):
        vm = self.fs_vm()
        self.assertTrue(self.q.check("vm", "--quiesce")["ok"])
        self.assertTrue(self.q("create", "vm", "clean",
                               "--quiesce")["quiesced"])
        self.thawed(vm)
        self.assertFalse(self.q("create", "vm", "dirty")["quiesced"])
        disk = self.disk_names(vm)[1]
        self.assertFalse(self.needs_recovery(*self.frozen(vm, "clean")[disk]))
        self.assertTrue(self.needs_recovery(*self.frozen(vm, "dirty")[disk]),
                        "the test proves nothing: unfrozen is clean too")

    def test_with_memory_the_guest_is_thawed_now_and_after_a_revert(self):
        vm = self.fs_vm()
        nonce = vm.serial.ticks()[-1].nonce
        made = self.q("create", "vm", "one", "--quiesce", "--memory",
                      "--mode", "paused")
        self.assertTrue(made["quiesced"])
        self.thawed(vm)
        tick = self.snapshot_ticks(vm, "one")[0]
        since = vm.serial.mark()
        self.q("revert", "vm", "one")
        self.goes_on_from(vm, tick, nonce, since)
        self.thawed(vm)

    def test_an_agent_that_does_not_answer(self):
        vm = self.fs_vm(append="NOAGENT=1")
        with self.nothing_changes(vm):
            begun = time.monotonic()
            failure = self.q.fails("unreachable", "agent", "create", "vm",
                                   "one", "--quiesce", "--memory")
            self.assertTrue(failure.hint)
            self.assertLess(time.monotonic() - begun, 20)
        vm.agent = None  # nobody there to ask for leftovers

    def test_a_guest_that_somebody_else_has_frozen(self):
        vm = self.fs_vm()
        with vm.guest_agent() as agent:
            self.assertEqual(1, agent.cmd("guest-fsfreeze-freeze"))
        with self.nothing_changes(vm):
            for more in ([], ["--memory"]):
                self.q.fails("busy", "somebody else has frozen", "create",
                             "vm", "one", "--quiesce", *more)
            with vm.guest_agent() as agent:
                self.assertEqual("frozen", agent.cmd("guest-fsfreeze-status"))
                self.assertEqual(1, agent.cmd("guest-fsfreeze-thaw"))
        self.thawed(vm)

    def test_no_agent_at_all(self):
        vm = self.running_vm()
        with self.nothing_changes(vm):
            failure = self.q.fails("precondition", "agent", "create", "vm",
                                   "one", "--quiesce")
            self.assertIn("--agent", failure.hint)

    def test_a_create_that_fails_thaws(self):
        vm = self.fs_vm()
        folder = os.path.join(self.tmp, "small")
        self.mount_tmpfs(folder, "size=64k")
        with self.nothing_changes(vm):
            self.q.fails("no-space", "", "create", "vm", "one", "--quiesce",
                         "--disk-dir", folder)
            self.thawed(vm)

    def test_a_qemu_that_hangs_finds_the_thaw_when_it_goes_on(self):
        """Nobody has to come back for it."""
        vm = self.fs_vm()
        pid = vm.pid()
        with vm.guest_agent() as agent:
            agent.cmd("guest-fsfreeze-freeze")
        self.owe(vm)
        os.kill(pid, signal.SIGSTOP)
        self.q.fails("failed|unreachable|busy", "", "recover", "vm")
        os.kill(pid, signal.SIGCONT)
        self.thawed(vm)
        self.q("recover", "vm")

    def owe(self, vm):
        """What a create leaves that is killed while the guest is frozen."""
        with open(self.q.journal_path("vm"), "w") as f:
            json.dump({
                "version": 1, "op": "create", "phase": "begun",
                "snapshot": "a" * 12, "wasRunning": True, "freezing": True,
                "pid": vm.pid(), "pidStart": vm.pid_start(), "disks": []}, f)

    def test_killed_while_frozen(self):
        """A frozen guest is thawed by the next command."""
        vm = self.fs_vm()
        for delay in (0.02, 0.05, 0.1, 0.2):
            with self.subTest(delay=delay):
                process = self.q.start("create", "vm", "s", "--quiesce",
                                       "--memory", "--mode", "paused",
                                       "--bwlimit", "8M")
                self.q.wait_journal("vm", process)
                time.sleep(delay)
                process.kill()
                process.wait()
                self.q("recover", "vm")
                self.assertEqual("running", vm.state())
                self.thawed(vm)
                for name in self.q.names("vm"):
                    self.q("delete", "vm", name)
