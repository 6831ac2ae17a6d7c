# SPDX-License-Identifier: MIT
"""The row of merge.py about a running VM: a middle layer of 512 MiB goes while
the guest writes. Ours is `qstill delete`, QEMU's is block-commit into the
layer below. The guest is stood in for by QEMU's own `qemu-io` monitor command
on the device: 4 KiB writes, one after the other, each timed."""

import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import threading
import time

import merge
from merge import CLUSTER, GIB, MIB, QSTILL, sh

NAME = "middle layer of 512 MiB of a running VM"


class Qmp:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        for _ in range(200):
            try:
                self.sock.connect(path)
                break
            except OSError:
                time.sleep(0.05)
        self.file = self.sock.makefile("rwb")
        self.file.readline()
        self.events = []
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments":
                                    arguments}).encode() + b"\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError("%s: %s" % (command, answer["error"]))
            else:
                return answer["return"]

    def io(self, command):
        out = self("human-monitor-command", **{
            "command-line": 'qemu-io -d vda "%s"' % command})
        if "rror" in out or "failed" in out:
            raise RuntimeError("%s: %s" % (command, out))


class Live:
    """A QEMU with the chain base <- o1 (512 MiB) <- o2 <- o3 (active)."""

    def __init__(self, home, scale):
        self.dir = os.path.join(home, "live")
        shutil.rmtree(self.dir, True)
        os.makedirs(self.dir)
        self.size, self.data = 4 * GIB // scale, 512 * MIB // scale
        merge.base_image(os.path.join(self.dir, "base"), self.size)
        qmp = ["-qmp", "unix:%s/a,server=on,wait=off" % self.dir,
               "-qmp", "unix:%s/b,server=on,wait=off" % self.dir]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m",
             "64", "-blockdev", "driver=file,node-name=f0,cache.direct=on,"
             "filename=%s/base" % self.dir, "-blockdev",
             "driver=qcow2,node-name=d0,file=f0,cache.direct=on", "-device",
             "virtio-blk-pci,drive=d0,id=vda", *qmp],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        self.qmp = Qmp(self.dir + "/b")
        self.qstill("attach", "vm", "--qmp", self.dir + "/a")
        rng, slots = random.Random(5), list(range(self.size // CLUSTER))
        rng.shuffle(slots)
        self.qstill("create", "vm", "s1")
        self.write(slots[:self.data // CLUSTER])
        self.qstill("create", "vm", "s2")
        self.write(slots[-64:])
        self.qstill("create", "vm", "s3")
        self.hot = slots[-128:-64]
        merge.drop_caches()

    def qstill(self, *argv):
        return sh(QSTILL, "--store", self.dir + "/store", *argv)

    def write(self, slots):
        for i, s in enumerate(slots):
            self.qmp.io("write -q -P %d %d 64k" % (i % 250 + 1, s * CLUSTER))
        self.qmp.io("flush")

    def under_load(self, work):
        """(seconds of work, the writes' times in ms meanwhile)"""
        times, stop = [], threading.Event()
        qmp = self.qmp

        def guest():
            rng = random.Random(6)
            while not stop.is_set():
                at = rng.choice(self.hot) * CLUSTER + rng.randrange(16) * 4096
                start = time.monotonic()
                qmp.io("write -q -P 7 %d 4k" % at)
                times.append(1000 * (time.monotonic() - start))
        t = threading.Thread(target=guest)
        t.start()
        time.sleep(1)
        before = len(times)
        start = time.monotonic()
        try:
            work()
            took = time.monotonic() - start
        finally:
            stop.set()
            t.join()
        return took, times[before:]

    def ours(self):
        self.qstill("delete", "vm", "s2")

    def theirs(self):
        """With a monitor of its own: the writes have the other."""
        qmp = Qmp(self.dir + "/a")
        nodes = {n["file"]: n["node-name"]
                 for n in qmp("query-named-block-nodes") if n["drv"] ==
                 "qcow2"}
        chain = qmp("query-block")[0]["inserted"]["image"]
        files = []
        while chain:
            files.append(chain["filename"])
            chain = chain.get("backing-image")
        qmp("block-commit", **{"job-id": "j", "device": nodes[files[0]],
                               "top-node": nodes[files[2]],
                               "base-node": nodes[files[3]]})
        while qmp("query-jobs"):
            time.sleep(0.005)
        for f in files[:2] + files[3:]:
            fd = os.open(f, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    def end(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.dir, True)


def once(home, scale, how):
    live = Live(home, scale)
    try:
        return live.under_load(lambda: how(live))
    finally:
        live.end()


def row(home, scale, reps):
    ours = [once(home, scale, Live.ours) for _ in range(reps)]
    theirs = [once(home, scale, Live.theirs) for _ in range(reps)]

    def stall(runs):
        return statistics.median(sorted(t)[int(len(t) * 0.99)]
                                 for _, t in runs if t)
    return {
        "row": NAME, "bar": {"disk": 2.0, "tmpfs": 4.0}, "rss": 0,
        "bytes": 512 * MIB // scale,
        "qstill_s": statistics.median(t for t, _ in ours),
        "peers_s": {"block-commit": statistics.median(t for t, _ in theirs)},
        "note": "4 KiB guest writes meanwhile, 99th percentile: %.1f ms, with "
                "block-commit %.1f ms" % (stall(ours), stall(theirs))}


def rows(home, scale, reps, only):
    if only.lower() in NAME.lower() and shutil.which("qemu-system-x86_64"):
        return [lambda: row(home, scale, reps)]
    return []
