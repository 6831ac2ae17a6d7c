# SPDX-License-Identifier: MIT
"""Random operations on a VM and its snapshots, beside a model of what they
mean: a tree of names, each with the content of every disk. After each step the
product's list is the model's, every snapshot and every head reads as the model
says, every image is without an error or a leak, and no file is left over or
missing. A step may be cut: the command or QEMU is killed in the middle of it,
and then the old or the new state is right, whole, and nothing else."""

import json
import os
import random
import time

from lib import image
from lib.case import SPARE
from lib.vm import file_name

from .images import Reader
from .machine import STYLES, Machine
from .state import State

BLOCK = 4096
NODES_MAX = 30
ROUTE_MAX = 60  # steps kept for the report of a failure


class Walk:
    def __init__(self, case, qemu, folder, seed, style=None, disks=None):
        self.case = case
        self.q = case.q
        self.random = random.Random(seed)
        self.reader = Reader()
        self.folder = folder
        self.style = style or self.random.choice(STYLES)
        self.route = ["seed %d, %s" % (seed, self.style)]
        self.count = 0
        self.serial = 0
        self.took = {}
        self.resized = False
        os.makedirs(folder, exist_ok=True)
        self.disks = []
        contents = []
        for i in range(disks or self.random.choice((1, 2, 3))):
            fmt = self.random.choice(("qcow2", "qcow2", "raw"))
            size = self.random.choice((1 << 20, (1 << 20) + 5 * BLOCK,
                                       2 << 20))
            path = os.path.join(folder, "d%d.%s" % (
                i, "img" if fmt == "raw" else fmt))
            image.create(path, fmt, size, pattern=False)
            # A raw image must not look like anything else.
            image.run("qemu-io", "-f", fmt, "-c", "write -q -P 1 0 300k", path)
            self.disks.append(("d%d" % i, path, fmt))
            contents.append(bytes([1]) * (300 << 10) +
                            bytes(size - (300 << 10)))
        self.vm = Machine(case, qemu, folder, self.disks, self.style)
        self.state = State(contents)
        self.vm.start()
        self.paused = False
        self.q("attach", "vm", "--qmp", self.vm.qmp)
        self.verify()

    # --------------------------------------------------------------- the steps

    def record(self):
        with open(os.path.join(self.case.store, "vm", "vm.json")) as f:
            return json.load(f)

    def heads(self):
        return [(d["headPath"], d["headFormat"])
                for d in self.record()["disks"]]

    def write(self):
        r = self.random
        on = self.vm.alive()
        heads = None if on else self.heads()
        for _ in range(r.randint(1, 5)):
            k = r.randrange(len(self.disks))
            old = self.state.contents[k]
            at = r.randrange(len(old) // BLOCK) * BLOCK
            length = min(r.choice((1, 1, 3, 16, 16, 40)) * BLOCK,
                         len(old) - at)
            value = r.randrange(256)
            if r.random() < 0.2:
                line, value = "write -q -z %s%d %d" % (
                    r.choice(("", "-u ")), at, length), 0
            else:
                line = "write -q -P %d %d %d" % (value, at, length)
            if on:
                self.vm.io(self.disks[k][0], line)
            else:
                path, fmt = heads[k]
                image.run("qemu-io", "-f", fmt, "-c", line, path)
            self.state.contents[k] = (old[:at] + bytes([value]) * length +
                                      old[at + length:])
        self.flush()

    def flush(self):
        """What is in the images' files is then all that the disks hold."""
        if self.vm.alive():
            for name, _, _ in self.disks:
                self.vm.io(name, "flush")

    def name(self):
        self.serial += 1
        return "s%d" % self.serial

    def some(self, most):
        names = sorted(self.state.nodes)
        return self.random.sample(names, min(len(names), self.random.randint(
            1, most)))

    def create(self):
        name = self.name()
        return ["create", "vm", name], lambda s: s.create(name)

    def kept(self, usual):
        """For how many operations: (options, number)."""
        keep = self.random.choice((None, None, 0, 1, 2, 4))
        if keep is None:
            return [], usual
        return ["--keep-trash", str(keep)], keep

    def revert(self):
        name = self.some(1)[0]
        more, keep = self.kept(1)
        return ["revert", "vm", name] + more, lambda s: s.revert(name, keep)

    def undo(self):
        return ["undo", "vm"], lambda s: s.undo()

    def resize(self):
        k = self.random.randrange(len(self.disks))
        old = self.state.contents[k]
        size = self.random.randrange(20, 2 * len(old) // BLOCK) * BLOCK
        size = min(size, 4 << 20)
        self.note("resize %d from %d to %d" % (k, len(old), size))
        if self.vm.alive():
            head = self.heads()[k][0]
            node, = [b["inserted"]["node-name"]
                     for b in self.vm.cmd("query-block") if "inserted" in b and
                     file_name(b["inserted"]["image"]["filename"]) == head]
            self.vm.cmd("block_resize", **{"node-name": node, "size": size})
        else:
            path, fmt = self.heads()[k]
            image.run("qemu-img", "resize", "-q", "--shrink", "-f", fmt, path,
                      str(size))
        self.state.contents[k] = (old + bytes(max(0, size - len(old))))[:size]
        self.resized = True
        self.flush()

    def delete(self):
        r = self.random
        extra = ["--keep-hidden"] if r.random() < 0.2 else []
        if r.random() < 0.2:
            extra.append("--paranoid")
        if r.random() < 0.1:
            name = self.some(1)[0]
            names = self.state.below(name)
            return (["delete", "vm", name, "--children"] + extra,
                    lambda s: s.delete(names))
        names = self.some(r.choice((1, 1, 1, 2, 4)))
        more, keep = self.kept(0)
        return (["delete", "vm"] + names + extra + more,
                lambda s: s.delete(names, keep))

    def pick(self):
        """An operation of the product, of those that make sense now."""
        n = len(self.state.nodes)
        choices = [self.create] * (0 if n >= NODES_MAX else 4)
        if n:
            choices += [self.revert] * 2 + [self.delete] * (
                5 if n > NODES_MAX // 2 else 3)
        if self.state.trash:
            choices += [self.undo] * 2
        return self.random.choice(choices)()

    def switch(self):
        """Start, end, kill, stop or continue the VM."""
        what = "start"
        if self.vm.alive():
            what = self.random.choice(("quit", "kill", "pause", "go"))
        self.note(what)
        if what == "start":
            self.q("start", "vm")
            self.paused = False
        elif what == "quit":
            self.vm.quit()
        elif what == "kill":
            self.vm.kill()
        else:
            self.vm.cmd("stop" if what == "pause" else "cont")
            self.paused = what == "pause"

    def note(self, words):
        self.route.append("%d %s" % (self.count, words))
        self.route = self.route[:1] + self.route[1:][-ROUTE_MAX:]

    def step(self):
        try:
            self.one_step()
        except Exception as e:
            if self.told() in str(e):
                raise
            raise AssertionError("%s\n%s" % (self.told(), e)) from e

    def one_step(self):
        self.count += 1
        r = self.random.random()
        if r < 0.35:
            self.note("write")
            self.write()
        elif r < 0.42:
            self.switch()
        elif r < 0.47:
            self.resize()
        elif r < 0.57:
            self.cut()
        else:
            argv, change = self.pick()
            self.note(" ".join(argv))
            begun = time.monotonic()
            self.q.text("-v", *argv)
            for line in self.q.stderr.splitlines():
                self.note("   " + line.replace(self.folder + "/", ""))
            self.took.setdefault(argv[0], []).append(time.monotonic() - begun)
            change(self.state)
        self.verify()

    # ---------------------------------------------------------------- cut steps

    def cut(self):
        """The command, or QEMU, or both are killed somewhere in the middle."""
        argv, change = self.pick()
        took = self.took.get(argv[0], [0.05])
        delay = self.random.uniform(0, 1.3 * sorted(took)[len(took) // 2])
        victims = self.random.choice(("command", "command", "qemu", "both"))
        if not self.vm.alive():
            victims = "command"
        self.note("%s, %s killed after %.0f ms" % (" ".join(argv), victims,
                                                   delay * 1e3))
        process = self.q.start(*argv)
        time.sleep(delay)
        killed = self.vm.pids() if victims != "command" else []
        for pid in killed:
            os.kill(pid, 9)
        if victims != "qemu":
            process.kill()
        status, out, err = self.q.finish(process)
        self.note("-> %d %s" % (status, err.strip()[-300:]))
        self.wait_gone(killed)
        self.q("recover", "vm")
        self.paused = self.paused and self.vm.alive()
        self.settle(change, status == 0)

    def wait_gone(self, pids):
        """A dying process may still hold its sockets and its locks."""
        deadline = time.monotonic() + 20
        while any(os.path.exists("/proc/%d" % p) for p in pids):
            self.case.reap()
            self.case.assertLess(time.monotonic(), deadline, pids)
            time.sleep(0.002)

    def settle(self, change, must):
        """Takes over the new state if that is what the product has."""
        new = self.state.copy()
        change(new)
        done = self.is_now(new)
        if must:
            self.case.assertTrue(done, "done, but not listed so: " +
                                 self.told())
        if done:
            self.state = new

    def is_now(self, state):
        """As far as an operation changes it."""
        listed = self.q("list", "vm")
        by_id = {s["id"]: s["name"] for s in listed["snapshots"]}
        return set(by_id.values()) == set(state.nodes) and \
            by_id.get(listed["current"]) == state.current and \
            self.trash() == state.kept() and \
            self.read_heads() == state.contents

    def trash(self):
        """(What it takes back, for how many operations it stays)."""
        return [("undo" if t.get("redo") else "delete"
                 if t["snapshot"] is None else "revert", t["keep"])
                for t in self.record()["trash"] if t["keep"] > 0]

    # ------------------------------------------------------------------- checks

    def told(self):
        return "\n".join(self.route)

    def read_heads(self):
        self.flush()
        return [self.reader.content(p, f) for p, f in self.heads()]

    def verify(self):
        try:
            self.verify_tree()
            self.verify_files()
        except Exception as e:
            if self.told() in str(e):
                raise
            raise AssertionError("%s\n%s\n%s: %s" % (
                self.told(), self.files_told(), type(e).__name__, e)) from e

    def files_told(self):
        """Which file stands on which, for the report of a failure."""
        record = self.record()
        lines = ["%s -> %s" % (f, self.reader.layer(os.path.join(
            self.folder, f), "qcow2").backing)
            for f in sorted(os.listdir(self.folder)) if f.endswith(".qcow2")]
        return "\n".join(lines + [
            "heads %s" % [p for p, _ in self.heads()],
            "hidden %s" % [h["path"] for h in record["hidden"]],
            "alive %s" % self.vm.alive()]).replace(self.folder + "/", "")

    def verify_tree(self):
        case = self.case
        listed = self.q("list", "vm")
        by_id = {s["id"]: s["name"] for s in listed["snapshots"]}
        case.assertEqual(sorted(self.state.nodes), sorted(by_id.values()))
        case.assertEqual(self.state.current, by_id.get(listed["current"]),
                         "current")
        self.needed = {path for _, path, _ in self.disks}
        for s in listed["snapshots"]:
            node = self.state.nodes[s["name"]]
            case.assertEqual(self.state.parent(s["name"]),
                             by_id.get(s["parentId"]),
                             "parent of " + s["name"])
            for k, d in enumerate(s["disks"]):
                self.same(node.contents[k], d["path"], d["format"],
                          "%s of snapshot %s" % (d["name"], s["name"]))
        self.verify_trash()
        self.flush()
        for k, (path, fmt) in enumerate(self.heads()):
            self.same(self.state.contents[k], path, fmt, "head d%d" % k)
        if self.vm.alive():
            self.verify_live()

    def verify_trash(self):
        """What undo would bring back."""
        found = [t for t in self.record()["trash"] if t["keep"] > 0]
        self.case.assertEqual(self.state.kept(), self.trash(), "trash")
        for t, want in zip(found, self.state.trash):
            for d in t["layers"]:
                if want.kind == "delete":
                    self.needed.update(l.path for l in self.reader.chain(
                        d["path"], d["format"]))
                    continue
                k = [i for i, r in enumerate(self.record()["disks"])
                     if r["name"] == d["disk"]][0]
                self.same(want.contents[k], d["path"], d["format"],
                          "%s in the trash" % d["disk"])

    def same(self, want, path, fmt, what):
        self.needed.update(l.path for l in self.reader.chain(path, fmt))
        got = self.reader.content(path, fmt)
        if got == want:
            return
        at = next((i for i in range(min(len(got), len(want)))
                   if got[i] != want[i]), min(len(got), len(want)))
        raise AssertionError(
            "%s (%s) differs at %#x: %d, not %d; %d bytes, not %d" % (
                what, path, at, got[at] if at < len(got) else -1,
                want[at] if at < len(want) else -1, len(got), len(want)))

    def verify_live(self):
        """QEMU sees the disks so as well: its graph may be another than that
        of the files' headers."""
        self.case.assertEqual(not self.paused,
                              self.vm.cmd("query-status")["running"],
                              "whether the guest runs")
        heads = [path for path, _ in self.heads()]
        inserted = {b["device"] or b["qdev"]: b["inserted"]
                    for b in self.vm.cmd("query-block") if "inserted" in b}
        files = sorted(file_name(i["image"]["filename"])
                       for i in inserted.values())
        self.case.assertEqual(sorted(heads), files, "QEMU's heads")
        for k, (name, _, _) in enumerate(self.disks):
            live = self.live_chain(inserted, heads[k])
            self.case.assertEqual(
                [l.path for l in self.reader.chain(*self.heads()[k])], live,
                "QEMU's chain of " + name)
            content = self.state.contents[k]
            at = self.random.randrange(len(content) // BLOCK) * BLOCK
            end = at
            while end < len(content) and content[end] == content[at]:
                end += BLOCK
            self.vm.io(name, "read -q -P %d %d %d" % (
                content[at], at, end - at))
        self.case.assertEqual([], self.vm.cmd("query-jobs"), "jobs")

    def live_chain(self, inserted, head):
        image_info = next(i["image"] for i in inserted.values()
                          if file_name(i["image"]["filename"]) == head)
        out = []
        while image_info:
            out.append(file_name(image_info["filename"]))
            image_info = image_info.get("backing-image")
        return out

    def verify_files(self):
        case = self.case
        have = {os.path.join(self.folder, f) for f in os.listdir(self.folder)
                if f.endswith((".img", ".qcow2", ".merge"))}
        case.assertEqual(set(), have - self.needed, "images nobody needs")
        case.assertEqual([], self.reader.problems())
        store = os.path.join(case.store, "vm")
        case.assertEqual(set(), set(os.listdir(store)) - {
            "vm.json", "lock", "snapshots", "qemu.log", *SPARE},
            "left in the store")
        case.assertEqual(
            {s["id"] for s in self.q.snapshots("vm")} |
            {".%s.trash" % i for t in self.record()["trash"]
             for i in t["ids"]},
            set(os.listdir(os.path.join(store, "snapshots"))))
        self.reader.known = {k: v for k, v in self.reader.known.items()
                             if k in have}
        if self.count % 50 == 49:  # another oracle, and nothing remembered
            self.reader.forget()
            for path in sorted(have):
                if path.endswith(".qcow2"):
                    image.check(path)

    def finish(self):
        """Down to nothing: the images as they were given, at their paths."""
        self.note("create, delete all")
        # what undo could bring back holds its layers for so long
        while not self.state.nodes or self.state.trash:
            argv, change = self.create()
            self.q(*argv)
            change(self.state)
        names = sorted(self.state.nodes)
        self.q("delete", "vm", *names)
        self.state.delete(names)
        self.verify()
        if self.resized and self.vm.alive():  # some layers wait for that
            self.vm.quit()
        if not self.vm.alive():
            self.q("recover", "vm")
        self.case.assertEqual([p for _, p, _ in self.disks],
                              [p for p, _ in self.heads()], self.told())
        self.case.assertEqual(
            {p for _, p, _ in self.disks},
            {os.path.join(self.folder, f) for f in os.listdir(self.folder)
             if f.endswith((".img", ".qcow2"))}, self.told())
        self.verify()
