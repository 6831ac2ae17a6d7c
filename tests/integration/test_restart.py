# SPDX-License-Identifier: MIT
"""What a VM that is started again is started with: the command line and the
limits that its QEMU had last, not those of the attach or of the caller."""

import json
import os
import resource
import subprocess

from lib.case import Case
from lib.tiny import content

MIB = 1 << 20


class Restart(Case):
    cost = 5

    def limited(self, limits, args):
        """The command under these soft limits: (status, stderr)."""
        def before():
            for which, n in limits.items():
                resource.setrlimit(which, (n, resource.getrlimit(which)[1]))
        p = subprocess.run(self.q.argv(args), stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, preexec_fn=before, timeout=90)
        return p.returncode, p.stderr

    @staticmethod
    def limits(vm):
        return {n: resource.prlimit(vm.pid(), n) for n in (
            resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_NOFILE,
            resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK)}

    @staticmethod
    def argv(vm):
        with open("/proc/%d/cmdline" % vm.pid()) as f:
            return f.read().split("\0")

    def other(self, vm):
        """The owner ends the VM and starts it with another command line, on
        its present heads."""
        heads = vm.heads()
        vm.quit()
        for d in vm.disks:
            d.path = heads.get(d.id + "-dev") or heads[d.id]
            d.fmt = "qcow2"
        vm.extra = ["-smbios", "type=1,serial=other"]
        vm.start()

    def test_the_limits_are_those_that_the_old_qemu_had(self):
        vm = self.tiny_vm()
        vm.write(vm.disks[0], 0, 1)
        self.q("create", "vm", "one", "--memory")
        # changed since the attach, and a soft one below the hard one
        # (QEMU 10.0 itself raises its soft one of files at the start)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.prlimit(vm.pid(), resource.RLIMIT_NOFILE, (most - 1, most - 1))
        most = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.prlimit(vm.pid(), resource.RLIMIT_CORE, (0, most))
        had = self.limits(vm)
        small = {resource.RLIMIT_FSIZE: MIB, resource.RLIMIT_AS: 120 * MIB,
                 resource.RLIMIT_NOFILE: 200}
        for way in ("eager", "mapped"):
            with self.subTest(way):
                old = vm.pid()
                status, said = self.limited(
                    small, ["revert", "vm", "one", "--restore", way])
                self.assertEqual(0, status, said)
                self.assertNotEqual(old, vm.pid())
                self.assertEqual(had, self.limits(vm))
        vm.quit()
        status, said = self.limited(small, ["start", "vm"])
        self.assertEqual(0, status, said)
        self.assertEqual(had, self.limits(vm))

    def test_a_limit_that_cannot_be_raised(self):
        """Whoever a launcher asks to start QEMU, a service manager say, has
        limits of its own."""
        def before():
            resource.setrlimit(resource.RLIMIT_CPU, (3600, 3600))
        for name, launcher, wanted in (("own", (), 6),
                                       ("by", self.launcher(), 0)):
            with self.subTest(name):
                vm = self.tiny_vm(name, attach=False)
                self.attach(vm, *launcher)
                vm.quit()
                p = subprocess.run(
                    ["setpriv", "--bounding-set", "-sys_resource",
                     *self.q.argv(["start", name])], stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    preexec_fn=before, timeout=90)
                self.assertEqual(wanted, p.returncode, p.stderr)
                if wanted:
                    self.assertIn("would get 3600", p.stderr)

    def test_the_command_line_is_the_last_one(self):
        vm = self.tiny_vm()
        disk = vm.disks[0]
        vm.write(disk, 0, 1)
        self.q("create", "vm", "one")
        self.other(vm)
        vm.write(disk, 0, 2)
        self.q("create", "vm", "two", "--memory")
        vm.write(disk, 0, 3)
        self.q("create", "vm", "three")
        for argv, holds in ((["revert", "vm", "two", "--restore", "eager"], 2),
                            (["revert", "vm", "two", "--restore", "mapped"], 2),
                            (None, 2)):
            with self.subTest(argv=argv):
                if argv:
                    self.q(*argv)
                else:
                    vm.quit()
                    self.q("start", "vm")
                self.assertIn("type=1,serial=other", self.argv(vm))
                head = vm.heads()["disk0-dev"]
                self.assertEqual(holds, content(head, "qcow2")[0])
        # what we started ourselves is no news, and can be built upon
        self.q("create", "vm", "four")
        self.q("revert", "vm", "one", "--stopped")
        self.q("start", "vm")
        self.assertIn("type=1,serial=other", self.argv(vm))
        self.assertNotIn("-incoming", self.argv(vm))
        head = vm.heads()["disk0-dev"]
        self.assertEqual(1, content(head, "qcow2")[0])

    def test_what_a_launcher_starts_is_no_owners_command_line(self):
        """Also where QEMU has not our environment, as from a service
        manager, or is called by another name."""
        for name, before in (
                ("clean", ["env", "-i", "PATH=/usr/bin:/bin"]),
                ("other", ["env", "-i", "PATH=/usr/bin:/bin", "bash", "-c",
                           'exec -a other-qemu "$@"', "-"])):
            with self.subTest(name):
                self.launched(name, before)

    def launched(self, name, before):
        vm = self.tiny_vm(name, attach=False)
        self.attach(vm, *self.launcher(before=before))
        self.q("create", name, "one", "--memory")
        with open(os.path.join(self.store, name, "vm.json")) as f:
            argv = json.load(f)["launch"]["argv"]
        self.q("revert", name, "one", "--restore", "eager")
        self.assertIn("-incoming", self.argv(vm))
        self.q("create", name, "two")
        self.q("delete", name, "one")
        with open(os.path.join(self.store, name, "vm.json")) as f:
            self.assertEqual(argv, json.load(f)["launch"]["argv"])
        self.assertTrue(self.q.check(name)["ok"])

    def test_an_owners_command_line_counts_with_a_launcher_too(self):
        """Also one of before a launcher has started anything."""
        for started in (False, True):
            with self.subTest(started=started):
                name = "vm%d" % started
                vm = self.tiny_vm(name, attach=False)
                self.attach(vm, *self.launcher(before=["env", "-i",
                                                       "PATH=/usr/bin:/bin"]))
                self.q("create", name, "zero", "--memory")
                if started:
                    self.q("revert", name, "zero", "--restore", "eager")
                self.other(vm)
                self.q("create", name, "one", "--memory")
                self.q("revert", name, "one", "--restore", "eager")
                self.assertIn("type=1,serial=other", self.argv(vm))
                vm.quit()
                self.q("start", name)
                self.assertIn("type=1,serial=other", self.argv(vm))

    def test_words_that_an_owner_adds_count_with_a_launcher_too(self):
        """Behind all that the launcher had started: more memory, here."""
        vm = self.tiny_vm(attach=False)
        self.attach(vm, *self.launcher(more=["-smbios",
                                             "type=1,serial=launcher"]))
        vm.quit()
        self.q("start", "vm")
        argv = self.argv(vm)[:-1]
        vm.quit()
        vm.argv = lambda paused=False: argv + ["-m", "16M"]
        vm.start()
        self.q("create", "vm", "one", "--memory")
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertEqual("16M", self.argv(vm)[::-1][
            self.argv(vm)[::-1].index("-m") - 1])
        # what the launcher starts by itself stays its own
        with open(os.path.join(self.store, "vm", "vm.json")) as f:
            record = json.load(f)["launch"]["argv"]
        self.assertTrue(self.q.check("vm", "--memory")["ok"])
        self.q("revert", "vm", "one", "--restore", "eager")
        with open(os.path.join(self.store, "vm", "vm.json")) as f:
            self.assertEqual(record, json.load(f)["launch"]["argv"])

    def test_where_the_disks_came_from_stays(self):
        """Names of layers, and what is left when all snapshots are deleted."""
        for fmt, style, options in (
                ("qcow2", "drive", ""), ("raw", "drive", ",l2-cache-size=1M"),
                ("raw", "blockdev", "")):
            with self.subTest(fmt=fmt, style=style):
                self.comes_back(fmt + style, fmt, style, options)

    def comes_back(self, name, fmt, style, options):
        vm = self.tiny_vm(name, style=style, disks=[self.disk(
            vm=name, fmt=fmt, size=2 * MIB, pattern=False)])
        first = vm.disks[0].path
        vm.write(vm.disks[0], 0, 1)
        self.q("create", name, "one")
        vm.disks[0].options = options
        self.other(vm)
        for snap in ("two", "three"):
            self.q("create", name, snap)
            self.assertRegex(os.path.basename(self.head_paths(vm)[0]),
                             r"^disk0\.[a-z0-9]{12}\.qcow2$")
        vm.write(vm.disks[0], 1, 2)
        self.q("revert", name, "two")
        self.q("create", name, "four")
        self.q("delete", name, "one", "two", "three", "four")
        self.assertEqual([first], self.head_paths(vm))
        self.assertEqual({first}, self.disk_files(vm))
        vm.quit()
        self.q("start", name)
        self.assertEqual([1, 0], content(first, fmt)[:2])

    def test_a_revert_is_the_first_to_see_the_other_command_line(self):
        vm = self.tiny_vm()
        self.q("create", "vm", "one")
        self.other(vm)
        self.q("revert", "vm", "one", "--stopped")
        self.q("start", "vm")
        self.assertIn("type=1,serial=other", self.argv(vm))

    def test_a_command_line_without_the_disk_is_not_taken(self):
        vm = self.tiny_vm()
        config = os.path.join(vm.dir, "config")
        with open(config, "w") as f:
            f.write('[drive "disk0"]\n  file = "%s"\n  format = "qcow2"\n'
                    '  if = "none"\n' % vm.disks[0].path)
        vm.quit()
        vm._disk_args = lambda: [
            "-readconfig", config,
            "-device", "virtio-blk-pci,drive=disk0,id=disk0-dev"]
        vm.start()
        self.q("create", "vm", "one")
        self.assertIn("does not open disk disk0", self.q.stderr)
        self.assertIn("detach and attach", self.q.stderr)
        vm.quit()
        self.q("start", "vm")
        self.assertNotIn("-readconfig", self.argv(vm))
