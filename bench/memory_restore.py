#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Reverts of a VM with memory against QEMU's own loadvm and the disk, side by
side in one run (make bench-restore).

The guest's RAM is half random data, filled before the snapshot; it runs on for
a second between two reverts.

inplace   from the command's start to QEMU's RESUME event (its own time stamp),
          warm: the snapshot's files are in the page cache, as they are from
          the second revert on; cold: they were dropped from it
loadvm    HMP loadvm of the same VM on the same kind of disk, from sending the
          command to the RESUME event; warm and cold in the same way
mapped    from the command's start to the first tick on the guest's serial line
eager     the same, the files not in the page cache; its rate is that of the
          phase that loads, against fio reading a file of as many bytes
          (random, O_DIRECT)

    memory_restore.py [--dir DIR] [--size 1G,4G] [--row WORD,...] [--reps N]
                      [--qemu PATH] [--json FILE]
"""

import argparse
import json
import os
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(TOP, "tests/integration"))

from lib.guest import Serial  # noqa: E402
from lib.qmp import QMP, QMPError  # noqa: E402

QSTILL = os.environ.get("QSTILL", os.path.join(TOP, "build/qstill"))
ROWS = ("loadvm", "inplace", "mapped", "eager")
MIB = 1 << 20
SLOWEST = 300  # seconds, of a command of the monitor


def drop_cache(folder):
    """The files leave the page cache; everything else stays in it."""
    for top, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(top, name)
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue  # the VM's sockets
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


class Guest:
    """A VM whose RAM is half random."""

    def __init__(self, args, mib, folder):
        self.dir, self.mib = folder, mib
        self.disk = os.path.join(folder, "disk.qcow2")
        self.store = os.path.join(folder, "store")
        self.socket = os.path.join(folder, "q")
        self.serial = Serial(os.path.join(folder, "serial"))
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.disk,
                        "64M"], check=True)
        argv = [args.qemu, "-machine", "pc,memory-backend=ram0", "-accel",
                "tcg", "-cpu", "max", "-m", "%dM" % mib, "-object",
                "memory-backend-ram,id=ram0,size=%dM" % mib, "-nodefaults",
                "-display", "none", "-kernel", args.guest + "/vmlinuz",
                "-initrd", args.guest + "/initrd", "-append",
                "console=ttyS0 quiet loglevel=1 DISKS=1 JUNK=%d" % (mib // 2),
                "-chardev", "file,id=s,append=on,path=" + self.serial.path,
                "-serial", "chardev:s",
                "-qmp", "unix:%s,server=on,wait=off" % self.socket,
                "-qmp", "unix:%s2,server=on,wait=off" % self.socket,
                "-drive", "file=%s,format=qcow2,if=none,id=d0" % self.disk,
                "-device", "virtio-blk-pci,drive=d0,id=vda"]
        with open(os.path.join(folder, "out"), "wb") as log:
            self.first = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                          stdout=log, stderr=log)
        try:
            self.serial.wait("JUNK-READY", timeout=900)
            self.serial.wait_ticks(3)
        except BaseException:
            self.first.kill()
            self.first.wait()
            raise

    def monitor(self):
        return QMP(self.socket + "2")

    def run_on(self):
        self.serial.wait_ticks(4)
        time.sleep(0.5)

    def qstill(self, *argv):
        p = subprocess.run([QSTILL, "--store", self.store, "--json", *argv],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True)
        if p.returncode:
            raise RuntimeError("qstill %s: %s" % (" ".join(argv), p.stderr))
        return json.loads(p.stdout or "null")

    def end(self):
        """Ends the QEMU that serves the socket now, which may be another than
        the first. (A `quit` may be lost when its connection is closed.)"""
        try:
            with self.monitor() as m:
                os.kill(m.pid, signal.SIGKILL)
                while os.path.exists("/proc/%d/exe" % m.pid):
                    time.sleep(0.05)
                    self.first.poll()
        except (OSError, QMPError):
            pass
        self.first.kill()
        self.first.wait()


def resumed(monitor, since):
    """Seconds from `since` to the RESUME event, by QEMU's own clock."""
    while True:
        for e in list(monitor.events):
            if e["event"] == "RESUME":
                t = e["timestamp"]
                at = t["seconds"] + t["microseconds"] / 1e6
                if at >= since:
                    return at - since
        monitor.cmd("query-status")
        time.sleep(0.002)


def loadvm(vm, reps, cold):
    times = []
    with vm.monitor() as m:
        m.cmd("human-monitor-command", timeout=SLOWEST,
              command_line="savevm bench")
        for _ in range(reps):
            vm.run_on()
            if cold:
                drop_cache(vm.dir)
            m.events.clear()
            since = time.time()
            out = m.cmd("human-monitor-command", timeout=SLOWEST,
                        command_line="loadvm bench")
            if out.strip():
                raise RuntimeError("loadvm: " + out)
            times.append(resumed(m, since))
        m.cmd("human-monitor-command", timeout=SLOWEST,
              command_line="delvm bench")
    return times


def inplace(vm, reps, cold):
    times, phases = [], []
    with vm.monitor() as m:
        if not cold:
            vm.qstill("revert", "vm", "s", "--restore", "inplace")
        for _ in range(reps):
            vm.run_on()
            if cold:
                drop_cache(vm.store)
            m.events.clear()
            since = time.time()
            said = vm.qstill("revert", "vm", "s", "--restore", "inplace")
            times.append(resumed(m, since))
            phases.append(said["ms"])
    return times, phases


def first_tick(vm, reps, way):
    times, phases = [], []
    for _ in range(reps):
        vm.run_on()
        if way == "eager":
            drop_cache(vm.store)
        with vm.monitor() as m:  # what is ended then prints no more
            m.cmd("stop")
        mark = vm.serial.mark()
        since = time.time()
        p = subprocess.Popen([QSTILL, "--store", vm.store, "--json", "revert",
                              "vm", "s", "--start", "--restore", way],
                             stdout=subprocess.PIPE, text=True)
        while not vm.serial.ticks(mark):
            if p.poll():
                raise RuntimeError("qstill revert failed")
            time.sleep(0.001)
        times.append(time.time() - since)
        phases.append(json.loads(p.communicate()[0])["ms"])
    return times, phases


def fio_read(folder, size):
    """Bytes per second, of the best of three."""
    path = os.path.join(folder, "fio")
    with open(path, "wb") as f:
        left = size
        while left > 0:
            left -= f.write(os.urandom(min(left, 16 * MIB)))
        os.fsync(f.fileno())
    best = 0
    for _ in range(3):
        out = subprocess.run(
            ["fio", "--name=r", "--filename=" + path, "--rw=read", "--bs=1M",
             "--direct=1", "--ioengine=io_uring", "--iodepth=32",
             "--output-format=json"], check=True, stdout=subprocess.PIPE,
            text=True).stdout
        best = max(best, json.loads(out)["jobs"][0]["read"]["bw_bytes"])
    os.unlink(path)
    return best


def data_bytes(vm):
    """What the snapshot's RAM files hold on the disk."""
    return sum(os.stat(os.path.join(top, f)).st_blocks * 512
               for top, _, files in os.walk(vm.store) for f in files
               if f.endswith(".ram"))


def median(values):
    return statistics.median(values)


def middle(phases):
    """The phases' medians, in ms."""
    return {k: round(median([p.get(k, 0) for p in phases]), 1)
            for k in phases[0]}


def bench(args, mib, folder):
    vm = Guest(args, mib, folder)
    found = {"mib": mib}
    try:
        if "loadvm" in args.rows:
            for name, cold in (("loadvm", False), ("loadvmCold", True)):
                found[name] = median(loadvm(vm, args.reps, cold))
        vm.qstill("attach", "vm", "--qmp", vm.socket)
        vm.qstill("create", "vm", "s", "--memory")
        found["dataBytes"] = data_bytes(vm)
        if "inplace" in args.rows:
            for name, cold in (("inplaceCold", True), ("inplace", False)):
                times, phases = inplace(vm, args.reps, cold)
                found[name] = median(times)
                found[name + "Ms"] = middle(phases)
        for way in ("mapped", "eager"):
            if way in args.rows:
                times, phases = first_tick(vm, args.reps, way)
                found[way] = median(times)
                found[way + "Ms"] = middle(phases)
        if "eager" in args.rows:
            found["fioRate"] = fio_read(folder, found["dataBytes"])
            found["eagerRate"] = found["dataBytes"] / (
                found["eagerMs"]["load"] / 1e3)
    finally:
        vm.end()
    return found


def table(rows):
    print("| what | " + " | ".join("%d MiB" % r["mib"] for r in rows) +
          " | bar |\n|---|" + "---|" * (len(rows) + 1))

    def line(what, value, bar=""):
        cells = [value(r) if value(r) else "" for r in rows]
        if any(cells):
            print("| %s | %s | %s |" % (what, " | ".join(cells), bar))

    def ms(key):
        return lambda r: "%.0f ms" % (r[key] * 1e3) if key in r else ""

    def limit(r):
        return "%.0f ms" % (60 + 200 * r["mib"] / 1024) if "inplace" in r \
            else ""

    line("inplace, command to running", ms("inplace"), "60 ms + 0.2 s a GiB")
    line("- its bar", limit)
    line("QEMU's loadvm", ms("loadvm"), "slower")
    line("inplace, files not in the page cache", ms("inplaceCold"))
    line("loadvm, file not in the page cache", ms("loadvmCold"))
    line("mapped, command to first tick", ms("mapped"), "400 ms at 2 GiB")
    line("eager, command to first tick", ms("eager"))
    line("eager, rate of the load", lambda r: "%.0f MB/s" % (
        r["eagerRate"] / 1e6) if "eagerRate" in r else "")
    line("fio, read rate", lambda r: "%.0f MB/s" % (
        r["fioRate"] / 1e6) if "fioRate" in r else "")
    line("eager against fio", lambda r: "%.0f %%" % (
        100 * r["eagerRate"] / r["fioRate"]) if "fioRate" in r else "", "80 %")


def size_in_mib(word):
    unit = {"M": 1, "G": 1024}[word[-1]]
    return int(word[:-1]) * unit


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dir", default="/var/tmp")
    parser.add_argument("--size", default="1G,4G")
    parser.add_argument("--row", default=",".join(ROWS))
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--json")
    args = parser.parse_args()
    args.rows = args.row.split(",")
    args.guest = subprocess.run(
        [os.path.join(TOP, "fixtures/guest.sh"),
         os.path.join(TOP, "build/guest")], check=True, text=True,
        stdout=subprocess.PIPE).stdout.split("\n")[-2].strip()
    rows = []
    for size in args.size.split(","):
        folder = tempfile.mkdtemp(prefix="qstill-bench-", dir=args.dir)
        try:
            rows.append(bench(args, size_in_mib(size), folder))
        finally:
            subprocess.run(["chattr", "-R", "-f", "-i", folder],
                           stderr=subprocess.DEVNULL)
            shutil.rmtree(folder)
        print(json.dumps(rows[-1]), file=sys.stderr)
    table(rows)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()
