#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long each verb takes on large trees, with next to no data to move:

    tree.py [--build DIR] [--snapshots N] [--chain N] [--disks N] [--json]

A chain of --chain snapshots of a 1 TiB disk, and a tree of --snapshots (each
fifth a branch) of --disks disks; each with the VM off, and then with it
running, so that QEMU's own time for long chains is told apart. Prints a table;
the bars are in docs/BENCHMARKS.md."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TIB = 1 << 40


class Host:
    def __init__(self, args, disks, size):
        self.tmp = tempfile.mkdtemp(prefix="qst-bench-", dir="/var/tmp")
        self.qstill = os.path.join(os.path.abspath(args.build), "qstill")
        self.store = os.path.join(self.tmp, "store")
        self.qmp = os.path.join(self.tmp, "qmp")
        argv = ["qemu-system-x86_64", "-machine", "pc", "-m", "8M",
                "-accel", "tcg,tb-size=8", "-nodefaults", "-display", "none",
                "-qmp",
                "unix:%s,server=on,wait=off" % self.qmp]
        for i in range(disks):
            path = os.path.join(self.tmp, "d%d.qcow2" % i)
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path,
                            str(size)], check=True)
            argv += ["-drive", "if=virtio,id=d%d,format=qcow2,file=%s" % (
                i, path)]
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        while not os.path.exists(self.qmp):
            time.sleep(0.01)
        time.sleep(0.2)
        self("attach", "vm", "--qmp", self.qmp)
        p.send_signal(signal.SIGTERM)
        p.wait()

    def __call__(self, *argv):
        out = subprocess.run(
            [self.qstill, "--store", self.store, "--json", *argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if out.returncode != 0:
            raise SystemExit("qstill %s: %s" % (" ".join(argv), out.stderr))
        return json.loads(out.stdout) if out.stdout.strip() else None

    def line(self):
        """Names of the current snapshot and of all that it stands on, the
        oldest first."""
        known = self("list", "vm")
        by_id = {s["id"]: s for s in known["snapshots"]}
        at, names = known["current"], []
        while at:
            names.insert(0, by_id[at]["name"])
            at = by_id[at]["parentId"]
        return names

    def timed(self, *argv, reps=1):
        best = None
        for _ in range(reps):
            begun = time.monotonic()
            self(*argv)
            took = (time.monotonic() - begun) * 1e3
            best = took if best is None else min(best, took)
        return best

    def stop(self):
        for d in os.listdir("/proc"):
            if not d.isdigit():
                continue
            try:
                with open("/proc/%s/cmdline" % d, "rb") as f:
                    mine = self.qmp.encode() in f.read()
            except OSError:
                continue
            if mine and int(d) != os.getpid():
                os.kill(int(d), signal.SIGKILL)

    def close(self):
        self.stop()
        subprocess.run(["chattr", "-R", "-f", "-i", self.tmp], check=False,
                       stderr=subprocess.DEVNULL)
        shutil.rmtree(self.tmp, ignore_errors=True)


def measure(host, what, names, rows):
    def row(verb, *argv, **kw):
        rows.append({"tree": what, "verb": verb,
                     "ms": round(host.timed(*argv, **kw), 1)})
    middle = names[len(names) // 2]
    row("list", "list", "vm", reps=5)
    row("info", "info", "vm", middle, reps=3)
    row("verify", "verify", "vm", middle)
    row("rename", "rename", "vm", middle, "renamed")
    row("create", "create", "vm", "one-more")
    row("delete --dry-run", "delete", "vm", "renamed", "--dry-run")
    row("delete", "delete", "vm", "renamed")
    row("revert (stopped)", "revert", "vm", names[len(names) // 3],
        "--stopped")
    row("recover", "recover", "vm")


def measure_running(host, what, rows):
    """`start` has opened all layers by their headers, so that QEMU has made the
    names of their nodes; what is created then has names of ours."""
    def row(verb, *argv, **kw):
        rows.append({"tree": what, "verb": verb + ", running",
                     "ms": round(host.timed(*argv, **kw), 1)})
    row("start", "start", "vm")
    row("list", "list", "vm", reps=5)
    row("check", "check", "vm")
    for name in ("live-a", "live-b", "live-c"):
        row("create", "create", "vm", name)
    line = host.line()
    inner = line[len(line) // 2]
    row("delete --dry-run", "delete", "vm", inner, "--dry-run")
    row("delete (nodes of QEMU's)", "delete", "vm", inner)
    row("delete (nodes of ours)", "delete", "vm", "live-b")
    row("delete (the newest)", "delete", "vm", "live-c")
    row("revert", "revert", "vm", line[len(line) // 3])
    row("recover", "recover", "vm")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", default=os.path.join(HERE, "..", "build"))
    parser.add_argument("--snapshots", type=int, default=500)
    parser.add_argument("--chain", type=int, default=200)
    parser.add_argument("--disks", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for what, count, disks, branch in (
            ("chain of %d, 1 disk of 1 TiB" % args.chain, args.chain, 1, 0),
            ("tree of %d, %d disks of 1 TiB" % (args.snapshots, args.disks),
             args.snapshots, args.disks, 5)):
        host = Host(args, disks, TIB)
        try:
            names = []
            begun = time.monotonic()
            for i in range(count):
                if branch and i and i % branch == 0:
                    host("revert", "vm", names[i // 2], "--stopped")
                names.append("s%d" % i)
                host("create", "vm", names[-1])
            rows.append({"tree": what, "verb": "create, each", "ms": round(
                (time.monotonic() - begun) * 1e3 / count, 1)})
            measure(host, what, names, rows)
            measure_running(host, what, rows)
        finally:
            host.close()
    if args.json:
        print(json.dumps({"rows": rows}, indent=1))
    else:
        for r in rows:
            print("%-36s %-18s %8.1f ms" % (r["tree"], r["verb"], r["ms"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
