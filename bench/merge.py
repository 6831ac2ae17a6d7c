#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Merges against qemu-img, side by side in one run (make bench-merge).

Each figure is the median of REPS runs of the whole command with the caches
dropped before it (as root), and with an fsync of every file left behind after
it: for qemu-img that is its durability, for qstill it finds nothing to do.
qemu-img is tried once in each of its cache modes, REPS times in the two that
did best, and its best counts. The limit is what fio needs to read and write the
same bytes at once, fsync included, the better of direct and buffered. After the
first run of each command the guest's content is compared and the image checked.

    merge.py [--dir DIR]... [--row WORD] [--scale N] [--reps N] [--json FILE]
             [--keep] [--prepare] [--ours] [--priority]

--dir      where to work (default: build/bench on the disk, and /dev/shm)
--row      only rows with this in their name; --row list names them
--scale    divides all sizes: 8 is a quick look, 1 the figures of the document
--keep     leave the images there for the next run, in DIR/qstill-bench
--prepare  only make the images, and keep them
--ours     no peer and no limit: for profiling
--priority run what is timed, ours and theirs, with nice -20, where the machine
           is not idle
Needs qemu-img, qemu-io, fio; root for cold caches and for the reflink rows.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile

import merge_lib
import merge_live
import merge_special
from merge_lib import (CLUSTER, GIB, MIB, MODES, QSTILL, TOP, Row, modes,
                       overlay, scattered, sh)


class PullUp(Row):
    name = "pull-up of 512 MiB in scattered 64 KiB runs"
    bar = {"disk": 2.0, "tmpfs": 2.5, "limit": 1.15}
    data = 512 * MIB
    mutable = ("top", "mid")

    def build(self):
        self.base()
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
    run_size = 0

    def build(self):
        self.base()
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
    data, run_size = GIB, MIB


class FoldSmall(FoldDown):
    name = "fold-down of 512 MiB in 64 KiB runs"
    data, run_size = 512 * MIB, CLUSTER


class Flatten(Row):
    name = "flatten of a 3-layer chain"
    bar = {"disk": 1.0, "tmpfs": 2.5, "limit": 1.15}
    data = 4 * GIB

    def build(self):
        self.base()
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
    data = GIB

    def build(self):
        self.base()
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
    if "met" not in r:
        r["met"] = best is not None and bar is not None and r["ratio"] >= bar
    text = "%-46s %7.2f s" % (r["row"], ours)
    if best:
        text += "  %-22s %7.2f s  %5.2fx" % (best, peers[best], r["ratio"])
    if bar:
        text += " (bar %s) %s" % (bar, "met " if r["met"] else "MISS")
    if r.get("fio_s"):
        text += "  limit %.2f s (%.2f)" % (r["fio_s"], r["of_limit"])
    if r.get("rss"):
        text += "  %d MiB" % (r["rss"] / MIB)
    return text + ("\n    " + r["note"] if r.get("note") else "")


def all_rows(home, kind, scale):
    """Names and makers, in the table's order."""
    rows = [(c.name, lambda c=c: c(home, scale)) for c in ROWS]
    rows += merge_live.rows(home, scale)
    if kind == "disk":
        rows += merge_special.rows(home, scale)
    return rows


def run_in(where, args):
    """The rows in one place; their results."""
    os.makedirs(where, exist_ok=True)
    keep = args.keep or args.prepare
    home = os.path.join(where, "qstill-bench") if keep else tempfile.mkdtemp(
        prefix="merge-", dir=where)
    os.makedirs(home, exist_ok=True)
    kind, fs = kind_of(home)
    print("--- %s (%s)" % (where, fs), flush=True)
    results = []
    try:
        for name, make in all_rows(home, kind, args.scale):
            if args.row == "list":
                print(name)
            elif args.row.lower() not in name.lower():
                continue
            elif args.prepare:
                make().prepare()
            else:
                row = make()
                r = row.run(args.reps, args.ours)
                print(line(r, kind), flush=True)
                results.append(r)
                if not keep:
                    shutil.rmtree(row.template, True)
    finally:
        if not keep:
            shutil.rmtree(home, True)
    return results


def merged(path, out):
    """What other rows left in the file stays: rows can be run one by one."""
    try:
        with open(path) as f:
            old = json.load(f)["rows"]
    except (OSError, ValueError, KeyError):
        old = []
    new = {(r["row"], r["kind"]) for r in out["rows"]}
    out["rows"] = [r for r in old if (r["row"], r["kind"]) not in new] + \
        out["rows"]
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--dir", action="append")
    ap.add_argument("--row", default="")
    ap.add_argument("--scale", type=int, default=1)
    ap.add_argument("--reps", type=int, default=3)
    ap.add_argument("--keep", action="store_true")
    ap.add_argument("--prepare", action="store_true")
    ap.add_argument("--ours", action="store_true")
    ap.add_argument("--priority", action="store_true")
    ap.add_argument("--json", default=os.path.join(TOP,
                                                   "build/bench-merge.json"))
    args = ap.parse_args()
    # mounts, loop devices and VMs go in `finally` and `with`: let these run
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    args.dir = [os.path.abspath(d) for d in args.dir or ()]
    if args.priority:
        merge_lib.PRIORITY = -20
    out = {"scale": args.scale, "reps": args.reps, "rows": [],
           "cold_cache": os.access("/proc/sys/vm/drop_caches", os.W_OK),
           "qemu_img": sh("qemu-img", "--version").split("\n")[0],
           "kernel": os.uname().release, "cpus": os.cpu_count()}
    print("%(qemu_img)s, Linux %(kernel)s, %(cpus)d CPUs, 1/%(scale)d of the "
          "size, median of %(reps)d, cold cache: %(cold_cache)s" % out)
    for where in args.dir or [os.path.join(TOP, "build/bench"), "/dev/shm"]:
        out["rows"] += run_in(where, args)
    if out["rows"] and not args.ours:
        with open(args.json + ".new", "w") as f:
            json.dump(merged(args.json, out), f, indent=1)
        os.rename(args.json + ".new", args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
