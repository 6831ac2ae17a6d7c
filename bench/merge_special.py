# SPDX-License-Identifier: MIT
"""The rows of merge.py that need more than a directory: a filesystem with
reflinks in a loop-mounted image, and a chain of 20 layers of 1 TiB."""

import array
import os
import random
import shutil
import statistics
import struct
import subprocess
import time

import merge_lib
from merge_lib import (CLUSTER, GIB, MIB, QSTILL, Row, drop_caches, overlay,
                       scattered, sh, timed)


def rows(home, scale):
    out = []
    for fs in ("xfs", "btrfs"):
        if os.geteuid() == 0 and shutil.which("mkfs." + fs):
            out.append((OnReflink.title % fs,
                        lambda fs=fs: OnReflink(home, scale, fs)))
    for run, what in ((64 * MIB, "64 MiB"), (MIB, "1 MiB")):
        out.append((Opening.title % what, lambda run=run, what=what: Opening(
            home, scale, run, what)))
    out.append((Fragmented.name, lambda: Fragmented(home, scale)))
    return out


# ----------------------------------------------------------------- reflinks

def written(device):
    with open("/sys/block/%s/stat" % os.path.basename(device)) as f:
        return int(f.read().split()[6]) * 512


class OnReflink:
    """A layer of 1 GiB in 1 MiB runs goes, on a filesystem that can share
    blocks between files; copies of the images are clones."""

    title = "merge on %s with reflink"

    def __init__(self, home, scale, fs):
        self.name = self.title % fs
        self.fs, self.scale = fs, scale
        self.template = os.path.join(home, "on-" + fs)
        self.image = os.path.join(self.template, "fs.img")
        self.mount = os.path.join(self.template, "mnt")

    def prepare(self):
        if not os.path.exists(self.image):
            os.makedirs(self.mount)
            with open(self.image + ".new", "wb") as f:
                f.truncate(16 * GIB // self.scale + GIB)
            sh(*{"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
                 "btrfs": ["mkfs.btrfs", "-q"]}[self.fs], self.image + ".new")
            os.rename(self.image + ".new", self.image)
        self.mounted(lambda device: Inside(self.mount, self.scale).prepare())

    def mounted(self, work):
        device = sh("losetup", "--find", "--show", "--direct-io=on",
                    self.image).strip()
        try:
            sh("mount", device, self.mount)
            try:
                return work(device)
            finally:
                sh("umount", self.mount)
        finally:
            sh("losetup", "-d", device)

    def run(self, reps, only_ours=False):
        self.prepare()
        return self.mounted(lambda device: self.measure(device, reps,
                                                        only_ours))

    def measure(self, device, reps, only_ours):
        row = Inside(self.mount, self.scale)
        row.prepare()
        row.fresh()
        os.sync()
        before = written(device)
        timed(row.ours(), cwd=row.work)
        os.sync()
        share = (written(device) - before) / row.moved
        r = row.run(reps, only_ours)
        r.update(row=self.name, written_share=share, met=False, note=(
            "written: %.2f %% of the data (bar 1 %%)" % (100 * share)))
        if r["peers_s"]:
            r["met"] = share < 0.01 and \
                min(r["peers_s"].values()) >= 10 * r["qstill_s"]
        return r


class Inside(Row):
    """The row of OnReflink, in the mounted filesystem."""

    bar = {"disk": 10.0}
    data = GIB
    mutable = ("base", "top")

    def build(self):
        self.base()
        overlay(self.path("top"), self.path("base"), self.size,
                scattered(self.size, self.moved, MIB, 6), 7)

    def fresh(self):
        shutil.rmtree(self.work, True)
        os.makedirs(self.work)
        for n in os.listdir(self.template):
            if not n.startswith("."):
                sh("cp", "--reflink=always", self.path(n),
                   os.path.join(self.work, n))
        os.sync()

    def ours(self):
        return [QSTILL, "image", "merge", "top", "--drop", "base"]

    def theirs(self):
        for m, argv in merge_lib.modes(["qemu-img", "commit", "-q", "-d", "-t",
                                        "MODE", "top"]):
            yield "commit -t " + m, [argv], "base"


# ------------------------------------------------------------ giant chains

def giant(path, backing, guest, spans):
    """Metadata of a layer with data at `spans`; the data itself is a hole."""
    per = CLUSTER // 8
    slots = guest // (CLUSTER * per)
    tables, host = {}, 0
    data = []
    for at, n in spans:
        for c in range(at // CLUSTER, (at + n) // CLUSTER):
            data.append(c)
    data.sort()
    l1_clusters = (slots * 8 + CLUSTER - 1) // CLUSTER
    needed = sorted({c // per for c in data})
    first = 1 + l1_clusters
    l2_at = {s: (first + i) * CLUSTER for i, s in enumerate(needed)}
    host = first + len(needed)
    for s in needed:
        tables[s] = array.array("Q", bytes(CLUSTER))
    for i, c in enumerate(data):
        tables[c // per][c % per] = 1 << 63 | (host + i) * CLUSTER
    end = host + len(data)
    blocks = end // (CLUSTER // 2) + 1
    while blocks * (CLUSTER // 2) < end + blocks + 1:
        blocks += 1
    table_at, block_at = end + blocks, end
    total = end + blocks + 1
    name = os.path.basename(backing).encode() if backing else b""
    ext = struct.pack(">II5s3x", 0xE2792ACA, 5, b"qcow2") if backing else b""
    ext += bytes(8)
    head = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3,
                       112 + len(ext) if name else 0, len(name), 16, guest, 0,
                       slots, CLUSTER, table_at * CLUSTER, 1, 0, 0, 0, 0, 0,
                       4, 112) + bytes(8)
    with open(path, "wb") as f:
        f.write(head + ext + name)
        l1 = array.array("Q", bytes(slots * 8))
        for s, at in l2_at.items():
            l1[s] = 1 << 63 | at
        f.seek(CLUSTER)
        l1.byteswap()
        f.write(l1.tobytes())
        for s in needed:
            tables[s].byteswap()
            f.seek(l2_at[s])
            f.write(tables[s].tobytes())
        f.seek(block_at * CLUSTER)
        f.write((b"\0\1" * total).ljust(blocks * CLUSTER, b"\0"))
        f.seek(table_at * CLUSTER)
        f.write(struct.pack(">%dQ" % blocks, *(
            (block_at + i) * CLUSTER for i in range(blocks))))
        f.truncate(total * CLUSTER)


class Opening:
    """20 layers of a 1 TiB disk, each with a 200th of it: what our command
    needs to read all tables and plan a merge. Only metadata is in the files;
    the data are holes."""

    title = "opening 20 layers of 1 TiB, 10 %% in %s runs"

    def __init__(self, home, scale, run, what):
        self.name, self.guest, self.run_size = self.title % what, \
            1024 * GIB // scale, run
        self.template = os.path.join(home, "giant-%d" % run)

    def prepare(self):
        done = os.path.join(self.template, ".done")
        if os.path.exists(done):
            return
        shutil.rmtree(self.template, True)
        os.makedirs(self.template)
        rng, below, slots = random.Random(self.run_size), None, \
            self.guest // self.run_size
        for i in range(20):
            path = os.path.join(self.template, "g%02d" % i)
            giant(path, below, self.guest, [
                (p * self.run_size, self.run_size)
                for p in rng.sample(range(slots), slots // 200)])
            below = path
        sh("qemu-img", "check", "-q", "-f", "qcow2", below)
        open(done, "w").close()

    def run(self, reps, only_ours=False):
        self.prepare()
        argv = [QSTILL, "image", "merge", "g19", "--drop", "g10",
                "--dry-run"]
        ours = [timed(argv, cwd=self.template) for _ in range(reps)]
        seconds = statistics.median(t for t, _ in ours)
        rss = max(r for _, r in ours)
        tables = sum(os.stat(os.path.join(self.template, n)).st_blocks * 512
                     for n in os.listdir(self.template))
        met = seconds < 0.5 and rss < 256 * MIB
        r = {"row": self.name, "bar": {}, "bytes": tables, "rss": rss,
             "qstill_s": seconds, "peers_s": {}, "met": met,
             "note": "bar 0.5 s and 256 MiB: %s; %d MiB of metadata" % (
                 "met" if met else "MISS", tables / MIB)}
        if not only_ours:
            r["peers_s"]["qemu-img map"] = self.qemu_map()
        return r

    def qemu_map(self):
        drop_caches()
        start = time.monotonic()
        subprocess.run(["qemu-img", "map", "--output=json", "g19"],
                       cwd=self.template, stdout=subprocess.DEVNULL,
                       check=True)
        return time.monotonic() - start


# --------------------------------------------------------------- fragments

class Fragmented:
    """Two layers of 1 GiB in clusters of 512 bytes, every second one of them
    allocated, by turns: as many entries as there can be. What a merge in each
    direction needs beyond the tables and refcounts on the disk. Beside it
    qemu-img's commit, which keeps no list of them; it is given up after twenty
    times our time."""

    name = "memory of a merge of fragmented layers"

    def __init__(self, home, scale):
        self.size = GIB // scale
        self.template = os.path.join(home, "fragmented")
        self.work = os.path.join(self.template, "work")

    def path(self, name):
        return os.path.join(self.template, name)

    def prepare(self):
        if os.path.exists(self.path(".done")):
            return
        shutil.rmtree(self.template, True)
        os.makedirs(self.template)
        halves = b"x" * 512, bytes(512)
        for name, part in (("d", halves), ("u", halves[::-1])):
            with open(self.path("raw"), "wb") as f:
                for _ in range(self.size // MIB):
                    f.write(b"".join(part) * 1024)
            sh("qemu-img", "convert", "-S", "512", "-O", "qcow2", "-o",
               "cluster_size=512", self.path("raw"), self.path(name))
        os.unlink(self.path("raw"))
        sh("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "d",
           self.path("u"))
        open(self.path(".done"), "w").close()

    def measure(self, argv, left, limit=None):
        shutil.rmtree(self.work, True)
        os.makedirs(self.work)
        for name in ("d", "u"):
            shutil.copy(self.path(name), self.work)
        os.sync()
        took = timed(argv, cwd=self.work, limit=limit)
        sh("qemu-img", "check", "-q", os.path.join(self.work, left))
        return took

    def run(self, reps, only_ours=False):
        self.prepare()
        tables = sum(os.path.getsize(self.path(n)) - self.size // 2
                     for n in ("d", "u"))
        took = {d: self.measure([QSTILL, "image", "merge", "u", "--drop", "d",
                                 "--direction", d], "u")
                for d in ("up", "down", "new")}
        beyond = {d: rss - tables for d, (_, rss) in took.items()}
        r = {"row": self.name, "bar": {}, "bytes": self.size, "peers_s": {},
             "qstill_s": took["down"][0], "beyond": beyond,
             "rss": max(rss for _, rss in took.values()),
             "met": max(beyond.values()) < 128 * MIB,
             "note": "beyond %d MiB of metadata (bar 128): %s" % (
                 tables / MIB, ", ".join("%s %d MiB" % (d, b / MIB)
                                         for d, b in beyond.items()))}
        if not only_ours:
            try:
                seconds, rss = self.measure(
                    ["qemu-img", "commit", "-q", "-t", "writeback", "u"], "d",
                    20 * took["down"][0])
                r["peers_s"]["commit"] = seconds
                r["note"] += "; commit: %d MiB in all" % (rss / MIB)
            except merge_lib.GivenUp as e:
                r["note"] += "; commit: given up, %s" % e
        shutil.rmtree(self.work, True)
        return r
