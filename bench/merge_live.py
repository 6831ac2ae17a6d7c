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

from merge_lib import (CLUSTER, GIB, MIB, QSTILL, Row, drop_caches, sh,
                       sync_all)

# What has the disk of a virtio-blk-pci is a device inside it.
DEVICE = "/machine/peripheral/vda/virtio-backend"


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
            "command-line": 'qemu-io -d %s "%s"' % (DEVICE, command)})
        if "rror" in out or "failed" in out:
            raise RuntimeError("%s: %s" % (command, out))


class Live(Row):
    """A QEMU with the chain base <- o1 (4 MiB) <- o2 (512 MiB) <- o3 (active).
    The snapshot whose content is o1's goes, so that o1 and o2 become one: QEMU
    commits o2 into o1, which moves 512 MiB; `qstill delete` makes a new file of
    both, because QEMU has both open, and lets QEMU take it."""

    name = "middle layer of 512 MiB of a running VM"
    bar = {"disk": 2.0, "tmpfs": 4.0}
    data = 512 * MIB

    def build(self):
        self.base()

    def start(self):
        self.fresh()
        base = os.path.join(self.work, "base")
        qmp = ["-qmp", "unix:%s/a,server=on,wait=off" % self.work,
               "-qmp", "unix:%s/b,server=on,wait=off" % self.work]
        direct = ",cache.direct=on" if self.direct else ""
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m",
             "64", "-blockdev", "driver=file,node-name=f0,filename=%s%s" % (
                 base, direct), "-blockdev",
             "driver=qcow2,node-name=d0,file=f0" + direct, "-device",
             "virtio-blk-pci,drive=d0,id=vda", *qmp],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        self.qmp = Qmp(self.work + "/b")
        self.qstill("attach", "vm", "--qmp", self.work + "/a")
        rng, slots = random.Random(5), list(range(self.size // CLUSTER))
        rng.shuffle(slots)
        self.qstill("create", "vm", "s1", "--no-protect")
        self.write(slots[-192:-128])
        self.qstill("create", "vm", "s2", "--no-protect")
        self.write(slots[:self.moved // CLUSTER])
        self.qstill("create", "vm", "s3", "--no-protect")
        self.write(slots[-64:])
        self.hot = slots[-128:-64]
        drop_caches()

    def qstill(self, *argv):
        return sh(QSTILL, "--store", self.work + "/store", *argv)

    def write(self, slots):
        for i, s in enumerate(slots):
            self.qmp.io("write -q -P %d %d 64k" % (i % 250 + 1, s * CLUSTER))
        self.qmp.io("flush")

    def under_load(self, work):
        """(seconds of work, the writes' times in ms meanwhile)"""
        times, stop = [], threading.Event()

        def guest():
            rng = random.Random(6)
            while not stop.is_set():
                at = rng.choice(self.hot) * CLUSTER + rng.randrange(16) * 4096
                start = time.monotonic()
                self.qmp.io("write -q -P 7 %d 4k" % at)
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
        qmp = Qmp(self.work + "/a")
        nodes = {n["file"]: n["node-name"]
                 for n in qmp("query-named-block-nodes") if n["drv"] ==
                 "qcow2"}
        image = qmp("query-block")[0]["inserted"]["image"]
        files = []
        while image:
            files.append(image["filename"])
            image = image.get("backing-image")
        qmp("block-commit", **{"job-id": "j", "device": nodes[files[0]],
                               "top-node": nodes[files[1]],
                               "base-node": nodes[files[2]]})
        while qmp("query-jobs"):
            time.sleep(0.005)
        for f in (files[0], files[2]):
            fd = os.open(f, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    def end(self):
        self.process.kill()
        self.process.wait()
        # frozen layers are protected; base is a link to that of all rows
        subprocess.run(["chattr", "-R", "-i", self.work], check=False,
                       stderr=subprocess.DEVNULL)

    def once(self, how):
        self.start()
        try:
            return self.under_load(how)
        finally:
            self.end()

    def run(self, reps, only_ours=False):
        self.prepare()
        self.direct = sh("stat", "-f", "-c", "%T", self.home).strip() != \
            "tmpfs"
        ours = [self.once(self.ours) for _ in range(reps)]
        r = {"row": self.name, "bar": self.bar, "rss": 0, "bytes": self.moved,
             "qstill_s": statistics.median(t for t, _ in ours), "peers_s": {}}
        if not only_ours:
            theirs = [self.once(self.theirs) for _ in range(reps)]
            r["peers_s"]["block-commit"] = statistics.median(
                t for t, _ in theirs)
            r["guest_p99_ms"] = p99(ours)
            r["peer_guest_p99_ms"] = p99(theirs)
            r["note"] = "4 KiB guest writes meanwhile, 99th percentile: %.1f " \
                "ms, with block-commit %.1f ms" % (p99(ours), p99(theirs))
        shutil.rmtree(self.work, True)
        return r


def p99(runs):
    return statistics.median(sorted(t)[int(len(t) * 0.99)]
                             for _, t in runs if t)


def rows(home, scale):
    if shutil.which("qemu-system-x86_64"):
        return [(Live.name, lambda: Live(home, scale))]
    return []
