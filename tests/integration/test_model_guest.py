# SPDX-License-Identifier: MIT
"""The short sister of test_model: random operations on a VM with a running
guest, memory and all. After each step every snapshot's content is what it was
when it was taken, every image is without an error, QEMU and the store hold
nothing that nobody needs, and the guest goes on from where the step left it.
QSTILL_MODEL_SEED brings a failure back; make check-model makes it long."""

import os
import random
import time

from lib import image
from lib.case import QEMU_VERSION, Case

SEED = int(os.environ.get("QSTILL_MODEL_SEED", "0")) or \
    random.randrange(1, 1 << 30)
SECONDS = float(os.environ.get("QSTILL_MODEL_SECONDS", "0"))
NODES_MAX = 8


class Node:
    def __init__(self, parent, digests, tick, nonce):
        self.parent = parent
        self.digests = digests  # of the disks
        self.tick = tick        # with memory: the disk's tick; else None
        self.nonce = nonce


class Guest(Case):
    either = True
    cost = 60
    limit = 3600 if SECONDS else 240

    def test_a_running_guest(self):
        self.random = random.Random(SEED)
        self.vm = self.running_vm(disks=[self.disk("disk0"),
                                         self.disk("disk1", "raw")])
        self.nodes = {}
        self.current = None
        self.count = 0
        self.route = ["seed %d" % SEED]
        end = time.monotonic() + (SECONDS or 12)
        try:
            while time.monotonic() < end:
                self.step()
                self.verify()
            self.clear()
        except BaseException:
            print("\n".join(self.route), flush=True)
            raise
        print("qemu %s, seed %d: %d steps" % (QEMU_VERSION, SEED, self.count),
              flush=True)

    def step(self):
        n = len(self.nodes)
        on = self.vm.alive()
        choices = [self.create] * (0 if n >= NODES_MAX else 4)
        choices += [self.revert, self.delete] * (2 if n else 0)
        choices += [self.kill, self.end] if on else [self.start] * 3
        self.count += 1
        self.random.choice(choices)()

    def note(self, *words):
        self.route.append("%d %s" % (self.count, " ".join(words)))
        return words

    def some(self):
        return self.random.choice(sorted(self.nodes))

    # --------------------------------------------------------- the operations

    def create(self):
        name = "s%d" % self.count
        memory = self.vm.alive() and self.random.random() < 0.6
        nonce = self.vm.serial.ticks()[-1].nonce if memory else None
        self.q(*self.note("create", "vm", name,
                          *(["--memory"] if memory else [])))
        tick = self.snapshot_ticks(self.vm, name)[0] if memory else None
        self.nodes[name] = Node(self.current, self.digests(name), tick, nonce)
        self.current = name
        if self.vm.alive():
            self.goes_on(self.vm, count=2)

    def revert(self):
        name = self.some()
        node = self.nodes[name]
        since = self.vm.serial.mark()
        was_on = self.vm.alive()
        more = self.random.choice(((), ("--keep",), ())) \
            if len(self.nodes) < NODES_MAX else ()
        if node.tick is not None:
            more += ("--restore", self.random.choice(
                ("auto", "mapped", "eager")))
        self.q(*self.note("revert", "vm", name, *more))
        if "--keep" in more:
            kept, = set(self.q.names("vm")) - set(self.nodes)
            info = self.q.info("vm", kept)
            self.nodes[kept] = Node(self.current, self.digests(kept), None,
                                    None)
            self.assertEqual(was_on, info["memoryIncluded"])
            if was_on:
                self.nodes[kept].tick = self.snapshot_ticks(self.vm, kept)[0]
                self.nodes[kept].nonce = None
        self.current = name
        if not self.vm.alive():
            return
        if node.tick is None:
            self.vm.wait_up(since)
        elif node.nonce:
            self.goes_on_from(self.vm, node.tick, node.nonce, since, 2)
        else:
            self.goes_on(self.vm, count=2)

    def delete(self):
        names = {self.some() for _ in range(self.random.choice((1, 1, 2)))}
        self.q(*self.note("delete", "vm", *sorted(names)))

        def living(name):
            while name in names:
                name = self.nodes[name].parent
            return name
        self.current = living(self.current)
        parents = {n: living(v.parent) for n, v in self.nodes.items()}
        for n in names:
            del self.nodes[n]
        for n, v in self.nodes.items():
            v.parent = parents[n]
        if self.vm.alive():
            self.goes_on(self.vm, count=2)

    def kill(self):
        self.note("kill -9")
        self.vm.end()

    def end(self):
        self.note("quit")
        self.vm.quit()

    def start(self):
        since = self.vm.serial.mark()
        self.q(*self.note("start", "vm"))
        self.vm.wait_up(since)

    # ----------------------------------------------------------- the checks

    def digests(self, name):
        return [image.digest(p, f) for p, f in
                self.frozen(self.vm, name).values()]

    def verify(self):
        listed = self.q("list", "vm")
        by_id = {s["id"]: s["name"] for s in listed["snapshots"]}
        self.assertEqual(sorted(self.nodes), sorted(by_id.values()))
        self.assertEqual(self.current, by_id.get(listed["current"]))
        files = set()
        for s in listed["snapshots"]:
            node = self.nodes[s["name"]]
            self.assertEqual(node.parent, by_id.get(s["parentId"]), s["name"])
            self.assertEqual(node.digests, self.digests(s["name"]), s["name"])
            files.update((d["path"], d["format"]) for d in s["disks"])
        for path, fmt in files:
            if fmt == "qcow2":
                image.check(path)
        for path in self.head_paths(self.vm):
            for p in image.chain(path):
                self.assertTrue(os.path.exists(p), p)
        self.check_nothing_left(self.vm)
        self.assertTrue(self.q.check("vm")["ok"])

    def clear(self):
        if self.nodes:
            self.q(*self.note("delete", "vm", *sorted(self.nodes)))
        self.assertEqual([], self.q.names("vm"))
        if not self.vm.alive():
            self.q("recover", "vm")
            self.start()
        self.goes_on(self.vm)
        self.check_nothing_left(self.vm)
