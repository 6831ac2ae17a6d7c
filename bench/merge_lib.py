# SPDX-License-Identifier: MIT
"""What the merge benchmarks share: commands and their times, images, fio, and
the kind of row that compares our command with several of a peer's."""

import os
import random
import shutil
import statistics
import subprocess
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QSTILL = os.environ.get("QSTILL", os.path.join(TOP, "build/qstill"))
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CLUSTER = 64 * KIB
MODES = ("none", "writeback", "unsafe", "directsync", "writethrough")


PRIORITY = 0  # of the commands that are timed: set by --priority


def prefer():
    os.nice(PRIORITY)


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


def sync_all(directory):
    for name in os.listdir(directory):
        fd = os.open(os.path.join(directory, name), os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


class GivenUp(Exception):
    """It has taken longer than anything that could still be the best."""


def timed(*commands, cwd, limit=None):
    """Seconds of the commands and an fsync of all files; the peak RSS."""
    drop_caches()
    rss, start = 0, time.monotonic()
    for argv in commands:
        p = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             preexec_fn=prefer)
        timer = threading.Timer(limit - (time.monotonic() - start),
                                p.kill) if limit else None
        if timer:
            timer.start()
        try:
            text = p.stdout.read()
        except BaseException:
            p.kill()  # what is unmounted now must not be in use
            p.wait()
            raise
        finally:
            if timer:
                timer.cancel()
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        if limit and time.monotonic() - start >= limit:
            raise GivenUp("over %.1f s" % limit)
        if p.returncode:
            raise RuntimeError("%s: exit %d\n%s" % (
                " ".join(argv), p.returncode, text.decode()))
        rss = max(rss, usage.ru_maxrss * KIB)
    sync_all(cwd)
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
    """Full of noise, written once; further images of its size link to it."""
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


# ---------------------------------------------------------------- the limit

def fio_once(src, dst, size, direct, allocate):
    if os.path.exists(dst):
        os.unlink(dst)
    common = ["--ioengine=io_uring", "--iodepth=32", "--bs=1m",
              "--direct=%d" % direct, "--size=%d" % size]
    drop_caches()
    start = time.monotonic()
    sh("fio", "--name=r", "--rw=read", "--filename=" + src, *common,
       "--name=w", "--rw=write", "--filename=" + dst, "--end_fsync=1",
       "--fallocate=" + allocate, *common, preexec_fn=prefer)
    return time.monotonic() - start


def fio(where, src, size, reps):
    """Reads `src` and writes `size` bytes at once, to the end, with an fsync;
    less what fio needs for 1 MiB, which is its own start and end. The best of
    buffered, direct, and direct into a file that has its length already. Returns
    (seconds, which)."""
    best, dst = (None, None), os.path.join(where, "fio.dst")
    for direct, allocate in ((0, "none"), (1, "none"), (1, "truncate"),
                             (1, "native")):
        try:
            floor = min(fio_once(src, dst, MIB, direct, allocate)
                        for _ in range(3))
            t = statistics.median(fio_once(src, dst, size, direct, allocate)
                                  for _ in range(reps)) - floor
        except RuntimeError:
            continue  # no direct I/O here
        if best[0] is None or t < best[0]:
            best = (t, "%s, fallocate=%s" % (
                "direct" if direct else "buffered", allocate))
    if os.path.exists(dst):
        os.unlink(dst)
    return best


# --------------------------------------------------------------------- rows

class Row:
    """One line of the table: images of `build`, our command, the peers'."""

    name = bar = ""
    data = 0      # bytes that have to move, at full scale
    mutable = ()  # files a run changes: copied afresh each time
    keep = "top"  # the file whose content must stay

    def __init__(self, where, scale):
        self.home, self.scale = where, scale
        self.size, self.moved = 4 * GIB // scale, self.data // scale
        self.template = os.path.join(where, "%s-%d" % (type(self).__name__,
                                                       scale))
        self.work = os.path.join(where, "work")

    def path(self, name):
        return os.path.join(self.template, name)

    def base(self):
        """All rows have the same base, made once; a run never writes to it,
        only to its copy."""
        common = os.path.join(self.home, "base-%d" % self.size)
        if not os.path.exists(common):
            base_image(common + ".new", self.size)
            os.rename(common + ".new", common)
        os.link(common, self.path("base"))

    def prepare(self):
        """The images; those of an earlier run that kept them are taken."""
        done = self.path(".done")
        if not os.path.exists(done):
            shutil.rmtree(self.template, True)
            os.makedirs(self.template)
            self.build()
            open(done, "w").close()

    def fresh(self):
        """A working copy; what no run changes is linked, not copied."""
        shutil.rmtree(self.work, True)
        os.makedirs(self.work)
        for n in os.listdir(self.template):
            src, dst = self.path(n), os.path.join(self.work, n)
            if n in self.mutable:
                sh("cp", "--sparse=always", src, dst)
            elif not n.startswith("."):
                os.link(src, dst)

    def same_content(self, name):
        out = os.path.join(self.work, name)
        if not os.path.exists(out):
            raise RuntimeError("%s is gone" % out)
        sh("qemu-img", "compare", "-q", "-f", "qcow2", "-F",
           "qcow2", self.path(self.keep), out)
        sh("qemu-img", "check", "-q", "-f", "qcow2", out)

    def measure(self, reps, commands, result=None, limit=None):
        """The times, and the peak memory; what `result` names is compared
        after the first run."""
        times, peak = [], 0
        for i in range(reps):
            self.fresh()
            t, rss = timed(*commands, cwd=self.work, limit=limit)
            times.append(t)
            peak = max(peak, rss)
            if i == 0 and result:
                self.same_content(result)
        return times, peak

    def peers(self, reps):
        """Each of the peer's ways once, given up at three times the best so
        far; the two best go on to `reps`. Returns {way: median} and {way: why
        there is no time}."""
        times, failed, ways = {}, {}, {}
        for label, commands, result in self.theirs():
            ways[label] = commands
            limit = 3 * min(min(t) for t in times.values()) if times else None
            try:
                times[label] = self.measure(1, commands, result, limit)[0]
            except (RuntimeError, GivenUp) as e:
                failed[label] = str(e)[:400]
        for label in sorted(times, key=times.get)[:2]:
            times[label] += self.measure(reps - 1, ways[label])[0]
        return {k: statistics.median(v) for k, v in times.items()}, failed

    def run(self, reps, only_ours=False):
        self.prepare()
        ours, rss = self.measure(reps, [self.ours()], self.result_ours())
        r = {"row": self.name, "bar": self.bar, "bytes": self.moved,
             "qstill_s": statistics.median(ours), "qstill_all_s": ours,
             "rss": rss, "peers_s": {}}
        if not only_ours:
            r["peers_s"], r["failed"] = self.peers(reps)
            shutil.rmtree(self.work, True)
            r["fio_s"], r["fio"] = fio(self.home, self.path("base"),
                                       self.moved, reps)
        shutil.rmtree(self.work, True)
        return r

    def result_ours(self):
        return self.keep


def modes(argv):
    return [(m, [a.replace("MODE", m) for a in argv]) for m in MODES]
