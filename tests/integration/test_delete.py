# SPDX-License-Identifier: MIT
"""delete: what is left reads as before, what is deleted is gone, and a
deleted half does not exist."""

import itertools
import json
import os
import resource
import subprocess
import time

from lib import image
from lib.case import QUICK, Case, Disk
from lib.tiny import content


class DeleteCase(Case):
    cost = 40
    limit = 180

    def take(self, vm, name, memory=False):
        """A snapshot; then the guest writes on. Remembers what its disks
        hold."""
        argv = ["--memory", "--mode", "paused"] if memory else []
        made = self.q("create", vm.name, name, *argv)
        self.content = getattr(self, "content", {})
        self.content[name] = [image.digest(p, f) for p, f in
                              self.frozen(vm, name).values()]
        self.goes_on(vm, count=2)
        return made

    def holds(self, vm, *names):
        """These snapshots are all there are, and hold what they held."""
        self.assertEqual(list(names), self.q.names(vm.name))
        for name in names:
            self.assertEqual(self.content[name],
                             [image.digest(p, f) for p, f in
                              self.frozen(vm, name).values()], name)
        for path in self.head_paths(vm):
            for layer in image.chain(path):
                if layer.endswith(".qcow2"):
                    image.check(layer)

    def gone(self, paths):
        for path in paths:
            self.assertFalse(os.path.exists(path), path)


class Delete(DeleteCase):
    dealt = True
    cost = 60

    def test_a_chain_of_a_running_vm_from_the_middle(self):
        vm = self.running_vm(style="blockdev",
                             disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        nonce = vm.serial.ticks()[0].nonce
        for name in ("a", "b", "c", "d"):
            made = self.take(vm, name, memory=name in "bd")
        files = len(self.disk_files(vm))
        self.assertEqual(2 * 5, files)
        parents = {s["name"]: s["parentId"] for s in self.q.snapshots("vm")}
        b = self.q.info("vm", "b")["id"]
        self.q("delete", "vm", "b")
        self.holds(vm, "a", "c", "d")
        self.assertEqual(parents["b"], self.q.info("vm", "c")["parentId"])
        self.gone([os.path.join(self.store, "vm", "snapshots", b)])
        self.assertEqual(files - 2, len(self.disk_files(vm)))
        self.goes_on(vm)
        self.check_nothing_left(vm)

        with self.subTest("the root: the first image takes its layer in"):
            self.q("delete", "vm", "a")
            self.holds(vm, "c", "d")
            self.assertIsNone(self.q.info("vm", "c")["parentId"])
            self.check_nothing_left(vm)
        with self.subTest("the active one"):
            self.assertTrue(self.q.info("vm", "d")["current"])
            self.q("delete", "vm", "d")
            self.holds(vm, "c")
            self.assertEqual(self.q.info("vm", "c")["id"],
                             self.q("list", "vm")["current"])
            self.goes_on(vm)
            self.check_nothing_left(vm)
        with self.subTest("the last: no overlay is left"):
            self.q("delete", "vm", "c")
            self.holds(vm)
            self.assertIsNone(self.q("list", "vm")["current"])
            self.assertEqual(2, len(self.disk_files(vm)))
        self.assertEqual(nonce, self.goes_on(vm)[-1].nonce)
        self.assertNotIn(made["id"], os.listdir(
            os.path.join(self.store, "vm", "snapshots")))

    def test_what_the_guest_writes_meanwhile_is_not_lost(self):
        """SYNC reads its rings back all the time: a lost write shows."""
        vm = self.running_vm(style="drive", append="SYNC=vda,vdb SYNCMS=2",
                             disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        self.sync_address(vm)
        for i in range(2):
            self.take(vm, "a%d" % i)
            self.take(vm, "b%d" % i)
            since = vm.serial.mark()
            self.q("delete", "vm", "a%d" % i)
            self.q("delete", "vm", "b%d" % i)
            vm.serial.wait(r"sync count=\d+ bad=0", since)
            self.assertEqual([], vm.serial.wrong())
        self.assertEqual([], self.q.names("vm"))
        self.assertEqual(2, len(self.disk_files(vm)))

    def test_several_at_once_and_with_children(self):
        vm = self.shared(self.running_vm)
        for name in ("a", "b", "c", "d"):
            self.take(vm, name)
        self.q("delete", "vm", "b", "c")
        self.holds(vm, "a", "d")
        self.check_nothing_left(vm)
        self.q("delete", "vm", "a", "--children")
        self.holds(vm)
        self.goes_on(vm)

    def test_a_branch_that_is_not_in_use(self):
        vm = self.shared(self.running_vm)
        self.take(vm, "a", memory=True)
        self.take(vm, "b", memory=True)
        nonce = vm.serial.ticks()[-1].nonce
        self.q("revert", "vm", "a")
        self.goes_on(vm)
        self.take(vm, "c")
        self.q("delete", "vm", "b")
        self.holds(vm, "a", "c")
        self.check_nothing_left(vm)
        self.assertEqual(nonce, self.goes_on(vm)[-1].nonce)

    def test_a_paused_vm(self):
        vm = self.shared(self.running_vm)
        self.take(vm, "a")
        self.take(vm, "b")
        self.pause(vm)
        self.q("delete", "vm", "a")
        self.holds(vm, "b")
        self.stands_still(vm)
        self.q("delete", "vm", "b")
        self.holds(vm)
        self.stands_still(vm)
        self.cont(vm)
        self.goes_on(vm)

    def test_after_a_deletion_the_others_can_be_reverted_to(self):
        vm = self.shared(self.running_vm)
        nonce = vm.serial.ticks()[-1].nonce
        self.take(vm, "a", memory=True)
        self.take(vm, "b", memory=True)
        self.take(vm, "c", memory=True)
        self.q("delete", "vm", "b")
        for name in ("c", "a"):
            with self.subTest(to=name):
                tick = self.snapshot_ticks(vm, name)[0]
                since = vm.serial.mark()
                self.q("revert", "vm", name)
                self.goes_on_from(vm, tick, nonce, since)

    def test_after_a_revert_in_place_and_a_deletion_all_goes_on(self):
        """QEMU lets go of the heads that the revert had opened."""
        vm = self.running_vm(disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        for name in ("a", "b"):
            self.take(vm, name, memory=True)
            self.q("revert", "vm", name, "--restore", "inplace")
            self.q("delete", "vm", name)
            self.assertEqual({d.path for d in vm.disks},
                             {n["file"] for n in
                              vm.cmd("query-named-block-nodes")})
            self.check_nothing_left(vm)
        self.goes_on(vm)

    def test_killed_in_the_middle_it_is_whole_or_gone(self):
        vm = self.running_vm(append="SYNC=vda,vdb SYNCMS=2",
                             disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        for i in range(4 if QUICK else 6):
            with self.subTest(round=i):
                self.take(vm, "a%d" % i)
                self.take(vm, "b%d" % i)
                names = self.q.names("vm")
                process = self.q.start("delete", "vm", "a%d" % i)
                # Over in some 100 ms: the kills are spread over them.
                time.sleep(0.02 * i)
                process.kill()
                process.wait()
                self.q("recover", "vm")
                left = self.q.names("vm")
                self.assertIn(left, (names, [n for n in names
                                             if n != "a%d" % i]))
                self.holds(vm, *left)
                self.check_nothing_left(vm)
                self.assertEqual([], vm.serial.wrong())
                self.q("delete", "vm", *left)
        self.goes_on(vm)


class NewFiles(DeleteCase):
    """Frozen layers of a running VM are merged into new files."""

    either = True

    def test_no_file_that_qemu_has_open_is_written(self):
        vm = self.running_vm()
        for name in ("a", "b", "c"):
            self.take(vm, name)
        old = [self.frozen(vm, n) for n in ("b", "c")]
        files = {path: open(path, "rb") for layers in old
                 for path, _ in layers.values()}
        was = {path: f.read() for path, f in files.items()}
        self.q("delete", "vm", "b", "--paranoid")
        self.holds(vm, "a", "c")
        new = self.frozen(vm, "c")
        for disk, (path, _) in new.items():
            self.assertNotEqual(old[1][disk][0], path)
            self.assertIn(path, image.chain(vm.heads()[disk]),
                          "the head's header names the new file")
        for path, f in files.items():  # gone by name, yet ours to read
            f.seek(0)
            self.assertEqual(was[path], f.read(), path)
            self.assertFalse(os.path.exists(path), path)
            f.close()
        self.goes_on(vm)
        self.check_nothing_left(vm)

    def test_the_plan_names_files_and_bytes_and_changes_nothing(self):
        vm = self.running_vm()
        for name in ("a", "b", "c"):
            self.take(vm, name)
        with self.nothing_changes(vm):
            plan = "\n".join(self.q("delete", "vm", "b", "c",
                                    "--dry-run")["plan"])
        for name in ("b", "c"):
            for path, _ in self.frozen(vm, name).values():
                self.assertIn(path, plan)
        a, b, c = (self.q.info("vm", n) for n in "abc")
        self.assertEqual(0, a["sharedBytes"], "a root stands on nothing")
        self.assertEqual(a["ownBytes"], b["sharedBytes"])
        self.assertEqual(b["ownBytes"] + b["sharedBytes"], c["sharedBytes"])
        self.assertEqual(0, c["freedIfDeletedBytes"], "the head reads it")
        self.assertRegex(plan, r"all: moves \d+ bytes of disks, frees about "
                         r"\d+, takes about [\d.]+ s")

    def test_a_layer_with_several_children(self):
        vm = self.running_vm()
        for name in ("a", "b", "c"):
            self.take(vm, name)
        self.q("revert", "vm", "b")
        self.goes_on(vm)
        self.take(vm, "d")
        layers = [path for path, _ in self.frozen(vm, "b").values()]
        self.q("delete", "vm", "b")
        self.holds(vm, "a", "c", "d")
        for path in layers:
            self.assertFalse(os.path.exists(path), "it is in both children")
        self.q("revert", "vm", "c")
        self.goes_on(vm)
        self.check_nothing_left(vm)


class StartedAnew(DeleteCase):
    """QEMU has found the layers by their headers: the names of its nodes are
    its own, and none of them knows a name of ours."""

    dealt = True

    def restart(self, vm):
        vm.quit()
        since = vm.serial.mark()
        self.q("start", "vm")
        if vm.ticks:
            vm.wait_up(since)

    def automatic(self, vm):
        nodes = [n["node-name"] for n in vm.cmd("query-named-block-nodes",
                                                flat=True)
                 if n["drv"] == "qcow2"]
        self.assertTrue(nodes)
        return [n for n in nodes if not n.startswith("qs")]

    def merged(self, style, old_can=True, **kw):
        """Inner snapshots go while the guest writes and reads back."""
        vm = self.running_vm(style=style, append="SYNC=vda,vdb SYNCMS=2", **kw)
        for name in ("a", "b", "c", "d"):
            self.take(vm, name)
        self.restart(vm)
        self.assertEqual(2 * 5, len(self.automatic(vm)))
        swap = old_can or vm.cmd("query-version")["qemu"]["major"] >= 9
        self.sync_address(vm)
        for gone, above in (("c", "d"), ("b", "d")):
            old = {p for p, _ in self.frozen(vm, above).values()}
            since = vm.serial.mark()
            plan = self.q("delete", "vm", gone, "--dry-run")["plan"]
            self.assertIn("merge into a new file and swap" if swap else
                          "pull by QEMU", " ".join(plan))
            self.q("delete", "vm", gone, "--paranoid")
            new = {p for p, _ in self.frozen(vm, above).values()}
            self.assertEqual(not swap, old == new)
            for head in self.head_paths(vm):
                self.assertTrue(new & set(image.chain(head)))
            vm.serial.wait(r"sync count=\d+ bad=0", since)
            self.assertEqual([], vm.serial.wrong())
        self.holds(vm, "a", "d")
        for name in ("e", "f", "g"):
            self.take(vm, name)
        self.q("delete", "vm", "f")
        for name in ("d", "e", "g"):
            self.q("delete", "vm", name)
        self.holds(vm, "a")
        self.check_nothing_left(vm)

    def two(self, **kw):
        return [self.disk("disk0", **kw), self.disk("disk1", **kw)]

    def test_drives(self):
        self.merged("drive", disks=self.two(
            options=",cache=none,aio=native,discard=unmap"))

    def test_named_heads(self):
        self.merged("blockdev", disks=self.two())

    def test_an_iothread(self):
        """A QEMU before 9.0 would die of it."""
        self.merged("drive", extra=["-object", "iothread,id=io0"],
                    disks=self.two(front=",iothread=io0"),
                    old_can=False)

    def test_a_node_that_qemu_refuses(self):
        """It has no descriptor left: the layer waits, and nothing is stuck."""
        for style in ("drive", "blockdev"):
            for less in (1, 0, -1, -2):
                with self.subTest(style=style, less=less):
                    self.refused("%s%d" % (style, less), style, less)

    def refused(self, name, style, less):
        vm = self.tiny_vm(name, style=style)
        disk, = vm.disks
        for i, snap in enumerate(("a", "b", "c")):
            vm.write(disk, i, i + 1)
            self.q("create", name, snap)
        want = {n: [image.digest(*p) for p in self.frozen(vm, n).values()]
                for n in ("a", "c")}
        pid = vm.pid()
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir("/proc/%d/fd" % pid))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used - less, hard))
        status, _, err = self.q.finish(self.q.start("delete", name, "b"))
        self.assertEqual(["a", "c"], self.q.names(name))
        if status == 0 and less > 0:
            self.assertIn("stays for now", err)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        self.q("recover", name)
        self.q("create", name, "d")
        self.assertEqual(want, {n: [image.digest(*p) for p in self.frozen(
            vm, n).values()] for n in ("a", "c")})
        self.q("delete", name, "a")
        self.check_nothing_left(vm)
        vm.quit()

    def test_a_disk_of_1_tib_is_not_gone_through(self):
        """Nothing is in it: all that takes time is the way there. Each head
        here holds more than what it stands on."""
        vm = self.tiny_vm(disks=[
            self.disk("disk0", size=1 << 40, pattern=False)])
        disk, = vm.disks
        for i, name in enumerate(("a", "b", "c", "d")):
            vm.write(disk, i, i + 1)
            self.q("create", "vm", name)
        vm.io(disk, "write -q -P 9 1G 1M")
        self.restart(vm)
        for name in ("b", "c", "d"):
            begun = time.monotonic()
            self.q("delete", "vm", name)
            took = time.monotonic() - begun
            self.assertLess(took, 2, name)
        head, = self.head_paths(vm)
        self.assertEqual(2, len(image.chain(head)))
        for i in range(4):
            vm.io(disk, "read -q -P %d %d 64k" % (i + 1, i << 16))
        vm.io(disk, "read -q -P 9 1G 1M")


class DeleteOff(Case):
    cost = 20

    def test_a_vm_that_is_off(self):
        """Done whole, or refused with nothing changed."""
        vm = self.running_vm()
        self.q("create", "vm", "a")
        self.goes_on(vm)
        self.q("create", "vm", "b")
        self.goes_on(vm)
        vm.quit()
        content = [image.digest(p, "qcow2") for p in self.head_paths(vm)]
        status, out, err = self.q.finish(self.q.start("delete", "vm", "a"))
        if status != 0:
            self.q.failed("precondition", "", ["delete"], status, out, err)
            self.assertEqual(["a", "b"], self.q.names("vm"))
        else:
            self.assertEqual(["b"], self.q.names("vm"))
        self.assertEqual(content, [image.digest(p, "qcow2")
                                   for p in self.head_paths(vm)])
        self.check_nothing_left(vm)

    def test_whichever_of_the_two_keeps_its_file(self):
        """The first image's name stays, and what stands on the other one gets
        it: also when it is the other one's file that takes that name."""
        for big in ("below", "above"):
            with self.subTest(big):
                vm = self.tiny_vm(big, disks=[self.disk(
                    vm=big, size=64 << 20, pattern=False)])
                disk, = vm.disks
                for i, name in enumerate(("below", "above")):
                    vm.io(disk, "write -q -P %d %dM %s" % (
                        i + 1, i, "40M" if name == big else "64k"))
                    vm.io(disk, "flush")
                    self.q("create", big, name)
                vm.write(disk, 0, 3)
                want = [image.digest(p, f) for p, f in
                        self.frozen(vm, "above").values()]
                vm.quit()
                self.q("delete", big, "below")
                self.assertEqual([disk.path], [
                    p for p, _ in self.frozen(vm, "above").values()])
                self.assertEqual(want, [image.digest(p, f) for p, f in
                                        self.frozen(vm, "above").values()])
                head, = self.head_paths(vm)
                self.assertEqual([head, disk.path], image.chain(head))
                self.q("start", big)
                vm.io(disk, "read -q -P 3 0 64k")
                vm.io(disk, "read -q -P 2 1M 64k")

    def test_a_first_image_with_a_colon_in_its_name(self):
        """What is before a colon is a protocol for QEMU, where the name that
        an overlay has for it is no path."""
        for fmt in ("qcow2", "raw"):
            with self.subTest(fmt):
                folder = os.path.join(self.tmp, fmt)
                os.makedirs(folder)
                vm = self.tiny_vm(fmt, disks=[Disk(
                    "disk0", os.path.join(folder, "a:b." + fmt), fmt,
                    size=2 << 20, pattern=False)])
                disk, = vm.disks
                for i, name in enumerate(("one", "two", "three")):
                    vm.write(disk, i, i + 1)
                    self.q("create", fmt, name)
                vm.quit()
                head, = self.head_paths(vm)
                want = image.digest(head, "qcow2")
                for name in ("one", "two"):
                    self.q("delete", fmt, name)
                    self.assertEqual(want, image.digest(head, "qcow2"))
                self.assertEqual([head, disk.path], image.chain(head))
                self.q("start", fmt)
                self.q("delete", fmt, "three")
                self.assertEqual(want, image.digest(disk.path, fmt))


class LinkedBase(Case):
    """The first image stands on one that is named by a symbolic link."""

    cost = 15

    def test_layers_above_it_are_merged(self):
        for off in (False, True):
            with self.subTest(off=off):
                name = "off" if off else "on"
                folder = os.path.join(self.tmp, name)
                os.makedirs(folder)
                base = os.path.join(folder, "v3.raw")
                with open(base, "wb") as f:
                    f.write(b"\7" * (2 << 20))
                os.symlink("v3.raw", os.path.join(folder, "golden.raw"))
                first = os.path.join(folder, "d.qcow2")
                image.run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
                          "golden.raw", "-F", "raw", first)
                vm = self.tiny_vm(name, disks=[Disk(
                    "disk0", first, "qcow2", make=False)])
                disk, = vm.disks
                for i, snapshot in enumerate("abc"):
                    vm.write(disk, i, i + 1)
                    self.q("create", name, snapshot)
                vm.write(disk, 3, 4)
                if off:
                    vm.quit()
                for snapshot in "bac":
                    self.q("delete", name, snapshot, "--paranoid")
                    head, = self.head_paths(vm)
                    self.assertEqual([1, 2, 3, 4, 7, 7, 7, 7],
                                     list(content(head, "qcow2")))
                self.assertEqual(first, head)
                if off:
                    self.q("start", name)
                self.assertEqual({"d.qcow2", "golden.raw", "v3.raw"},
                                 {n for n in os.listdir(folder)
                                  if "qcow2" in n or "raw" in n})


class StartedByHand(Case):
    """The VM is off, the delete dies; its owner starts the VM on what vm.json
    says, without qstill, and only then the rest is done."""

    either = True
    cost = 40
    limit = 300

    def test_what_is_written_then_is_not_lost(self):
        died = 0
        for fmt, gone in (("qcow2", ("one", "two")), ("raw", ("one", "two"))):
            for n in itertools.count(1):
                with self.subTest(fmt=fmt, gone=gone, n=n):
                    name = "%s%d.%d" % (fmt, len(gone), n)
                    vm = self.tiny_vm(name, disks=[self.disk(
                        fmt=fmt, vm=name, size=8 << 20, pattern=False)])
                    disk, = vm.disks
                    vm.io(disk, "write -q -P 7 0 8M")
                    self.q("create", name, "one")
                    vm.io(disk, "write -q -P 1 0 4M")
                    self.q("create", name, "two")
                    vm.io(disk, "write -q -P 2 0 1M")
                    vm.quit()
                    p = subprocess.run(
                        ["strace", "-f", "-qq", "-o", "/dev/null", "-e",
                         "trace=fsync,fdatasync", "-e",
                         "inject=fsync,fdatasync:signal=KILL:when=%d" % n,
                         *self.q.argv(("delete", name, *gone))],
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    if p.returncode == 0:
                        break
                    died += 1
                    self.written_by_others(name)
        self.assertGreater(died, 15)

    def written_by_others(self, name):
        head = self.recorded_head(name)
        if not os.path.exists(head[0]):
            return  # that QEMU would not have started
        image.run("qemu-io", "-f", head[1], "-c", "write -q -P 9 3M 1M",
                  head[0])
        want = image.digest(*head)
        self.q("recover", name)
        self.assertEqual(want, image.digest(*self.recorded_head(name)))

    def recorded_head(self, name):
        with open(os.path.join(self.store, name, "vm.json")) as f:
            disk, = json.load(f)["disks"]
        return disk["headPath"], disk["headFormat"]
