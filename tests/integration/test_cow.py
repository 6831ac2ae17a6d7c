# SPDX-License-Identifier: MIT
"""Mode cow against real guests: what was captured equals the RAM at the pause,
byte for byte, whatever the RAM is made of; and what cannot be captured so is
refused with the reason. COW_ROUNDS=n: rounds of the comparison, which may be
done in parts (lib/points.py)."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import time

from lib.case import QEMU_VERSION, QUICK
from lib.points import Points, time_is_up
from test_memory import PROBE, Lab, said

DEEP = os.environ.get("QSTILL_TEST_DEEP", "") == "1"
# What depends on the kernel and on us more than on QEMU.
ONE_QEMU = ("7.2", "10.0") if DEEP else ("10.0",)
ROUNDS = int(os.environ.get("COW_ROUNDS", "1" if QUICK else "2"))
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000
HUGE = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"


@contextlib.contextmanager
def huge_pages(case, count):
    """So many more pages of 2 MiB, for the time of a test."""
    try:
        with open(HUGE) as f:
            before = int(f.read())
        with open(HUGE, "w") as f:
            f.write(str(before + count))
        with open(HUGE) as f:
            got = int(f.read()) - before
    except OSError as e:
        case.skipTest("no huge pages can be reserved: %s" % e)
    try:
        if got < count:
            case.skipTest("only %d of %d huge pages are to be had" % (
                got, count))
        yield
    finally:
        with open(HUGE) as f:
            now = int(f.read())
        with open(HUGE, "w") as f:
            f.write(str(max(0, now - got)))


class InParts(Lab):
    """Tests in rounds, which go on where the run before them ended."""
    limit = 3000 if DEEP else 280

    def tried(self, what=""):
        """None: all of them are done, or the time is over."""
        points = Points("%s %s.%s%s" % (
            QEMU_VERSION, type(self).__name__, self._testMethodName, what))
        return None if points.over or time_is_up() else points


class Rounds(InParts):
    """capture == RAM at the pause, in rounds, with a guest that writes."""
    limit = 120 if ROUNDS < 10 else 3000
    cost = 15
    versions = ONE_QEMU

    def one_round(self, vm, blocks, i, env):
        path = self.folder("set")
        device = os.path.join(self.tmp, "device.%d" % i)
        args = ["%s:%#x:%#x" % b for b in blocks]
        p = subprocess.Popen(
            [PROBE, "cow", path, str(vm.pid()), device, *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=dict(os.environ, **env))
        try:
            with vm.monitor() as m:
                first = p.stdout.readline()
                self.assertEqual("ready=1\n", first, "" if first else
                                 p.stderr.read())
                m.cmd("stop")
                m.cmd("xen-save-devices-state", filename=device, live=False)
                p.stdin.write("go\n")
                p.stdin.flush()
                self.assertEqual("instant=1\n", p.stdout.readline())
                m.cmd("cont")
                out, err = p.communicate("on\n", timeout=100)
            self.assertEqual(0, p.returncode, out + err)
        finally:
            p.kill()
            p.wait()
        os.unlink(device)
        for f in os.listdir(path):
            os.unlink(os.path.join(path, f))
        os.rmdir(path)
        return said(out)

    def check_rounds(self, env=(), ready="JUNK-READY", part="", **kw):
        """(the VM, its RAM blocks), or (None, None) when nothing is to do."""
        tried = self.tried(part)
        if not tried:
            return None, None
        kw.setdefault("append", "JUNK=24 DIRTY=1 SYNC=vda")
        kw.setdefault("smp", 2)
        vm = self.running_vm(attach=False, **kw)
        if ready:
            vm.serial.wait(ready)
        _, found = self.addresses(vm)
        used = self.ram_blocks(vm)
        blocks = [(b, found[b][1], used[b][0]) for b in used
                  if found[b][1] != 0]
        rounds = faults = 0
        for i in tried.rounds(ROUNDS):
            # Slow enough that the guest comes to write before the copier.
            told = self.one_round(vm, blocks, i, {
                "RATE": str(250 << 20), **dict(env)})
            self.assertEqual(["0"], told["differ"], "round %d: pages that are "
                             "not as they were at the pause: %s" % (i, told))
            faults += int(told["faults"][0])
            rounds += 1
        if rounds:
            self.assertGreater(faults, 0, "nothing was written: nothing is "
                               "proved")
        self.goes_on(vm)
        vm.serial.wait(r"junk pass=\d+ bad=0", vm.serial.mark())
        return vm, used


class Reference(Rounds):
    """Always; Shapes has the rest."""
    dealt = True

    def test_private_memory(self):
        self.check_rounds()

    def test_a_memfd(self):
        self.check_rounds(memory="memfd", machine="q35")

    def test_huge_pages(self):
        with huge_pages(self, 80):
            vm, _ = self.check_rounds(memory="hugetlb")
            if vm:
                vm.end()
                self.vms.remove(vm)

    def test_a_kernel_that_protects_only_what_is_mapped(self):
        self.check_rounds(env={"OLD": "1"})


class Shapes(Rounds):
    """make check-cow-deep"""
    skip_why = None if DEEP else "long: make check-cow-deep"

    def setUp(self):
        if self.skip_why:
            self.skipTest(self.skip_why)
        super().setUp()

    def test_a_memfd_read_through_the_process(self):
        self.check_rounds(memory="memfd", env={"NOFILE": "1"})

    def test_a_small_pool(self):
        self.check_rounds(env={"POOL": str(4 << 20)})

    def test_a_shared_file_on_tmpfs(self):
        shm = "/dev/shm/qst-%d.ram" % os.getpid()
        self.addCleanup(lambda: os.path.exists(shm) and os.unlink(shm))
        self.check_rounds(memory="backend", backend=
                          "memory-backend-file,share=on,mem-path=" + shm)

    def test_transparent_huge_pages(self):
        # QEMU advises MADV_HUGEPAGE by itself.
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as f:
            if "[never]" in f.read():
                self.skipTest("transparent huge pages are switched off")
        self.check_rounds(append="JUNK=64 DIRTY=1 SYNC=vda")

    def test_two_numa_nodes_of_different_kinds(self):
        _, used = self.check_rounds(memory="none", extra=[
            "-m", "192M",
            "-object", "memory-backend-ram,id=n0,size=128M",
            "-object", "memory-backend-memfd,id=n1,size=64M",
            "-numa", "node,memdev=n0,cpus=0", "-numa", "node,memdev=n1,cpus=1"])
        if used:
            self.assertIn("n0", used)
            self.assertIn("n1", used)

    def test_a_guest_with_a_hole_below_4_gib(self):
        for machine in ("pc", "q35"):
            with self.subTest(machine=machine):
                _, used = self.check_rounds(
                    name="big" + machine, machine=machine, memory="none",
                    extra=["-m", "4200M"], env={"RATE": str(900 << 20)},
                    part=" " + machine)
                if used:
                    self.assertEqual(4200 << 20,
                                     max(u[0] for u in used.values()))

    def test_a_plugged_dimm(self):
        vm = self.running_vm(
            attach=False, smp=2, memory="none",
            append="JUNK=24 DIRTY=1 memhp_default_state=online",
            extra=["-m", "192M,slots=2,maxmem=512M"])
        vm.serial.wait("JUNK-READY")
        vm.cmd("object-add", **{"qom-type": "memory-backend-ram", "id": "d0",
                                "size": 128 << 20})
        vm.cmd("device_add", driver="pc-dimm", id="dimm0", memdev="d0")
        time.sleep(1)
        self.attach(vm)
        made = self.q("create", "vm", "one", "--memory", "--mode", "cow")
        self.assertIn("d0.ram", os.listdir(
            self.q.memory_dir("vm", made["id"])))
        self.q("verify", "vm", "one")
        self.goes_on(vm)


class NotRoot(Lab):
    """A QEMU of another user, who may make no userfaultfd for KVM's faults by
    the kernel's default: the device makes one, which root can open."""
    cost = 15

    def vm_of_nobody(self, more=(), **kw):
        nobody = self.as_nobody()
        vm = self.make_vm(append="JUNK=16 DIRTY=1", **kw)
        vm.qemu = self.behind(*nobody, *more)
        os.chmod(vm.dir, 0o777)
        for disk in vm.disks:
            os.chown(disk.path, 65534, 65534)
        vm.start()
        self.attach(vm)
        return vm

    def test_cow_is_for_it_too(self):
        self.has_cow()

    def test_the_root_of_a_user_namespace(self):
        """As in a container without root: its capabilities do not count."""
        unshare = shutil.which("unshare")
        if not unshare or subprocess.run(
                [unshare, "-U", "--map-root-user", "true"],
                stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("needs user namespaces")
        self.has_cow(unshare, "-U", "--map-root-user")

    def open_files(self, vm):
        """Some may be closed while they are looked at."""
        found = []
        for entry in os.scandir("/proc/%d/fd" % vm.pid()):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(entry.path))
        self.assertTrue(found)
        return found

    def has_cow(self, *more):
        vm = self.vm_of_nobody(more)
        self.assertEqual(65534, os.stat("/proc/%d" % vm.pid()).st_uid)
        self.assertIsNone(self.q.check("vm", "--memory")["captureModes"]["cow"])
        made = self.q("create", "vm", "one", "--memory", "--mode", "cow")
        self.assertEqual("cow", made["mode"])
        self.assertEqual([], vm.cmd("query-fdsets"))
        self.assertNotIn("userfaultfd", str(self.open_files(vm)))
        tick = self.snapshot_ticks(vm, "one")[0]
        self.goes_on(vm)
        self.q("verify", "vm", "one")
        since, nonce = vm.serial.mark(), vm.serial.ticks()[-1].nonce
        self.q("revert", "vm", "one", "--restore", "inplace")
        self.goes_on_from(vm, tick, nonce, since)

    def test_the_guest_goes_on_before_anything_is_taken_back(self):
        """Else the end of a capture, which waits for its disk, lengthens the
        pause. What was lent is asked for at that end."""
        trace = os.path.join(self.tmp, "trace")
        open(trace, "w").close()
        os.chmod(trace, 0o666)
        vm = self.vm_of_nobody(extra=["-trace", "handle_qmp_command",
                                      "-D", trace])
        with open(trace) as f:
            f.seek(0, os.SEEK_END)
            with self.nothing_changes(vm):
                self.q.fails("precondition", "would have been over 1 ms",
                             "create", "vm", "one", "--memory", "--mode",
                             "cow", "--max-pause-ms", "1")
            asked = re.findall(r'"execute": ?"([a-z-]+)"', f.read())
        pause = asked[asked.index("stop"):]
        self.assertLess(pause.index("cont"), pause.index("remove-fd"), pause)
        self.goes_on(vm)


class Balloon(Lab):
    """Memory that the guest gives back, before and during a capture."""
    dealt = True
    cost = 20
    versions = ONE_QEMU

    def balloon_vm(self, extra="", **kw):
        vm = self.running_vm(
            extra=["-device", "virtio-balloon-pci,id=balloon0" + extra],
            append="JUNK=16 DIRTY=1", **kw)
        vm.serial.wait("JUNK-READY")
        return vm

    def inflate(self, vm, mib):
        vm.cmd("balloon", value=mib << 20)
        deadline = time.monotonic() + 30
        while vm.cmd("query-balloon")["actual"] > (mib + 1) << 20:
            self.assertLess(time.monotonic(), deadline,
                            "the guest does not inflate its balloon")
            time.sleep(0.05)

    def test_one_that_is_inflated_takes_no_room(self):
        vm = self.balloon_vm()
        nonce = vm.serial.ticks()[-1].nonce
        before = self.q("create", "vm", "flat", "--memory", "--mode", "cow")
        self.inflate(vm, vm.mib - 24)
        made = self.q("create", "vm", "blown", "--memory", "--mode", "cow")
        self.assertLess(made["sizeBytes"], before["sizeBytes"] + (4 << 20))
        self.q("verify", "vm", "blown")
        since = vm.serial.mark()
        tick = self.snapshot_ticks(vm, made["id"])[0]
        self.q("revert", "vm", "blown", "--restore", "eager")
        self.goes_on_from(vm, tick, nonce, since)

    def test_one_that_inflates_meanwhile_is_right_or_refused(self):
        vm = self.balloon_vm()
        process = self.q.start("create", "vm", "one", "--memory", "--mode",
                               "cow", "--bwlimit", "20M")
        self.q.wait_journal("vm", process)
        time.sleep(0.8)  # the copy takes longer than that
        vm.cmd("balloon", value=(vm.mib - 24) << 20)
        status, out, err = self.q.finish(process)
        if status == 0:
            self.q("verify", "vm", "one")
        else:
            self.q.failed("failed", r"gave memory back \(balloon\) before it "
                          "was saved", ["create"], status, out, err)
            self.assertEqual([], self.q.names("vm"))
        self.goes_on(vm)
        self.assertEqual("running", vm.state())

    def test_one_that_never_rests(self):
        """Each create ends, one way or the other, and QEMU answers meanwhile:
        who gives memory back waits for us with QEMU's lock."""
        vm = self.running_vm(append="JUNK=64 DIRTY=1", smp=2, extra=[
            "-device", "virtio-balloon-pci,id=balloon0"])
        vm.serial.wait("JUNK-READY")
        ended = set()
        for n in range(6):
            p = self.q.start("create", "vm", "s%d" % n, "--memory", "--mode",
                             "cow", "--bwlimit", "60M")
            for i in range(8):
                vm.cmd("balloon", value=(130 if i % 2 else 160) << 20)
                time.sleep(0.3)
            status, _, err = self.q.finish(p, 30)
            ended.add(status)
            if status != 0:
                self.assertIn("gave memory back", err)
            self.goes_on(vm)
        self.assertIn(1, ended, "nothing was given back")

    def test_shared_memory_with_a_balloon_is_not_for_cow(self):
        vm = self.balloon_vm(memory="memfd")
        modes = self.q.check("vm", "--memory")["captureModes"]
        self.assertIn("balloon gives back unseen", modes["cow"])
        with self.nothing_changes(vm):
            self.q.fails("precondition", "balloon", "create", "vm", "one",
                         "--memory", "--mode", "cow")
        self.assertNotEqual("cow", self.q("create", "vm", "one",
                                          "--memory")["mode"])
        self.goes_on(vm)

    def test_free_page_reporting_is_not_for_cow(self):
        vm = self.balloon_vm(",free-page-reporting=on")
        modes = self.q.check("vm", "--memory")["captureModes"]
        self.assertRegex(modes["cow"], "balloon0.*free-page-reporting")
        self.goes_on(vm)


class Refused(Lab):
    """What writes to RAM where nobody sees it."""
    dealt = True
    cost = 20

    def expect(self, vm, mode, words):
        modes = self.q.check("vm", "--memory")["captureModes"]
        self.assertRegex(modes[mode], words)
        with self.nothing_changes(vm):
            self.q.fails("precondition", words, "create", "vm", "one",
                         "--memory", "--mode", mode)

    def test_vhost_user(self):
        daemon = shutil.which("qemu-storage-daemon")
        if not daemon:
            self.skipTest("no qemu-storage-daemon for a vhost-user device")
        path, sock = [os.path.join(self.tmp, f) for f in ("vu.img", "vu.sock")]
        with open(path, "wb") as f:
            f.truncate(8 << 20)
        p = subprocess.Popen([
            daemon, "--blockdev", "driver=file,node-name=d,filename=" + path,
            "--export", "vhost-user-blk,id=e,node-name=d,writable=on,"
            "addr.type=unix,addr.path=" + sock])
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        deadline = time.monotonic() + 10
        while not os.path.exists(sock):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        vm = self.running_vm(memory="memfd", extra=[
            "-chardev", "socket,id=vu,path=" + sock,
            "-device", "vhost-user-blk-pci,id=vu0,chardev=vu"])
        for mode in ("cow", "background", "paused"):
            self.expect(vm, mode, "vhost-user-blk-pci 'vu0' writes to RAM from "
                        "another process")

    def test_ivshmem(self):
        vm = self.running_vm(extra=[
            "-object", "memory-backend-memfd,id=shm,size=1M,share=on",
            "-device", "ivshmem-plain,memdev=shm,id=iv0"])
        self.expect(vm, "cow", "ivshmem-plain 'iv0' has memory that other")

    def test_virtio_mem(self):
        vm = self.running_vm(memory="none", extra=[
            "-m", "128M,maxmem=1G",
            "-object", "memory-backend-ram,id=vmem,size=256M",
            "-device", "virtio-mem-pci,id=vm0,memdev=vmem,requested-size=64M"])
        found = self.q.check("vm", "--memory")
        self.assertIn("virtio-mem", [p["code"] for p in found["problems"]])
        with self.nothing_changes(vm):
            self.q.fails("precondition", "virtio-mem-pci 'vm0' plugs", "create",
                         "vm", "one", "--memory")

    def test_virtio_pmem(self):
        """QEMU migrates nothing of it: the guest would find the disk of now
        under a file system that is mounted as it was then."""
        path = os.path.join(self.tmp, "pm.img")
        with open(path, "wb") as f:
            f.truncate(16 << 20)
        vm = self.tiny_vm(extra=[
            "-m", "8M,slots=4,maxmem=1G", "-object", "memory-backend-file,"
            "share=on,id=nvm,size=16M,mem-path=" + path,
            "-device", "virtio-pmem-pci,id=pm0,memdev=nvm"])
        found = self.q.check("vm", "--memory")
        self.assertEqual(["virtio-pmem"], [p["code"]
                                           for p in found["problems"]])
        with self.nothing_changes(vm):
            self.q.fails("precondition", "virtio-pmem-pci 'pm0' is a disk",
                         "create", "vm", "one", "--memory")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.assertIn("virtio-pmem-pci 'pm0' belongs to no", self.q.stderr)
        self.q("create", "vm", "one")
        self.assertIn("virtio-pmem-pci 'pm0' belongs to no", self.q.stderr)

    def test_a_private_mapping_of_a_file(self):
        path = os.path.join(self.tmp, "ram.img")
        vm = self.running_vm(memory="backend", backend=
                             "memory-backend-file,share=off,mem-path=" + path)
        self.expect(vm, "cow", "private mapping of the file .*ram.img")
        self.assertNotEqual("cow", self.q("create", "vm", "one",
                                          "--memory")["mode"])
        self.goes_on(vm)

    def test_a_qemu_that_has_more_rights_than_we(self):
        setpriv = shutil.which("setpriv")
        if os.geteuid() != 0 or not setpriv:
            self.skipTest("only root, with setpriv, can give up its rights")
        vm = self.running_vm()

        def create(*args):
            p = subprocess.run(
                [setpriv, "--bounding-set=-sys_ptrace",
                 "--inh-caps=-sys_ptrace"] +
                self.q.argv(["create", "vm", *args]),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            return p.returncode, p.stdout, p.stderr
        with self.nothing_changes(vm):
            self.q.failed("precondition", "cannot be seen|traced",
                          ["create"], *create("one", "--memory", "--mode",
                                              "cow"))
        status, out, err = create("two", "--memory")
        self.assertEqual(0, status, err)
        self.assertEqual("background", self.q.parse(out)["mode"])
        self.assertRegex(self.q.parse(out)["modeReason"], "cow: .*seen|traced")
        self.goes_on(vm)


    def test_a_qemu_under_a_debugger(self):
        vm = self.running_vm()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long] * 4
        threads = [int(t) for t in os.listdir("/proc/%d/task" % vm.pid())]
        for tid in threads:
            if libc.ptrace(PTRACE_SEIZE, tid, 0, 0) != 0:
                self.skipTest("we may not trace it ourselves")
        try:
            with self.nothing_changes(vm):
                self.assertRegex(
                    self.q.check("vm", "--memory")["captureModes"]["cow"],
                    "is traced by process %d" % os.getpid())
                self.q.fails("precondition", "is traced by process %d" %
                             os.getpid(), "create", "vm", "one", "--memory",
                             "--mode", "cow")
            made = self.q("create", "vm", "two", "--memory")
            self.assertEqual("background", made["mode"])
            self.assertRegex(made["modeReason"], "cow: .*is traced by process")
        finally:
            for tid in threads:
                libc.ptrace(PTRACE_INTERRUPT, tid, 0, 0)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(tid, WALL)
                libc.ptrace(PTRACE_DETACH, tid, 0, 0)
        self.goes_on(vm)


class Pause(Lab):
    """--max-pause-ms is kept, or there is no snapshot."""
    cost = 15

    def test_a_limit_that_cannot_be_kept_leaves_all_as_it_was(self):
        vm = self.running_vm(append="JUNK=24 DIRTY=1", disks=[
            self.disk("disk0"), self.disk("disk1", "raw")])
        vm.serial.wait("JUNK-READY")
        for mode in ("cow", "paused"):
            with self.subTest(mode=mode), self.nothing_changes(vm):
                self.q.fails("precondition",
                             r"the pause would have been over 1 ms \(mode %s"
                             % mode, "create", "vm", "one", "--memory",
                             "--mode", mode, "--max-pause-ms", "1")
        made = self.q("create", "vm", "two", "--memory", "--mode", "cow",
                      "--max-pause-ms", "20000")
        self.assertLess(made["pauseMs"], 20000)
        self.goes_on(vm)

    def test_the_figures_are_told_and_kept(self):
        vm = self.running_vm(append="JUNK=24 DIRTY=1")
        vm.serial.wait("JUNK-READY")
        made = self.q("create", "vm", "one", "--memory", "--bwlimit", "60M")
        kept = self.q.info("vm", "one")
        for key in ("mode", "modeReason", "pauseMs", "longestStallMs",
                    "memoryBytes", "sizeBytes", "memoryWritten",
                    "memorySkipped"):
            self.assertEqual(made[key], kept[key], key)
        self.assertEqual("cow", made["mode"])
        self.assertGreater(made["pauseMs"], 0)
        self.assertGreater(made["longestStallMs"], 0)
        self.assertGreaterEqual(made["memoryBytes"], vm.mib << 20)
        self.assertGreater(made["memorySkipped"], 0)
        self.assertEqual(made["memoryBytes"],
                         made["memoryWritten"] + made["memorySkipped"])


class Killed(InParts):
    """QEMU outlives our death at any instant of a create."""
    dealt = True
    cost = 30
    versions = ONE_QEMU

    def test_the_guest_goes_on_whenever_we_are_killed(self):
        tried = self.tried()
        if not tried:
            return
        vm = self.running_vm(append="JUNK=24 DIRTY=1 SYNC=vda", smp=2)
        vm.serial.wait("JUNK-READY")
        begun = time.monotonic()
        self.q("create", "vm", "whole", "--memory", "--mode", "cow")
        whole = time.monotonic() - begun
        count = ROUNDS if DEEP else 8
        for i in tried.rounds(count):
            # Evenly over the whole of it, the injection and the pause too.
            p = self.q.start("create", "vm", "k%d" % i, "--memory", "--mode",
                             "cow")
            time.sleep(whole * (i - 0.5) / count)
            p.send_signal(signal.SIGKILL)
            self.q.finish(p)
            since = vm.serial.mark()
            if vm.state() != "running":  # between stop and cont
                self.q("recover", "vm")
            vm.serial.wait_ticks(1, since)
            self.q("recover", "vm")
            self.goes_on(vm, count=2)
        self.assertEqual([], vm.serial.wrong())
        self.q("create", "vm", "after", "--memory", "--mode", "cow")
        self.q("verify", "vm", "after")

    def test_stopped_by_a_signal_we_hold_the_guest_until_we_go_on_or_die(self):
        vm = self.running_vm(append="JUNK=24 DIRTY=1", smp=2)
        vm.serial.wait("JUNK-READY")
        for last in (signal.SIGCONT, signal.SIGKILL):
            with vm.monitor() as other:
                p = self.q.start("create", "vm", last.name, "--memory",
                                 "--mode", "cow", "--bwlimit", "20M")
                # before what the guest writes to all the time is copied
                while json.loads(other.line()).get("event") != "RESUME":
                    pass
                p.send_signal(signal.SIGSTOP)
            time.sleep(1)  # until it wants to write what is protected
            self.stands_still(vm, 2)
            since = vm.serial.mark()
            p.send_signal(last)
            self.goes_on(vm, since)
            status, out, err = self.q.finish(p)
            if last == signal.SIGCONT:
                self.assertEqual(0, status, out + err)
                self.assertGreater(self.q.info("vm", last.name)[
                    "longestStallMs"], 2000)
                self.q("verify", "vm", last.name)
            else:
                self.q("recover", "vm")
                self.assertEqual([signal.SIGCONT.name], self.q.names("vm"))
            vm.serial.wait(r"junk pass=\d+ bad=0", vm.serial.mark())
        self.assertEqual([], vm.serial.wrong())

    def inject(self, vm, step, kill_after=None):
        """What became of a probe that dies at that step, or so late."""
        p = subprocess.Popen([PROBE, "inject", str(vm.pid()), str(step)],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if kill_after is not None:
            p.stdout.readline()
            time.sleep(kill_after)
            p.send_signal(signal.SIGKILL)
        out, err = p.communicate(timeout=30)
        self.assertIn(p.returncode, (0, -signal.SIGKILL), out + err)
        since = vm.serial.mark()
        vm.serial.wait_ticks(1, since)
        with open("/proc/%d/status" % vm.pid()) as f:
            self.assertIn("TracerPid:\t0\n", f.read())
        return p.returncode

    def test_at_each_step_of_the_injection(self):
        tried = self.tried()
        if not tried:
            return
        vm = self.running_vm(append="JUNK=24 DIRTY=1 SYNC=vda", smp=2)
        vm.serial.wait("JUNK-READY")
        steps = 0
        while self.inject(vm, steps) != 0:
            steps += 1
            self.assertLess(steps, 100)
        self.assertGreater(steps, 6, "it has more steps than that")
        for i in tried.rounds(ROUNDS if DEEP else 20):
            self.inject(vm, 1 << 20, i * 0.00002)
        self.goes_on(vm)
        vm.serial.wait(r"junk pass=\d+ bad=0", vm.serial.mark())
        self.assertEqual([], vm.serial.wrong())
        self.assertEqual(0, self.inject(vm, 1 << 20))
