# SPDX-License-Identifier: MIT
"""Memory that comes back into RAM of another kind than it was taken from."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

from lib.case import QEMU_VERSION, Case
from lib.slowed import Slowed

MIB = 1 << 20
SIZE = 80 * MIB  # of smaller blocks zero pages are always loaded


# A seccomp filter under which dup3 (292) fails, and then what follows.
FILTER = """
import ctypes, os, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 292), (6, 0, 0, 0x50001),
        (6, 0, 0, 0x7fff0000)]
insns = b"".join(struct.pack("<HBBI", *i) for i in code)
room = ctypes.create_string_buffer(insns, len(insns))
prog = struct.pack("<H6xQ", len(code), ctypes.addressof(room))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, prog, 0, 0):
    sys.exit("no filter: %d" % ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"""


class OtherBackend(Case):
    """The VM's owner started it again with another memory backend."""
    cost = 5

    def argv(self, kind):
        return ["-m", "80M", "-object", "%s,id=ram0,size=80M" % kind]

    def started_again(self, vm, kind):
        heads = vm.heads()
        vm.quit()
        for d in vm.disks:
            d.path = heads.get(d.id + "-dev") or heads[d.id]
            d.fmt = "qcow2"
        vm.extra = self.argv(kind)
        vm.start()

    def ram_of(self, name):
        made = self.q.info("vm", name)["id"]
        with open(os.path.join(self.q.memory_dir("vm", made),
                               "ram0.ram"), "rb") as f:
            return f.read()

    def check(self, *way):
        """Every page that is zero in the snapshot is full in the file."""
        path = os.path.join(self.tmp, "guest.ram")
        with open(path, "wb") as f:
            f.write(b"\xa5" * SIZE)
        vm = self.tiny_vm(machine="pc,memory-backend=ram0",
                          extra=self.argv("memory-backend-ram"))
        self.q("create", "vm", "one", "--memory")
        self.started_again(
            vm, "memory-backend-file,share=on,mem-path=%s" % path)
        self.q("revert", "vm", "one", "--paused", *way)
        self.q("create", "vm", "two", "--memory", "--mode", "paused")
        one, two = self.ram_of("one"), self.ram_of("two")
        wrong = [at for at in range(0, SIZE, 4096)
                 if one[at:at + 4096] != two[at:at + 4096]]
        self.assertEqual([], [hex(at) for at in wrong[:4]],
                         "%d pages are not the snapshot's" % len(wrong))
        self.cont(vm)

    def test_a_file_where_there_was_anonymous_memory(self):
        self.check("--restore", "eager")

    def test_the_same_with_auto(self):
        self.check()


class MappedFile(Case):
    """No QEMU that maps a snapshot's RAM can write to its file: a balloon, say,
    would have it punch holes there."""
    limit = 180
    cost = 30

    def opened(self, vm):
        """How it has the saved files open: a set of access modes."""
        folder, modes = "/proc/%d/" % vm.pid(), []
        for fd in os.listdir(folder + "fd"):
            if os.readlink(folder + "fd/" + fd).endswith(".ram"):
                with open(folder + "fdinfo/" + fd) as f:
                    flags = re.search(r"flags:\s+(\d+)", f.read()).group(1)
                modes.append(int(flags, 8) & os.O_ACCMODE)
        return modes

    def the_log_stays_short(self, vm):
        """QEMU has a line for each page that the balloon would give back."""
        log = os.path.join(self.store, "vm", "qemu.log")
        with open(log, "ab") as f:
            said = f.tell()
            f.write((b"x" * 1023 + b"\n") * (20 << 10) + b"the last one\n")
        self.assertGreater(said, 0, "QEMU has no such line any more")
        self.q("create", "vm", "disks")
        self.q("delete", "vm", "disks")
        self.assertLess(os.stat(log).st_blocks * 512, 3 * MIB)
        with open(log, "rb") as f:  # QEMU may be at it still
            f.seek(max(0, os.stat(log).st_size - 2 * MIB))
            self.assertIn(b"x\nthe last one\n", f.read())
        # and QEMU goes on at its end
        self.balloon(vm, vm.mib)
        size = os.stat(log).st_size
        self.balloon(vm, vm.mib - 32)
        with open(log, "rb") as f:
            f.seek(size)
            self.assertIn(b"qemu-system", f.read(200))

    def balloon(self, vm, mib):
        """Until the guest has come within 16 MiB of it."""
        deadline = time.monotonic() + 60
        with vm.monitor() as m:
            m.cmd("balloon", value=mib << 20)
            while abs(m.cmd("query-balloon")["actual"] - (mib << 20)) > \
                    15 << 20:
                self.assertLess(time.monotonic(), deadline, "no balloon")
                time.sleep(0.1)

    def test_a_balloon_that_is_plugged_in_later(self):
        vm = self.running_vm(append="JUNK=64 DIRTY=1")
        vm.serial.wait("JUNK-READY")
        self.q("create", "vm", "one", "--memory")
        self.q("revert", "vm", "one", "--restore", "mapped")
        self.assertEqual([os.O_RDONLY], self.opened(vm))
        vm.cmd("device_add", driver="virtio-balloon-pci", id="late")
        self.balloon(vm, vm.mib - 32)
        self.q.check("vm")
        self.assertRegex(self.q.stderr, "balloon.* gives nothing back of map")
        self.the_log_stays_short(vm)
        self.q("verify", "vm", "one")
        self.goes_on(vm)
        since = vm.serial.mark()
        vm.serial.wait(r"junk pass=\d+ bad=0", since)
        self.assertEqual([], vm.serial.wrong(since))

    def test_a_balloon_of_a_file_of_options(self):
        """And a VM that was off, whose QEMU nobody could ask."""
        options = os.path.join(self.tmp, "options")
        with open(options, "w") as f:
            f.write('[device "b0"]\n  driver = "virtio-balloon-pci"\n')
        vm = self.tiny_vm(machine="pc,memory-backend=ram0", extra=[
            "-object", "memory-backend-ram,id=ram0,size=8M",
            "-readconfig", options])
        self.q("create", "vm", "one", "--memory")
        for off in False, True:
            with self.subTest(off=off):
                if off:
                    vm.quit()
                self.q("revert", "vm", "one", "--restore", "mapped")
                self.assertEqual([os.O_RDONLY], self.opened(vm))
                self.q("verify", "vm", "one")

    def test_a_process_that_cannot_be_changed(self):
        strace = shutil.which("strace")
        if not strace:
            self.skipTest("no strace")
        vm = self.tiny_vm(attach=False)
        self.attach(vm, *self.launcher([strace, "-f", "-qq", "-o", "/dev/null",
                                        "-e", "trace=none"]))
        self.q("create", "vm", "one", "--memory")
        vm.quit()
        self.q.fails("precondition", "kept safe .* is traced by", "revert",
                     "vm", "one", "--restore", "mapped")
        self.assertEqual("off", vm.state())
        said = self.q("revert", "vm", "one")
        self.assertEqual("eager", said["restore"])
        self.assertIn("restore mapped not taken: the saved RAM cannot",
                      self.q.stderr)
        self.assertEqual([], self.opened(vm))
        # of one that runs it is known before
        if QEMU_VERSION == "7.2":
            self.not_mapped(vm, "kept safe .* is traced by")

    def not_mapped(self, vm, says):
        """Nor is anything stopped for that; `auto` takes another way."""
        pid = vm.pid()
        for more in (), ("--dry-run",):
            with self.nothing_changes(vm):
                self.q.fails("precondition", "restore mapped cannot be used: "
                             ".*" + says, "revert", "vm", "one", "--restore",
                             "mapped", *more)
        self.assertEqual(pid, vm.pid())

    def test_one_that_a_filter_guards(self):
        """A QEMU in which no descriptor can be replaced."""
        if QEMU_VERSION != "7.2":
            self.skipTest("this QEMU opens the files to read them only")
        words = [shutil.which("python3"), "-c", FILTER]
        vm = self.tiny_vm(attach=False, qemu=self.behind(*words))
        self.attach(vm, *self.launcher(words))
        self.q("create", "vm", "one", "--memory")
        self.not_mapped(vm, "kept safe .*filter")

    def test_a_file_that_cannot_be_opened_as_qemu_does(self):
        vm = self.tiny_vm()
        made = self.q("create", "vm", "one", "--memory")
        path = os.path.join(self.q.memory_dir("vm", made["id"]), "pc.ram.ram")
        if subprocess.run(["chattr", "+i", path], check=False,
                          stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("no immutable files here")
        if QEMU_VERSION == "7.2":
            self.not_mapped(vm, "opening .*pc.ram.ram as QEMU does")
            # another device than the snapshot's, so not in place
            vm.cmd("device_add", driver="virtio-rng-pci", id="n1")
            said = self.q("revert", "vm", "one")
            self.assertEqual("eager", said["restore"])
            self.assertRegex(self.q.stderr, "mapped not taken: opening ")
        else:
            self.q("revert", "vm", "one", "--restore", "mapped")


class OfFile(Case):
    """A VM with an nvdimm of a file, which is a disk for the guest."""
    cost = 10
    mib = 16

    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.tmp, "nv")
        self.fill(b"then")
        self.vm = self.tiny_vm(machine="pc,nvdimm=on", extra=[
            "-m", "8M,slots=4,maxmem=1G", "-object", "memory-backend-file,"
            "id=n0,size=%dM,share=on,mem-path=%s" % (self.mib, self.path),
            "-device", "nvdimm,id=nv0,memdev=n0"])
        self.made = self.q("create", "vm", "one", "--memory")
        self.fill(b"now!")
        self.damaged_on_purpose |= {"vm"}

    def fill(self, word):
        with open(self.path, "r+b" if os.path.exists(self.path) else "wb") as f:
            f.write(word * (self.mib * MIB // len(word)))

    def words(self):
        with open(self.path, "rb") as f:
            data = f.read()
        return {data[at:at + 4] for at in range(0, len(data), 4096)}


class Nvdimm(OfFile):
    """A revert that finds a damaged page leaves it as it is."""

    def damaged(self, block):
        with open(os.path.join(self.q.memory_dir("vm", self.made["id"]),
                               block + ".ram"), "r+b") as f:
            f.seek(-100, os.SEEK_END)
            f.write(b"X")

    def test_a_damaged_page_of_it(self):
        self.damaged("n0")
        pid = self.vm.pid()
        self.q.fails("corrupt", "n0.ram", "revert", "vm", "one", "--restore",
                     "eager")
        self.assertEqual(pid, self.vm.pid())
        self.assertEqual({b"now!"}, self.words())
        self.vm.quit()
        self.q.fails("corrupt", "n0.ram", "revert", "vm", "one")
        self.assertEqual({b"now!"}, self.words())

    def test_a_damaged_page_of_other_memory(self):
        self.damaged("pc.ram")
        pid = self.vm.pid()
        self.q.fails("corrupt", "pc.ram.ram", "revert", "vm", "one",
                     "--restore", "eager")
        self.assertEqual(pid, self.vm.pid())
        self.assertEqual({b"now!"}, self.words())

    def test_a_good_one_is_brought_back(self):
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertEqual({b"then"}, self.words())


class BrokenOff(OfFile):
    """The loading ends in the middle for another reason."""
    mib = 256

    def killed_while_it_loads(self):
        """The exit status, and what was said."""
        old = self.vm.pid()
        p = self.q.start("revert", "vm", "one", "--restore", "eager")
        deadline = time.monotonic() + 60
        with open(self.path, "rb", buffering=0) as f:
            while os.pread(f.fileno(), 4, 0) == b"now!":
                self.assertLess(time.monotonic(), deadline)
        new = self.vm.pid()
        self.assertNotEqual(old, new)
        os.kill(new, signal.SIGKILL)
        status, _, err = self.q.finish(p)
        return status, err

    def test_it_is_told_that_the_file_is_mixed(self):
        for _ in range(8):
            status, err = self.killed_while_it_loads()
            if len(self.words()) > 1:
                break
            if self.vm.state() == "off":  # it was loaded before we looked
                self.q("start", "vm")
            self.fill(b"now!")
        self.assertEqual(1, status, err)
        self.assertRegex(err, "n0, may be a part of the snapshot.* revert vm one ")
        self.assertEqual({b"then", b"now!"}, self.words())
        self.assertEqual("running", self.vm.state())

    def test_ourselves_killed_while_it_loads(self):
        """Whoever comes next names the file, and what makes it whole."""
        for more in ((), ("--keep",)):
            with self.subTest(more=more):
                for _ in range(8):
                    self.fill(b"now!")
                    p = self.q.start("revert", "vm", "one", "--restore",
                                     "eager", *more)
                    with open(self.path, "rb", buffering=0) as f:
                        while os.pread(f.fileno(), 4, 0) == b"now!" and \
                                p.poll() is None:
                            pass
                    os.kill(p.pid, signal.SIGKILL)
                    self.q.finish(p)
                    if len(self.words()) > 1:
                        break
                self.assertEqual({b"then", b"now!"}, self.words())
                for argv in (("--dry-run",), ()):
                    said = json.dumps(self.q("recover", "vm", *argv))
                    self.assertRegex(said, self.path + ", the file .* n0, may "
                                     "be a part .* makes it whole")
                self.assertRegex(self.q.stderr, self.path + ", the file .* n0, "
                                 "may be .*revert vm one .*makes it whole" +
                                 (".*kept-.* has what" if more else ""))
                self.assertEqual("running", self.vm.state())
                self.assertEqual({b"then", b"now!"}, self.words())
                self.q("revert", "vm", "one", "--restore", "eager")
                self.assertEqual({b"then"}, self.words())


class InPlace(OfFile):
    """Written to by a revert in the running process, which ends in the middle:
    what was there is kept, and put back."""
    cost = 20

    def setUp(self):
        super().setUp()
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")

    def mixed(self):
        """A revert that has come half way."""
        slow = Slowed(os.path.join(self.tmp, "strace"), 15, *self.q.argv(
            ["revert", "vm", "one", "--restore", "inplace"]))
        self.addCleanup(slow.process.stdout.close)
        self.addCleanup(slow.process.stderr.close)
        deadline = time.monotonic() + 60
        while len(self.words()) < 2:
            self.assertLess(time.monotonic(), deadline)
            self.assertIsNone(slow.process.poll())
        self.old = self.vm.pid()
        return slow

    def test_it_is_taken_back(self):
        slow = self.mixed()
        slow.end(signal.SIGKILL)
        self.q("recover", "vm")
        self.assertEqual(self.old, self.vm.pid())
        self.assertEqual({b"now!"}, self.words())

    def test_the_same_with_qemu_killed_as_well(self):
        slow = self.mixed()
        slow.end(signal.SIGKILL)
        self.vm.end()
        said = json.dumps(self.q("recover", "vm"))
        self.assertIn("bring %s, the file of" % self.path, said)
        self.assertIn("pages of an nvdimm are what they were", self.q.stderr)
        self.assertNotIn("may be a part", said + self.q.stderr)
        self.assertEqual({b"now!"}, self.words())
        self.assertEqual("running", self.vm.state())

    def test_what_somebody_has_written_since_is_left(self):
        slow = self.mixed()
        slow.end(signal.SIGKILL)
        self.vm.end()
        with open(self.path, "rb") as f:
            at = next(n for n in range(0, self.mib * MIB, 4096)
                      if os.pread(f.fileno(), 4, n) == b"then")
        with open(self.path, "r+b") as f:
            f.seek(at)
            f.write(b"mine")
        self.q("recover", "vm")
        self.assertRegex(self.q.stderr, "n0, may be a part of the snapshot")
        self.assertEqual({b"now!", b"mine"}, self.words())

    def test_qemu_killed_alone(self):
        slow = self.mixed()
        os.kill(self.old, signal.SIGKILL)
        _, err = slow.process.communicate(timeout=100)
        self.assertEqual(0, slow.process.returncode, err)
        self.assertNotEqual(self.old, self.vm.pid())
        self.assertEqual({b"then"}, self.words())


class LeftOut(OfFile):
    """It is named where it does not come back with the rest."""

    def test_each_verb_says_it(self):
        says = "nvdimm memory n0 \\(%s\\) " % self.path
        self.q("create", "vm", "two")
        self.assertRegex(self.q.stderr, says + "belongs to no snapshot")
        self.q.check("vm")
        self.assertRegex(self.q.stderr, says + "belongs to no snapshot")
        for argv in (("two",), ("one", "--stopped")):
            self.q("revert", "vm", *argv)
            self.assertRegex(self.q.stderr, says + "is not brought back")
            self.assertEqual({b"now!"}, self.words())
        self.q("undo", "vm")
        self.assertRegex(self.q.stderr, says + "is not taken back")
        self.q("revert", "vm", "two")  # of a VM that is off
        self.assertRegex(self.q.stderr, says + "is not brought back")
        self.q("revert", "vm", "one")
        self.assertNotIn("nvdimm", self.q.stderr)
        self.assertEqual({b"then"}, self.words())
