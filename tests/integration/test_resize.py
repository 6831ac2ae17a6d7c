# SPDX-License-Identifier: MIT
"""Disks that are resized between snapshots: by QEMU while the VM runs, by
qemu-img while it is off. Each snapshot keeps its size and its content."""

import json
import os
import random
import shutil
import subprocess
import time

from lib.case import Case
from lib.tiny import PART

MIB = 1 << 20


def read_all(path, fmt):
    """(size, first byte of each part) as a guest would read it."""
    info = json.loads(subprocess.check_output(
        ["qemu-img", "info", "-U", "--output=json", "-f", fmt, path]))
    size, out = info["virtual-size"], path + ".flat"
    try:
        subprocess.check_call(["qemu-img", "convert", "-U", "-f", fmt, "-O",
                               "raw", path, out])
        with open(out, "rb") as f:
            data = f.read()
    finally:
        os.unlink(out)
    parts = []
    for at in range(0, size, PART):
        part = data[at:at + PART]
        assert part == part[:1] * len(part), "part %d is torn" % (at // PART)
        parts.append(part[0])
    return size, parts


class Resize(Case):
    cost = 20
    steps = 40

    def fresh(self, fmt="qcow2", **kw):
        self.vm = self.tiny_vm(disks=[self.disk(
            size=2 * MIB, pattern=False, fmt=fmt)], **kw)
        self.now = [0] * (2 * MIB // PART)
        self.snaps = {}
        self.n = 0

    def same(self, want, size, parts, what):
        self.assertEqual(len(want) * PART, size, what)
        self.assertEqual([], ["%d: %d, not %d" % (i, b, a) for i, (a, b) in
                              enumerate(zip(want, parts)) if a != b], what)

    def off(self):
        return self.vm.state() == "off"

    def head(self):
        """(path, format) as recorded."""
        with open(os.path.join(self.store, "vm", "vm.json")) as f:
            d, = json.load(f)["disks"]
        return d["headPath"], d["headFormat"]

    def live(self):
        b, = [b for b in self.vm.cmd("query-block") if b.get("inserted")]
        return b["inserted"]

    def check(self):
        self.same(self.now, *read_all(*self.head()), "head")
        for name, was in self.snaps.items():
            layer, = self.frozen(self.vm, name).values()
            self.same(was, *read_all(*layer), name)
        if not self.off():
            self.assertEqual(len(self.now) * PART,
                             self.live()["image"]["virtual-size"])

    def resize_to(self, parts):
        if self.off():
            path, fmt = self.head()
            subprocess.check_call(["qemu-img", "resize", "-q", "--shrink",
                                   "-f", fmt, path, str(parts * PART)])
        else:
            self.vm.cmd("block_resize", **{
                "node-name": self.live()["node-name"], "size": parts * PART})
        self.now = (self.now + [0] * parts)[:parts]

    def resize(self, r):
        self.resize_to(r.randrange(8, 100))

    def write(self, r):
        if self.off():
            return
        p, byte = r.randrange(len(self.now)), r.randrange(1, 255)
        self.vm.write(self.vm.disks[0], p, byte)
        self.now[p] = byte

    def create(self, r):
        self.n += 1
        name = "s%d" % self.n
        memory = ["--memory"] if not self.off() and r.random() < 0.5 else []
        self.q("create", "vm", name, *memory)
        self.snaps[name] = list(self.now)

    def revert(self, r):
        if not self.snaps:
            return
        name = r.choice(sorted(self.snaps))
        self.q("revert", "vm", name, "--force", *r.choice(
            ([], ["--stopped"], ["--start"])))
        self.now = list(self.snaps[name])

    def delete(self, r):
        if not self.snaps:
            return
        names = r.sample(sorted(self.snaps), min(len(self.snaps),
                                                 r.randrange(1, 3)))
        self.q("delete", "vm", *names)
        for n in names:
            del self.snaps[n]

    def power(self, r):
        if self.off():
            self.q("start", "vm")
        else:
            self.vm.quit()

    def run_random(self, seed, **kw):
        r = random.Random(seed)
        self.fresh(**kw)
        # what a short layer hides must not be zeros anyway
        self.vm.io(self.vm.disks[0], "write -q -P 255 0 2M")
        self.now = [255] * len(self.now)
        done = []
        try:
            for _ in range(self.steps):
                step = r.choice((self.resize, self.resize, self.write,
                                 self.write, self.write, self.create,
                                 self.create, self.revert, self.delete,
                                 self.power))
                done.append(step.__name__)
                step(r)
                self.check()
        except BaseException:
            print("SEED=%d: %s" % (seed, " ".join(done)))
            raise

    def test_random(self):
        self.run_random(int(os.environ.get("SEED", "1")))

    def test_random_on_a_raw_image(self):
        self.run_random(int(os.environ.get("SEED", "2")), fmt="raw")

    def test_random_with_nodes(self):
        self.run_random(int(os.environ.get("SEED", "3")), style="blockdev")

    def shrunk(self, fmt="qcow2", style="drive", size=37 << 10):
        """A head that is smaller than what it stands on is not folded into
        that while the VM runs."""
        self.fresh(fmt=fmt, style=style)
        vm, disk = self.vm, self.vm.disks[0]
        vm.io(disk, "write -q -P 7 0 %d" % self.size())
        self.q("create", "vm", "one")
        self.q("create", "vm", "two")
        vm.cmd("block_resize", **{"node-name": self.node(), "size": size})
        for name in ("two", "one"):
            self.q("delete", "vm", name)
            self.assertEqual(size, self.size(), name)
        for verb in (), ("recover", "vm"):  # the delete has said so
            if verb:
                self.q(*verb)
            self.assertRegex(self.q.stderr, "made smaller.*; shut the VM "
                             "down, then: qstill recover vm")
        vm.quit()
        self.q("recover", "vm")
        self.q("start", "vm")
        self.assertEqual(size, self.size())
        vm.io(disk, "read -q -P 7 0 %d" % size)
        self.assertEqual(1, len(self.disk_files(vm)))

    def inserted(self):
        return [b["inserted"] for b in self.vm.cmd("query-block")
                if b.get("inserted")][0]

    def node(self):
        return self.inserted()["node-name"]

    def size(self):
        return self.inserted()["image"]["virtual-size"]

    def test_a_smaller_head(self):
        self.shrunk()

    def test_a_smaller_head_of_a_raw_image(self):
        self.shrunk(fmt="raw", style="blockdev")

    def gone(self):
        self.vms.pop().quit()
        self.unprotect(self.vm.dir)
        shutil.rmtree(self.vm.dir)
        shutil.rmtree(os.path.join(self.store, "vm"))

    def short(self, style, names, larger):
        """What is below a layer that ends before it stays hidden when that
        layer goes, however it goes."""
        self.fresh(style=style)
        vm, disk = self.vm, self.vm.disks[0]
        vm.io(disk, "write -q -P 7 0 2M")
        self.now = [7] * len(self.now)
        self.create(random.Random(1))
        self.resize_to(6)
        self.create(random.Random(1))
        self.resize_to(larger)
        for part in (2, 20):
            vm.write(disk, part, part)
            self.now[part] = part
        self.create(random.Random(1))
        for part in range(21, 21 + 10 * (larger > 40)):
            vm.write(disk, part, part)
            self.now[part] = part
        for name in names:
            self.q("delete", "vm", name)
            self.snaps.pop(name)
            self.check()
        vm.quit()
        self.q("recover", "vm")
        self.check()
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("start", "vm")
        self.check()

    def test_a_short_layer(self):
        for style in ("drive", "blockdev"):
            for larger in (32, 64):
                for names in ("s2", "s3"), ("s3", "s2"), ("s2", "s1", "s3"):
                    with self.subTest(style, larger=larger, names=names):
                        try:
                            self.short(style, names, larger)
                        finally:
                            self.gone()

    def test_while_the_memory_is_copied(self):
        """The overlay was made before, with another size."""
        self.fresh()
        self.vm.write(self.vm.disks[0], 1, 7)
        p = self.q.start("create", "vm", "one", "--memory", "--mode",
                         "precopy", "--bwlimit", "200K")
        while self.vm.cmd("query-migrate").get("status") != "active":
            self.assertIsNone(p.poll())
            time.sleep(0.01)
        self.resize_to(64)
        self.now[1] = 7
        status, _, err = self.q.finish(p)
        self.assertEqual(5, status, err)
        self.assertIn("was resized", err)
        self.assertEqual("running", self.vm.state())
        self.check()
        self.vm.write(self.vm.disks[0], 63, 8)
        self.now[63] = 8
        self.check()
        self.create(random.Random(1))
        self.check()
