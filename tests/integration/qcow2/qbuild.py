# SPDX-License-Identifier: MIT
"""A writer of qcow2 for what qemu-img cannot make.

Tables in any order and with gaps, clusters shared by two guest addresses,
compressed clusters packed at byte offsets and running past the end of the
file, leftover COPIED bits in inactive tables, long headers, unknown
extensions, autoclear and compatible bits, any subcluster bitmap, bitmaps of
every kind, v2 with an over-long L1. Every image it makes is *valid*; the
hostile set (hostile.py) damages them afterwards, by the addresses in
`Builder.where`.

    b = Builder(random.Random(7), size=1 << 20, cluster_bits=16)
    b.data(3, bytes)         b.zero(4)          b.zero_alloc(5)
    b.compressed(6, bytes)   b.share(8, 3)      b.sub(9, alloc, zero, bytes)
    b.snapshot("s1")         b.bitmap("bm", 16, {0, 7})
    b.write("x.qcow2")
"""

import struct
import zlib

import qimage

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def deflate(data, window=12):
    c = zlib.compressobj(6, zlib.DEFLATED, -window, 9)
    return c.compress(data) + c.flush()


def _zstd_frame(blocks):
    """A frame of raw and run-length blocks: no entropy coder needed."""
    size = sum(n for _, n in blocks)
    out = ZSTD_MAGIC + b"\xa0" + struct.pack("<I", size)
    for i, (payload, n) in enumerate(blocks):
        kind = 1 if len(payload) == 1 and n > 1 else 0
        head = (i == len(blocks) - 1) | kind << 1 | n << 3
        out += struct.pack("<I", head)[:3] + payload
    return out


def zstd(data, frames=1):
    """zstd of `data` as runs of one byte and raw pieces, in `frames` frames
    where there are that many pieces."""
    blocks, i, n = [], 0, len(data)
    while i < n:
        j = i + 1
        while j < n and data[j] == data[i] and j - i < 100000:
            j += 1
        if j - i >= 64 or j == n:
            raw = data[i:i + 1] if j - i > 1 else data[i:j]
            blocks.append((raw, j - i))
        else:
            end = min(i + 2048, n)
            blocks.append((data[i:end], end - i))
            j = end
        i = j
    cut = max(1, len(blocks) // frames)
    parts = [blocks[k:k + cut] for k in range(0, len(blocks), cut)]
    return b"".join(_zstd_frame(p) for p in parts)


class Builder:
    def __init__(self, rng, size, cluster_bits=16, version=3,
                 refcount_order=4, extended=False, compression="zlib",
                 backing=None, backing_format=None, header_length=112,
                 feature_names=True, extensions=(), compat=0, autoclear=0,
                 gaps=0.0, l1_extra=0):
        self.rng, self.size = rng, size
        self.cluster_bits, self.cs = cluster_bits, 1 << cluster_bits
        self.version, self.refcount_order = version, refcount_order
        self.extended, self.compression = extended, compression
        self.backing, self.backing_format = backing, backing_format
        self.header_length = header_length if version == 3 else 72
        self.feature_names, self.extensions = feature_names, extensions
        self.compat, self.autoclear, self.gaps = compat, autoclear, gaps
        self.l1_extra = l1_extra
        self.l2_entry = 16 if extended else 8
        self.l2_entries = self.cs // self.l2_entry
        self.refmax = (1 << (1 << refcount_order)) - 1
        self.file = bytearray(self.cs)
        self.count = {0: 1}
        self.guest = {}      # guest cluster -> (first word, subclusters)
        self.frozen = []     # (name, guest map at that time, size)
        self.bits = []
        self.pack = None     # where the next compressed cluster may go
        self.where = {}      # addresses of the parts, for those who damage

    # -- host clusters --------------------------------------------------

    def alloc(self, clusters=1):
        while self.rng.random() < self.gaps:
            self.file += bytes(self.cs)
        at = (len(self.file) + self.cs - 1) // self.cs * self.cs
        self.file += bytes(at + clusters * self.cs - len(self.file))
        self.pack = None
        return at

    def _put(self, at, data):
        if len(self.file) < at + len(data):
            self.file += bytes(at + len(data) - len(self.file))
        self.file[at:at + len(data)] = data

    # -- guest clusters -------------------------------------------------

    def data(self, index, data):
        at = self.alloc()
        self._put(at, data.ljust(self.cs, b"\0"))
        self.guest[index] = (at, 0xFFFFFFFF if self.extended else 0)

    def zero(self, index):
        self.guest[index] = (0, 0xFFFFFFFF << 32) if self.extended else (1, 0)

    def zero_alloc(self, index):
        """A host cluster of old bytes under a zero flag."""
        at = self.alloc()
        self._put(at, b"STALE" * (self.cs // 5))
        self.guest[index] = ((at, 0xFFFFFFFF << 32) if self.extended
                             else (at | 1, 0))

    def sub(self, index, alloc, zero, data):
        """Subclusters: bit masks of the allocated and of the zero ones."""
        at = 0
        if data is not None:
            at = self.alloc()
            self._put(at, data.ljust(self.cs, b"\0"))
        self.guest[index] = (at, alloc & ~zero | zero << 32)

    def share(self, index, other):
        """Two guest clusters on one host cluster, when it can count to 2."""
        word, sub = self.guest[other]
        if self.refmax < 2 or word & qimage.COMPRESSED:
            return False
        self.guest[index] = (word, sub)
        return True

    def compressed(self, index, data):
        """False when it does not get smaller; packed right behind the one
        before where that is allowed."""
        data = data.ljust(self.cs, b"\0")
        if self.compression == "zstd":
            out = zstd(data, self.rng.choice((1, 1, 3)))
        else:
            out = deflate(data)
        if len(out) >= self.cs:
            return False
        at = self.pack
        if at is None or self.refmax < 4 or self.rng.random() < 0.2:
            at = self.alloc() + self.rng.choice((0, 0, 1, 77, self.cs // 2))
        sectors = (at + len(out) - 1) // 512 - at // 512
        x = 62 - (self.cluster_bits - 8)
        if self.refmax < 2 and at % self.cs + len(out) > self.cs:
            at -= at % self.cs
            sectors = (len(out) - 1) // 512
        self._put(at, out)
        # The descriptor's last sector may reach past what is allocated.
        self.pack = at + len(out)
        self.guest[index] = (qimage.COMPRESSED | sectors << x | at, 0)
        return True

    def drop(self, index):
        self.guest.pop(index, None)

    def snapshot(self, name):
        self.frozen.append((name, dict(self.guest), self.size))
        self.pack = None

    def bitmap(self, name, granularity_bits, dirty, flags=2):
        self.bits.append((name, granularity_bits, set(dirty), flags))

    # -- writing --------------------------------------------------------

    def _l2_data(self, guest, slot):
        words = []
        for i in range(self.l2_entries):
            words += guest.get(slot * self.l2_entries + i,
                               (0, 0))[:2 if self.extended else 1]
        return words

    def _tables(self, guest, cache, size):
        """One L1 with its L2 tables; equal L2 tables are shared."""
        span = self.cs * self.l2_entries
        slots = (size + span - 1) // span + self.l1_extra
        l1 = [0] * slots
        for slot in sorted({i // self.l2_entries for i in guest},
                           key=lambda _: self.rng.random()):
            words = tuple(self._l2_data(guest, slot))
            if (slot, words) not in cache or self.refmax < 2:
                at = self.alloc()
                cache[slot, words] = at
                self.tables.append((at, list(words)))
            l1[slot] = cache[slot, words]
        at = self.alloc((slots * 8 + self.cs - 1) // self.cs or 1)
        return at, l1

    def _count(self):
        """References of every host cluster, from the finished tables."""
        words = dict(self.tables)
        count = {}

        def take(at, length=1):
            for c in range(at // self.cs, (at + length - 1) // self.cs + 1):
                count[c] = count.get(c, 0) + 1

        x = 62 - (self.cluster_bits - 8)
        for at, l1 in self.l1s:
            take(at, max(len(l1) * 8, 1))
            for l2 in filter(None, l1):
                take(l2)
                step = 2 if self.extended else 1
                for w in words[l2][::step]:
                    if w & qimage.COMPRESSED:
                        start = w & ((1 << x) - 1)
                        n = (w & (qimage.COMPRESSED - 1)) >> x
                        take(start, (n + 1) * 512 - start % 512)
                    elif w & qimage.OFFSET:
                        take(w & qimage.OFFSET)
        for at, length in self.fixed:
            take(at, length)
        return count

    def _snapshot_table(self):
        out = b""
        for i, (name, _, size) in enumerate(self.frozen):
            at, l1 = self.l1s[i + 1]
            sid, name = str(i + 1).encode(), name.encode()
            entry = struct.pack(">QIHHIIQII", at, len(l1), len(sid),
                                len(name), 1700000000 + i, 5, 0, 0, 24)
            entry += struct.pack(">QQQ", 0, size, 0) + sid + name
            out += entry.ljust((len(entry) + 7) // 8 * 8, b"\0")
        return out

    def _bitmaps(self):
        out = b""
        for name, gran, dirty, flags in self.bits:
            nbits = (self.size + (1 << gran) - 1) >> gran
            per = self.cs * 8
            chunks = (nbits + per - 1) // per
            table = []
            for k in range(chunks):
                mine = {b - k * per for b in dirty if b // per == k}
                left = min(per, nbits - k * per)
                if not mine:
                    table.append(0)
                elif len(mine) == left:
                    table.append(1)
                else:
                    raw = bytearray(self.cs)
                    for b in mine:
                        raw[b // 8] |= 1 << b % 8
                    at = self.alloc()
                    self._put(at, bytes(raw))
                    self.fixed.append((at, self.cs))
                    table.append(at)
            at = self.alloc((chunks * 8 + self.cs - 1) // self.cs)
            self._put(at, struct.pack(">%dQ" % chunks, *table))
            self.fixed.append((at, chunks * 8))
            name = name.encode()
            entry = struct.pack(">QIIBBHI", at, chunks, flags, 1, gran,
                                len(name), 0) + name
            out += entry.ljust((len(entry) + 7) // 8 * 8, b"\0")
        return out

    def write(self, path):
        self.tables, self.l1s, self.fixed, cache = [], [], [(0, 1)], {}
        states = [(self.guest, self.size)]
        states += [(g, s) for _, g, s in self.frozen]
        for guest, size in states:
            self.l1s.append(self._tables(guest, cache, size))
        snaps, bitmaps = self._snapshot_table(), self._bitmaps()
        if snaps:
            at = self.alloc((len(snaps) + self.cs - 1) // self.cs)
            self._put(at, snaps)
            self.fixed.append((at, len(snaps)))
            self.where["snapshots"] = at
        if bitmaps:
            at = self.alloc((len(bitmaps) + self.cs - 1) // self.cs)
            self._put(at, bitmaps)
            self.fixed.append((at, len(bitmaps)))
            self.where["bitmaps"] = at
        self._refcounts()
        self._emit_tables()
        self._header(len(snaps), len(bitmaps))
        with open(path, "wb") as f:
            f.write(self.file)
        return path

    def _refcounts(self):
        """Blocks and their table, counting themselves."""
        width = 1 << self.refcount_order
        per = self.cs * 8 // width
        blocks, table, size = {}, None, 0
        while True:  # what is allocated here may need a block of its own
            count = self._count()
            need = {c // per for c in count} - set(blocks)
            if not need:
                span = max(blocks) * 8 + 8
                if span <= size:
                    break
                size = (span + self.cs - 1) // self.cs * self.cs
                size += self.rng.choice((0, 0, self.cs))
                if table is not None:
                    self.fixed.remove(table)
                table = (self.alloc(size // self.cs), size)
                self.fixed.append(table)
                continue
            for n in sorted(need, key=lambda _: self.rng.random()):
                blocks[n] = self.alloc()
                self.fixed.append((blocks[n], self.cs))
        self.where["reftable"], self.where["refblocks"] = table, blocks
        self.count = count
        if max(count.values()) > self.refmax:
            raise OverflowError("refcount width is too small for this image")
        for n, at in blocks.items():
            word = 0
            for c, v in count.items():
                if c // per == n:
                    # LSB first below a byte, big endian above
                    k = c % per
                    if width >= 8:
                        raw = v.to_bytes(width // 8, "big")
                        self._put(at + k * width // 8, raw)
                    else:
                        word |= v << k * width
            if width < 8:
                self._put(at, word.to_bytes(self.cs, "little"))
            struct.pack_into(">Q", self.file, table[0] + n * 8, at)

    def _emit_tables(self):
        active = set(self.l1s[0][1])
        step = 2 if self.extended else 1
        self.where["l2"] = [at for at in self.l1s[0][1] if at]
        for at, words in self.tables:
            for i in range(0, len(words), step):
                w = words[i]
                if w & qimage.COMPRESSED or not w & qimage.OFFSET:
                    continue
                one = self.count[(w & qimage.OFFSET) // self.cs] == 1
                stale = at not in active and self.rng.random() < 0.3
                if one or stale:  # inactive tables lie, and may
                    words[i] |= qimage.COPIED
            self._put(at, struct.pack(">%dQ" % len(words), *words))
        for n, (at, l1) in enumerate(self.l1s):
            words = [w | qimage.COPIED if w and
                     (self.count[w // self.cs] == 1 or
                      n and self.rng.random() < 0.3) else w for w in l1]
            self._put(at, struct.pack(">%dQ" % len(words), *words))
        self.where["l1"] = self.l1s[0]

    def _header(self, snaps, bitmaps):
        incompat = (qimage.INCOMPAT_EXTL2 if self.extended else 0)
        incompat |= (qimage.INCOMPAT_COMPRESSION
                     if self.compression == "zstd" else 0)
        autoclear = self.autoclear | (1 if bitmaps else 0)
        ext = []
        if self.backing_format and self.backing:
            ext.append((qimage.EXT_BACKING_FORMAT,
                        self.backing_format.encode()))
        if bitmaps:
            ext.append((qimage.EXT_BITMAPS, struct.pack(
                ">IIQQ", len(self.bits), 0, bitmaps, self.where["bitmaps"])))
        if self.feature_names and self.cs > 4096:
            name = b"dirty bit".ljust(46, b"\0")
            ext.append((qimage.EXT_FEATURE_NAMES, b"\0\0" + name))
        ext += list(self.extensions)
        self.rng.shuffle(ext)
        tail = b""
        for kind, data in ext:
            tail += struct.pack(">II", kind, len(data))
            tail += data.ljust((len(data) + 7) // 8 * 8, b"\0")
        tail += struct.pack(">II", 0, 0)
        name = (self.backing or "").encode("utf-8", "surrogateescape")
        at = self.header_length + len(tail)
        room = self.cs - at - len(name)
        if room < 0:
            raise ValueError("the header does not fit in a cluster")
        at += self.rng.randrange(room + 1) if self.gaps else 0
        l1_at, l1 = self.l1s[0]
        table, size = self.where["reftable"]
        head = struct.pack(
            ">4sIQIIQIIQQIIQ", qimage.MAGIC, self.version,
            at if name else 0, len(name), self.cluster_bits, self.size, 0,
            len(l1), l1_at, table, size // self.cs, len(self.frozen),
            self.where["snapshots"] if snaps else 0)
        if self.version == 3:
            head += struct.pack(">QQQII", incompat, self.compat, autoclear,
                                self.refcount_order, self.header_length)
            head += bytes([self.compression == "zstd"])
            head = head.ljust(self.header_length, b"\0")[:self.header_length]
        self._put(0, head + tail)
        if name:
            self._put(at, name)
        self.where["extensions"] = self.header_length
        self.where["backing"] = at
