# SPDX-License-Identifier: MIT
"""revert in the running QEMU process: the process and its sockets live on, its
memory and disks are the snapshot's byte for byte."""

import contextlib
import os
import re
import signal
import time

from lib import image, qemuio
from lib.case import QEMU_VERSION, QUICK, Case, share
from lib.qmp import QMPError


class Reverts(Case):
    """What the tests below share."""

    def snapshot(self, vm, name="one", *more):
        """(the snapshot's ticks by disk, the nonce)"""
        nonce = vm.serial.ticks()[-1].nonce
        self.q("create", vm.name, name, "--memory", *more)
        return self.snapshot_ticks(vm, name), nonce

    def back(self, vm, name, tick, nonce, *more):
        """Reverts in place; the guest goes on in the same process."""
        pid, since = vm.pid(), vm.serial.mark()
        said = self.q("revert", vm.name, name, "--restore", "inplace", *more)
        self.assertEqual(("running", "inplace"),
                         (said["state"], said["restore"]))
        self.assertEqual(pid, vm.pid(), "another process")
        self.goes_on_from(vm, tick, nonce, since)
        return said

    def memory_files(self, vm, name):
        folder = self.q.memory_dir(vm.name, self.q.info(vm.name, name)["id"])
        return {f: os.path.join(folder, f) for f in os.listdir(folder)
                if f.endswith(".ram")}

    def assert_same_memory(self, vm, one, two):
        """Every RAM block of two snapshots, byte for byte."""
        a, b = self.memory_files(vm, one), self.memory_files(vm, two)
        self.assertEqual(set(a), set(b))
        for name in a:
            with open(a[name], "rb") as x, open(b[name], "rb") as y:
                at = 0
                while True:
                    p, q = x.read(1 << 20), y.read(1 << 20)
                    if p != q:
                        page = next(i for i in range(0, len(p), 4096)
                                    if p[i:i + 4096] != q[i:i + 4096])
                        self.fail("%s differs at offset 0x%x" % (
                            name, at + page))
                    if not p:
                        break
                    at += len(p)

    def reset_boots(self, vm, nonce):
        since = vm.serial.mark()
        vm.cmd("system_reset")
        first = vm.wait_up(since)[0]
        self.assertEqual(1, first.number)
        self.assertNotEqual(nonce, first.nonce)

    def two_disks(self, vm="vm", **kw):
        return [self.disk("disk0", vm=vm, **kw),
                self.disk("disk1", "raw", vm=vm, **kw)]


class InPlace(Reverts):
    limit = 180
    cost = 45

    def test_memory_is_the_snapshots_byte_for_byte(self):
        """Of each kind of RAM, with two CPUs at work, and a display whose
        memory a machine reset fills."""
        for memory, extra in share((("default", ["-device", "cirrus-vga"]),
                                    ("memfd", ["-device", "VGA"]))):
            with self.subTest(memory=memory):
                vm = self.running_vm(name=memory, memory=memory, smp=2,
                                     append="JUNK=8", extra=extra,
                                     machine="q35",
                                     disks=self.two_disks(memory))
                vm.serial.wait("JUNK-READY")
                ticks, nonce = self.snapshot(vm)
                self.goes_on(vm)
                self.q("revert", memory, "one", "--restore", "inplace",
                       "--paused")
                self.assertEqual("paused", vm.state())
                self.q("create", memory, "two", "--memory", "--mode", "paused")
                self.assert_same_memory(vm, "one", "two")
                since = vm.serial.mark()
                vm.cmd("cont")
                self.goes_on_from(vm, ticks[0], nonce, since)
                vm.serial.wait(r"junk pass=\d+ bad=0", since)
                self.back(vm, "two", ticks[0], nonce, "--start")
                self.reset_boots(vm, nonce)
                vm.end()

    def test_drives_of_each_style_and_bus(self):
        """Again and again, and everything else still works afterwards."""
        for style, bus, machine in share((("drive", "virtio", "pc"),
                                          ("blockdev", "scsi", "q35"),
                                          ("if", "virtio", "q35"),
                                          ("throttle", "scsi", "pc"),
                                          ("blockdev", "virtio", "pc"))):
            with self.subTest(style=style, bus=bus, machine=machine):
                name = "%s-%s" % (style, bus)
                vm = self.running_vm(name=name, style=style, machine=machine,
                                     append="SYNC=vda,vdb SYNCMS=2"
                                     if bus == "virtio" else "",
                                     disks=self.two_disks(name, bus=bus))
                ticks, nonce = self.snapshot(vm)
                contents = [image.digest(p, f) for p, f in
                            self.frozen(vm, "one").values()]
                for _ in range(2):
                    self.goes_on(vm)
                    self.back(vm, "one", ticks[0], nonce)
                self.q("create", name, "two", "--memory")
                self.goes_on(vm)
                self.back(vm, "two", self.snapshot_ticks(vm, "two")[0], nonce)
                self.assertEqual(
                    ["one", "two"],
                    [s["name"] for s in self.q.snapshots(name)])
                self.q("delete", name, "two")
                self.goes_on(vm)
                self.back(vm, "one", ticks[0], nonce)
                self.assertEqual(contents, [image.digest(p, f) for p, f in
                                            self.frozen(vm, "one").values()])
                self.q("delete", name, "one")
                self.goes_on(vm)
                self.reset_boots(vm, nonce)
                vm.end()

    def test_disks_of_an_iothread(self):
        """Snapshots live, back in place, deletion of what lies between."""
        for style in share(("drive", "blockdev", "throttle")):
            with self.subTest(style=style):
                vm = self.running_vm(
                    name=style, style=style, append="SYNC=vda,vdb SYNCMS=2",
                    extra=["-object", "iothread,id=io0"],
                    disks=self.two_disks(style, front=",iothread=io0"))
                with self.may_lose_an_interrupt(vm):
                    self.live_and_back(vm, style)
                vm.end()

    def live_and_back(self, vm, style):
        ticks, nonce = self.snapshot(vm)
        self.goes_on(vm)
        self.back(vm, "one", ticks[0], nonce)
        self.q("create", style, "two", "--memory")
        self.goes_on(vm)
        self.q("create", style, "disks")
        self.goes_on(vm)
        self.back(vm, "two", self.snapshot_ticks(vm, "two")[0], nonce)
        self.q("delete", style, "disks")
        self.q("delete", style, "one")
        self.goes_on(vm)
        self.back(vm, "two", self.snapshot_ticks(vm, "two")[0], nonce)
        self.q("delete", style, "two")
        self.goes_on(vm)
        self.reset_boots(vm, nonce)

    def lost_interrupt(self, vm):
        """What QEMU 10.0 does to a disk with an iothread now and then, at
        stop and cont alone: it has used all requests of the guest, told it of
        each in the ring, and the interrupt never came. None when the guest
        stands still for another reason."""
        def rings():
            return [(vm.cmd("x-query-virtio-queue-status", path=d["path"],
                            queue=0),
                     vm.cmd("x-query-virtio-queue-element", path=d["path"],
                            queue=0))
                    for d in vm.cmd("x-query-virtio")
                    if d["name"] == "virtio-blk"]
        if not vm.cmd("query-version")["qemu"]["major"] == 10 or \
                vm.state() != "running":
            return None
        since, before = vm.serial.mark(), rings()
        time.sleep(2)
        if vm.serial.ticks(since) or rings() != before:
            return None
        for queue, element in before:
            told = {queue["used-idx"], queue["last-avail-idx"],
                    element["avail"]["idx"], element["used"]["idx"]}
            if queue["inuse"] != 0 or len(told) != 1:
                return None
        return "QEMU lost the interrupt of a virtio-blk disk with an " \
            "iothread: request %d is used, and the guest waits for it" % \
            before[0][0]["used-idx"]

    @contextlib.contextmanager
    def may_lose_an_interrupt(self, vm):
        try:
            yield
        except AssertionError as e:
            why = "the guest never said" in str(e) and self.lost_interrupt(vm)
            if why:
                self.skipTest(why)
            raise

    def test_an_iothread_and_branches_that_share_nothing(self):
        """A chain of which QEMU has nothing open comes into the thread."""
        vm = self.running_vm(append="SYNC=vda",
                             extra=["-object", "iothread,id=io0"],
                             disks=[self.disk(front=",iothread=io0")])
        with self.may_lose_an_interrupt(vm):
            ticks, nonce = self.snapshot(vm)
            self.goes_on(vm)
            self.q("create", "vm", "two", "--memory")
            self.goes_on(vm)
            self.back(vm, "one", ticks[0], nonce)
            self.goes_on(vm)
            self.q("create", "vm", "three", "--memory")
            self.q("delete", "vm", "one")
            for name in ("two", "three"):
                self.goes_on(vm)
                self.back(vm, name, self.snapshot_ticks(vm, name)[0], nonce)

    def test_new_heads_have_the_options_of_the_disk(self):
        options = ",cache=none,aio=native,discard=unmap,detect-zeroes=unmap"
        vm = self.running_vm(disks=[self.disk(options=options),
                                    self.disk("plain")])
        ticks, nonce = self.snapshot(vm)

        def node(id):
            said, = [b["inserted"] for b in vm.cmd("query-block")
                     if "%s-dev" % id in b["qdev"]]
            return said["detect_zeroes"], said["cache"]["direct"]

        def discards(id):
            """Whether what is discarded is gone."""
            qdev, = [b["qdev"] for b in vm.cmd("query-block")
                     if "%s-dev" % id in b["qdev"]]
            with vm.monitor() as m:
                for line in ("write -P 7 0 64k", "discard 0 64k", "flush"):
                    qemuio.run(m, "-d " + qdev, line)
            head, = [h for h in vm.heads().values() if "/%s." % id in h]
            return image.read(head, "qcow2", 0, 65536) == bytes(65536)

        for _ in range(2):
            self.goes_on(vm)
            self.back(vm, "one", ticks[0], nonce)
            self.assertEqual((("unmap", True), ("off", False)),
                             (node("disk0"), node("plain")))
        self.pause(vm)
        self.assertEqual((True, False), (discards("disk0"), discards("plain")))

    def test_ide_and_ahci_disks_without_an_id(self):
        """The guest has no driver for them: QEMU's own I/O command stands in
        for it."""
        for machine in share(("pc", "q35")):
            with self.subTest(machine=machine):
                path = self.disk("sata", vm=machine, pattern=False).path
                vm = self.running_vm(
                    name=machine, machine=machine,
                    disks=[self.disk("disk0", vm=machine)],
                    extra=["-drive", "file=%s,format=qcow2,if=none,id=sata"
                           % path, "-device", "ide-hd,drive=sata"])

                def write(byte):
                    with vm.monitor() as m:
                        qemuio.run(m, "sata", "write -P %d 0 64k" % byte)
                        qemuio.run(m, "sata", "flush")

                def content():
                    head, = [h for h in vm.heads().values() if "/sata." in h]
                    return image.read(head, "qcow2", 0, 65536)

                write(0x11)
                ticks, nonce = self.snapshot(vm)
                for byte in (0x77, 0x22):
                    write(byte)
                    self.assertEqual(bytes([byte]) * 65536, content())
                    self.back(vm, "one", ticks[0], nonce)
                    self.assertEqual(b"\x11" * 65536, content())
                self.reset_boots(vm, nonce)
                vm.end()

    def test_auto_takes_it_when_it_fits_and_says_why_not(self):
        vm = self.running_vm(memory="ram")
        ticks, nonce = self.snapshot(vm)
        since = vm.serial.mark()
        self.assertEqual("inplace", self.q("revert", "vm", "one")["restore"])
        self.goes_on_from(vm, ticks[0], nonce, since)
        vm.hmp("device_add virtio-balloon-pci,id=late")
        with self.nothing_changes(vm):
            self.q.fails("precondition", "virtio-balloon-pci,late",
                         "revert", "vm", "one", "--restore", "inplace")
        pid, since = vm.pid(), vm.serial.mark()
        said = self.q("revert", "vm", "one")
        self.assertEqual("mapped", said["restore"])
        self.assertNotEqual(pid, vm.pid())
        self.goes_on_from(vm, ticks[0], nonce, since)

    def test_without_memory_the_guest_boots_in_the_same_process(self):
        vm = self.running_vm(disks=self.two_disks())
        self.q("create", "vm", "disks")
        ticks = self.snapshot_ticks(vm, "disks")
        nonce = vm.serial.ticks()[-1].nonce
        for state in ("running", "paused"):
            with self.subTest(state=state):
                self.goes_on(vm)
                pid, since = vm.pid(), vm.serial.mark()
                said = self.q("revert", "vm", "disks",
                              "--start" if state == "running" else "--paused")
                self.assertEqual(("disk", state),
                                 (said["restore"], said["state"]))
                self.assertEqual(pid, vm.pid())
                if state == "paused":
                    self.stands_still(vm)
                    vm.cmd("cont")
                first = vm.wait_up(since)[0]
                self.assertNotEqual(nonce, first.nonce)
                for disk, tick in zip(("vda", "vdb"), ticks):
                    vm.serial.wait(r"disk %s had=%d\n" % (disk, tick), since)


class Failures(Reverts):
    """Whatever fails, the VM is what it was, or the snapshot's."""
    either = True
    cost = 60
    limit = 240

    def busy_vm(self, **kw):
        vm = self.running_vm(append="JUNK=24 SYNC=vda,vdb SYNCMS=2",
                             disks=self.two_disks(), **kw)
        vm.serial.wait("JUNK-READY")
        return vm

    def goes_on_as_before(self, vm, last):
        """No reboot and no way back: the next tick is the next one."""
        ticks = self.goes_on(vm, last[0])
        self.assertEqual(last[1].nonce, ticks[0].nonce)
        self.assertGreater(ticks[0].number, last[1].number)

    @staticmethod
    def now(vm):
        return vm.serial.mark(), vm.serial.ticks()[-1]

    def spoil_load(self, vm):
        """The name of the node that the device state comes from is taken."""
        vm.cmd("blockdev-add", driver="null-co", node_name="qstill-vmstate")

    def test_a_load_that_fails_brings_everything_back(self):
        vm = self.busy_vm()
        self.snapshot(vm)
        self.goes_on(vm)
        self.spoil_load(vm)
        last = self.now(vm)
        with self.nothing_changes(vm):
            self.q.fails("failed", "qstill-vmstate", "revert", "vm", "one",
                         "--restore", "inplace")
        self.goes_on_as_before(vm, last)
        # and byte for byte
        self.pause(vm)
        self.q("create", "vm", "before", "--memory")
        self.spoil_load(vm)
        self.q.fails("failed", "qstill-vmstate", "revert", "vm", "one",
                     "--restore", "inplace")
        self.q("create", "vm", "after", "--memory")
        self.assert_same_memory(vm, "before", "after")
        last = self.now(vm)
        self.cont(vm)
        self.goes_on_as_before(vm, last)
        vm.serial.wait(r"junk pass=\d+ bad=0", last[0])

    def test_auto_goes_on_with_a_new_process(self):
        vm = self.busy_vm()
        ticks, nonce = self.snapshot(vm)
        self.goes_on(vm)
        self.spoil_load(vm)
        pid, since = vm.pid(), vm.serial.mark()
        said = self.q("revert", "vm", "one")
        self.assertIn(said["restore"], ("mapped", "eager"))
        self.assertNotEqual(pid, vm.pid())
        self.goes_on_from(vm, ticks[0], nonce, since)

    def test_a_damaged_file_is_found_and_nothing_is_taken_from_it(self):
        vm = self.busy_vm()
        one = self.q("create", "vm", "one", "--memory")
        path = self.main_ram(vm, one)
        with open(path, "r+b") as f:
            f.seek(-4096 * 300, os.SEEK_END)
            f.write(b"damage")
        for way in ("inplace", "auto"):
            with self.subTest(way=way):
                last = self.now(vm)
                with self.nothing_changes(vm):
                    self.q.fails("corrupt", "checksum", "revert", "vm", "one",
                                 "--restore", way)
                self.goes_on_as_before(vm, last)

    def test_qemu_killed_in_the_middle(self):
        vm = self.busy_vm()
        ticks, nonce = self.snapshot(vm)
        for way in ("inplace", "auto"):
            for delay in (0.0, 0.03, 0.08):
                with self.subTest(way=way, delay=delay):
                    self.goes_on(vm)
                    since = vm.serial.mark()
                    process = self.q.start("revert", "vm", "one", "--restore",
                                           way)
                    self.q.wait_journal("vm", process)
                    time.sleep(delay)
                    with contextlib.suppress(OSError, TypeError, QMPError):
                        os.kill(vm.pid(), signal.SIGKILL)
                    _, _, err = self.q.finish(process, 40)
                    if vm.state() == "off":
                        self.q("start", "vm")
                    self.assertEqual("running", vm.state(), err)
                    self.goes_on(vm)
                    self.check_nothing_left(vm)
                    since = vm.serial.mark()
                    self.q("revert", "vm", "one")
                    self.goes_on_from(vm, ticks[0], nonce, since)

    def test_ourselves_killed_at_any_moment(self):
        vm = self.busy_vm()
        ticks, nonce = self.snapshot(vm)
        pid = vm.pid()
        step = 0.012 if not QUICK else 0.04
        for i in range(int(0.3 / step)):
            with self.subTest(delay=i * step):
                self.goes_on(vm)
                since = vm.serial.mark()
                process = self.q.start("revert", "vm", "one", "--restore",
                                       "inplace")
                time.sleep(i * step)
                process.kill()
                process.wait()
                self.q("recover", "vm")
                self.assertEqual("running", vm.state())
                self.assertEqual(pid, vm.pid(), "the process lives on")
                now = self.goes_on(vm)
                self.assertEqual(nonce, now[0].nonce, "the guest booted")
                self.assertEqual([], vm.serial.wrong(since))
                vm.serial.wait(r"sync count=\d+ bad=0", vm.serial.mark())
                self.check_nothing_left(vm)
        self.back(vm, "one", ticks[0], nonce)


class Loader(Case):
    """`-device loader,data=` writes into RAM at each reset, in no list."""
    cost = 5
    at = 0x600000

    def memory(self, vm, data=None):
        said = vm.hmp("gpa2hva 0x%x" % self.at)
        hva = int(re.search(r"is (0x\w+)", said).group(1), 16)
        with open("/proc/%d/mem" % vm.pid(), "r+b", buffering=0) as f:
            f.seek(hva)
            if data is None:
                return f.read(4096)
            f.write(data)

    def test_what_it_writes_is_not_in_the_way(self):
        vm = self.tiny_vm(extra=[
            "-m", "96M",  # small blocks are mended in any case
            "-device", "loader,addr=0x%x,data=0x1122334455667788,data-len=8"
            % (self.at + 16), "-device", '{"driver":"loader","id":"l2",'
            '"addr":%d,"data":5,"data-len":4}' % (self.at + 256)])
        self.assertEqual(bytes(range(0x11, 0x99, 0x11))[::-1],
                         self.memory(vm)[16:24])
        mine = bytes(range(1, 256)) * 16 + bytes(16)
        self.memory(vm, mine)
        self.q("create", "vm", "one", "--memory")
        for how in ("inplace", "eager", "auto"):
            with self.subTest(how=how):
                self.memory(vm, b"\xee" * 4096)
                self.q("revert", "vm", "one", "--restore", how)
                self.assertEqual(mine, self.memory(vm))
        with self.nothing_changes(vm):
            self.q.fails("precondition", "loader.* writes into the RAM at "
                         "each reset", "revert", "vm", "one", "--restore",
                         "mapped")
        vm.end()
        self.assertEqual("eager", self.q("revert", "vm", "one")["restore"])
        self.assertEqual(mine, self.memory(vm))


    def test_zeros_come_back_where_it_writes(self):
        vm = self.tiny_vm(extra=[
            "-m", "96M", "-device", "loader,addr=0x%x,data=0xdeadbeef,"
            "data-len=4" % self.at])
        self.assertEqual(b"\xef\xbe\xad\xde", self.memory(vm)[:4])
        self.memory(vm, bytes(4096))
        self.q("create", "vm", "one", "--memory")
        for how in ("inplace", "eager", "auto"):
            with self.subTest(how=how):
                self.memory(vm, b"\xee" * 4096)
                self.q("revert", "vm", "one", "--restore", how)
                self.assertEqual(bytes(4096), self.memory(vm))
        vm.end()
        self.assertEqual("eager", self.q("revert", "vm", "one")["restore"])
        self.assertEqual(bytes(4096), self.memory(vm))


class Capabilities(Case):
    """What a user has switched on, and a load in the process dies of."""
    cost = 5

    def test_one_in_the_way_is_named_and_another_way_is_taken(self):
        vm = self.tiny_vm()
        known = {c["capability"] for c in vm.cmd("query-migrate-capabilities")}
        self.q("create", "vm", "one", "--memory")
        for name in sorted(known & {"x-ignore-shared", "mapped-ram",
                                    "multifd"}):
            with self.subTest(capability=name):
                pid = vm.pid()
                vm.cmd("migrate-set-capabilities", capabilities=[
                    {"capability": name, "state": True}])
                with self.nothing_changes(vm):
                    self.q.fails("precondition", "capability %s is on" % name,
                                 "revert", "vm", "one", "--restore", "inplace")
                self.assertEqual(pid, vm.pid())
                said = self.q("revert", "vm", "one")
                self.assertEqual("mapped", said["restore"])
                self.assertNotEqual(pid, vm.pid())

    def test_a_migration_that_failed_before(self):
        """10.0 takes its error for one of the load's: memory was lost."""
        vm = self.tiny_vm()
        self.q("create", "vm", "one", "--memory")
        vm.cmd("migrate", uri="tcp:127.0.0.1:1")
        deadline = time.monotonic() + 20
        while vm.cmd("query-migrate").get("status") != "failed":
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        pid = vm.pid()
        if QEMU_VERSION.startswith("7."):
            self.assertEqual("inplace", self.q("revert", "vm", "one")["restore"])
            self.assertEqual(pid, vm.pid())
            return
        with self.nothing_changes(vm):
            self.q.fails("precondition", "last migration of this QEMU failed",
                         "revert", "vm", "one", "--restore", "inplace")
        self.assertEqual(pid, vm.pid())
        self.assertEqual("mapped", self.q("revert", "vm", "one")["restore"])
        self.assertEqual("inplace", self.q("revert", "vm", "one")["restore"])

    def test_a_precopy_of_ours_that_was_given_up(self):
        """Whose error is cleared: nobody but us is to know of it."""
        vm = self.tiny_vm()
        self.q("create", "vm", "one", "--memory")
        pid = vm.pid()
        given_up = 0
        for i in range(20):
            status, _, err = self.q.finish(self.q.start(
                "create", "vm", "s%d" % i, "--memory", "--mode", "precopy",
                "--max-pause-ms", "1"))
            self.assertIn(status, (0, 6), err)
            if status == 0:
                self.q("delete", "vm", "s%d" % i)
                continue
            given_up += 1
            said = vm.cmd("query-migrate")
            self.assertEqual("running", vm.state())
            self.assertEqual("inplace", self.q(
                "revert", "vm", "one", "--restore", "inplace")["restore"], said)
            self.assertEqual(pid, vm.pid())
            if given_up == 3:
                break
        self.assertLess(0, given_up)

    def test_a_background_of_ours_that_was_given_up(self):
        """It is read to its end, so QEMU has no error of it."""
        vm = self.tiny_vm()
        self.q("create", "vm", "one", "--memory")
        pid = vm.pid()
        given_up = 0
        for i in range(20):
            status, _, err = self.q.finish(self.q.start(
                "create", "vm", "s%d" % i, "--memory", "--mode", "background",
                "--max-pause-ms", "1"))
            if "mode background cannot be used" in err:
                self.skipTest(err)
            self.assertIn(status, (0, 6), err)
            if status == 0:
                self.q("delete", "vm", "s%d" % i)
                continue
            given_up += 1
            self.assertEqual("inplace", self.q(
                "revert", "vm", "one", "--restore", "inplace")["restore"],
                vm.cmd("query-migrate"))
            self.assertEqual(pid, vm.pid())
            if given_up == 3:
                break
        self.assertLess(0, given_up)

    # As QEMU 7.2 has them; "multifd" is "x-multifd" there.
    GLOBAL = ("x-multifd=on", "x-postcopy-ram=on", "x-return-path=on",
              "x-colo=on", "x-dirty-bitmaps=on", "x-background-snapshot=on",
              "tls-creds=tls0", "x-mapped-ram=on")

    def started_with(self, setting, number):
        return self.tiny_vm("vm%d" % number, extra=[
            "-object", "tls-creds-anon,id=tls0,endpoint=client",
            "-global", "migration." + setting])

    def settings(self, vm):
        on = {c["capability"] for c in vm.cmd("query-migrate-capabilities")
              if c["state"]}
        return on, vm.cmd("query-migrate-parameters")["tls-creds"]

    def test_those_of_the_command_line(self):
        """The new process has them as well: they are aside for the load."""
        tried = 0
        for n, setting in enumerate(self.GLOBAL):
            with self.subTest(setting):
                try:
                    vm = self.started_with(setting, n)
                except AssertionError as e:
                    self.assertRegex(str(e), "QEMU has ended|not found")
                    self.vms.pop()
                    continue
                tried += 1
                self.go_back(vm, self.settings(vm))
        self.assertGreaterEqual(tried, 5)

    def go_back(self, vm, was):
        disk, = vm.disks
        vm.write(disk, 0, 1)
        self.q("create", vm.name, "one", "--memory")
        self.assertEqual([], self.q.check(vm.name)["problems"])
        for way in ("auto", "eager", "mapped", "off"):
            vm.write(disk, 0, 2)
            if way == "off":
                vm.quit()
                way = "eager"
            if way == "mapped" and was[0] & {"postcopy-ram",
                                             "background-snapshot"}:
                self.q.fails("precondition", "migration capability", "revert",
                             vm.name, "one", "--restore", way)
                way = "eager"
            self.q("revert", vm.name, "one", "--restore", way)
            self.assertEqual("running", vm.state())
            vm.io(disk, "read -q -P 1 0 64k")
            self.assertEqual(was, self.settings(vm))
            self.assertFalse(os.path.exists(os.path.join(
                self.store, vm.name, "settings.json")))
