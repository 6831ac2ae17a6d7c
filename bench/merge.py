#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Merges against qemu-img, side by side in one run (make bench-merge).

Each figure is the median of REPS runs of the whole command with the caches
dropped before it (as root), and with an fsync of every file left behind after
it: for qemu-img that is its durability, for qstill it finds nothing to do.
qemu-img is tried in its cache modes and its best counts. The limit is what fio
needs to read and write the same bytes at once, fsync included, the better of
direct and buffered. After each run the guest's content is compared.

    merge.py [--dir DIR]... [--scale N] [--reps N] [--only WORD] [--json FILE]

--dir     where to work (default: build/bench on the disk, and /dev/shm)
--scale   divides all sizes: 8 is a quick look, 1 the figures of the document
Needs qemu-img, qemu-io, fio; root for cold caches and for the reflink row.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QSTILL = os.environ.get("QSTILL", os.path.join(TOP, "build/qstill"))
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CLUSTER = 64 * KIB
MODES = ("none", "writeback", "unsafe", "directsync", "writethrough")


def sh(*argv, **kw):
    p = subprocess.run(argv, stdin=kw.pop("stdin", subprocess.DEVNULL),
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)
    if p.returncode:
        raise RuntimeError("%s: exit %d\n%s%s" % (
            " ".join(argv), p.returncode, p.stdout.decode(),
            p.stderr.decode()))
    return p.stdout.decode()


def drop_caches():
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3")
    except OSError:
        pass  # said in the table's head


def timed(*commands, cwd):
    """Seconds of the commands and an fsync of all files; the peak RSS."""
    drop_caches()
    rss, start = 0, time.monotonic()
    for argv in commands:
        p = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = p.stdout.read()
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        if p.returncode:
            raise RuntimeError("%s: exit %d\n%s" % (
                " ".join(argv), p.returncode, text.decode()))
        rss = max(rss, usage.ru_maxrss * KIB)
    for name in os.listdir(cwd):
        fd = os.open(os.path.join(cwd, name), os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return time.monotonic() - start, rss


# ------------------------------------------------------------------- images

def noise(path, size, seed):
    """Bytes without zeros and without repetition inside a cluster."""
    block = random.Random(seed).randbytes(16 * MIB).replace(b"\0", b"\1")
    with open(path, "wb") as f:
        left = size
        while left:
            n = min(left, len(block) - CLUSTER)
            at = random.Random(seed * left).randrange(CLUSTER)
            f.write(block[at:at + n])
            left -= n


def base_image(path, size):
    raw = path + ".raw"
    noise(raw, size, 1)
    sh("qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=64k",
       "-t", "writeback", raw, path)
    os.unlink(raw)


def overlay(path, backing, size, spans, seed):
    """An overlay with data at the given (offset, length)."""
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-b",
       os.path.basename(backing), "-F", "qcow2", path, str(size))
    src = path + ".noise"
    noise(src, max(n for _, n in spans) + 5 * MIB, seed)
    script = path + ".script"
    with open(script, "w") as f:
        for at, n in spans:
            f.write("write -q -s %s %d %d\n" % (src, at, n))
    with open(script) as f:
        out = sh("qemu-io", "-f", "qcow2", "-t", "writeback", path, stdin=f)
    if "rror" in out or "failed" in out:
        raise RuntimeError(out)
    os.unlink(src)
    os.unlink(script)


def scattered(size, total, run, seed, taken=None):
    """Disjoint runs at random places, as a guest writes them."""
    slots = list(range(size // run))
    if taken:
        slots = [s for s in slots if s not in taken]
    picked = random.Random(seed).sample(slots, total // run)
    if taken is not None:
        taken |= set(picked)
    return [(s * run, run) for s in picked]


# --------------------------------------------------------------------- rows

class Row:
    """One line of the table: images of `build`, our command, the peers'."""

    name = bar = ""
    moved = 0
    peers = ()
    mutable = ()  # files a run changes: copied afresh each time
    keep = "top"  # the file whose content must stay

    def __init__(self, where, scale):
        self.home, self.scale = where, scale
        self.size = 4 * GIB // scale
        self.template = os.path.join(where, "template")
        self.work = os.path.join(where, "work")

    def path(self, name):
        return os.path.join(self.template, name)

    def fresh(self):
        """A working copy; what no run changes is linked, not copied."""
        shutil.rmtree(self.work, True)
        os.makedirs(self.work)
        for n in os.listdir(self.template):
            src, dst = self.path(n), os.path.join(self.work, n)
            if n in self.mutable:
                sh("cp", "--sparse=always", src, dst)
            else:
                os.link(src, dst)

    def same_content(self, name):
        out = os.path.join(self.work, name)
        if not os.path.exists(out):
            raise RuntimeError("%s is gone" % out)
        sh("qemu-img", "compare", "-q", "-f", "qcow2", "-F",
           "qcow2", self.path(self.keep), out)

    def measure(self, reps, commands, result):
        times, peak = [], 0
        for i in range(reps):
            self.fresh()
            t, rss = timed(*commands, cwd=self.work)
            times.append(t)
            peak = max(peak, rss)
            if i == 0:
                self.same_content(result)
        return statistics.median(times), peak

    def run(self, reps):
        os.makedirs(self.template)
        self.build()
        ours, rss = self.measure(reps, [self.ours()], self.result_ours())
        out = {"row": self.name, "bar": self.bar, "bytes": self.moved,
               "qstill_s": ours, "rss": rss, "peers_s": {}}
        for label, commands, result in self.theirs():
            try:
                out["peers_s"][label] = self.measure(reps, commands, result)[0]
            except RuntimeError as e:
                out.setdefault("failed", {})[label] = str(e)[:400]
        out["fio_s"] = fio(self.home, self.moved, reps)
        shutil.rmtree(self.template)
        shutil.rmtree(self.work, True)
        return out

    def result_ours(self):
        return self.keep


def modes(fmt):
    return [(m, [a.replace("MODE", m) for a in fmt]) for m in MODES]


class PullUp(Row):
    name = "pull-up of 512 MiB in scattered 64 KiB runs"
    bar = {"disk": 2.0, "tmpfs": 2.5, "limit": 1.15}
    mutable = ("top", "mid")

    def build(self):
        self.moved = 512 * MIB // self.scale
        base_image(self.path("base"), self.size)
        taken = set()
        overlay(self.path("mid"), self.path("base"), self.size,
                scattered(self.size, self.moved, CLUSTER, 2, taken), 3)
        overlay(self.path("top"), self.path("mid"), self.size,
                scattered(self.size, 1280 * MIB // self.scale, CLUSTER, 4,
                          taken), 5)

    def ours(self):
        return [QSTILL, "image", "merge", "top", "--drop", "mid",
                "--direction", "up"]

    def theirs(self):
        for m, argv in modes(["qemu-img", "rebase", "-f", "qcow2", "-t",
                              "MODE", "-T", "MODE", "-b", "base", "-F",
                              "qcow2", "top"]):
            yield "rebase -t " + m, [argv], "top"


class FoldDown(Row):
    bar = {"disk": 1.0, "tmpfs": 2.0, "limit": 1.15}
    mutable = ("base", "top")
    total = run_size = 0

    def build(self):
        self.moved = self.total // self.scale
        base_image(self.path("base"), self.size)
        overlay(self.path("top"), self.path("base"), self.size,
                scattered(self.size, self.moved, self.run_size, 6), 7)

    def ours(self):
        return [QSTILL, "image", "merge", "top", "--drop", "base",
                "--direction", "down"]

    def theirs(self):
        for m, argv in modes(["qemu-img", "commit", "-q", "-d", "-t", "MODE",
                              "top"]):
            yield "commit -t " + m, [argv], "base"


class FoldBig(FoldDown):
    name = "fold-down of 1 GiB in 1 MiB runs"
    total, run_size = GIB, MIB


class FoldSmall(FoldDown):
    name = "fold-down of 512 MiB in 64 KiB runs"
    total, run_size = 512 * MIB, CLUSTER


class Flatten(Row):
    name = "flatten of a 3-layer chain"
    bar = {"disk": 1.0, "tmpfs": 2.5, "limit": 1.15}

    def build(self):
        self.moved = self.size
        base_image(self.path("base"), self.size)
        overlay(self.path("mid"), self.path("base"), self.size,
                scattered(self.size, 512 * MIB // self.scale, CLUSTER, 8), 9)
        overlay(self.path("top"), self.path("mid"), self.size,
                scattered(self.size, 512 * MIB // self.scale, CLUSTER, 10),
                11)

    def ours(self):
        return [QSTILL, "image", "flatten", "top", "out"]

    def result_ours(self):
        return "out"

    def theirs(self):
        for m, argv in modes(["qemu-img", "convert", "-W", "-m", "16", "-t",
                              "MODE", "-T", "none", "-O", "qcow2", "top",
                              "out"]):
            yield "convert -t " + m, [argv], "out"
        yield "convert -T writeback", [
            ["qemu-img", "convert", "-W", "-m", "16", "-t", "writeback", "-T",
             "writeback", "-O", "qcow2", "top", "out"]], "out"


class Eight(Row):
    name = "deleting 8 neighbouring layers of 128 MiB"
    bar = {"disk": 8.0, "tmpfs": 8.0}
    names = ["base"] + ["l%d" % i for i in range(1, 9)]
    mutable = tuple(names)
    keep = "l8"

    def build(self):
        self.moved = GIB // self.scale
        base_image(self.path("base"), self.size)
        taken = set()
        for i in range(1, 9):
            overlay(self.path("l%d" % i), self.path(self.names[i - 1]),
                    self.size, scattered(self.size, 128 * MIB // self.scale,
                                         CLUSTER, 20 + i, taken), 30 + i)

    def ours(self):
        argv = [QSTILL, "image", "merge", "l8"]
        for n in self.names[:-1]:
            argv += ["--drop", n]
        return argv

    def theirs(self):
        for m in MODES:
            commit = []
            for i in range(1, 9):
                name = "l%d" % i
                if i > 1:
                    commit.append(["qemu-img", "rebase", "-u", "-f", "qcow2",
                                   "-b", "base", "-F", "qcow2", name])
                commit.append(["qemu-img", "commit", "-q", "-d", "-t", m,
                               name])
            yield "8 commits -t " + m, commit, "base"


ROWS = (PullUp, FoldBig, FoldSmall, Flatten, Eight)


# ---------------------------------------------------------------- the limit

def fio_once(src, dst, size, direct):
    if os.path.exists(dst):
        os.unlink(dst)
    common = ["--ioengine=io_uring", "--iodepth=32", "--bs=1m",
              "--direct=%d" % direct, "--size=%d" % size]
    drop_caches()
    start = time.monotonic()
    sh("fio", "--name=r", "--rw=read", "--filename=" + src, *common,
       "--name=w", "--rw=write", "--filename=" + dst, "--end_fsync=1",
       "--fallocate=none", *common)
    return time.monotonic() - start


def fio(where, size, reps):
    """Reads and writes `size` bytes at once, to the end, with an fsync; less
    what fio needs for 1 MiB, which is its own start and end."""
    best = None
    src, dst = (os.path.join(where, n) for n in ("fio.src", "fio.dst"))
    noise(src, max(size, MIB), 40)
    for direct in (0, 1):
        try:
            floor = min(fio_once(src, dst, MIB, direct) for _ in range(3))
            t = statistics.median(fio_once(src, dst, size, direct)
                                  for _ in range(reps)) - floor
        except RuntimeError:
            continue  # no direct I/O here
        best = t if best is None else min(best, t)
    for p in (src, dst):
        if os.path.exists(p):
            os.unlink(p)
    return max(best, 0.001) if best is not None else None


# ------------------------------------------------------------------- output

def kind_of(where):
    fs = sh("stat", "-f", "-c", "%T", where).strip()
    return "tmpfs" if fs == "tmpfs" else "disk", fs


def line(r, kind):
    peers = r["peers_s"]
    best = min(peers, key=peers.get) if peers else None
    bar, ours = r["bar"].get(kind), r["qstill_s"]
    r["best_peer"], r["kind"] = best, kind
    r["ratio"] = peers[best] / ours if best else None
    r["of_limit"] = ours / r["fio_s"] if r.get("fio_s") else None
    met = best is not None and bar is not None and r["ratio"] >= bar
    r["met"] = met
    return "%-46s %7.2f s  %-26s %7.2f s  %5.2fx (bar %s) %s  limit %s  %s" % (
        r["row"], ours, best or "-", peers.get(best, 0), r["ratio"] or 0,
        bar or "-", "met " if met else "MISS",
        "%.2f s (%.2f)" % (r["fio_s"], r["of_limit"]) if r.get("fio_s")
        else "-", "%d MiB" % (r["rss"] / MIB))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--dir", action="append")
    ap.add_argument("--scale", type=int, default=1)
    ap.add_argument("--reps", type=int, default=3)
    ap.add_argument("--only", default="")
    ap.add_argument("--json", default=os.path.join(TOP,
                                                   "build/bench-merge.json"))
    args = ap.parse_args()
    import merge_live
    import merge_special
    out = {"scale": args.scale, "reps": args.reps, "rows": [],
           "cold_cache": os.access("/proc/sys/vm/drop_caches", os.W_OK),
           "qemu_img": sh("qemu-img", "--version").split("\n")[0],
           "kernel": os.uname().release, "cpus": os.cpu_count()}
    print("%(qemu_img)s, Linux %(kernel)s, %(cpus)d CPUs, 1/%(scale)d of the "
          "size, median of %(reps)d, cold cache: %(cold_cache)s" % out)
    disk = os.path.join(TOP, "build/bench")
    os.makedirs(disk, exist_ok=True)
    for where in args.dir or [disk, "/dev/shm"]:
        home = tempfile.mkdtemp(prefix="merge-", dir=where)
        kind, fs = kind_of(home)
        print("--- %s (%s)" % (where, fs))
        rows = [lambda r=r: r(home, args.scale).run(args.reps)
                for r in ROWS if args.only.lower() in r.name.lower()]
        rows += merge_live.rows(home, args.scale, args.reps, args.only)
        if kind == "disk":
            rows += merge_special.rows(home, args.scale, args.reps, args.only)
        try:
            for row in rows:
                r = row()
                if r:
                    print(line(r, kind), flush=True)
                    if r.get("note"):
                        print("    " + r["note"])
                    out["rows"].append(r)
        finally:
            shutil.rmtree(home, True)
    with open(args.json, "w") as f:
        json.dump(out, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    sys.exit(main())
