# SPDX-License-Identifier: MIT
"""The base of all integration tests.

What every test checks without saying so, when it is over: no VM is left
paused that the test did not pause, no guest is left frozen, no block job is
left in a QEMU, and no file lies in a disk folder or in the store that neither
a disk nor a listed snapshot needs."""

import contextlib
import ctypes
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from .agent import FakeAgent
from . import image
from .cli import Qstill
from .guest import TICK, SyncPage, Tick
from .tiny import Tiny
from .vm import VM, Disk

QEMU = os.environ.get("QSTILL_TEST_QEMU", "")
QEMU_VERSION = os.environ.get("QSTILL_TEST_QEMU_VERSION", "")
GUEST = os.environ.get("QSTILL_TEST_GUEST", "")
BUILD = os.environ.get("QSTILL_TEST_BUILD", "build")
QUICK = os.environ.get("QSTILL_TEST_QUICK", "") == "1"
# The other QEMU does the rest: see --either of run.py.
SHARE, SHARES = (int(n) for n in
                 os.environ.get("QSTILL_TEST_SHARE", "0/1").split("/"))
PR_SET_CHILD_SUBREAPER = 36
SPARE = (".spare.0", ".spare.1")  # room for a full file system's journal


def share(items):
    """Those of the items, moments or variants of one test, that are tested
    with this QEMU: all, or in `make check` each one with one of the QEMUs."""
    return items[SHARE::SHARES]


class TimeUp(BaseException):
    """No Exception: an `except Exception` of a test must not swallow it."""


def adopt_orphans():
    """QEMUs that the command starts become ours when it exits."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def scratch_root():
    """Not /tmp, which may be memory: O_DIRECT belongs to what is tested. Short
    names: a socket's path has 107 bytes at most."""
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else None


class Case(unittest.TestCase):
    limit = 120     # seconds for one test
    idle = False    # waits for minutes, and needs no CPU for that
    cost = 10       # a guess in seconds, to start the long ones first
    versions = ("7.2", "10.0")
    # See --either of run.py. either: depends little on QEMU's version; dealt:
    # its tests are variants of one, some with each QEMU show it for that QEMU.
    either = False
    dealt = False
    maxDiff = None

    # ----------------------------------------------------------- the workshop

    def setUp(self):
        self.pids = set()
        self.vms = []
        self.paused_on_purpose = set()
        self.damaged_on_purpose = set()
        self.to_keep = None
        self.tmp = tempfile.mkdtemp(prefix="qst-", dir=scratch_root())
        self.addCleanup(self._clean_up)
        self._use_store()
        signal.signal(signal.SIGALRM, self._time_up)
        signal.alarm(self.limit)
        self.addCleanup(signal.alarm, 0)

    def _use_store(self):
        self.store = os.path.join(self.tmp, "store")
        self.q = Qstill(self, os.path.abspath(os.path.join(BUILD, "qstill")),
                        self.store)

    def _time_up(self, *_):
        raise TimeUp("the test's limit of %d s is over" % self.limit)

    def tearDown(self):
        if self._outcome_is_good():
            for vm in self.vms:
                self.check_nothing_left(vm)
        else:
            for vm in self.vms:
                print("--- serial of %s: %s\n--- qemu: %s" % (
                    vm.name, vm.serial.text()[-800:], vm.words()))
                for f in glob.glob(os.path.join(self.store, "*", "qemu.log")):
                    with open(f, errors="replace") as log:
                        print("--- %s: %s" % (f, log.read()[-2000:]))

    def _outcome_is_good(self):
        outcome = self._outcome
        result = getattr(outcome, "result", None)
        if hasattr(outcome, "errors"):  # Python before 3.11
            return not any(e for _, e in outcome.errors if e)
        return not any(t is self for t, _ in result.failures + result.errors)

    def track(self, pid):
        self.pids.add(pid)

    def reap(self):
        for pid in list(self.pids):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        for vm in self.vms:
            if vm.process:
                vm.process.poll()

    def lingering(self):
        """A process of ours that is ending: until we can reap it, one of its
        threads may still hold its sockets open."""
        self.reap()
        for pid in self.pids:
            with contextlib.suppress(OSError):
                with open("/proc/%d/cmdline" % pid, "rb") as f:
                    if not f.read():
                        return True
        return False

    @staticmethod
    def processes(word):
        """The QEMUs whose command line has `word` in it. A zombie has none."""
        for d in os.listdir("/proc"):
            if not d.isdigit() or int(d) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                with open("/proc/%s/cmdline" % d, "rb") as f:
                    argv = f.read()
                if word.encode() in argv and b"qemu" in argv.split(b"\0")[0]:
                    yield int(d)

    def _qemus(self):
        return self.processes(self.tmp)

    # A boot under TCG takes seconds: the VM that a test leaves as it was made
    # serves the next test of its class that asks for it.
    _kept = None

    def shared(self, make):
        """What make() returns, a running VM, or that of an earlier test: all
        tests of a class that call this must mean the same VM."""
        cls = type(self)
        kept, cls._kept = cls._kept, None
        if kept:
            self._remove_scratch()
            self.tmp, self.pids = kept.tmp, kept.pids
            self._use_store()
            self.to_keep = kept.to_keep
            self.to_keep.case = self
            self.vms.append(self.to_keep)
        else:
            self.to_keep = make()
        return self.to_keep

    def _as_made(self, vm):
        """Whether it can serve again: its first boot, its first images, and
        no snapshot."""
        try:
            said = vm.serial.text()
            if vm.state() != "running" or self.vms != [vm] or \
                    said.count("GUEST-UP") != 1 or vm.serial.wrong():
                return False
            ids = [s["id"] for s in self.q.snapshots(vm.name)]
            if ids:
                self.q("delete", vm.name, *ids)
            with open(os.path.join(self.store, vm.name, "vm.json")) as f:
                mapped = json.load(f).get("mapped")
            paths = {d.path for d in vm.disks}
            return not mapped and set(vm.heads().values()) == paths and \
                self.disk_files(vm) == paths
        except AssertionError:
            return False

    def _clean_up(self):
        if self.to_keep and self._outcome.success and \
                self._as_made(self.to_keep):
            type(self)._kept = self
            return
        self._end_processes()
        self._remove_scratch()

    @classmethod
    def tearDownClass(cls):
        kept, cls._kept = cls._kept, None
        if kept:
            kept._end_processes()
            kept._remove_scratch()

    def _remove_scratch(self):
        self.unprotect(self.tmp)
        shutil.rmtree(self.tmp, ignore_errors=True)

    def unprotect(self, path):
        """Frozen layers are immutable where the filesystem can say so."""
        subprocess.run(["chattr", "-R", "-f", "-i", path], check=False,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def mount_tmpfs(self, path, options):
        """A filesystem of its own for the test; skips where we may not."""
        os.makedirs(path, exist_ok=True)
        p = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "qst", path],
                           stderr=subprocess.PIPE, text=True)
        if p.returncode != 0:
            self.skipTest("mounting a tmpfs is not allowed here: " +
                          p.stderr.strip())
        self.addCleanup(subprocess.run, ["umount", "-l", path])

    def mount_ext4(self, path, size):
        """The same with an ext4 of `size`, none of it kept for root."""
        self._mount_made("ext4", path, size, "-m", "0", "-b", "4096")

    def mount_btrfs(self, path, size):
        self._mount_made("btrfs", path, size)

    def _mount_made(self, fs, path, size, *options):
        os.makedirs(path, exist_ok=True)
        made = os.path.join(self.tmp, fs)
        subprocess.run(["truncate", "-s", size, made], check=True)
        for argv in (["mkfs." + fs, "-q", *options, made],
                     ["mount", "-o", "loop", made, path]):
            try:
                p = subprocess.run(argv, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
            except FileNotFoundError as e:
                self.skipTest(str(e))
            if p.returncode != 0:
                self.skipTest("%s is not to be had here: %s" % (
                    fs, p.stdout.strip()))
        self.addCleanup(subprocess.run, ["umount", "-l", path])

    def _end_processes(self):
        """Ends what this test started, and waits until it is gone."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for pid in self._qemus():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self.track(pid)
            self.reap()
            if not any(os.path.exists("/proc/%d" % p) for p in self.pids):
                return
            time.sleep(0.02)

    def disk(self, id="disk0", fmt="qcow2", vm="vm", **kw):
        folder = os.path.join(self.tmp, vm)
        os.makedirs(folder, exist_ok=True)
        return Disk(id, os.path.join(folder, "%s.%s" % (
            id, "img" if fmt == "raw" else fmt)), fmt, **kw)

    def make_vm(self, name="vm", disks=None, **kw):
        folder = os.path.join(self.tmp, name)
        os.makedirs(folder, exist_ok=True)
        if disks is None:
            disks = [self.disk(vm=name)]
        vm = VM(self, QEMU, GUEST, folder, name, disks, **kw)
        self.vms.append(vm)
        return vm

    def as_nobody(self):
        """The words that start a QEMU which may make no userfaultfd that sees
        KVM's faults, but by the device that root can open."""
        setpriv = shutil.which("setpriv")
        with open("/proc/sys/vm/unprivileged_userfaultfd") as f:
            if os.geteuid() != 0 or not setpriv or f.read().strip() != "0" or \
                    not os.path.exists("/dev/userfaultfd"):
                self.skipTest("needs root, setpriv, Linux 6.1, and the default "
                              "of vm.unprivileged_userfaultfd")
        return setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"

    def behind(self, *words):
        """A program that starts QEMU by these, of another user, say."""
        program = os.path.join(self.tmp, "qemu-behind")
        with open(program, "w") as f:
            f.write('#!/bin/sh\nexec %s "$@"\n' % shlex.join([*words, QEMU]))
        os.chmod(program, 0o755)
        os.chmod(self.tmp, 0o755)
        return program

    def tiny_vm(self, name="vm", disks=None, attach=True, paused=False,
                qemu=None, **kw):
        """A running QEMU without a guest."""
        folder = os.path.join(self.tmp, name)
        os.makedirs(folder, exist_ok=True)
        if disks is None:
            disks = [self.disk(vm=name, size=2 << 20, pattern=False)]
        vm = Tiny(self, qemu or QEMU, GUEST, folder, name, disks, **kw)
        self.vms.append(vm)
        vm.start(paused=paused)
        if attach:
            self.attach(vm)
        return vm

    def tiny_vm_with_agent(self, **kw):
        """self.vm, attached, and self.agent, a FakeAgent."""
        self.vm = self.tiny_vm(attach=False, **kw)
        self.agent = FakeAgent(os.path.join(self.vm.dir, "ga.sock"))
        self.addCleanup(self.agent.close)
        self.attach(self.vm, "--agent", self.agent.path)

    def traced(self, argv, *options):
        """The command under tests/crash/syskill: what subprocess.run() gives,
        and its calls, a line each."""
        said = os.path.join(self.tmp, "calls")
        p = subprocess.run(
            [os.path.join(BUILD, "crash", "syskill"), "--list", said, *options,
             "--", *self.q.argv(argv)], timeout=120, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertNotEqual(125, p.returncode, p.stdout)
        with open(said, errors="replace") as f:
            return p, f.read().splitlines()

    def running_vm(self, name="vm", attach=True, wait=True, paused=False,
                   **kw):
        vm = self.make_vm(name, **kw).start(wait, paused)
        if attach:
            self.attach(vm)
        return vm

    def attach(self, vm, *more):
        args = ["attach", vm.name, "--qmp", vm.qmp]
        if vm.agent:
            args += ["--agent", vm.agent]
        return self.q(*args, *more)

    def launcher(self, before=(), more=()):
        """Options of `attach`: a command that starts QEMU with the words
        `before` in front of its command line and `more` behind."""
        script = os.path.join(self.tmp, "launcher")
        with open(script, "w") as f:
            f.write("import json, os, subprocess\n"
                    "argv = json.loads(os.environ['QSTILL_ARGV_JSON'])\n"
                    "subprocess.Popen(%r + argv + %r, start_new_session=True,\n"
                    "                 stdin=subprocess.DEVNULL)\n" % (
                        list(before), list(more)))
        return "--launcher", "exec python3 " + script

    # ------------------------------------------------------- what must be true

    def goes_on(self, vm, since=None, count=3, **kw):
        """The guest runs: `count` more ticks, in order, with one nonce, and
        nothing wrong inside. Returns these ticks."""
        since = vm.serial.mark() if since is None else since
        ticks = vm.serial.wait_ticks(count, since, **kw)
        numbers = [t.number for t in ticks]
        self.assertEqual(list(range(numbers[0], numbers[0] + len(numbers))),
                         numbers, "the guest's ticks jump")
        self.assertEqual(1, len({t.nonce for t in ticks}))
        self.assertEqual([], vm.serial.wrong(since))
        return ticks

    def goes_on_from(self, vm, tick, nonce, since, count=5):
        """After a revert with memory: the guest goes on from the tick that the
        snapshot's disk holds, with the nonce that only RAM holds, and has not
        booted. `since` may lie before the revert: what the guest said until it
        was stopped comes first then."""
        def last_run(text):
            run = []
            for m in TICK.finditer(text):
                t = Tick(m)
                run = run + [t] if run and t.nonce == run[-1].nonce and \
                    t.number == run[-1].number + 1 else [t]
            # The disk is written before the tick is printed. A guest that the
            # revert ended may have been at the same number.
            good = run and run[0].nonce == nonce and \
                run[0].number in (tick, tick + 1)
            return run if good and len(run) >= count else None
        try:
            ticks = vm.serial.wait(last_run, since)
        except AssertionError as e:
            raise AssertionError("the guest does not go on from tick %d: %s" % (
                tick, vm.serial.ticks(since))) from e
        # From its first tick on: a guest that the revert ended may have been
        # another boot.
        said = vm.serial.text(since)
        said = said[said.index("tick %d nonce=%s" % (ticks[0].number, nonce)):]
        self.assertNotIn("GUEST-UP", said)
        self.assertEqual([], vm.serial.wrong(since))
        return ticks

    def stands_still(self, vm, seconds=0.5):
        since = vm.serial.mark()
        time.sleep(seconds)
        self.assertEqual([], vm.serial.ticks(since), "the guest runs")

    def frozen(self, vm, snap):
        """The frozen layers of a snapshot, {disk: (path, format)}."""
        return {d["name"]: (d["path"], d["format"])
                for d in self.q.info(vm.name, snap)["disks"]}

    def snapshot_ticks(self, vm, snap):
        """What the disks held at the snapshot's instant, in disk order."""
        return [image.tick(path, fmt)
                for path, fmt in self.frozen(vm, snap).values()]

    def disk_files(self, vm):
        return {os.path.join(vm.dir, f) for f in os.listdir(vm.dir)
                if re.search(r"\.(qcow2|img|vdi)$", f)}

    def store_files(self):
        """Every file of the store with its size; locks come and go."""
        found = {}
        for folder, dirs, files in os.walk(self.store):
            for f in files:
                path = os.path.join(folder, f)
                if f not in ("lock", "qemu.log", ".asked", *SPARE):
                    found[path] = os.stat(path).st_size
            for d in dirs:
                found[os.path.join(folder, d)] = None
        return found

    @contextlib.contextmanager
    def nothing_changes(self, vm):
        """What runs inside leaves no trace: disks, heads, store, run state."""
        state = vm.state()
        heads = vm.heads() if state != "off" else None
        files, store = self.disk_files(vm), self.store_files()
        yield
        self.assertEqual(state, vm.state(), "the VM's state")
        if state != "off":
            self.assertEqual(heads, vm.heads(), "the disks' heads")
            self.assertEqual([], vm.block_jobs())
        self.assertEqual(files, self.disk_files(vm), "files beside the disks")
        self.assertEqual(store, self.store_files(), "files in the store")
        if state == "running" and vm.ticks:
            self.goes_on(vm)

    def pause(self, vm):
        vm.cmd("stop")
        self.paused_on_purpose.add(vm.name)

    def cont(self, vm):
        vm.cmd("cont")
        self.paused_on_purpose.discard(vm.name)

    def check_nothing_left(self, vm):
        state = vm.state()
        if state != "off":
            # QEMU 7.2 knows no way from postmigrate to paused (spec 4)
            want = ("paused", "postmigrate") \
                if vm.name in self.paused_on_purpose else ("running",)
            self.assertIn(state, want, "%s was left %s" % (vm.name, state))
            self.assertEqual([], vm.block_jobs(), "a job was left in QEMU")
            if vm.agent and state == "running":
                with vm.guest_agent() as agent:
                    self.assertEqual(
                        "thawed", agent.cmd("guest-fsfreeze-status"))
        folder = os.path.join(self.store, vm.name)
        if vm.name in self.damaged_on_purpose or \
                not os.path.exists(os.path.join(folder, "vm.json")):
            return
        self.check_store(vm, folder, state)

    def check_store(self, vm, folder, state):
        """Every image and every file of the store has someone who needs it."""
        self.assertFalse(os.path.exists(os.path.join(folder, "journal.json")),
                         "a journal was left")
        listed = self.q("list", vm.name)
        needed = {d.path for d in vm.disks}
        heads = list(vm.heads().values()) if state != "off" else []
        heads = heads or self.head_paths(vm)
        for head in heads:
            needed.update(image.chain(head))
        for s in listed["snapshots"]:
            for path, _ in self.frozen(vm, s["id"]).values():
                needed.update(image.chain(path))
        trash = self.trash(vm)
        for t in trash:
            for layer in t["layers"]:
                needed.update(image.chain(layer["path"]))
        self.assertEqual(set(), self.disk_files(vm) - needed,
                         "images that nobody needs")
        want = {"vm.json", "lock", "snapshots", "qemu.log", ".asked", *SPARE}
        self.assertEqual(set(), set(os.listdir(folder)) - want,
                         "the store's folder of the VM")
        self.assertEqual({s["id"] for s in listed["snapshots"]} |
                         {".%s.trash" % i for t in trash for i in t["ids"]},
                         set(os.listdir(os.path.join(folder, "snapshots"))),
                         "the snapshots' folders")

    def trash(self, vm):
        """What undo could bring back."""
        with open(os.path.join(self.store, vm.name, "vm.json")) as f:
            return json.load(f)["trash"]

    def disk_names(self, vm):
        """The disks' names as the product has them."""
        with open(os.path.join(self.store, vm.name, "vm.json")) as f:
            return [d["name"] for d in json.load(f)["disks"]]

    def head_paths(self, vm):
        """What the product says the disks' heads are, in disk order."""
        return [self.q("path", vm.name, d)["path"]
                for d in self.disk_names(vm)]

    # ----------------------------------------------------------------- memory

    def main_ram(self, vm, snapshot):
        """The path of the RAM file of the guest's main memory."""
        with open(self.q.manifest_path(vm.name, snapshot["id"])) as f:
            blocks = json.load(f)["memory"]["blocks"]
        main = [b["id"] for b in blocks if b["main"]]
        self.assertEqual(1, len(main), "one block is the guest's memory")
        name = "".join(c if re.match(r"[A-Za-z0-9._-]", c) else
                       "%%%02X" % ord(c) for c in main[0])
        return os.path.join(self.q.memory_dir(vm.name, snapshot["id"]),
                            name + ".ram")

    def sync_page(self, vm, snapshot, paddr):
        with open(self.main_ram(vm, snapshot), "rb") as f:
            f.seek(paddr)
            return SyncPage(f.read(4096))

    def sync_address(self, vm):
        m = vm.serial.wait(r"sync count=\d+ bad=0 paddr=0x([0-9a-f]+)\n")
        return int(m.group(1), 16)

    def check_instant(self, vm, snapshot, paddr):
        """Memory and all disks of the snapshot are of one instant: RAM says
        which counts were under way, and each frozen layer holds just that."""
        page = self.sync_page(vm, snapshot, paddr)
        self.assertLessEqual(page.started, page.done + 1)
        counts = [image.ring(path, fmt, page.nonce) for path, fmt in
                  self.frozen(vm, snapshot["id"]).values()]
        # In the order in which the guest writes them.
        seen = [page.started] + counts + [page.done]
        self.assertEqual(sorted(seen, reverse=True), seen,
                         "started in RAM, each disk, done in RAM")
        return page
