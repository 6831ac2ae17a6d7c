# SPDX-License-Identifier: MIT
"""Dying at each system call that changes something: of ours, of QEMU, of the
whole host; and each of these calls failing. Afterwards the VM runs or starts,
each snapshot that is listed has its content and can be reverted to, nothing is
frozen, and no file is left over.

`make check` tries a few of the points, QSTILL_TEST_EVERY=1 (make check-crash)
all of them, QSTILL_TEST_EVERY=K each K-th, K/P each K-th from the P-th on."""

import os
import random
import re
import shutil
import subprocess

from lib.agent import FakeAgent
from lib.case import BUILD, Case
from lib.image import chain
from lib.tiny import content

EVERY, _, FROM = os.environ.get("QSTILL_TEST_EVERY", "0").partition("/")
EVERY, FROM = int(EVERY), int(FROM or "1")
SAMPLE = 2  # points of each operation, without it
FEW = ("create_with_memory", "revert_with_memory", "inner")


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
        self.base = dict(self.model)

    def write(self):
        """Something new at the head of all disks, at random places."""
        self.byte = self.byte % 250 + 1
        for d in self.vm.disks:
            self.vm.write(d, 0, self.byte)
            self.vm.write(d, random.randrange(1, 8), self.byte)
        self.head = [self.content(p) for p in self.head_paths(self.vm)]

    def snapshot(self, name, *more):
        self.write()
        self.q("create", self.vm.name, name, *more)
        self.model[name] = self.head

    @staticmethod
    def content(path):
        return content(path, "raw" if path.endswith(".img") else "qcow2")

    def heads(self):
        return [self.content(p) for p in self.head_paths(self.vm)]

    # --------------------------------------------------------- one point

    def run_at(self, n, argv, fault):
        """Runs the command with its fault at the n-th call; whether it came
        to that."""
        said = os.path.join(self.tmp, "calls")
        pre = [os.path.join(BUILD, "crash", "syskill"), "--list", said]
        if fault.startswith("E"):
            pre += ["--errno", fault]
        if fault == "EROFS":
            pre += ["--stay"]
        if n:
            pre += ["--at", str(n)]
            if fault in ("qemu", "host"):
                pre += ["--kill", str(self.vm.pid())]
            if fault == "qemu":
                pre += ["--on"]
        p = subprocess.run(pre + ["--"] + self.q.argv(argv), timeout=120,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
        self.assertNotEqual(125, p.returncode, p.stdout)
        with open(said, errors="replace") as f:
            calls = f.read().splitlines()
        self.said = "exit %d, %s\n%s" % (p.returncode, p.stdout, "\n".join(
            calls[max(0, n - 4):n + 1]) if n else "")
        self.status = p.returncode
        if not n:
            self.assertEqual(0, p.returncode, p.stdout)
        return int(re.match(r"end (\d+)", calls[-1]).group(1))

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
        self.assertFalse(os.path.exists(self.q.journal_path(name)))
        self.agent.wait_thawed(0.1)
        if self.vm.state() == "off":
            self.assertTrue(fault in ("qemu", "host") or
                            after[1] != before[1], "the VM is off")
            self.q("start", name)
        self.assertEqual("running", self.vm.state())
        found = {s["name"] for s in self.q.snapshots(name)}
        ways = [w for w in (before, after) if set(w[0]) == found]
        self.assertTrue(ways, found)
        head = self.heads()
        self.assertIn(head, [w[1] for w in ways])
        self.assertEqual(sorted(self.head_paths(self.vm)),
                         sorted(self.vm.heads().values()))
        self.no_node_left()
        self.model, self.head = dict(ways[0][0]), head
        for s in self.model:
            self.assertEqual(self.model[s], [
                self.content(p) for p, _ in self.frozen(self.vm, s).values()],
                s)
            self.q("verify", name, s)
        said = self.q.check(name)
        self.assertTrue(said["ok"], said)
        self.check_nothing_left(self.vm)
        return found

    def no_node_left(self):
        """QEMU has nothing open but the disks' chains."""
        needed = set()
        for head in self.head_paths(self.vm):
            needed.update(chain(head))
        nodes = [n["file"] for n in self.vm.cmd("query-named-block-nodes")]
        self.assertEqual([], [n for n in nodes if n not in needed and
                              not n.startswith("json:")])

    def reverts(self, names):
        for s in names:
            self.q("revert", self.vm.name, s)
            self.assertEqual("running", self.vm.state())
            self.head = self.heads()
            self.assertEqual(self.model[s], self.head, s)
        self.check_nothing_left(self.vm)

    def points(self, total):
        if os.environ.get("POINT"):
            return [int(os.environ["POINT"])]
        if EVERY:
            return range(FROM, total + 1, EVERY)
        step = total / SAMPLE
        return sorted({1 + int(i * step + random.random() * step) for i in
                       range(SAMPLE)} | {total})

    def operation(self, argv, fault, prepare, after):
        """At each point. `after` gives (snapshots, head) of a success."""
        seed = int(os.environ.get("SEED", "0")) or random.randrange(1, 1 << 30)
        random.seed(seed)
        self.build()
        prepare()
        total = self.run_at(0, argv(), fault)
        print("%s, %s: %d points" % (argv()[0], fault, total), flush=True)
        self.build()
        broken = []
        for n in self.points(total + 3 if EVERY else total):
            try:
                if set(self.model) != set(self.base) or self.fresh:
                    self.build()
                prepare()
                before = (dict(self.model), self.head)
                want = after()
                seen = self.run_at(n, argv(), fault)
                names = self.good(n, fault, before, want)
                order = sorted(names)
                self.reverts(order if EVERY == 1 else
                             order[n % (len(order) or 1):][:1])
                self.write()
                if seen < n:
                    break
            except (AssertionError, subprocess.SubprocessError) as e:
                broken.append("point %d: %s\n%s" % (n, e, self.said))
                print("BROKEN", broken[-1], flush=True)
                if len(broken) > (20 if EVERY else 0):
                    break
                self.build()
        self.assertEqual([], broken, "seed %d" % seed)

    fresh = False

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

    def delete(self, fault, *gone):
        def want():
            return {k: v for k, v in self.model.items()
                    if k not in gone}, self.head
        self.fresh = True
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
        self.fresh = True
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
        "a_delete_of_an_inner_one": lambda s: s.delete(fault, "middle"),
        "a_delete_of_the_current_one": lambda s: s.delete(fault, "leaf"),
        "a_delete_of_a_branch": lambda s: s.delete(fault, "twig"),
        "a_delete_of_all": lambda s: s.delete(fault, "root", "twig", "middle",
                                              "leaf"),
        "an_undo_of_a_revert": lambda s: s.undo(fault, "revert", "root"),
        "an_undo_of_a_delete": lambda s: s.undo(
            fault, "delete", "middle", "root", "--keep-trash", "1"),
    }
    for name, run in ops.items():
        if few and not EVERY and not any(w in name for w in few):
            continue
        setattr(cls, "test_in_" + name, run)
    return cls



class OurselvesKilled(Kill):
    """SIGKILL."""


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


add(OurselvesKilled, "kill")
for each, fault, few in (
        (QemuKilled, "qemu", FEW), (HostDown, "host", FEW),
        (DiskFull, "ENOSPC", FEW), (DiskBroken, "EIO", FEW),
        (ReadOnly, "EROFS", ("revert_with_memory",)),
        (SendBroken, "EPIPE", ("revert_with_memory",)),
        (AnswerLost, "ECONNRESET", ("inner",))):
    add(each, fault, few)
    if not EVERY:
        each.versions = ("7.2",)
del Kill, each
