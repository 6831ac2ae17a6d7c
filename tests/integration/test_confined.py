# SPDX-License-Identifier: MIT
"""A QEMU that is kept from the host by more than its user is kept so by what a
revert or a start brings; where that cannot be, there is none."""

import json
import os
import subprocess
import sys
import time
import unittest

from lib.case import Case

SPACES = ("user", "pid", "mnt", "net", "ipc", "uts")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

# Lets all calls through but personality(2), which gets EPERM, and runs the
# rest of its command line.
FILTER = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 135), (0x06, 0, 0, 0x00050001),
        (0x06, 0, 0, 0x7fff0000)]
data = ctypes.create_string_buffer(
    b"".join(struct.pack("HBBI", *c) for c in code))
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
program = Program(len(code), ctypes.cast(data, ctypes.c_void_p))
libc.prctl(38, 1, 0, 0, 0)
if libc.prctl(22, 2, ctypes.byref(program), 0, 0) != 0:
    sys.exit("no filter: errno %d" % ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
"""

# With something in it that we do not see.
MOUNTED = ["unshare", "--mount", "sh", "-c",
           'mount -t tmpfs none /mnt && exec "$@"', "sh"]


def spaces(pid):
    return {n: os.readlink("/proc/%s/ns/%s" % (pid, n)) for n in SPACES}


def rights(pid):
    with open("/proc/%s/status" % pid) as f:
        return [line.split() for line in f if line.startswith(
            ("Cap", "NoNewPrivs", "Uid", "Gid", "Groups", "Seccomp"))]


@unittest.skipUnless(os.geteuid() == 0, "needs root")
class Confined(Case):
    cost = 10

    def confined(self, *words, name="vm", attach=True, **kw):
        try:
            p = subprocess.run([*words, "true"], stderr=subprocess.PIPE,
                               text=True)
        except FileNotFoundError as e:
            self.skipTest(str(e))
        if p.returncode:
            self.skipTest(p.stderr)
        vm = self.tiny_vm(name, attach=False, qemu=self.behind(*words), **kw)
        if "--reuid=65534" in words:
            os.chmod(vm.dir, 0o777)
        if attach:
            self.attach(vm)
        return vm

    def is_told(self, name, words):
        told = [p for p in self.q.check(name)["problems"]
                if p["code"] == "not-startable"]
        self.assertEqual(1, len(told))
        self.assertRegex(told[0]["message"], words)
        self.assertIn("--launcher", told[0]["hint"])

    def has_only_inplace(self, vm, words):
        name, had, pid = vm.name, spaces(vm.pid()), vm.pid()
        self.is_told(name, words)
        self.q("create", name, "one", "--memory")
        for way in (["--restore", "eager"], ["--restore", "mapped"]):
            self.q.fails("precondition", words, "revert", name, "one", *way)
            self.assertEqual("running", vm.state())
        for way in ([], ["--restore", "inplace"]):
            self.q("revert", name, "one", *way)
            self.assertEqual("running", vm.state())
        self.assertEqual((pid, had), (vm.pid(), spaces(vm.pid())))
        vm.quit()
        self.q.fails("precondition", words, "start", name)
        self.is_told(name, words)
        self.q("revert", name, "one", "--stopped")
        self.assertEqual("off", vm.state())

    def test_namespaces(self):
        for n, (words, told) in enumerate((
                (["unshare", "--net"], r"other namespaces \(net\)"),
                (["unshare", "--uts", "--ipc"],
                 r"other namespaces \(ipc, uts\)"),
                (MOUNTED, r"other namespaces \(mnt\)"),
                (["unshare", "--user", "--map-root-user"],
                 r"other namespaces \(user\)"))):
            with self.subTest(told):
                vm = self.confined(*words, name="vm%d" % n)
                self.has_only_inplace(vm, told)

    def test_a_namespace_of_processes(self):
        """As a container has it."""
        vm = self.confined("unshare", "--user", "--map-root-user", "--pid",
                           "--fork", "--mount", "--mount-proc")
        words = r"other namespaces \(user, pid, mnt\)"
        self.is_told("vm", words)
        self.q("create", "vm", "one", "--memory")
        self.q.fails("precondition", words, "revert", "vm", "one", "--restore",
                     "eager")
        self.q("revert", "vm", "one")
        self.assertEqual("running", vm.state())

    def test_a_launcher_sees_to_it(self):
        words = ["unshare", "--net"]
        vm = self.confined(*words, attach=False)
        self.attach(vm, *self.launcher(before=words))
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("create", "vm", "one", "--memory")
        had = vm.pid()
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertNotEqual(had, vm.pid())
        self.assertNotEqual(spaces("self")["net"], spaces(vm.pid())["net"])
        self.assertEqual(spaces("self")["mnt"], spaces(vm.pid())["mnt"])

    def keeps_its_rights(self, vm, ways=("eager", "mapped")):
        had, unlike = rights(vm.pid()), rights("self")
        self.assertNotEqual(had, unlike)
        self.assertEqual([], self.q.check(vm.name)["problems"])
        self.q("create", vm.name, "one", "--memory")
        for way in ways:
            old = vm.pid()
            self.q("revert", vm.name, "one", "--restore", way)
            self.assertNotEqual(old, vm.pid())
            self.assertEqual(had, rights(vm.pid()), way)
        vm.quit()
        self.q("start", vm.name)
        self.assertEqual(had, rights(vm.pid()))
        return had

    def within(self, words, *args, code=0):
        """A command of ours that these start."""
        p = subprocess.run([*words, *self.q.argv(args)],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, timeout=90)
        self.assertEqual(code, p.returncode, p.stdout + p.stderr)
        return p.stdout + p.stderr

    def container(self):
        """The words that run something in it, and what ends it."""
        p = subprocess.Popen(["unshare", "--mount", "--uts", "--ipc", "sh",
                              "-c", "mount -t tmpfs none /mnt && echo up && "
                              "exec sleep 300"], stdout=subprocess.PIPE)
        with p.stdout:
            if not p.stdout.readline():
                p.wait()
                self.skipTest("no mount namespace")

        def end():
            p.kill()
            p.wait()
        self.addCleanup(end)
        return ["nsenter", "-t", str(p.pid), "--mount", "--uts", "--ipc"], end

    def lives_behind(self, words, vm):
        """Commands of ours that start in the same way see nothing amiss."""
        self.within(words, "attach", vm.name, "--qmp", vm.qmp)
        self.assertNotIn("not-startable", self.within(words, "check", vm.name))
        self.within(words, "create", vm.name, "one", "--memory")
        old = vm.pid()
        self.within(words, "revert", vm.name, "one", "--restore", "eager")
        self.assertNotEqual(old, vm.pid())
        vm.quit()
        self.assertNotIn("not-startable", self.within(words, "check", vm.name))
        self.within(words, "start", vm.name)
        vm.quit()

    def test_a_container_that_is_started_again(self):
        """With us in it: its namespaces are others then, of other numbers."""
        words, end = self.container()
        vm = self.confined(*words, attach=False)
        self.lives_behind(words, vm)
        again, end_again = self.container()
        told = r"other namespaces \((mnt, )?ipc, uts\)"
        for elsewhere in (again, []):  # while the first one is there
            self.assertRegex(self.within(elsewhere, "start", "vm", code=6),
                             told)
        end()
        self.assertNotIn("not-startable", self.within(again, "check", "vm"))
        self.within(again, "revert", "vm", "one")
        self.assertEqual(os.readlink("/proc/%d/ns/ipc" % vm.pid()),
                         subprocess.check_output(
                             [*again, "readlink", "/proc/self/ns/ipc"],
                             text=True).strip())
        vm.quit()
        self.within(again, "start", "vm")
        vm.quit()
        end_again()  # where the host is it was never
        self.assertRegex(self.within([], "start", "vm", code=6), told)

    def test_a_mount_namespace_for_each_command(self):
        """Of the same mounts, as of ip-netns(8); of others it hinders."""
        words = ["unshare", "--mount"]
        vm = self.confined(*words, attach=False)
        self.lives_behind(words, vm)
        self.q("start", "vm")  # where they are the same, too
        self.assertIn("(mnt)", self.within(MOUNTED, "check", "vm", code=6))
        self.q("revert", "vm", "one", "--restore", "eager")

    def test_a_named_network(self):
        def ip(*words):
            p = subprocess.run(["ip", "netns", *words], stderr=subprocess.PIPE,
                               text=True)
            if p.returncode:
                self.skipTest(p.stderr)

        names = ["qstill%d.%d" % (os.getpid(), n) for n in range(2)]
        for name in names:
            ip("add", name)
            self.addCleanup(ip, "del", name)
        words = ["ip", "netns", "exec", names[0]]
        vm = self.confined(*words, attach=False)
        self.lives_behind(words, vm)
        for elsewhere in (["ip", "netns", "exec", names[1]], []):
            self.assertIn("(net)", self.within(elsewhere, "start", "vm",
                                               code=6))
        time.sleep(2.1)  # as old as QEMU, to a second
        for name in names:
            ip("del", name)
        for name in reversed(names):  # and has the number of the other
            ip("add", name)
        self.within(words, "revert", "vm", "one")
        self.assertEqual("running", vm.state())

    def nobodys_disk(self, name):
        disk = self.disk(vm=name, size=2 << 20, pattern=False)
        os.chown(disk.path, 65534, 65534)
        os.chmod(os.path.dirname(disk.path), 0o777)
        return disk

    def without(self, cap, *args):
        """A command of ours that lacks this capability."""
        return subprocess.run(
            ["setpriv", "--bounding-set=-" + cap, *self.q.argv(args)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, timeout=90)

    def forget(self, word):
        """What a record of before did not have of how QEMU was started."""
        record = os.path.join(self.store, "vm", "vm.json")
        with open(record) as f:
            told = json.load(f)
        had = told["launch"].pop(word, None)
        told.pop("sum", None)
        with open(record, "w") as f:
            json.dump(told, f)
        return had

    def test_what_root_has_given_up(self):
        for n, words in enumerate((
                ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"],
                ["--bounding-set=-sys_admin,-sys_ptrace"],
                ["--no-new-privs"])):
            with self.subTest(words):
                had = self.keeps_its_rights(
                    self.confined("setpriv", *words, name="vm%d" % n))
                self.assertIn(["NoNewPrivs:", "01"["--no-new-privs" in words]],
                              had)

    def test_what_another_user_may(self):
        """A service that may make its taps, say."""
        for n, words in enumerate((
                ["--inh-caps=+net_admin", "--ambient-caps=+net_admin",
                 "--bounding-set=-all,+net_admin"],
                ["--no-new-privs", "--bounding-set=-all"])):
            with self.subTest(words):
                name = "vm%d" % n
                had = self.keeps_its_rights(self.confined(
                    *NOBODY, *words, name=name,
                    disks=[self.nobodys_disk(name)]), ["eager"])
                self.assertEqual(n == 0, ["CapEff:", "0" * 12 + "1000"] in had)

    def test_groups(self):
        """Neither those of its user in /etc/group nor ours: a service's
        without any stays out of what these let in."""
        for n, (user, groups) in enumerate((
                ([], "4242,4243"), ([], ""), (NOBODY[1:3], "4242,65534"),
                (NOBODY[1:3], ""))):
            with self.subTest(user=user, groups=groups):
                name = "vm%d" % n
                had = self.keeps_its_rights(self.confined(
                    "setpriv", *user, "--groups=" + groups if groups
                    else "--clear-groups", "--bounding-set=-sys_admin",
                    name=name, disks=[self.nobodys_disk(name)]), ["eager"])
                self.assertIn(["Groups:"] + [g for g in groups.split(",") if g],
                              had)

    def test_groups_that_may_not_be_changed(self):
        """Nor does one start with ours."""
        vm = self.confined("setpriv", "--groups=4242")
        self.q("create", "vm", "one", "--memory")
        p = self.without("setgid", "revert", "vm", "one", "--restore",
                         "eager")
        self.assertEqual(6, p.returncode, p.stderr)
        self.assertIn("is in other groups", p.stderr)
        self.assertEqual("running", vm.state())
        vm.quit()
        p = self.without("setgid", "start", "vm")
        self.assertEqual(6, p.returncode, p.stderr)
        self.assertIn("is in other groups", p.stderr)
        self.q("start", "vm")
        self.assertIn(["Groups:", "4242"], rights(vm.pid()))

    def test_groups_of_a_record_of_before(self):
        """As it was: those of its user."""
        vm = self.confined("setpriv", "--groups=4242")
        vm.quit()
        self.assertEqual("4242", self.forget("groups"))
        p = self.without("setgid", "start", "vm")
        self.assertEqual(0, p.returncode, p.stderr)
        self.assertNotIn(["Groups:", "4242"], rights(vm.pid()))

    def test_a_sandbox_of_its_own(self):
        """QEMU makes its filter, and no_new_privs, itself."""
        self.keeps_its_rights(self.confined("env", extra=["-sandbox", "on"]))

    def test_a_sandbox_that_is_read_from_a_file(self):
        config = os.path.join(self.tmp, "sandbox.cfg")
        with open(config, "w") as f:
            f.write('[sandbox]\n  enable = "on"\n  spawn = "deny"\n')
        vm = self.confined("env", attach=False, extra=["-readconfig", config])
        self.attach(vm)
        had = rights(vm.pid())
        self.assertIn(["Seccomp_filters:", "1"], had)
        self.assertEqual([], [p for p in self.q.check("vm")["problems"]
                              if p["code"] == "not-startable"])
        vm.quit()
        self.q("start", "vm")
        self.assertEqual(had, rights(vm.pid()))
        vm.quit()
        with open(config, "w") as f:  # and is read again
            f.write('[sandbox]\n  enable = "off"\n')
        self.q.fails("precondition", "seccomp filter", "start", "vm")

    def behind_a_filter(self):
        """As a service's SystemCallFilter= has it."""
        program = os.path.join(self.tmp, "filter.py")
        with open(program, "w") as f:
            f.write(FILTER)
        return [sys.executable, program]

    def test_a_filter_from_outside(self):
        """Whatever -sandbox says: QEMU makes none but its own again."""
        for n, sandbox in enumerate((
                [], ["on"], ["no"], ["elevateprivileges=allow"],
                ["on,obsolete=deny,elevateprivileges=deny,spawn=deny"])):
            with self.subTest(sandbox):
                words = ["-sandbox", *sandbox] if sandbox else []
                vm = self.confined(*self.behind_a_filter(), name="vm%d" % n,
                                   extra=words)
                self.has_only_inplace(vm, "seccomp filter")

    def test_no_new_privs_without_a_sandbox(self):
        """The word alone makes none."""
        for n, sandbox in enumerate(("no", "elevateprivileges=allow", "on")):
            with self.subTest(sandbox):
                had = self.keeps_its_rights(self.confined(
                    "setpriv", "--no-new-privs", name="vm%d" % n,
                    extra=["-sandbox", sandbox]), ["eager"])
                self.assertIn(["NoNewPrivs:", "1"], had)

    def test_what_cannot_be_taken_away(self):
        """A qstill without the right to do it starts none that has more."""
        vm = self.confined("setpriv", "--bounding-set=-sys_admin")
        self.q("create", "vm", "one", "--memory")
        p = self.without("setpcap", "revert", "vm", "one", "--restore", "eager")
        self.assertEqual(6, p.returncode, p.stderr)
        self.assertIn("may not take them away", p.stderr)
        self.assertEqual("running", vm.state())
        self.q("revert", "vm", "one", "--restore", "eager")

    def test_a_record_of_before(self):
        """Nothing is known of the QEMU that has ended: it is started; of one
        that runs all is seen."""
        vm = self.confined("unshare", "--net")
        self.assertIn("apart=net", self.forget("confined"))
        self.is_told("vm", "namespaces")
        self.forget("confined")
        vm.quit()
        self.q("start", "vm")
        self.assertEqual(spaces("self"), spaces(vm.pid()))
