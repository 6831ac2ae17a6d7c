#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Live memory snapshots against QEMU's own ways, libvirt and the disk, side by
side in one run (make bench-memory).

The guest rewrites 16 MiB of its RAM without end, and half of its RAM is random
data. Its pause is how long it stood still around QEMU's STOP event as the host
sees its counter; the stalls of its writes are timed inside the guest. A time
until durable is that of the whole command or migration and an fsync of the
files that it left. Ours runs while the guest does; QEMU's migrations run with
the guest stopped, which is their fastest. fio writes as many bytes as our
files hold, fsync included, the best of its ways.

    memory.py [--dir DIR] [--size 2G,8G] [--ram private,shared] [--row WORD]
              [--reps N] [--json FILE] [--qemu 10.0]

--row  cow (pause, stalls, time, memory), qemu, fio, libvirt, rate; a
       comparison needs its two sides: cow,qemu,fio is one for the disk.
Needs root for the guest's memory and libvirt's; fixtures/deps.sh bench.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import libvirt_save
import meter
from meter import MIB, TOP

QSTILL = os.environ.get("QSTILL", os.path.join(TOP, "build/qstill"))
ROWS = ("cow", "qemu", "fio", "libvirt", "rate")
# QEMU 10's migrate to a file: (name, capabilities, parameters)
WAYS = (
    ("stream", (), {}),
    ("mapped-ram", ("mapped-ram",), {}),
    ("mapped-ram+multifd+direct-io", ("mapped-ram", "multifd"),
     {"direct-io": True, "multifd-channels": 2}),
)


def fsync_tree(folder):
    for top, _, files in os.walk(folder):
        for name in files:
            fd = os.open(os.path.join(top, name), os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def quantiles(values):
    return {"median": statistics.median(values), "min": min(values),
            "max": max(values), "n": len(values)}


class AnonPeak(threading.Thread):
    """The peak of a process's own memory: its RSS without mapped files, which
    shared guest RAM is."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.path, self.peak = "/proc/%d/status" % pid, 0

    def run(self):
        while True:
            try:
                with open(self.path) as f:
                    said = dict(line.split(":", 1) for line in f)
                self.peak = max(self.peak,
                                int(said["RssAnon"].split()[0]) << 10)
            except (OSError, KeyError, ValueError):
                return
            time.sleep(0.01)


def qstill(store, *argv):
    """(seconds, its JSON, the peak of its own memory, seconds by phase)"""
    start = time.monotonic()
    p = subprocess.Popen([QSTILL, "--store", store, "--json", "-v", *argv],
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    peak = AnonPeak(p.pid)
    peak.start()
    out, err = p.communicate()
    took = time.monotonic() - start
    if p.returncode:
        raise RuntimeError("qstill %s: %s" % (" ".join(argv), err))
    peak.join()
    phases = {name: int(t) / 1e3 for name, t in
              re.findall(r"^qstill: \w+: (\w+): (\d+) ms$", err, re.M)}
    return took, json.loads(out or "null"), peak.peak, phases


# ------------------------------------------------------------------ the rows

def cow(vm, store, reps):
    """Our snapshots of a VM that runs on."""
    runs = {k: [] for k in ("seconds", "pause", "told", "peak", "bytes",
                            "longest", "toldStall", "copy")}
    took = None
    if not os.path.exists(os.path.join(store, "vm")):
        qstill(store, "attach", "vm", "--qmp", vm.qmp)
    for i in range(reps):
        os.sync()
        time.sleep(0.3)
        vm.stops()
        before = vm.meter.took()
        with vm.meter.watch() as w:
            seconds, said, peak, phases = qstill(
                store, "create", "vm", "s", "--memory", "--mode", "cow")
            after = vm.meter.took()
        stops = vm.stops()
        if len(stops) != 1:
            raise RuntimeError("%d stops in one snapshot" % len(stops))
        took = after - before if took is None else took + (after - before)
        for key, value in (
                ("seconds", seconds), ("pause", w.pause(stops)),
                ("told", said["pauseMs"] / 1e3), ("peak", peak),
                ("toldStall", said["longestStallMs"] / 1e3),
                ("copy", phases["memory"]), ("bytes", said["memoryWritten"]), ("longest", w.longest())):
            runs[key].append(value)
        qstill(store, "delete", "vm", "s")
    slow = meter.PAGES * reps
    idle = vm.meter.took()
    time.sleep(2)
    idle = vm.meter.took() - idle
    return {
        **{k: quantiles(v) for k, v in runs.items()},
        "stall": {
            "p50": took.slowest(slow, 0.5), "p99": took.slowest(slow, 0.99),
            "worst": took.worst(), "writes": took.total(),
            "histogram": took.rows()},
        "idle": {"p99": idle.slowest(meter.PAGES, 0.99),
                 "worst": idle.worst()},
    }


def migrate(vm, folder, way):
    """Seconds of a stopped VM's migration into a file, fsync included."""
    name, capabilities, parameters = way
    m, path = vm.monitor, os.path.join(folder, "qemu.mig")
    used = {"mapped-ram", "multifd"}
    m.cmd("migrate-set-capabilities", capabilities=[
        {"capability": c, "state": c in capabilities} for c in sorted(used)])
    m.cmd("migrate-set-parameters", **{
        "max-bandwidth": 1 << 40, "direct-io": False, **parameters})
    os.sync()
    time.sleep(0.3)
    m.cmd("stop")
    start = time.monotonic()
    m.cmd("migrate", uri="file:" + path)
    while True:
        state = m.cmd("query-migrate")
        if state["status"] in ("completed", "failed", "cancelled"):
            break
        time.sleep(0.002)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    took = time.monotonic() - start
    m.cmd("cont")
    size = os.stat(path).st_blocks * 512
    os.unlink(path)
    if state["status"] != "completed":
        raise RuntimeError("migrate %s: %s" % (name, state))
    return took, size


def qemu_ways(vm, folder, reps):
    out = {}
    for way in WAYS:
        runs = [migrate(vm, folder, way) for _ in range(reps)]
        out[way[0]] = {"seconds": quantiles([t for t, _ in runs]),
                       "bytes": quantiles([b for _, b in runs])}
    return out


def fio(folder, size, reps):
    """Seconds to write that many bytes, fsync included; the best way's."""
    best = None
    ways = [(0, "psync", 1)]
    if not folder.startswith("/dev/shm"):
        ways += [(1, "io_uring", 8), (1, "io_uring", 2)]
    for direct, engine, depth in ways:
        times = []
        for _ in range(reps):
            path = os.path.join(folder, "fio")
            os.sync()
            time.sleep(0.3)
            start = time.monotonic()
            p = subprocess.run(
                ["fio", "--name=w", "--filename=" + path, "--rw=write",
                 "--bs=1M", "--size=%d" % (size // MIB * MIB),
                 "--direct=%d" % direct, "--ioengine=" + engine,
                 "--iodepth=%d" % depth, "--end_fsync=1", "--fallocate=none",
                 "--output-format=json"], stdout=subprocess.PIPE, text=True,
                check=True)
            wall = time.monotonic() - start
            job = json.loads(p.stdout)["jobs"][0]
            # its own run time: fio itself takes a while to begin and to end
            times.append(min(wall, job["job_runtime"] / 1e3))
            os.unlink(path)
        if best is None or statistics.median(times) < best["median"]:
            best = dict(quantiles(times), way="%s, depth %d" % (
                "direct" if direct else "buffered", depth))
    return {"seconds": best, "bytes": size}


@contextlib.contextmanager
def memory_folder(mib):
    """A tmpfs of huge pages: with small ones, the kernel's work for each new
    page is most of the time, fio's and ours. (folder, what it is)"""
    folder = tempfile.mkdtemp(prefix="qst-", dir="/dev/shm")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "huge=always,size=%dM" % mib, "qst",
         folder], stderr=subprocess.DEVNULL).returncode == 0
    try:
        yield folder, "tmpfs" + (", huge=always" if mounted else "")
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", folder],
                       stderr=subprocess.DEVNULL)
        if mounted:
            subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder, True)


def rate(work, args, ram, kind):
    """Capture into memory, where no disk is in the way. The rate is that of
    the copying; fio's into the same tmpfs is the limit for random RAM."""
    mib = min(args.sizes[0], 2048)
    most = mib - 256
    vm = meter.VM(os.path.join(work, "rate-%s-%s" % (ram, kind)), args.watch,
                  args.qemu_bin, mib, ram,
                  *((most, 0) if kind == "random" else (0, most)))
    try:
        with memory_folder(2 * mib) as (folder, target):
            store = os.path.join(folder, "store")
            done = cow(vm, store, args.reps)
            size = done["bytes"]["median"] if kind == "random" else most * MIB
            return {"kind": kind, "ram": ram, "target": target, "bytes": size,
                    "cow": done,
                    "bytesPerSecond": size / done["copy"]["median"],
                    "fio": fio(folder, int(size), args.reps)
                    if kind == "random" else None}
    finally:
        vm.end()


# ----------------------------------------------------------------- the table

def line(what, figure, bar, ok):
    print("  %-44s %-34s %-22s %s" % (what, figure, bar,
                                      {True: "yes", False: "NO",
                                       None: "-"}[ok]))


def ms(seconds):
    return "%.1f ms" % (1e3 * seconds)


def table(case):
    print("\n%d MiB, %s RAM%s" % (
        case["mib"], case["ram"], 30 * " " + 11 * " " + "bar" + 8 * " " +
        "kept"))
    c = case.get("cow")
    if c:
        bar = 0.030 if case["mib"] <= 2048 else 0.040
        line("pause as the guest sees it", "median %s (%s to %s)" % (
            ms(c["pause"]["median"]), ms(c["pause"]["min"]),
            ms(c["pause"]["max"])), "at most " + ms(bar),
            c["pause"]["median"] <= bar)
        line("pause as told by qstill", "median " + ms(c["told"]["median"]),
             "", None)
        s = c["stall"]
        line("a write's stall, the %d slowest a run" % meter.PAGES,
             "p50 %s, p99 %s" % (ms(s["p50"]), ms(s["p99"])), "p99 under 5 ms",
             s["p99"] < 0.005)
        line("longest stall of a write", ms(s["worst"]), "under 50 ms",
             s["worst"] < 0.050)
        line("  the same without a snapshot (2 s)", "p99 %s, worst %s" % (
            ms(c["idle"]["p99"]), ms(c["idle"]["worst"])), "", None)
        line("time until durable, guest running", "median %.2f s, %d MiB" % (
            c["seconds"]["median"], c["bytes"]["median"] / MIB), "", None)
        line("our own memory", "%.0f MiB" % (c["peak"]["max"] / MIB),
             "under 160 MiB", c["peak"]["max"] < 160 * MIB)
    ours = c and c["seconds"]["median"]
    for name, q in case.get("qemu", {}).items():
        t = q["seconds"]["median"]
        line("QEMU " + name, "median %.2f s, guest stopped" % t,
             ours and "ours is %.2f of it" % (ours / t), ours and ours <= t)
    if "fio" in case:
        t = case["fio"]["seconds"]["median"]
        line("fio, " + case["fio"]["seconds"]["way"], "median %.2f s" % t,
             ours and "ours has %.0f %%, of 90" % (100 * t / ours),
             ours and t / ours >= 0.9)
    if "libvirt" in case:
        v = case["libvirt"]
        mine, theirs = v["qstill"], v["libvirt"]
        line("libvirt " + v["version"], "median %.2f s" %
             theirs["seconds"]["median"], "ours %.2f s, x %.1f of 2" % (
                 mine["seconds"]["median"], theirs["seconds"]["median"] /
                 mine["seconds"]["median"]),
             theirs["seconds"]["median"] >= 2 * mine["seconds"]["median"])
        line("  its pause", "median " + ms(theirs["pause"]["median"]),
             "ours %s, x %.0f of 30" % (
                 ms(mine["pause"]["median"]), theirs["pause"]["median"] /
                 mine["pause"]["median"]),
             theirs["pause"]["median"] >= 30 * mine["pause"]["median"])
    sys.stdout.flush()


def rate_table(r):
    bar = {"random": 3e9, "zero": 8e9}[r["kind"]]
    print()
    line("capture into %s: %s RAM, %s" % (r["target"], r["ram"], r["kind"]),
         "%.2f GB/s" % (r["bytesPerSecond"] / 1e9),
         "at least %.0f GB/s" % (bar / 1e9), r["bytesPerSecond"] >= bar)
    line("  the whole command", "median %.2f s for %d MiB" % (
        r["cow"]["seconds"]["median"], r["bytes"] / MIB), "", None)
    if r["fio"]:
        line("  fio into the same tmpfs", "%.2f GB/s" % (
            r["bytes"] / r["fio"]["seconds"]["median"] / 1e9), "", None)


# ------------------------------------------------------------------ the run

def one_case(args, work, mib, ram):
    case = {"mib": mib, "ram": ram}
    store = os.path.join(work, "store")
    if args.rows & {"cow", "qemu"}:
        vm = meter.VM(os.path.join(work, "vm"), args.watch, args.qemu_bin,
                      mib, ram)
        try:
            if "cow" in args.rows:
                case["cow"] = cow(vm, store, args.reps)
            if "qemu" in args.rows:
                case["qemu"] = qemu_ways(vm, work, args.reps)
        finally:
            vm.end()
    if "fio" in args.rows:
        size = case["cow"]["bytes"]["median"] if "cow" in case \
            else mib * MIB // 2
        case["fio"] = fio(work, int(size), args.reps)
    if "libvirt" in args.rows:
        case["libvirt"] = libvirt_save.compare(
            os.path.join(work, "libvirt"), args.watch, mib, args.reps, cow)
    return case


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--dir", default=os.path.join(TOP, "build/bench"))
    p.add_argument("--size", default="2G,8G")
    p.add_argument("--ram", default="private,shared")
    p.add_argument("--row", default=",".join(ROWS))
    p.add_argument("--reps", type=int, default=5)
    p.add_argument("--json")
    p.add_argument("--qemu", default="10.0")
    args = p.parse_args(argv)
    unit = {"M": 1, "G": 1024}
    args.sizes = [int(s[:-1]) * unit[s[-1]] for s in args.size.split(",")]
    args.rows = set(args.row.split(","))
    if not args.rows <= set(ROWS):
        p.error("rows are " + ", ".join(ROWS))
    args.qemu_bin, why = meter.qemu(args.qemu)
    if not args.qemu_bin:
        p.error(why)
    return args


def main():
    args = parse(sys.argv[1:])
    os.makedirs(args.dir, exist_ok=True)
    work = tempfile.mkdtemp(prefix="mem-", dir=args.dir)
    args.watch = meter.watch_program(work)
    result = {"qemu": args.qemu, "reps": args.reps, "cases": [], "rates": [],
              "cpus": os.cpu_count(), "kernel": os.uname().release}
    try:
        for mib in args.sizes:
            for ram in args.ram.split(","):
                if args.rows == {"rate"}:
                    break
                folder = os.path.join(work, "%d-%s" % (mib, ram))
                os.makedirs(folder)
                case = one_case(args, folder, mib, ram)
                shutil.rmtree(folder, True)
                result["cases"].append(case)
                table(case)
        if "rate" in args.rows:
            for ram in args.ram.split(","):
                for kind in ("random", "zero"):
                    result["rates"].append(rate(work, args, ram, kind))
                    rate_table(result["rates"][-1])
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", work],
                       stderr=subprocess.DEVNULL)
        shutil.rmtree(work, True)
        if args.json:
            with open(args.json, "w") as f:
                json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
