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

import merge
from merge import CLUSTER, GIB, MIB, QSTILL, sh


def rows(home, scale, reps, only):
    out = []
    for fs in ("xfs", "btrfs"):
        name = "any merge on %s with reflink" % fs
        if only.lower() in name and os.geteuid() == 0 and \
                shutil.which("mkfs." + fs):
            out.append(lambda fs=fs, name=name: reflink(
                home, scale, reps, fs, name))
    for run, name in ((64 * MIB, "opening 20 layers of 1 TiB, 10 % in 64 MiB "
                       "runs"),
                      (MIB, "opening 20 layers of 1 TiB, 10 % in 1 MiB "
                       "runs")):
        if only.lower() in name:
            out.append(lambda run=run, name=name: opening(
                home, scale, reps, run, name))
    return out


# ----------------------------------------------------------------- reflinks

def written(device):
    with open("/sys/block/%s/stat" % os.path.basename(device)) as f:
        return int(f.read().split()[6]) * 512


class OnReflink(merge.FoldBig):
    """As the fold-down of 1 GiB; copies of the template are clones."""

    direction = "auto"

    def ours(self):
        return [QSTILL, "image", "merge", "top", "--drop", "base"]

    def fresh(self):
        shutil.rmtree(self.work, True)
        os.makedirs(self.work)
        for n in os.listdir(self.template):
            sh("cp", "--reflink=always", self.path(n),
               os.path.join(self.work, n))
        os.sync()


def reflink(home, scale, reps, fs, name):
    image, mount = (os.path.join(home, n) for n in ("fs.img", "mnt"))
    os.makedirs(mount)
    with open(image, "wb") as f:
        f.truncate(16 * GIB // scale + GIB)
    sh(*{"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
         "btrfs": ["mkfs.btrfs", "-q"]}[fs], image)
    device = sh("losetup", "--find", "--show", "--direct-io=on",
                image).strip()
    sh("mount", device, mount)
    try:
        row = OnReflink(mount, scale)
        row.name, row.bar = name, {"disk": 10.0}
        os.makedirs(row.template)
        row.build()
        row.fresh()
        os.sync()
        before = written(device)
        merge.timed(row.ours(), cwd=row.work)
        os.sync()
        share = (written(device) - before) / row.moved
        row.same_content("top")
        shutil.rmtree(row.work)
        shutil.rmtree(row.template)
        r = row.run(reps)
        r["written_share"] = share
        r["note"] = "bytes written: %.2f %% of the data (bar 1 %%)" % (
            100 * share)
        return r
    finally:
        sh("umount", mount)
        sh("losetup", "-d", device)
        os.unlink(image)
        os.rmdir(mount)


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


def opening(home, scale, reps, run, name):
    guest = 1024 * GIB // scale
    where = os.path.join(home, "giant")
    os.makedirs(where)
    rng, below = random.Random(run), None
    try:
        for i in range(20):
            path = os.path.join(where, "g%02d" % i)
            picks = rng.sample(range(guest // run), guest // run // 200)
            giant(path, below, guest, [(p * run, run) for p in picks])
            below = path
        sh("qemu-img", "check", "-q", "-f", "qcow2", below)
        argv = [QSTILL, "image", "merge", "g19", "--drop", "g10",
                "--dry-run"]
        ours = [merge.timed(argv, cwd=where) for _ in range(reps)]
        theirs = []
        for _ in range(reps if run > MIB else 1):
            merge.drop_caches()
            start = time.monotonic()
            subprocess.run(["qemu-img", "map", "--output=json", "g19"],
                           cwd=where, stdout=subprocess.DEVNULL, check=True)
            theirs.append(time.monotonic() - start)
        tables = sum(os.stat(os.path.join(where, n)).st_blocks * 512
                     for n in os.listdir(where))
    finally:
        shutil.rmtree(where)
    seconds = statistics.median(t for t, _ in ours)
    rss = max(r for _, r in ours)
    met = seconds < 0.5 and rss < 256 * MIB
    return {"row": name, "bar": {"disk": 0}, "bytes": tables, "rss": rss,
            "qstill_s": seconds, "peers_s": {
                "qemu-img map": statistics.median(theirs)},
            "note": "bar 0.5 s and 256 MiB: %s; %d MiB of metadata" % (
                "met" if met else "MISS", tables / MIB)}
