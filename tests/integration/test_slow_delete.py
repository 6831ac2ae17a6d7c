# SPDX-License-Identifier: MIT
"""A delete that takes long: its limit is kept, it says how far it is, it can be
cancelled, and what --paranoid is for is found."""

import os
import re
import signal
import subprocess
import time

from lib import image
from lib.case import Case
from lib.slowed import Slowed, l2_table

MIB = 1 << 20
DATA = 24  # MiB that a merge has to move
LIMIT = 4  # MiB a second


class Deletes(Case):
    """What the tests share: a disk with three snapshots."""

    def make(self, root, middle, leaf, head):
        """Each is the place and the size of a write, in MiB."""
        self.vm = self.tiny_vm(disks=[
            self.disk("disk0", "qcow2", size=64 * MIB, pattern=False)])
        self.want = {}
        for i, (name, part) in enumerate((("root", root), ("middle", middle),
                                          ("leaf", leaf))):
            self.write(part[0], 1 + i, part[1])
            self.q("create", "vm", name)
            self.want[name] = self.digest(name)
        self.write(head[0], 9, head[1])
        self.head = self.head_digest()

    def write(self, at, byte, size=DATA):
        """A part of its own, and one over the others'."""
        disk, = self.vm.disks
        self.vm.io(disk, "write -q -P %d %d %d" % (
            byte, at * MIB, size * MIB))
        self.vm.io(disk, "flush")

    def digest(self, name):
        (path, fmt), = self.frozen(self.vm, name).values()
        return image.digest(path, fmt)

    def head_digest(self):
        path, = self.head_paths(self.vm)
        return image.digest(path, "qcow2")

    def is_whole(self, *names):
        self.assertEqual(sorted(names), sorted(self.q.names("vm")))
        for name in names:
            self.assertEqual(self.want[name], self.digest(name), name)
        self.assertEqual(self.head, self.head_digest())

    def in_the_middle(self, *argv):
        """Started with the limit; returns when it has begun to merge."""
        process = self.q.start("delete", "vm", *argv, "--bwlimit",
                               "%dM" % LIMIT)
        self.q.wait_journal("vm", process)
        time.sleep(1.2)
        self.assertIsNone(process.poll(), "it was too fast")
        return process


class Slow(Deletes):
    either = True
    cost = 30

    def setUp(self):
        super().setUp()
        self.make((0, DATA), (1, DATA), (2, DATA), (3, DATA))

    def cancelled(self, *argv, stay):
        begun = time.monotonic()
        process = self.in_the_middle(*argv)
        process.send_signal(signal.SIGINT)
        status, out, err = self.q.finish(process, 20)
        self.assertLess(time.monotonic() - begun, 0.8 * DATA / LIMIT,
                        "it went on")
        failure = self.q.failed("cancelled", "cancelled", ["delete"], status,
                                out, err)
        self.assertIn("qstill recover vm", failure.hint)
        self.assertRegex(err, r"merge.*\d+% .*MiB of")
        self.assertFalse(os.path.exists(self.q.journal_path("vm")))
        self.is_whole(*stay)
        if self.vm.alive():
            self.assertEqual("running", self.vm.state())
            self.assertEqual([], self.vm.block_jobs())
        self.assertTrue(self.q.check("vm")["ok"])
        # others can be made and taken before it is finished
        self.q("create", "vm", "new")
        self.want["new"] = self.digest("new")
        self.head = self.head_digest()
        self.is_whole(*stay, "new")
        self.q("recover", "vm")
        self.is_whole(*stay, "new")
        self.check_nothing_left(self.vm)

    def test_cancelled_while_a_new_file_is_made(self):
        self.cancelled("middle", stay=("root", "leaf"))

    def test_cancelled_while_qemu_works(self):
        self.cancelled("leaf", stay=("root", "middle"))

    def two_more(self):
        """Whichever takes the other in, all of that has to be moved."""
        self.vm.quit()
        for i, name in enumerate(("one", "two")):
            path, = self.head_paths(self.vm)
            image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %d %d" % (
                30 + i, 32 * i * MIB, DATA * MIB), path)
            self.q("create", "vm", name)
            self.want[name] = self.digest(name)
        self.head = self.head_digest()

    def test_cancelled_while_the_vm_is_off(self):
        self.two_more()
        self.cancelled("one", stay=("root", "middle", "leaf", "two"))

    def test_an_image_that_is_put_on_a_layer_meanwhile(self):
        """By its header alone: no name in its folder changes."""
        self.two_more()
        (layer, _), = self.frozen(self.vm, "one").values()
        other = os.path.join(os.path.dirname(layer), "other")
        image.run("qemu-img", "create", "-q", "-f", "qcow2", other, "64M")
        time.sleep(3)  # what is older than that is not read again
        process = self.in_the_middle("one")
        image.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2",
                  "-b", layer, other)
        status, out, err = self.q.finish(process, 60)
        self.assertEqual(self.want["one"], image.digest(other, "qcow2"),
                         out + err)
        self.assertEqual(0, status, err)
        self.assertRegex(err, re.escape(layer) + " stays.*" + re.escape(other))
        self.is_whole("root", "middle", "leaf", "two")
        os.unlink(other)
        self.q("recover", "vm")
        self.assertFalse(os.path.exists(layer))
        self.is_whole("root", "middle", "leaf", "two")

    def test_killed_while_qemu_works(self):
        process = self.in_the_middle("leaf")
        process.kill()
        self.q.finish(process)
        self.q("recover", "vm")
        self.is_whole("root", "middle")
        self.check_nothing_left(self.vm)

    def test_the_limit_is_kept(self):
        plan = " ".join(self.q("delete", "vm", "middle", "--dry-run")["plan"])
        moved = int(re.search(r"all: moves (\d+) bytes", plan).group(1))
        self.assertGreater(moved, DATA * MIB)
        begun = time.monotonic()
        self.q("delete", "vm", "middle", "--bwlimit", "%dM" % (2 * LIMIT))
        took = time.monotonic() - begun
        self.assertGreater(took, 0.4 * moved / MIB / LIMIT)
        self.assertLess(took, 2 + 0.8 * moved / MIB / LIMIT)
        self.is_whole("root", "leaf")

    def test_paranoid_finds_what_changes_meanwhile(self):
        """root stays, and somebody writes into its layer."""
        (path, _), = self.frozen(self.vm, "root").values()
        process = self.in_the_middle("middle", "--paranoid")
        self.unprotect(path)
        with open(path, "r+b") as f:
            data = f.read()
            f.seek(data.index(b"\1" * 65536))
            f.write(b"\2" * 512)
        status, out, err = self.q.finish(process, 60)
        self.q.failed("corrupt", "root|leaf", ["delete"], status, out, err)
        self.damaged_on_purpose.add("vm")


class LeftToTheNext(Deletes):
    """A fold that a killed delete of a VM that is off has left, whichever
    command finds it."""
    either = True
    cost = 20

    def setUp(self):
        super().setUp()
        self.make((0, 48), (40, DATA), (36, 8), (34, 4))
        self.vm.quit()
        process = self.in_the_middle("root")
        process.kill()
        self.q.finish(process)
        self.assertTrue(self.is_left())

    def is_left(self):
        return ".merge" in os.listdir(
            os.path.dirname(self.q.journal_path("vm")))

    def is_over(self, *names):
        self.is_whole(*names)
        self.assertFalse(self.is_left())
        self.check_nothing_left(self.vm)

    def test_a_delete_of_another_can_be_cancelled(self):
        process = self.q.start("delete", "vm", "leaf", "--bwlimit",
                               "%dM" % LIMIT)
        time.sleep(1)
        self.assertIsNone(process.poll(), "it was too fast")
        process.send_signal(signal.SIGINT)
        status, out, err = self.q.finish(process, 3)
        self.q.failed("cancelled", "cancelled", ["delete"], status, out, err)
        self.is_whole("middle", "leaf")
        self.q("recover", "vm")
        self.is_over("middle", "leaf")

    def test_recover_can_be_cancelled(self):
        slow = Slowed(os.path.join(self.tmp, "log"), 50, *self.q.argv(
            ("recover", "vm")))
        slow.wait(lambda _, n, at: n >= 128 << 10)
        status, out, err = slow.end(signal.SIGINT)
        self.q.failed("cancelled", "cancelled", ["recover"], status, out, err)
        self.assertIn("merge", " ".join(
            self.q("recover", "vm", "--dry-run")["actions"]), "it went on")
        self.is_whole("middle", "leaf")
        self.q("revert", "vm", "leaf", "--stopped")
        self.head = self.head_digest()
        self.is_whole("middle", "leaf")

    def test_the_limit_is_kept_and_progress_shown(self):
        begun = time.monotonic()
        process = self.q.start("delete", "vm", "leaf", "--bwlimit",
                               "%dM" % LIMIT)
        status, out, err = self.q.finish(process, 60)
        self.assertEqual(0, status, err)
        self.assertGreater(time.monotonic() - begun, 0.8 * DATA / LIMIT)
        self.assertRegex(err, r"delete.*\d+% .*MiB of")
        self.is_over("middle")


class StillReading(Case):
    either = True
    cost = 10

    def test_cancelled_while_tables_are_read(self):
        """A merge of many layers reads all their tables first."""
        vm = self.tiny_vm(disks=[self.disk(size=64 * MIB, pattern=False)])
        disk, = vm.disks
        names = ["s%d" % i for i in range(8)]
        for i, name in enumerate(names):
            vm.io(disk, "write -q -P %d %dM 1M" % (i + 1, i))
            vm.io(disk, "flush")
            self.q("create", "vm", name)
        vm.quit()
        head, = self.head_paths(vm)
        content = image.digest(head, "qcow2")
        tables = {p: l2_table(p) for p in image.chain(head)[1:]}
        slowed = Slowed(os.path.join(self.tmp, "reads"), 40, *self.q.argv(
            ["delete", "vm", *names[1:-1]]))
        self.addCleanup(slowed.process.kill)
        slowed.wait(lambda p, n, at: tables.get(p) == at)
        status, out, err = slowed.end(signal.SIGINT)
        failure = self.q.failed("cancelled", "cancelled", ["delete"], status,
                                out, err)
        self.assertIn("qstill recover vm", failure.hint)
        read = [p for p, _, at in slowed.reads() if tables.get(p) == at]
        self.assertLess(len(read), len(tables) // 2)
        self.assertEqual(len(tables) + 1, len(image.chain(head)))
        self.assertEqual(content, image.digest(head, "qcow2"))
        self.q("recover", "vm")
        self.assertEqual(["s0", "s7"], self.q.names("vm"))
        head, = self.head_paths(vm)
        self.assertEqual(3, len(image.chain(head)))
        self.assertEqual(content, image.digest(head, "qcow2"))
        self.check_nothing_left(vm)


class BrokenFold(Deletes):
    """Of a layer into the disk's first image, which is much larger."""
    either = True
    cost = 15

    def setUp(self):
        super().setUp()
        self.make((0, 48), (40, DATA), (36, 8), (34, 4))

    def shares_blocks(self):
        """Then nothing is written over, and nothing torn."""
        path = os.path.join(self.tmp, "probe")
        with open(path, "wb") as f:
            f.write(bytes(1 << 16))
        return subprocess.run(
            ["cp", "--reflink=always", path, path + ".shared"],
            stderr=subprocess.DEVNULL).returncode == 0

    def test_it_stands_below_a_vm_that_runs(self):
        """The disk's first image is torn: QEMU reads what the layers above
        mask, never writes to it, and it is whole when the VM was off."""
        first = self.vm.disks[0].path
        self.vm.quit()
        process = self.in_the_middle("root")
        process.send_signal(signal.SIGINT)
        self.q.finish(process, 20)
        self.is_whole("middle", "leaf")
        info = image.info(first, "qcow2")["format-specific"]["data"]
        if self.shares_blocks():
            self.skipTest("blocks are shared here")
        self.assertTrue(info["corrupt"])
        self.q("start", "vm")
        self.is_whole("middle", "leaf")
        self.q("delete", "vm", "leaf")
        self.q("delete", "vm", "middle")
        self.is_whole()
        self.assertNotIn(first, self.vm.heads().values())
        self.write(2, 7)
        self.head = self.head_digest()
        self.vm.quit()
        self.q("recover", "vm")
        self.is_whole()
        self.assertEqual([first], self.head_paths(self.vm))
        self.q("start", "vm")
        self.write(1, 8)
        self.check_nothing_left(self.vm)


class Booted(Deletes):
    """A fold into a raw first image has no way back, and no mark in it."""

    either = True

    def boot(self, place):
        """As after a boot at which others came first."""
        made = os.path.join(self.tmp, "ext4")
        was = os.stat(place).st_dev
        for i in range(5):
            subprocess.run(["umount", place], check=True)
            aside = os.path.join(self.tmp, "aside%d" % i)
            os.mkdir(aside)
            subprocess.run(["cp", "--sparse=always", made, aside + ".img"],
                           check=True)
            for argv in ((aside + ".img", aside), (made, place)):
                subprocess.run(["mount", "-o", "loop", *argv], check=True)
            self.addCleanup(subprocess.run, ["umount", "-l", aside])
            if os.stat(place).st_dev != was:
                return
        self.fail("the device's number stays")

    def test_the_device_has_another_number_after_a_boot(self):
        place = os.path.join(self.tmp, "vm")
        self.mount_ext4(place, "400M")
        self.vm = vm = self.tiny_vm(disks=[self.disk(
            "disk0", "raw", size=64 * MIB, pattern=False)])
        self.write(0, 1, 32)
        self.q("create", "vm", "one")
        self.write(8, 2)
        self.q("create", "vm", "two")
        vm.quit()
        self.want, self.head = {"two": self.digest("two")}, self.head_digest()
        process = self.in_the_middle("one")
        process.kill()
        process.wait()
        self.boot(place)
        self.q("recover", "vm")
        self.is_whole("two")
        self.q("start", "vm")
        self.check_nothing_left(vm)
