# SPDX-License-Identifier: MIT
"""A VM with the measuring guest (fixtures/guest/meter.h): how long its writes
took, by its own clock, and when it stood still, by the host's (watch.c)."""

import os
import re
import struct
import subprocess
import sys
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(TOP, "tests/integration"))

from lib.guest import Serial  # noqa: E402
from lib.qmp import QMP       # noqa: E402

MIB = 1 << 20
# As in fixtures/guest/meter.h.
MAGIC, PAGES, SUB, BUCKETS = 0x716D657465723031, 4096, 16, 640
HEAD = struct.Struct("<6Q")


def qemu(version="10.0"):
    """The command of that QEMU; None, and why, when there is none."""
    p = subprocess.run([os.path.join(TOP, "fixtures/qemu.sh"), version,
                        os.path.join(TOP, "build/qemu-" + version)],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       text=True)
    return (p.stdout.strip() if p.returncode == 0 else None), p.stderr.strip()


def guest():
    return subprocess.run([os.path.join(TOP, "fixtures/guest.sh")], text=True,
                          check=True, stdout=subprocess.PIPE).stdout.strip()


def watch_program(folder):
    out = os.path.join(folder, "watch")
    subprocess.run(["cc", "-O2", "-o", out,
                    os.path.join(TOP, "bench/watch.c")], check=True)
    return out


class Took:
    """A histogram of times, in seconds."""

    def __init__(self, hz, counts):
        self.hz, self.counts = hz, counts

    def __sub__(self, other):
        return Took(self.hz, [a - b & 0xffffffff for a, b in
                              zip(self.counts, other.counts)])

    def __add__(self, other):
        return Took(self.hz, [a + b for a, b in
                              zip(self.counts, other.counts)])

    def upper(self, b):
        """The upper end of a bucket: a time is never told shorter."""
        return (1 << b // SUB) * (1 + (b % SUB + 1) / SUB) / self.hz

    def total(self):
        return sum(self.counts)

    def slowest(self, n, quantile):
        """The quantile among the n slowest."""
        rank = max(1, n - int(n * quantile))
        for b in reversed(range(BUCKETS)):
            rank -= self.counts[b]
            if rank <= 0:
                return self.upper(b)
        return 0.0

    def worst(self):
        return self.slowest(1, 1)

    def rows(self):
        """(upper end of a power of two in seconds, count), from 16 us on."""
        out = []
        for octave in range(BUCKETS // SUB):
            n = sum(self.counts[octave * SUB:(octave + 1) * SUB])
            top = (2 << octave) / self.hz
            if n and top > 16e-6:
                out.append((top, n))
        return out


class Meter:
    """The guest's page, found in the memory of the QEMU `pid`."""

    def __init__(self, program, pid, serial, monitor):
        self.program, self.pid = program, pid
        m = serial.wait(r"METER nonce=(\w+) paddr=0x(\w+)|GUEST-ERROR.*|"
                        r"Kernel panic.*", timeout=120)
        if not m.group(1):
            raise RuntimeError("the guest: " + m.group(0))
        said = monitor.hmp("gpa2hva 0x" + m.group(2))
        self.at = int(re.search(r"is (0x\w+)", said).group(1), 16)
        self.nonce = int(m.group(1), 16)
        deadline = time.monotonic() + 60
        while self.page()[0] != MAGIC:
            if time.monotonic() > deadline:
                raise RuntimeError("the guest's meter does not begin")
            time.sleep(0.05)

    def page(self):
        with open("/proc/%d/mem" % self.pid, "rb", buffering=0) as f:
            f.seek(self.at)
            raw = f.read(HEAD.size + 4 * BUCKETS)
        return (*HEAD.unpack_from(raw),
                list(struct.unpack_from("<%dI" % BUCKETS, raw, HEAD.size)))

    def took(self):
        magic, nonce, hz, _, _, _, counts = self.page()
        if (magic, nonce) != (MAGIC, self.nonce):
            raise RuntimeError("the guest is not the one that it was")
        return Took(hz, counts)

    def beat(self):
        return self.page()[3]

    def watch(self):
        return Watch([self.program, str(self.pid), hex(self.at + 24)])


class Watch:
    """with meter.watch() as w: ...; then w.gaps, in seconds of the epoch."""

    def __init__(self, argv):
        self.argv = argv

    def __enter__(self):
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True)
        if self.process.stdout.readline() != "READY\n":
            raise RuntimeError("the watch does not begin")
        return self

    def __exit__(self, *exc):
        out, _ = self.process.communicate()
        self.gaps = [(int(a) / 1e9, int(b) / 1e9) for a, b in
                     re.findall(r"GAP (\d+) (\d+)", out)]
        self.late = int(re.search(r"LATE (\d+)", out).group(1)) / 1e9

    def pause(self, stops):
        """The longest standstill between STOP and RESUME, of each of these
        pairs, together."""
        return sum(max([b - a for a, b in self.gaps
                        if a <= resume and b >= stop], default=resume - stop)
                   for stop, resume in stops)

    def longest(self):
        return max((b - a for a, b in self.gaps), default=0.0)


class VM:
    def __init__(self, folder, program, qemu_bin, mib, ram="private",
                 junk=None, zero=0):
        """junk: MiB of random data, half of the RAM when None; zero: MiB that
        hold zeros but have been written."""
        self.dir = folder
        os.makedirs(folder, exist_ok=True)
        guest_dir = guest()
        self.qmp = os.path.join(folder, "qmp")
        disk = os.path.join(folder, "disk.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk,
                        "64M"], check=True)
        junk = mib // 2 if junk is None else junk
        kind = {"private": "memory-backend-ram,id=ram0",
                "shared": "memory-backend-memfd,id=ram0,share=on"}[ram]
        argv = [qemu_bin, "-accel", "tcg", "-cpu", "max", "-object",
                "%s,size=%dM" % (kind, mib), "-machine",
                "pc,memory-backend=ram0", "-m", "%dM" % mib, "-nodefaults",
                "-display", "none",
                "-kernel", os.path.join(guest_dir, "vmlinuz"),
                "-initrd", os.path.join(guest_dir, "initrd"),
                "-append", "console=ttyS0 quiet loglevel=1 DISKS=1 NOAGENT=1 "
                "METER=1 JUNK=%d ZERO=%d" % (junk, zero),
                "-serial", "file:" + os.path.join(folder, "serial"),
                "-drive", "file=%s,format=qcow2,if=none,id=d0" % disk,
                "-device", "virtio-blk-pci,drive=d0,id=vda",
                "-qmp", "unix:%s,server=on,wait=off" % self.qmp,
                "-qmp", "unix:%s.test,server=on,wait=off" % self.qmp]
        with open(os.path.join(folder, "qemu.log"), "wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        try:
            self.monitor = QMP(self.qmp + ".test")
            self.meter = Meter(program, self.process.pid,
                               Serial(os.path.join(folder, "serial"),
                                      self.must_live), self.monitor)
        except BaseException:  # nobody else could end it
            self.end()
            raise

    def must_live(self):
        if self.process.poll() is not None:
            raise RuntimeError("QEMU has ended")

    def stops(self):
        """The (STOP, RESUME) times since the last call."""
        self.monitor.cmd("query-status")  # events come with an answer
        return take_stops(self.monitor)

    def end(self):
        self.process.kill()
        self.process.wait()


def take_stops(monitor):
    times = {"STOP": [], "RESUME": []}
    for e in monitor.events:
        if e["event"] in times:
            t = e["timestamp"]
            times[e["event"]].append(t["seconds"] + t["microseconds"] / 1e6)
    monitor.events.clear()
    return list(zip(times["STOP"], times["RESUME"]))
