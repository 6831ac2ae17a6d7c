# SPDX-License-Identifier: MIT
"""A VM that nobody answers for is off only when nobody has its disks open."""

import os
import signal
import subprocess

from lib import image
from lib.case import Case


class SocketGone(Case):
    """The QEMU runs, but the name of its socket is gone: a cleaner of /run, a
    second daemon, a hand."""
    either = True
    cost = 20

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm(disks=[
            self.disk("disk0", "qcow2", size=2 << 20, pattern=False),
            self.disk("disk1", "raw", size=2 << 20, pattern=False)])
        for byte, name in enumerate(("base", "more"), 1):
            self.write(byte)
            self.q("create", "vm", name)
        self.write(3)
        self.q("revert", "vm", "more")
        os.unlink(self.vm.qmp)

    def write(self, byte):
        for d in self.vm.disks:
            self.vm.write(d, 0, byte)

    def busy(self, *argv):
        failure = self.q.fails("busy", r"disk disk0.*%s.* in use" % os.path
                               .basename(self.head_paths(self.vm)[0]), *argv)
        self.assertIn(self.vm.qmp, failure.hint)
        self.assertRegex(failure.hint, r"process %d\b" % self.vm.pid())

    def test_nothing_is_done_to_it(self):
        for argv in (["create", "vm", "new"], ["revert", "vm", "base"],
                     ["revert", "vm", "base", "--stopped"],
                     ["delete", "vm", "base"], ["undo", "vm"],
                     ["start", "vm"]):
            with self.subTest(argv=argv), self.nothing_changes(self.vm):
                self.busy(*argv)
        self.write(4)
        self.vm.end()
        self.q("create", "vm", "new")
        self.q("revert", "vm", "new", "--start")
        self.assertEqual("running", self.vm.state())

    def test_it_is_not_called_off(self):
        (vm,) = self.q("vms")["vms"]
        self.assertEqual("unreachable", vm["state"])
        said = self.q.check("vm", "--memory")
        self.assertEqual(["head-in-use"], [p["code"] for p in
                                           said["problems"]])
        self.assertIn(self.vm.qmp, said["problems"][0]["hint"])
        self.vm.end()
        (vm,) = self.q("vms")["vms"]
        self.assertEqual("stopped", vm["state"])
        self.assertEqual([], self.q.check("vm")["problems"])

    def test_an_interrupted_create_waits(self):
        self.vm.end()
        self.q("start", "vm")
        self.write(5)
        # killed where the disks have been switched: qs0-ID in the graph
        p = self.q.start("create", "vm", "new", "--memory", "--bwlimit", "1M")
        self.q.wait_journal("vm", p)
        while not any("qs0-" in n["node-name"] for n in
                      self.vm.cmd("query-named-block-nodes", flat=True)):
            self.assertIsNone(p.poll())
        p.kill()
        self.q.finish(p)
        os.unlink(self.vm.qmp)
        self.q.fails("busy", "interrupted.* in use", "recover", "vm")
        self.q.fails("busy", "interrupted.* in use", "create", "vm", "again")
        self.vm.end()
        self.q("recover", "vm")
        self.assertEqual(["base", "more"], self.q.names("vm"))


class Unlocked(Case):
    """QEMU can be told to lock nothing."""
    either = True

    def test_the_open_file_tells(self):
        vm = self.tiny_vm(disks=[self.disk(
            size=2 << 20, pattern=False, options=",file.locking=off")])
        os.unlink(vm.qmp)
        failure = self.q.fails("busy", "disk0.*in use", "create", "vm", "new")
        self.assertRegex(failure.hint, r"process %d\b" % vm.pid())
        vm.end()
        self.q("create", "vm", "new")


class HeadInUse(Case):
    """The VM is off, and another program writes to a disk."""
    either = True

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm()
        self.vm.write(self.vm.disks[0], 0, 1)
        self.q("create", "vm", "base")
        self.vm.quit()
        self.head = self.head_paths(self.vm)[0]

    def test_by_a_writer(self):
        with subprocess.Popen(
                ["qemu-io", "-f", "qcow2", self.head], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
            self.addCleanup(p.stdin.close)
            p.stdin.write("write -P 7 0 64k\nflush\n")
            p.stdin.flush()
            p.stdout.readline()
            with self.nothing_changes(self.vm):
                for argv in (["create", "vm", "new"], ["start", "vm"],
                             ["revert", "vm", "base"]):
                    failure = self.q.fails("busy", "disk disk0.*in use", *argv)
                    self.assertIn("process %d" % p.pid, failure.hint)
        self.q("create", "vm", "new")

    def test_by_a_reader(self):
        """A backup that reads a head does not mind that it is frozen."""
        with subprocess.Popen(
                ["qemu-io", "-r", "-f", "qcow2", self.head], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
            p.stdin.write("read 0 64k\n")
            p.stdin.flush()
            p.stdout.readline()
            self.q("create", "vm", "new")
            p.stdin.close()

    def stopped_in_the_middle(self, *argv):
        """The command, standing where it has begun to change something."""
        p = self.q.start(*argv)
        self.q.wait_journal("vm", p)
        p.send_signal(signal.SIGSTOP)
        self.assertTrue(os.path.exists(self.q.journal_path("vm")))
        return p

    def test_nobody_opens_it_meanwhile(self):
        """A VM that its own script starts while its heads are moved would run
        on a frozen layer, or on a file without a name."""
        for argv in (["create", "vm", "new"], ["revert", "vm", "base"]):
            with self.subTest(argv=argv):
                p = self.stopped_in_the_middle(*argv)
                with self.assertRaisesRegex(AssertionError, "lock"):
                    image.run("qemu-io", "-f", "qcow2", "-c", "read 0 64k",
                              self.head_paths(self.vm)[0])
                p.send_signal(signal.SIGCONT)
                self.assertEqual(0, self.q.finish(p)[0])
