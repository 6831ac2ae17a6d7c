# SPDX-License-Identifier: MIT
"""One merge or flatten of a chain, judged: `Merge` remembers every file, runs
the command, and lists what is wrong afterwards."""

import os
import random
import shutil

import qcompare
import qimage
import qtools

# Exit code of a refusal with a reason, before any change.
REFUSED = 6


def tree(directory):
    out = set()
    for d, _, names in os.walk(directory):
        out |= {os.path.join(d, n) for n in names}
    return out


def parents(files):
    """{child path: parent path}, from the headers."""
    out = {}
    for f in files:
        if f.fmt == "qcow2":
            out[f.path] = qimage.Image(f.path).backing_path()
    return out


def each_seed(test, seed, count, one):
    """one(seed, directory) gives (chain, complaints); a failure prints the
    commands that made the images, and keeps them."""
    print("%s: %d chains, seeds %d..%d" % (test.id(), count, seed,
                                           seed + count - 1))
    for s in range(seed, seed + count):
        d = qtools.scratch()
        with test.subTest(seed=s):
            try:
                chain, bad = one(s, d)
            except qtools.Unreadable as e:
                print("seed %d not used: %s" % (s, e))
                chain, bad = None, []
            if bad:
                test.fail("seed %d, kept in %s\n%s\n%s" % (
                    s, d, "\n".join(chain.recipe), "\n".join(bad)))
            shutil.rmtree(d)


class Merge:
    """files: objects with path and fmt; chain: the paths from base to top."""

    def __init__(self, directory, files, chain, drop, children=()):
        self.dir, self.files = directory, list(files)
        self.chain, self.drop = list(chain), list(drop)
        self.children = list(children)
        self.listing = tree(directory)
        self.state = {f.path: qtools.FileState(f.path, f.fmt)
                      for f in self.files}
        self.parent = parents(self.files)

    # -- running --------------------------------------------------------

    def argv(self, direction, *more):
        out = [self.chain[-1]]
        for d in self.drop:
            out += ["--drop", d]
        for c in self.children:
            out += ["--child", c]
        return out + ["--direction", direction] + list(more)

    def run(self, direction, *more, **kw):
        self.result = qtools.image("merge", *self.argv(direction, *more), **kw)
        return self.result

    # -- judging --------------------------------------------------------

    def untouched(self):
        """Complaints when anything at all changed."""
        bad = ["%s appeared or went" % p
               for p in self.listing ^ tree(self.dir)]
        for path, s in self.state.items():
            if os.path.exists(path) and qtools.file_hash(path) != s.bytes:
                bad.append("%s was changed" % path)
        return bad

    def survivors(self):
        return [s for p, s in self.state.items() if p not in self.drop]

    def dropped_below(self, path):
        """The dropped layers right below, nearest first."""
        out, p = [], self.parent.get(path)
        while p in self.drop:
            out.append(self.state[p])
            p = self.parent.get(p)
        return out

    def expected_parent(self, path):
        p = self.parent.get(path)
        while p in self.drop:
            p = self.parent.get(p)
        return p

    def merged(self):
        """Complaints about the result of a merge that said it succeeded."""
        bad, lost = [], self.result.json().get("bitmapsDropped", 0)
        for p in sorted(self.listing ^ tree(self.dir)):
            if p not in self.drop:
                bad.append("%s appeared or went" % p)
        for p in self.drop:
            if os.path.lexists(p):
                bad.append("%s was to be dropped and is there" % p)
        for s in self.survivors():
            below = self.dropped_below(s.path)
            bad += qcompare.survived(s, below or None, lost)
            if s.fmt == "qcow2" and os.path.exists(s.path):
                bad += self._backing(s)
        return bad

    def _backing(self, s):
        img = qimage.Image(s.path)
        want, got = self.expected_parent(s.path), img.backing_path()
        if got != want:
            return ["%s: backing file is %s, not %s" % (s.path, got, want)]
        if want and img.backing_format != self.state[want].fmt:
            return ["%s: backing format is %s" % (s.path, img.backing_format)]
        return []

    def still_writable(self, seed):
        """QEMU writes into the top; then all is well, and the others keep
        their content: refcounts and COPIED bits are what they should be."""
        rng, top = random.Random(seed), self.state[self.chain[-1]]
        argv = ["qemu-io", "-f", top.fmt]
        for _ in range(6):
            at = rng.randrange(top.size)
            n = min(rng.randrange(1, 200000), top.size - at)
            argv += ["-c", rng.choice((
                "write -q -P %d %d %d" % (rng.randrange(256), at, n),
                "write -q -z %d %d" % (at, n), "discard -q %d %d" % (at, n)))]
        r = qtools.run(*argv, top.path)
        bad = [str(r)] if r.rc or "rror" in r.out + r.err else []
        if top.fmt == "qcow2":
            check = qtools.qemu_check(top.path)
            if check is None or check[0] or check[2]:
                bad.append("%s after QEMU wrote: check %r" % (top.path, check))
        for s in self.survivors():
            if s is not top and qtools.guest_hash(s.path, s.fmt) != s.view:
                bad.append("%s changed when QEMU wrote the top" % s.path)
        return bad

    def behind(self):
        """What a guest would find behind the end of the top, were the disk
        made larger; None where it cannot be. Asked of a copy beside it."""
        top = self.state[self.chain[-1]]
        copy = top.path + ".larger"
        shutil.copy(top.path, copy)
        try:
            r = qtools.run("qemu-img", "resize", "-q", "-f", top.fmt, copy,
                           str(top.size + 200 * 1024))
            return None if r.rc else qtools.guest_bytes(
                copy, top.fmt)[top.size:]
        finally:
            os.unlink(copy)

    def grown(self, before):
        """Zeros, or what the top itself had there."""
        now = self.behind()
        if before is None or now is None:
            return []
        bad = [i for i, b in enumerate(now) if b and b != before[i]]
        return ["%s, made larger, shows old bytes at %d" % (
            self.chain[-1], bad[0])] if bad else []

    def account(self, direction):
        """What --json says of a merge done."""
        try:
            j = self.result.json()
        except ValueError:
            return ["no JSON: %s" % self.result]
        bad = []
        if j.get("direction") not in ("up", "down", "new", "none"):
            bad.append("direction %r" % j.get("direction"))
        for k in ("bytesMoved", "bytesFreed", "ms"):
            if not isinstance(j.get(k), (int, float)) or j[k] < 0:
                bad.append("%s is %r" % (k, j.get(k)))
        return bad
