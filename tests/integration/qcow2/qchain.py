# SPDX-License-Identifier: MIT
"""Random chains of images, made by qemu-img/qemu-io and by our own writer.

`Chain.make(seed, directory)` is reproducible: the same seed gives the same
images (but for what QEMU itself draws, such as times). The commands are kept
in `recipe`, so that a failure can be told without the tests.
"""

import os
import random

import qbuild
import qtools

KIB, MIB = 1024, 1 << 20
CLUSTERS = (9, 9, 10, 12, 12, 13, 14, 16, 16, 16, 17, 18, 21)


class Layer:
    def __init__(self, path, fmt, size):
        self.path, self.fmt, self.size = path, fmt, size
        self.maker = "qemu"
        self.notes = set()  # what a merge may have a word about


class Chain:
    """layers[0] is the base, layers[-1] the top; children hang elsewhere."""

    def __init__(self, seed, directory):
        self.seed, self.dir = seed, directory
        self.rng = random.Random("chain %d" % seed)
        self.layers, self.children, self.recipe = [], [], []
        self.patterns = []

    @classmethod
    def make(cls, seed, directory, layers=None):
        c = cls(seed, directory)
        rng = c.rng
        c._patterns()
        bits = rng.choice(CLUSTERS)
        most = 48 * (1 << bits) if bits >= 16 else 3 * MIB
        size = rng.randrange(1, min(most, 40 * MIB) // 512) * 512
        if rng.random() < 0.3:
            size = max(size >> bits, 1) << bits
        n = layers or rng.choice((1, 2, 2, 3, 3, 3, 4, 5))
        for i in range(n):
            if i and rng.random() < 0.4:
                size = c._other_size(size)
            c.layers.append(c._layer("layer%d" % i,
                                     c.layers[-1] if i else None, size, bits))
            if rng.random() < 0.3:
                bits = rng.choice(CLUSTERS)
        for k in range(rng.choice((0, 0, 0, 1, 1, 2)) if n > 1 else 0):
            parent = rng.choice(c.layers[:-1])
            child = c._layer("child%d" % k, parent,
                             c._other_size(parent.size)
                             if rng.random() < 0.3 else parent.size, bits)
            child.parent = parent
            c.children.append(child)
        return c

    @property
    def top(self):
        return self.layers[-1]

    def files(self):
        return self.layers + self.children

    # -- parts ----------------------------------------------------------

    def _patterns(self):
        """Source files for writes: repeating at odd lengths, so that bytes at
        a wrong place or of a wrong layer do not look right."""
        for i, n in enumerate((65521, 4093, 509)):
            path = os.path.join(self.dir, "pattern%d.bin" % i)
            with open(path, "wb") as f:
                f.write(random.Random(self.seed * 31 + i).randbytes(n))
            self.patterns.append(path)

    def _other_size(self, size):
        rng = self.rng
        new = rng.choice((size // 2, size - 512, size + 512, size * 2,
                          size + rng.randrange(1, 300) * 512,
                          size - rng.randrange(1, 300) * 512))
        return max(512, min(new // 512 * 512, 60 * MIB))

    def _cmd(self, *argv):
        self.recipe.append(" ".join("'%s'" % a if " " in a else a
                                    for a in argv))
        return qtools.run(*argv)

    def _directory(self):
        rng, d = self.rng, self.dir
        roll = rng.random()
        if roll < 0.1:
            d = os.path.join(d, "sub dir")
        elif roll < 0.15:
            d = os.path.join(d, "/".join("d" * 120 + str(i)
                                         for i in range(4)))
        elif roll < 0.2:
            d = os.path.join(d, "gr\u00fcn")
        os.makedirs(d, exist_ok=True)
        return d

    def _backing_name(self, path, backing):
        """How the overlay names it: relative in several ways, or absolute."""
        rel = os.path.relpath(backing.path, os.path.dirname(path))
        if ":" in rel.split("/")[0]:
            return "./" + rel
        return self.rng.choice((rel, rel, "./" + rel, ".//" + rel,
                                backing.path))

    def _layer(self, name, backing, size, bits):
        rng = self.rng
        if backing is None and rng.random() < 0.25:
            return self._raw(name, size)
        colon = rng.random() < 0.03
        path = os.path.join(self._directory(),
                            name + (":x" if colon else "") + ".qcow2")
        layer = Layer(path, "qcow2", size)
        layer.backing = backing
        if rng.random() < 0.35:
            self._own(layer, backing, bits)
        else:
            self._qemu(layer, backing, bits)
        self._leftovers(layer)
        self._attributes(path)
        return layer

    def _leftovers(self, layer):
        """What does no harm: refcounts of a snapshot that broke off, bytes
        behind the end. By its own coins, so that seeds keep their chains."""
        rng = random.Random("leftovers %d %s" % (self.seed, layer.path[-13:]))
        if "snapshots" in layer.notes or "shared" in layer.notes:
            return
        if rng.random() < 0.15 and qtools.forget_snapshots(layer.path):
            self.recipe.append("# a snapshot broke off: %s" % layer.path)
        if rng.random() < 0.15 and "bitmaps" not in layer.notes:
            cut = min(rng.choice((512, 2048, 70 * KIB)), layer.size // 2)
            size = (layer.size - cut) // 512 * 512
            if size and self._cmd("qemu-img", "resize", "-q", "--shrink", "-f",
                                  "qcow2", layer.path, str(size)).rc == 0:
                layer.size = size
        if rng.random() < 0.2:
            self._cmd("fallocate", "--dig-holes", layer.path)

    def _attributes(self, path):
        rng = self.rng
        os.chmod(path, rng.choice((0o600, 0o640, 0o660)))
        if os.geteuid() == 0 and rng.random() < 0.3:
            os.chown(path, rng.choice((0, 65534)), rng.choice((0, 65534)))
        if rng.random() < 0.3:
            try:
                os.setxattr(path, "user.origin", path[-20:].encode())
            except OSError:
                pass

    def _raw(self, name, size):
        rng = self.rng
        path = os.path.join(self._directory(), name + ".img")
        with open(path, "wb") as f:
            f.truncate(size)
            for _ in range(rng.randrange(6)):
                at = rng.randrange(size)
                f.seek(at)
                f.write(rng.randbytes(min(rng.randrange(1, 200000),
                                          size - at)))
        self.recipe.append("# raw file %s, %d bytes" % (path, size))
        self._attributes(path)
        layer = Layer(path, "raw", size)
        layer.backing = None
        return layer

    # -- by qemu --------------------------------------------------------

    def _options(self, layer, backing, bits):
        rng = self.rng
        opts = ["cluster_size=%d" % (1 << bits)]
        layer.v3 = rng.random() < 0.8
        if not layer.v3:
            opts.append("compat=0.10")
        else:
            opts.append("compat=1.1")
            width = rng.choice((1, 2, 4, 8, 16, 16, 16, 16, 32, 64))
            opts.append("refcount_bits=%d" % width)
            layer.narrow = width < 8
            if bits >= 14 and rng.random() < 0.3:
                opts.append("extended_l2=on")
            if rng.random() < 0.3:
                opts.append("compression_type=zstd")
            if rng.random() < 0.1:
                opts.append("lazy_refcounts=on")
        ext = "extended_l2=on" in opts
        if rng.random() < 0.15 and (backing is None or ext):
            kind = rng.choice(("metadata", "falloc", "full"))
            opts.append("preallocation=%s" % kind)
            layer.notes.add("preallocated")
        return ",".join(opts)

    def _qemu(self, layer, backing, bits):
        rng = self.rng
        if backing and len(backing.path) > 300:  # the name needs room
            bits = max(bits, 12)
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o",
                self._options(layer, backing, bits)]
        if backing:
            argv += ["-b", self._backing_name(layer.path, backing),
                     "-F", backing.fmt]
        r = self._cmd(*argv, layer.path, str(layer.size))
        if r.rc:
            raise RuntimeError(str(r))
        for i in range(rng.choice((0, 1, 1, 1, 2, 3))):
            if layer.v3 and rng.random() < 0.15:
                self._bitmap(layer, bits, i)
            self._io(layer, 1 << bits)
            if rng.random() < 0.1 and not getattr(layer, "narrow", 0):
                r = self._cmd("qemu-img", "snapshot", "-c", "snap%d" % i,
                              layer.path)
                if r.rc == 0:
                    layer.notes.add("snapshots")

    def _bitmap(self, layer, bits, i):
        gran = self.rng.choice((512, 4096, 65536, 1 << 20))
        argv = ["qemu-img", "bitmap", "--add", "-g", str(gran)]
        if self.rng.random() < 0.2:
            argv.append("--disable")
        name = self.rng.choice(("backup", "backup", "b%d" % i))
        if self._cmd(*argv, layer.path, name).rc == 0:
            layer.notes.add("bitmaps")

    def _span(self, size, cs):
        """An offset and a length, often on cluster edges."""
        rng = self.rng
        at = rng.randrange(size)
        n = rng.choice((rng.randrange(1, 5) * cs, rng.randrange(1, 2 * cs),
                        rng.randrange(1, max(size // 3, 2)), 512))
        if rng.random() < 0.5:
            at = at // cs * cs
        if rng.random() < 0.1:
            at = max(0, size - n)
        return at, max(1, min(n, size - at, 3 * MIB))

    def _io(self, layer, cs):
        rng, cmds = self.rng, []
        for _ in range(rng.randrange(1, 9)):
            at, n = self._span(layer.size, cs)
            src = rng.choice(self.patterns)
            roll = rng.random()
            if roll < 0.5:
                cmds.append("write -q -s %s %d %d" % (src, at, n))
            elif roll < 0.6:
                cmds.append("write -q -P 0 %d %d" % (at, n))
            elif roll < 0.72:
                cmds.append("write -q -z %d %d" % (at, n))
            elif roll < 0.78:
                cmds.append("write -q -z -u %d %d" % (at, n))
            elif roll < 0.85:
                cmds.append("discard -q %d %d" % (at, n))
            else:  # fails where something is allocated: no matter
                at = at // cs * cs
                n = min((n + cs - 1) // cs * cs, layer.size - at, 40 * cs)
                cmds.append("write -q -c -P %d %d %d" %
                            (rng.randrange(256), at, n))
        argv = ["qemu-io", "-f", "qcow2", "-d", "unmap"]
        for c in cmds:
            argv += ["-c", c]
        self._cmd(*argv, layer.path)

    # -- by our own writer ----------------------------------------------

    def _own(self, layer, backing, bits):
        rng = self.rng
        layer.maker = "own"
        name = self._backing_name(layer.path, backing) if backing else None
        for attempt in range(8):
            ext = bits >= 14 and rng.random() < 0.35
            layer.v3 = ext or rng.random() < 0.75
            order = rng.choice((4, 4, 4, 3, 5, 6, 0, 1, 2))
            long = bits > 9
            b = qbuild.Builder(
                rng, layer.size, bits, 3 if layer.v3 else 2,
                order if layer.v3 else 4, ext,
                rng.choice(("zlib", "zstd")) if layer.v3 else "zlib",
                name, backing.fmt if backing else None,
                header_length=rng.choice((104, 112, 112, 120)),
                feature_names=rng.random() < 0.5,
                extensions=[(0x514B4E4F, rng.randbytes(rng.randrange(40)))]
                if long and rng.random() < 0.3 else [],
                compat=rng.choice((0, 0, 1, 1 << 33)),
                autoclear=rng.choice((0, 0, 0, 1 << 17)),
                gaps=rng.choice((0, 0, 0.2)),
                l1_extra=rng.choice((0, 0, 2)))
            if b.header_length == 104 and b.compression == "zstd":
                b.header_length = 112
            notes = self._fill(b, layer, order)
            try:
                b.write(layer.path)
            except (OverflowError, ValueError):
                continue
            layer.notes |= notes
            self.recipe.append("# own writer: %s, cluster %d, %s" % (
                layer.path, 1 << bits, sorted(notes)))
            return
        layer.maker = "qemu"
        self._qemu(layer, backing, max(bits, 12))

    def _cluster(self, cs):
        rng = self.rng
        k = rng.choice((0, rng.randrange(cs), cs // 2, cs))
        return rng.randbytes(k) + bytes([rng.randrange(256)]) * (cs - k)

    def _fill(self, b, layer, order):
        rng, notes = self.rng, set()
        sharing = rng.random() < 0.06  # legal, and nobody makes it
        n = (layer.size + b.cs - 1) // b.cs
        crowded = rng.random() < 0.2
        for _ in range(min(rng.randrange(0, 2 * n + 1), 60)):
            i, roll = rng.randrange(n), rng.random()
            if crowded:
                i %= max(1, n // 4)
            if roll < 0.4:
                b.data(i, self._cluster(b.cs))
            elif roll < 0.5 and layer.v3:
                b.zero(i)
            elif roll < 0.58 and layer.v3:
                b.zero_alloc(i)
            elif roll < 0.75:
                b.compressed(i, self._cluster(b.cs))
            elif roll < 0.9 and b.extended:
                alloc = rng.getrandbits(32)
                zero = rng.getrandbits(32) & ~alloc & rng.getrandbits(32)
                if rng.random() < 0.2:
                    b.sub(i, 0, zero, None)
                else:
                    b.sub(i, alloc, zero, self._cluster(b.cs))
            elif roll < 0.94 and i not in b.guest and b.guest:
                if sharing and b.share(
                        i, rng.choice(sorted(b.guest))):
                    notes.add("shared")
            elif roll > 0.985 and order >= 3:
                b.snapshot("own %d" % len(b.frozen))
                notes.add("snapshots")
        if layer.v3 and rng.random() < 0.15:
            gran = rng.choice((9, 12, 16))
            bits = (layer.size + (1 << gran) - 1) >> gran
            share = rng.choice((0, 0.1, 0.5, 1.1))
            b.bitmap("backup", gran, {k for k in range(bits)
                                      if rng.random() < share},
                     rng.choice((2, 0, 1)))
            notes.add("bitmaps")
        return notes
