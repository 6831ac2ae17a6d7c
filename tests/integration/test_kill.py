# SPDX-License-Identifier: MIT
"""Dying at each system call that changes something: of ours, of QEMU, of the
whole host; and each of these calls failing. Afterwards the VM runs or starts,
each snapshot that is listed has its content and can be reverted to, nothing is
frozen, and no file is left over.

`make check` tries a few of the points, make check-crash all of them:
    QSTILL_TEST_EVERY   1: all; K: each K-th; K/P: each K-th from the P-th on;
                        K/P-L: and up to the L-th
    QSTILL_TEST_POINTS  a file that gets a line for each point (lib/points.py);
                        what stands in it is not tried again
    QSTILL_TEST_UNTIL   in seconds since 1970: no point is begun after it
    POINT               only that one

Two kills between which nothing has changed that anybody else could see (only
files were synced, or QEMU was asked) are one: the second is counted as "same".
All snapshots are reverted to wherever the tree, as it is after the point, has
not been seen before (shape()): a revert sees nothing else."""

import contextlib
import fcntl
import itertools
import json
import os
import random
import re
import shutil
import struct
import subprocess
import time

from lib import qemuio
from lib.agent import FakeAgent
from lib.case import QEMU_VERSION, SPARE, Case
from lib.points import Points, time_is_up
from lib.tiny import PART, PARTS
from lib.vm import file_name
from model.images import Reader

EVERY, _, FROM = os.environ.get("QSTILL_TEST_EVERY", "0").partition("/")
FROM, _, TO = FROM.partition("-")
EVERY, FROM, TO = int(EVERY), int(FROM or "1"), int(TO or "0")
SAMPLE = 2  # points of each operation, without it
FEW = ("create_with_memory", "revert_with_memory", "inner")

FS_IOC_GETFLAGS = 0x80086601
FS_IMMUTABLE_FL = 0x10

# Calls that leave no trace for whoever comes after a process that died.
TRACELESS = re.compile(
    r'\d+ (fsync|fdatasync|sync_file_range|'
    r'sendmsg [^"]*"execute": ?"(query-|qmp_capabilities|guest-ping|'
    r'guest-sync|guest-info|guest-get-|guest-fsfreeze-status))')


class Kill(Case):
    either = True
    limit = 3600 if EVERY else 240
    cost = 60
    round = 0
    agent = None

    # ----------------------------------------------------------- the model

    def build(self):
        """root - middle - leaf - head, and a branch of root; the byte of the
        first part tells them apart. leaf has memory."""
        self.round += 1
        name = "vm%d" % self.round
        if self.vms:
            old = self.vms.pop()
            old.end()
            self.agent.close()
            self.unprotect(old.dir)
            shutil.rmtree(old.dir)
            shutil.rmtree(os.path.join(self.store, old.name))
        self.reader = Reader()
        self.verified = {}
        self.vm = self.tiny_vm(name, attach=False, disks=[
            self.disk("disk0", "qcow2", vm=name, size=2 << 20, pattern=False),
            self.disk("disk1", "raw", vm=name, size=2 << 20, pattern=False)])
        self.agent = FakeAgent(os.path.join(self.vm.dir, "ga.sock"))
        self.attach(self.vm, "--agent", self.agent.path)
        self.model = {}
        self.byte = 0
        self.snapshot("root")
        self.snapshot("twig")
        self.q("revert", name, "root", "--keep-trash", "0")
        self.head = self.model["root"]
        self.snapshot("middle")
        self.snapshot("leaf", "--memory")
        self.write()
        self.base = self.now = self.shape(self.q("list", name))

    def write(self):
        """Something new at the head of all disks, at random places."""
        self.byte = self.byte % 250 + 1
        with self.vm.monitor() as m:
            for d in self.vm.disks:
                for part in (0, random.randrange(1, PARTS)):
                    self.io(m, d, "write -q -P %d %d %d" % (
                        self.byte, part * PART, PART))
                self.io(m, d, "flush")
        self.head = self.heads()

    @staticmethod
    def io(monitor, disk, command):
        qemuio.run(monitor, "-d /machine/peripheral/%s-dev/virtio-backend" %
                   disk.id, command)

    def snapshot(self, name, *more):
        self.write()
        self.q("create", self.vm.name, name, *more)
        self.model[name] = self.head

    def content(self, path, fmt):
        """The byte of each part; every part must be of one byte."""
        data = self.reader.content(path, fmt)
        parts = [data[at:at + PART] for at in range(0, PARTS * PART, PART)]
        for i, part in enumerate(parts):
            if part != part[:1] * PART:
                raise AssertionError("part %d of %s is torn" % (i, path))
        return [part[0] for part in parts]

    def record(self):
        with open(os.path.join(self.store, self.vm.name, "vm.json")) as f:
            return json.load(f)

    def heads(self):
        return [self.content(d["headPath"], d["headFormat"])
                for d in self.record()["disks"]]

    # ------------------------------------------------------- what there is

    def shape(self, listed):
        """The tree as it is, without ids, times and contents: which layer
        stands on which, in the files and in QEMU, and who needs it."""
        record = self.record()
        names = {s["id"]: s["name"] for s in listed["snapshots"]}
        label = {}
        for s in listed["snapshots"]:
            for d in s["disks"]:
                label[d["path"]] = s["name"]
        for what in ("hidden", "trash"):
            for entry in record[what]:
                for layer in entry.get("layers", [entry]):
                    label.setdefault(layer["path"], what)

        def chain(path, fmt):
            return tuple((label.get(layer.path, "head"), self.protected(
                layer.path)) for layer in self.reader.chain(path, fmt))
        return (tuple(sorted(
            (s["name"], names.get(s["parentId"]), s["memoryIncluded"],
             s["quiesced"], tuple(chain(d["path"], d["format"])
                                  for d in s["disks"]))
            for s in listed["snapshots"])),
            tuple(chain(d["headPath"], d["headFormat"])
                  for d in record["disks"]),
            names.get(listed["current"]), len(record["hidden"]),
            len(record["trash"]), bool(record.get("mapped")),
            self.in_qemu(label))

    @staticmethod
    def protected(path):
        flags = bytearray(8)
        with open(path, "rb") as f, contextlib.suppress(OSError):
            fcntl.ioctl(f, FS_IOC_GETFLAGS, flags)
        return bool(struct.unpack("Q", flags)[0] & FS_IMMUTABLE_FL)

    def in_qemu(self, label):
        """The nodes that QEMU has open, each with the kind of its name."""
        with self.vm.monitor() as m:
            nodes = m.cmd("query-named-block-nodes")
            fds = m.cmd("query-fdsets")
        found = []
        for n in nodes:
            kind = re.match(r"#block|qsm-|qs|", n["node-name"]).group(0)
            path = file_name(n["file"])
            found.append((n["drv"], kind, label.get(path, "head"), n["ro"]))
        return tuple(sorted(found)), len(fds)

    # --------------------------------------------------------- one point

    def run_at(self, n, argv, fault):
        """Runs the command with its fault at the n-th call; whether it came
        to that."""
        how = []
        if fault.startswith("E"):
            how += ["--errno", fault]
        if fault == "cancel":
            how += ["--cancel"]
        if fault == "EROFS":
            how += ["--stay"]
        if n:
            how += ["--at", str(n)]
            if fault in ("qemu", "host"):
                how += ["--kill", str(self.vm.pid())]
            if fault == "qemu":
                how += ["--on"]
        p, self.calls = self.traced(argv, *how)
        self.said = "exit %d, %s\n%s" % (p.returncode, p.stdout, "\n".join(
            self.calls[max(0, n - 4):n + 1]) if n else "")
        self.status = p.returncode
        if not n:
            self.assertEqual(0, p.returncode, p.stdout)
        return int(re.match(r"end (\d+)", self.calls[-1]).group(1))

    def reboot(self):
        """The host came up again: another boot, stale sockets and locks."""
        lock = os.path.join(self.store, self.vm.name, "lock")
        with open(lock) as f:
            words = f.read().split()
        if len(words) == 5:
            words[3] = "0" * 8 + "-0000-4000-8000-" + "0" * 12
            with open(lock, "w") as f:
                f.write(" ".join(words) + "\n")

    def recover(self, n):
        """By recover, or by what a user would type first."""
        name = self.vm.name
        self.q(*(("recover", name), ("list", name),
                 ("path", name, self.disk_names(self.vm)[0]))[n % 3])
        self.said += self.q.stderr

    def good(self, n, fault, before, after):
        """All that must be true now. `before` and `after` are (snapshots,
        head); either is right."""
        name = self.vm.name
        if fault in ("kill", "host") or \
                os.path.exists(self.q.journal_path(name)):
            self.recover(n)
        if fault in ("qemu", "host"):
            self.agent.frozen = False  # the guest is gone
        if fault == "cancel" and self.record()["hidden"]:
            self.q("recover", name)  # what was not merged any more
        self.assertFalse(os.path.exists(self.q.journal_path(name)))
        self.agent.wait_thawed(0.1)
        self.assertIsNone(self.record().get("thawOwed"))
        if not self.vm.alive():
            self.assertTrue(fault in ("qemu", "host") or
                            after[1] != before[1], "the VM is off")
            self.q("start", name)
        listed = self.q("list", name)
        found = {s["name"] for s in listed["snapshots"]}
        ways = [w for w in (before, after) if set(w[0]) == found]
        self.assertTrue(ways, found)
        head = self.heads()
        self.assertIn(head, [w[1] for w in ways])
        if fault == "cancel":
            self.assertIn(self.status, (0, 10))
        if fault == "cancel" and "delete" not in self._testMethodName:
            self.assertIn(after if self.status == 0 else before,
                          [(w[0], head) for w in ways])
        self.model, self.head = dict(ways[0][0]), head
        for s in listed["snapshots"]:
            self.assertEqual(self.model[s["name"]], [
                self.content(d["path"], d["format"]) for d in s["disks"]],
                s["name"])
            self.verify(s)
        self.nothing_left(listed)
        said = self.q.check(name)
        self.assertTrue(said["ok"], said)
        self.now = self.shape(listed)
        return found

    def verify(self, snapshot):
        """Unless none of its files has changed since it was found good."""
        folder = self.q.memory_dir(self.vm.name, snapshot["id"])
        paths = [d["path"] for d in snapshot["disks"]]
        if os.path.isdir(folder):
            paths += [os.path.join(folder, f) for f in os.listdir(folder)]
        state = [(p, st.st_ino, st.st_size, st.st_ctime_ns) for p, st in
                 ((p, os.stat(p)) for p in sorted(paths))]
        if self.verified.get(snapshot["id"]) != state:
            self.q("verify", self.vm.name, snapshot["id"])
            self.verified[snapshot["id"]] = state

    def nothing_left(self, listed):
        """In QEMU no node and no job, among the files no image, in the store
        no file: but for what the disks, snapshots and the trash need."""
        record = self.record()
        tops = [(d["headPath"], d["headFormat"]) for d in record["disks"]]
        live = {layer.path for top in tops for layer in
                self.reader.chain(*top)}
        with self.vm.monitor() as m:
            self.assertEqual("running", m.cmd("query-status")["status"])
            self.assertEqual([], m.cmd("query-jobs"), "a job is left")
            self.assertEqual([], m.cmd("query-block-jobs"), "a job is left")
            nodes = [n["file"] for n in m.cmd("query-named-block-nodes")]
            devices = [file_name(b["inserted"]["image"]["filename"])
                       for b in m.cmd("query-block") if "inserted" in b]
        self.assertEqual(sorted(path for path, _ in tops), sorted(devices))
        self.assertEqual([], [n for n in nodes if n not in live and
                              not n.startswith("json:")])
        tops += [(d["path"], d["format"]) for s in listed["snapshots"]
                 for d in s["disks"]]
        tops += [(t["path"], t["format"]) for entry in record["trash"]
                 for t in entry["layers"]]
        needed = {d.path for d in self.vm.disks}
        for top in tops:
            needed.update(layer.path for layer in self.reader.chain(*top))
        self.assertEqual(set(), self.disk_files(self.vm) - needed,
                         "images that nobody needs")
        self.assertEqual([], self.reader.problems())
        folder = os.path.join(self.store, self.vm.name)
        self.assertEqual(set(), set(os.listdir(folder)) - {
            "vm.json", "lock", "snapshots", "qemu.log", *SPARE},
            "left in the store")
        self.assertEqual(
            {s["id"] for s in listed["snapshots"]} |
            {".%s.trash" % i for t in record["trash"] for i in t["ids"]},
            set(os.listdir(os.path.join(folder, "snapshots"))))

    def reverts(self, names):
        for s in names:
            self.q("revert", self.vm.name, s)
            self.assertEqual("running", self.vm.state())
            self.head = self.heads()
            self.assertEqual(self.model[s], self.head, s)
        listed = self.q("list", self.vm.name)
        self.nothing_left(listed)
        self.now = self.shape(listed)

    # ------------------------------------------------------- all the points

    def points(self, total):
        if os.environ.get("POINT"):
            return [int(os.environ["POINT"])]
        if EVERY:
            # until one is not reached: no two runs have just as many calls
            return itertools.takewhile(lambda n: not TO or n <= TO,
                                       itertools.count(FROM, EVERY))
        step = total / SAMPLE
        return sorted({1 + int(i * step + random.random() * step) for i in
                       range(SAMPLE)} | {total})

    def is_same(self, n, fault, counted):
        """Whether the one before it was of the same instant."""
        return fault in ("kill", "host") and EVERY == 1 and \
            1 < n <= len(counted) - 1 and \
            TRACELESS.match(counted[n - 2]) is not None

    def one(self, n, argv, fault, prepare, after):
        """One point; whether the command had as many calls."""
        if self.now != self.base:
            self.build()
        prepare()
        before = (dict(self.model), self.head)
        want = after()
        seen = self.run_at(n, argv(), fault)
        names = self.good(n, fault, before, want)
        order = sorted(names)
        if not EVERY:
            self.reverts(order[n % (len(order) or 1):][:1])
        elif self.now not in self.reverted:
            was = self.now
            self.reverts(order)
            self.reverted.add(was)
        self.write()
        return seen >= n

    def operation(self, argv, fault, prepare, after, points=None):
        """At each point. `after` gives (snapshots, head) of a success, and
        points() others than the usual ones, from the calls counted."""
        seed = int(os.environ.get("SEED", "0")) or random.randrange(1, 1 << 30)
        random.seed(seed)
        tried = Points("%s %s.%s" % (QEMU_VERSION, type(self).__name__,
                                     self._testMethodName))
        if tried.over or time_is_up():
            return
        self.reverted = set()
        self.build()
        prepare()
        total = self.run_at(0, argv(), fault)
        counted = self.calls
        tried.begin(total)
        self.now = None
        broken = []
        for n in tried.todo(points(counted) if points
                            else self.points(total)):
            if self.is_same(n, fault, counted):
                tried.add(n, "same")
                continue
            try:
                if not self.one(n, argv, fault, prepare, after):
                    tried.end(n)
                    break
                tried.add(n, "run")
            except (AssertionError, subprocess.SubprocessError) as e:
                broken.append("point %d: %s\n%s" % (n, e, self.said))
                tried.add(n, "broken", broken[-1])
                print("BROKEN", broken[-1], flush=True)
                if len(broken) > (20 if EVERY else 0):
                    break
                self.now = None
        print(tried.text(), flush=True)
        self.assertEqual([], broken, "seed %d" % seed)

    # -------------------------------------------------------- the operations

    def ready(self):
        pass

    def create(self, fault, *more):
        def want():
            return {**self.model, "new": self.head}, self.head
        self.operation(lambda: ["create", self.vm.name, "new", *more], fault,
                       self.ready, want)

    def revert(self, fault, to, *more):
        def want():
            return dict(self.model), self.model[to]
        self.operation(lambda: ["revert", self.vm.name, to, *more], fault,
                       self.ready, want)

    def revert_quiesced(self, fault):
        """Its guest wakes up frozen: whoever comes to it thaws it."""
        def prepare():
            self.snapshot("calm", "--memory", "--quiesce")
            self.write()
            thawed = self.agent.wait_thawed

            def wait_thawed(timeout):
                # the flag is not in the guest's memory, as it really is
                if self.heads() != self.model["calm"]:
                    self.agent.frozen = False
                thawed(timeout)
            self.agent.wait_thawed = wait_thawed
            self.agent.frozen = True
        self.operation(lambda: ["revert", self.vm.name, "calm"], fault,
                       prepare, lambda: (dict(self.model),
                                         self.model["calm"]))

    def revert_expiring(self, fault):
        """With merges of what was deleted before, at its end."""
        def prepare():
            self.q("delete", self.vm.name, "middle", "--keep-trash", "1")
            self.model = {k: v for k, v in self.model.items()
                          if k != "middle"}
        self.operation(lambda: ["revert", self.vm.name, "leaf"], fault,
                       prepare, lambda: (dict(self.model),
                                         self.model["leaf"]))

    def delete_below_a_fork(self, fault, points=None):
        """The layer that takes the deleted one in has another overlay, which
        QEMU does not have open."""
        def prepare():
            self.q("revert", self.vm.name, "leaf", "--keep-trash", "0")
            self.head = self.model["leaf"]
            self.snapshot("bough")
            self.q("revert", self.vm.name, "leaf", "--keep-trash", "0")
            self.head = self.model["leaf"]

        def want():
            return {k: v for k, v in self.model.items()
                    if k != "middle"}, self.head
        self.operation(lambda: ["delete", self.vm.name, "middle"], fault,
                       prepare, want, points)

    def delete(self, fault, *gone):
        def want():
            return {k: v for k, v in self.model.items()
                    if k not in gone}, self.head
        self.operation(lambda: ["delete", self.vm.name, *gone], fault,
                       self.ready, want)

    def undo(self, fault, what, *more):
        kept = {}

        def prepare():
            kept.update(model=dict(self.model), head=self.head)
            self.q(what, self.vm.name, *more)
            self.head = self.heads()
            self.model = {k: v for k, v in self.model.items()
                          if k in self.q.names(self.vm.name)}
        self.operation(lambda: ["undo", self.vm.name], fault, prepare,
                       lambda: (kept["model"], kept["head"]))


def add(cls, fault, few=()):
    """A test for each operation, or for a few when only some points are
    tried."""
    ops = {
        "a_create": lambda s: s.create(fault),
        "a_create_with_memory": lambda s: s.create(fault, "--memory"),
        "a_quiesced_create_of_mode_paused": lambda s: s.create(
            fault, "--memory", "--quiesce", "--mode", "paused"),
        "a_revert": lambda s: s.revert(fault, "middle"),
        "a_revert_with_memory": lambda s: s.revert(fault, "leaf"),
        "a_revert_to_a_quiesced_one": lambda s: s.revert_quiesced(fault),
        "a_delete_of_an_inner_one": lambda s: s.delete(fault, "middle"),
        "a_delete_of_the_current_one": lambda s: s.delete(fault, "leaf"),
        "a_delete_of_a_branch": lambda s: s.delete(fault, "twig"),
        "a_delete_of_all": lambda s: s.delete(fault, "root", "twig", "middle",
                                              "leaf"),
        "an_undo_of_a_revert": lambda s: s.undo(fault, "revert", "root"),
        "an_undo_of_a_delete": lambda s: s.undo(
            fault, "delete", "middle", "root", "--keep-trash", "1"),
        "a_delete_below_a_fork": lambda s: s.delete_below_a_fork(fault),
        "a_revert_when_trash_expires": lambda s: s.revert_expiring(fault),
    }
    for name, run in ops.items():
        if few and not EVERY and not any(w in name for w in few):
            continue
        setattr(cls, "test_in_" + name, run)
    return cls



class OurselvesKilled(Kill):
    """SIGKILL."""

    def test_when_an_overlay_has_got_its_new_backing_file(self):
        """But its manifest does not know of it yet."""
        def points(calls):
            self.assertTrue(self.fork)
            found = [int(c.split()[0]) for c in calls
                     if any(f in c for f in self.fork)]
            self.assertTrue(found, "\n".join(calls))
            return sorted({n + 1 for n in found})[-4:]
        self.fork = []
        taken = self.run_at

        def run_at(n, *more):
            self.fork = [os.path.basename(p) for p, _ in self.frozen(
                self.vm, "bough").values()]
            return taken(n, *more)
        self.run_at = run_at
        self.delete_below_a_fork("kill", points)


class QemuKilled(Kill):
    """SIGKILL of QEMU; the command goes on and sees for itself."""


class HostDown(Kill):
    """Both at once, and the next command runs in another boot."""

    def recover(self, n):
        self.reboot()
        super().recover(n)


class DiskFull(Kill):
    """The call fails with ENOSPC."""


class DiskBroken(Kill):
    """The call fails with EIO."""


class ReadOnly(Kill):
    """The call fails with EROFS, and all that follow: the file system was found
    damaged, and is mended before the next command."""


class SendBroken(Kill):
    """The connection to QEMU, or to the agent, ends before a command."""


class AnswerLost(Kill):
    """It ends after a command: QEMU has done what nobody knows of."""


class Cancelled(Kill):
    """SIGINT: done, or undone, and the exit code says which. A delete goes on
    to its point of return, and leaves merges for later."""


add(OurselvesKilled, "kill")
for each, fault, few in (
        (QemuKilled, "qemu", FEW), (HostDown, "host", FEW),
        (DiskFull, "ENOSPC", FEW), (DiskBroken, "EIO", FEW),
        (ReadOnly, "EROFS", ("revert_with_memory",)),
        (SendBroken, "EPIPE", ("revert_with_memory",)),
        (AnswerLost, "ECONNRESET", ("inner",)),
        (Cancelled, "cancel", ("expires",))):
    add(each, fault, few)
    if not EVERY:
        each.versions = ("7.2",)
del Kill, each
