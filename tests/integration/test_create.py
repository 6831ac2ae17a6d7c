# SPDX-License-Identifier: MIT
"""create and revert on every kind of VM: styles, bases, disks, run states,
backends of the memory."""

import os
import subprocess

from lib import image
from lib.case import QEMU_VERSION, Case, Disk
from lib.tiny import content


class RoundTrip(Case):
    """snapshot, run on, revert: once for each way a VM can be."""
    dealt = True
    cost = 100

    def taken(self, vm, made, memory):
        """The snapshot is what it says, and the VM writes elsewhere now."""
        self.assertEqual(memory, made["memoryIncluded"])
        self.assertEqual("paused" if memory else "disk", made["mode"])
        self.assertGreater(made["sizeBytes"], 0)
        frozen = self.frozen(vm, "one")
        self.assertEqual([d.path for d in vm.disks],
                         [path for path, _ in frozen.values()])
        self.assertEqual([d.fmt for d in vm.disks],
                         [fmt for _, fmt in frozen.values()])
        for head, disk in zip(self.head_paths(vm), vm.disks):
            self.assertEqual([head, disk.path], image.chain(head))
            self.assertEqual(disk.fmt,
                             image.info(head)["backing-filename-format"])
            # QEMU's user, and nobody else.
            ours, base = os.stat(head), os.stat(disk.path)
            self.assertEqual((0o600, base.st_uid, base.st_gid),
                             (ours.st_mode & 0o777, ours.st_uid, ours.st_gid))
            self.assertEqual(os.path.dirname(disk.path),
                             os.path.dirname(head))
        if memory:
            self.memory_files(vm, made)

    def memory_files(self, vm, made):
        folder = self.q.memory_dir("vm", made["id"])
        self.assertEqual(0o700, os.stat(folder).st_mode & 0o777)
        names = os.listdir(folder)
        self.assertIn("device.state", names)
        self.assertIn("sums", names)
        for name in names:
            path = os.path.join(folder, name)
            self.assertEqual(0o600, os.stat(path).st_mode & 0o777, name)
        ram = os.stat(self.main_ram(vm, made))
        self.assertEqual(vm.mib << 20, ram.st_size)
        self.assertLess(ram.st_blocks * 512, ram.st_size,
                        "pages of zeroes are holes")

    def round_trip(self, vm, memory, state="running"):
        for d in vm.disks:
            os.chmod(d.path, 0o640)
        nonce = vm.serial.ticks()[-1].nonce
        if state == "paused":
            self.pause(vm)
        elif state == "off":
            vm.quit()
        argv = ["--memory", "--mode", "paused"] if memory else []
        made = self.q("create", "vm", "one", *argv)
        self.assertEqual(state, vm.state())
        self.taken(vm, made, memory)
        sums = [image.file_digest(d.path) for d in vm.disks]
        ticks = self.snapshot_ticks(vm, "one")
        self.assertGreater(min(ticks), 0)

        if state == "paused":
            self.stands_still(vm)
            self.cont(vm)
        elif state == "off":
            since = vm.serial.mark()
            self.q("start", "vm")
            vm.wait_up(since)
        later = self.goes_on(vm)[-1].number
        for head, tick in zip(self.head_paths(vm), ticks):
            self.assertGreater(image.tick(head, "qcow2"), 0)
            if state != "off":  # there the guest has booted in between
                self.assertGreater(image.tick(head, "qcow2"), tick)

        since = vm.serial.mark()
        said = self.q("revert", "vm", "one", "--start")
        self.assertEqual(("vm", "one", "running"), (
            said["vm"], self.q.info("vm", said["snapshot"])["name"],
            said["state"]))
        if memory:
            self.goes_on_from(vm, ticks[0], nonce, since)
        else:
            vm.wait_up(since)
            for disk, tick in zip(self.kernel_names(vm), ticks):
                vm.serial.wait(r"disk %s had=%d\n" % (disk, tick), since)
            self.goes_on(vm)
        self.assertEqual(sums, [image.file_digest(d.path) for d in vm.disks],
                         "a frozen layer was written")
        return later

    @staticmethod
    def kernel_names(vm):
        names = []
        for bus, prefix in (("virtio", "vd"), ("scsi", "sd")):
            count = len([d for d in vm.disks if d.bus == bus])
            names += [prefix + "abcdefgh"[i] for i in range(count)]
        return names

    def test_drive_qcow2_running_disk_only(self):
        self.round_trip(self.running_vm(style="drive"), memory=False)

    def test_drive_without_names_raw_running_with_memory(self):
        vm = self.running_vm(style="if", disks=[self.disk(fmt="raw")])
        self.round_trip(vm, memory=True)

    def test_blockdev_two_disks_running_with_memory(self):
        vm = self.running_vm(style="blockdev",
                             disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        self.round_trip(vm, memory=True)

    def test_blockdev_scsi_two_disks_running_disk_only(self):
        vm = self.running_vm(style="blockdev", machine="q35",
                             disks=[self.disk("disk0", bus="scsi"),
                                    self.disk("disk1", "raw", bus="scsi")])
        self.round_trip(vm, memory=False)

    def test_drive_two_disks_paused_with_memory(self):
        vm = self.running_vm(disks=[self.disk("disk0", "raw"),
                                    self.disk("disk1", bus="scsi")])
        self.round_trip(vm, memory=True, state="paused")

    def test_blockdev_paused_disk_only(self):
        vm = self.running_vm(style="blockdev")
        self.round_trip(vm, memory=False, state="paused")

    def test_drive_two_disks_off_disk_only(self):
        vm = self.running_vm(disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        self.round_trip(vm, memory=False, state="off")

    def test_memory_in_a_memfd_on_q35(self):
        vm = self.running_vm(memory="memfd", machine="q35", smp=2)
        self.round_trip(vm, memory=True)

    def test_memory_in_a_file(self):
        self.round_trip(self.running_vm(memory="file"), memory=True)

    def test_memory_in_a_ram_object_and_a_cdrom_and_a_read_only_disk(self):
        extra = image.create(os.path.join(self.tmp, "readonly.qcow2"))
        vm = self.running_vm(memory="ram", extra=[
            "-drive", "if=none,id=cd0", "-device", "ide-cd,drive=cd0",
            "-drive", "file=%s,format=qcow2,if=none,id=ro,readonly=on" % extra,
            "-device", "virtio-scsi-pci,id=s9",
            "-device", "scsi-hd,drive=ro,bus=s9.0"])
        self.assertEqual(1, len(self.disk_names(vm)),
                         "only what is written is a disk")
        self.round_trip(vm, memory=True)

    def test_a_daemon_with_a_pid_file(self):
        """As many hosts start it: QEMU itself goes to the background."""
        vm = self.make_vm(extra=["-daemonize", "-pidfile",
                                 os.path.join(self.tmp, "pid")])
        vm.start(wait=False)
        vm.process.wait(20)
        vm.process = None
        vm.wait_up()
        self.attach(vm)
        self.round_trip(vm, memory=True)
        with open(os.path.join(self.tmp, "pid")) as f:
            self.assertEqual(vm.pid(), int(f.read()))

    def test_overlays_go_where_they_are_asked_to(self):
        vm = self.running_vm()
        folder = os.path.join(self.tmp, "elsewhere")
        os.mkdir(folder)
        self.q("create", "vm", "one", "--disk-dir", folder)
        head, = self.head_paths(vm)
        self.assertEqual(folder, os.path.dirname(head))
        self.assertEqual([head], list(vm.heads().values()))
        self.goes_on(vm)


class OneNameForTwo(Case):
    """The layers of two disks would be called the same."""

    either = True
    cost = 15

    def goes(self, name, paths, *argv):
        vm = self.tiny_vm(name, disks=[
            Disk("disk%d" % i, p, "raw" if p.endswith("img") else "qcow2",
                 size=2 << 20, pattern=False) for i, p in enumerate(paths)])
        for i, snapshot in enumerate(("a", "b")):
            for k, disk in enumerate(vm.disks):
                vm.write(disk, 0, 1 + 10 * k + i)
            self.q("create", name, snapshot, *argv)
        heads = self.head_paths(vm)
        self.assertEqual(len(set(heads)), len(paths))
        self.q("delete", name, "a")
        self.q("revert", name, "b")
        self.assertEqual([2 + 10 * k for k in range(len(paths))],
                         [content(p, "qcow2")[0] for p in self.head_paths(vm)])
        return heads

    def test_in_one_folder(self):
        folder = os.path.join(self.tmp, "one")
        os.makedirs(folder)
        # the third has the name that the second would get
        self.goes("one", [os.path.join(folder, n) for n in (
            "vm.qcow2", "vm.img", "vm-2.qcow2", "vm")])

    def test_in_two_folders_and_a_third_for_the_layers(self):
        paths = []
        for n in ("a", "b"):
            os.makedirs(os.path.join(self.tmp, "two", n))
            paths.append(os.path.join(self.tmp, "two", n, "disk.qcow2"))
        layers = os.path.join(self.tmp, "two", "layers")
        os.makedirs(layers)
        self.goes("two", paths, "--disk-dir", layers)
        # beside the images they have one name
        heads = self.goes("three", [p.replace("disk.", "d.") for p in paths])
        self.assertEqual(1, len({os.path.basename(p) for p in heads}))


class OldFiles(Case):
    either = True
    cost = 3

    def test_an_image_from_before_1970(self):
        """What create writes down of it is read again, and still compared."""
        old = -86400 * 10 ** 9
        vm = self.tiny_vm(disks=[
            self.disk(fmt="raw", size=2 << 20, pattern=False)])
        vm.quit()
        path = vm.disks[0].path
        os.utime(path, ns=(old, old))
        self.q("create", "vm", "one")
        self.assertEqual(["one"], self.q.names("vm"))
        self.assertTrue(self.q.check("vm")["ok"])
        self.unprotect(vm.dir)
        os.utime(path, ns=(old + 1, old + 1))
        self.q.fails("corrupt", "was written to", "revert", "vm", "one")
        os.utime(path, ns=(old, old))
        self.q("revert", "vm", "one")
        self.q("delete", "vm", "one")
        self.assertEqual({path}, self.disk_files(vm))


class Zeroes(Case):
    """detect-zeroes, which QEMU gives no overlay that it makes itself."""

    def options(self, vm):
        said, = [b["inserted"] for b in vm.cmd("query-block")
                 if "disk0" in b["qdev"]]
        return said["detect_zeroes"], said["cache"]["direct"]

    def kept(self, vm, want="unmap"):
        self.assertEqual((want, True), self.options(vm))
        vm.write(vm.disks[0], 1, 0)
        vm.write(vm.disks[0], 2, 7)
        vm.io(vm.disks[0], "read -q -P 7 128k 64k")

    def test_it_stays(self):
        for n, (style, fmt, cache) in enumerate((
                ("drive", "qcow2", "cache=none"),
                ("drive", "raw", "cache=none"),
                ("blockdev", "qcow2", "cache.direct=on"))):
            with self.subTest(style=style, fmt=fmt):
                name = "vm%d" % n
                vm = self.tiny_vm(name, style=style, disks=[self.disk(
                    fmt=fmt, vm=name, size=2 << 20, pattern=False,
                    options="," + cache + ",discard=unmap,detect-zeroes=unmap")])
                self.q("create", name, "one", "--memory")
                self.kept(vm)
                self.q("create", name, "two")
                self.kept(vm)
                self.q("revert", name, "one")
                self.kept(vm)
                for more in ("three", "four", "five"):
                    self.q("create", name, more)
                self.q("revert", name, "four")
                self.q("create", name, "six")
                self.q("create", name, "seven")
                for gone in ("four", "two", "six", "one", "three", "five",
                             "seven"):
                    self.q("delete", name, gone)
                    self.kept(vm)
                self.assertEqual({vm.disks[0].path}, set(vm.heads().values()))

    def test_a_merged_file_that_becomes_the_head(self):
        for style in ("drive", "blockdev"):
            with self.subTest(style):
                vm = self.tiny_vm(style, style=style, disks=[self.disk(
                    vm=style, size=2 << 20, pattern=False,
                    options=",cache.direct=on,discard=unmap,"
                            "detect-zeroes=unmap")])
                for name in "abcd":
                    self.q("create", style, name)
                    self.kept(vm)
                for name in "bdc":
                    self.q("delete", style, name)
                    self.kept(vm)

    def test_after_a_kill_at_any_moment(self):
        """What recovery makes of it has it, too: the snapshot, or the head of
        before."""
        vm = self.tiny_vm(disks=[self.disk(
            size=2 << 20, pattern=False,
            options=",cache=none,discard=unmap,detect-zeroes=unmap")])
        made = 0
        for n in range(1, 200):
            p = subprocess.run(
                ["strace", "-f", "-qq", "-o", "/dev/null", "-e",
                 "trace=fsync,fdatasync,renameat2", "-e",
                 "inject=fsync,fdatasync,renameat2:signal=KILL:when=%d" % n,
                 *self.q.argv(("create", "vm", "s%d" % n))],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if p.returncode == 0:
                break
            self.q("recover", "vm")
            self.kept(vm)
            made += len(self.q.names("vm")) > 0
            for name in self.q.names("vm"):
                self.q("delete", "vm", name)
        self.assertGreater(made, 2)

    def test_where_qemu_would_die_of_it_a_note_says_so(self):
        vm = self.tiny_vm(disks=[self.disk(
            size=2 << 20, pattern=False, front=",iothread=io0",
            options=",cache=none,discard=unmap,detect-zeroes=unmap")],
            extra=["-object", "iothread,id=io0"])
        self.q("create", "vm", "one")
        if QEMU_VERSION.startswith("7."):
            self.assertIn("disk0-dev has no detect-zeroes=unmap until QEMU is "
                          "started again", self.q.stderr)
        else:
            self.assertEqual("", self.q.stderr)
            self.kept(vm)


class NotCopiedOnWrite(Case):
    """chattr +C: a head has it where the image below has it. btrfs takes it of
    an empty file alone, and shares no blocks between two that differ in it."""
    either = True

    def is_nocow(self, path):
        p = subprocess.run(["lsattr", path], stdout=subprocess.PIPE, text=True,
                           check=True)
        return "C" in p.stdout.split()[0]

    def heads(self, nocow):
        self.mount_btrfs(os.path.join(self.tmp, "vm"), "200M")
        disk = self.disk(make=False)
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                  "nocow=" + nocow, disk.path, "2M")
        vm = self.tiny_vm(disks=[disk])
        vm.write(disk, 0, 1)
        self.q("create", "vm", "runs")
        vm.write(disk, 1, 2)
        vm.quit()
        self.q("create", "vm", "off")
        head, = self.head_paths(vm)
        chain = image.chain(head)
        self.q("start", "vm")
        self.q("revert", "vm", "runs")
        head, = self.head_paths(vm)
        self.assertNotIn(head, chain)
        self.assertEqual([nocow == "on"] * 4,
                         [self.is_nocow(p) for p in (*chain, head)])
        self.check_nothing_left(vm)

    def test_where_the_image_below_is_not(self):
        self.heads("on")

    def test_where_it_is(self):
        self.heads("off")
