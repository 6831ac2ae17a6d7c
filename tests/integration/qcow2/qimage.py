# SPDX-License-Identifier: MIT
"""A reader of qcow2 of the tests' own: no code shared with the engine.

It reads the header, tables, internal snapshots and bitmaps of one image and
recounts every reference (`problems`), stricter than `qemu-img check`: also
reserved bits, COPIED bits and the range of every offset. It refuses to guess:
what it cannot parse raises ValueError. It decompresses nothing; guest content
is read through qemu-img, which is the oracle.
"""

import os
import struct

MAGIC = b"QFI\xfb"
COPIED = 1 << 63
COMPRESSED = 1 << 62
OFFSET = 0x00FFFFFFFFFFFE00
L1_RESERVED = 0x7F000000000001FF
L2_RESERVED = 0x3F000000000001FE
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441
INCOMPAT_DIRTY = 1
INCOMPAT_CORRUPT = 2
INCOMPAT_DATA_FILE = 4
INCOMPAT_COMPRESSION = 8
INCOMPAT_EXTL2 = 16
AUTOCLEAR_BITMAPS = 1


class Snapshot:
    def __init__(self, raw, at):
        (self.l1_offset, self.l1_size, id_len, name_len, self.sec, self.nsec,
         self.clock, self.vmstate, extra_len) = struct.unpack_from(
             ">QIHHIIQII", raw, at)
        extra = raw[at + 40:at + 40 + extra_len]
        self.extra = extra
        self.disk_size = None
        if extra_len >= 16:
            self.disk_size = struct.unpack_from(">Q", extra, 8)[0]
        p = at + 40 + extra_len
        self.id = raw[p:p + id_len]
        self.name = raw[p + id_len:p + id_len + name_len]
        self.end = (p + id_len + name_len + 7) & ~7


class Bitmap:
    def __init__(self, raw, at):
        (self.table_offset, self.table_entries, self.flags, self.type,
         self.granularity_bits, name_len, extra_len) = struct.unpack_from(
             ">QIIBBHI", raw, at)
        p = at + 24 + extra_len
        self.name = raw[p:p + name_len].decode("utf-8", "surrogateescape")
        self.end = (p + name_len + 7) & ~7

    @property
    def in_use(self):
        return bool(self.flags & 1)


class Image:
    """One qcow2 file, read whole: header fields are attributes."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as f:
            self.raw = f.read()
        self._header()
        self._extensions()

    # -- header ---------------------------------------------------------

    def _header(self):
        raw = self.raw
        if raw[:4] != MAGIC or len(raw) < 72:
            raise ValueError("%s: no qcow2 header" % self.path)
        (self.version, self.backing_offset, self.backing_size,
         self.cluster_bits, self.size, self.crypt, self.l1_size,
         self.l1_offset, self.reftable_offset, self.reftable_clusters,
         self.nb_snapshots, self.snapshots_offset) = struct.unpack_from(
             ">IQIIQIIQQIIQ", raw, 4)
        self.incompat = self.compat = self.autoclear = 0
        self.refcount_order, self.header_length = 4, 72
        self.compression_type = 0
        if self.version == 3:
            (self.incompat, self.compat, self.autoclear, self.refcount_order,
             self.header_length) = struct.unpack_from(">QQQII", raw, 72)
            if self.header_length > 104:
                self.compression_type = raw[104]
        elif self.version != 2:
            raise ValueError("version %d" % self.version)
        self.cs = 1 << self.cluster_bits
        self.extended = bool(self.incompat & INCOMPAT_EXTL2)
        self.l2_entry = 16 if self.extended else 8
        self.l2_entries = self.cs // self.l2_entry

    def _extensions(self):
        self.extensions = []
        at, limit = self.header_length, self.backing_offset or self.cs
        while at + 8 <= limit:
            kind, length = struct.unpack_from(">II", self.raw, at)
            if kind == 0:
                break
            if length > limit - at - 8:
                raise ValueError("header extension too large")
            self.extensions.append((kind, self.raw[at + 8:at + 8 + length]))
            at += 8 + ((length + 7) & ~7)

    def extension(self, kind):
        for k, data in self.extensions:
            if k == kind:
                return data
        return None

    @property
    def backing(self):
        if not self.backing_offset:
            return None
        return self.raw[self.backing_offset:
                        self.backing_offset + self.backing_size].decode(
                            "utf-8", "surrogateescape")

    @property
    def backing_format(self):
        data = self.extension(EXT_BACKING_FORMAT)
        return data.decode() if data is not None else None

    def backing_path(self):
        name = self.backing
        if name is None:
            return None
        return os.path.normpath(
            os.path.join(os.path.dirname(self.path) or ".", name))

    # -- tables ---------------------------------------------------------

    def u64s(self, offset, count):
        return struct.unpack_from(">%dQ" % count, self.raw, offset)

    def l1(self, offset=None, size=None):
        if offset is None:
            offset, size = self.l1_offset, self.l1_size
        return self.u64s(offset, size) if size else ()

    def l2(self, offset):
        """Pairs (entry, subcluster bitmap) of one table."""
        words = self.u64s(offset, self.cs // 8)
        if not self.extended:
            return [(w, 0) for w in words]
        return list(zip(words[0::2], words[1::2]))

    def compressed_range(self, entry):
        x = 62 - (self.cluster_bits - 8)
        offset = entry & ((1 << x) - 1)
        sectors = (entry & (COMPRESSED - 1)) >> x
        return offset, (sectors + 1) * 512 - (offset & 511)

    def snapshots(self):
        at, out = self.snapshots_offset, []
        for _ in range(self.nb_snapshots):
            out.append(Snapshot(self.raw, at))
            at = out[-1].end
        self.snapshots_end = at
        return out

    def bitmaps_consistent(self):
        return bool(self.autoclear & AUTOCLEAR_BITMAPS)

    def bitmaps(self):
        """Bitmaps of the directory; [] when autoclear says they are void."""
        data = self.extension(EXT_BITMAPS)
        if data is None or not self.bitmaps_consistent():
            return []
        count, _, dir_size, at = struct.unpack(">IIQQ", data)
        out = []
        for _ in range(count):
            out.append(Bitmap(self.raw, at))
            at = out[-1].end
        return out

    def bitmap_ranges(self, bitmap):
        """The dirty byte ranges of a bitmap as a sorted list of (start, end),
        merged and cut at the virtual size."""
        gran = 1 << bitmap.granularity_bits
        per = self.cs * 8  # bits in a data cluster
        runs = []

        def add(first, last):
            start, end = first * gran, min(last * gran, self.size)
            if start >= end:
                return
            if runs and runs[-1][1] == start:
                runs[-1][1] = end
            else:
                runs.append([start, end])

        for i, e in enumerate(self.u64s(bitmap.table_offset,
                                        bitmap.table_entries)):
            offset = e & OFFSET
            if not offset:
                if e & 1:
                    add(i * per, (i + 1) * per)
                continue
            chunk = self.raw[offset:offset + self.cs]
            for byte, v in enumerate(chunk):
                for bit in range(8) if v else ():
                    if v >> bit & 1:
                        n = i * per + byte * 8 + bit
                        add(n, n + 1)
        return [tuple(r) for r in runs]

    # -- recount --------------------------------------------------------

    def refcount(self, cluster):
        bits = 1 << self.refcount_order
        per = self.cs * 8 // bits
        index = cluster // per
        if index >= self.reftable_clusters * self.cs // 8:
            return 0
        block = self.u64s(self.reftable_offset, index + 1)[index]
        block &= ~511
        if not block:
            return 0
        n = cluster % per
        if bits >= 8:
            at = block + n * bits // 8
            return int.from_bytes(self.raw[at:at + bits // 8], "big")
        byte = self.raw[block + n * bits // 8]
        return byte >> (n * bits % 8) & ((1 << bits) - 1)

    def references(self):
        """({host cluster: count}, [problem]) from every table of the file."""
        refs, bad = {}, []
        end = (len(self.raw) + self.cs - 1) // self.cs

        def take(offset, length, what):
            if not length:
                return
            first, last = offset // self.cs, (offset + length - 1) // self.cs
            if first >= end:
                bad.append("%s at %#x past the end" % (what, offset))
            for c in range(first, min(last, end + 8) + 1):
                refs[c] = refs.get(c, 0) + 1

        take(0, self.cs, "header")
        take(self.reftable_offset, self.reftable_clusters * self.cs,
             "refcount table")
        for e in self.u64s(self.reftable_offset,
                           self.reftable_clusters * self.cs // 8):
            if e & 511 or e % self.cs:
                bad.append("refcount table entry %#x" % e)
            if e:
                take(e, self.cs, "refcount block")
        snaps = self.snapshots()
        take(self.snapshots_offset,
             self.snapshots_end - self.snapshots_offset, "snapshot table")
        self._walk(self.l1_offset, self.l1_size, take, bad)
        for s in snaps:
            self._walk(s.l1_offset, s.l1_size, take, bad)
        for b in self.bitmaps():
            take(b.table_offset, b.table_entries * 8, "bitmap table")
            for e in self.u64s(b.table_offset, b.table_entries):
                if e & OFFSET:
                    take(e & OFFSET, self.cs, "bitmap data")
        data = self.extension(EXT_BITMAPS)
        if data is not None and self.bitmaps_consistent():
            _, _, dir_size, at = struct.unpack(">IIQQ", data)
            take(at, dir_size, "bitmap directory")
        return refs, bad

    def _walk(self, offset, size, take, bad):
        take(offset, size * 8, "L1")
        for i, e in enumerate(self.l1(offset, size)):
            if e & L1_RESERVED:
                bad.append("L1 entry %d reserved bits: %#x" % (i, e))
            if not e & OFFSET:
                continue
            take(e & OFFSET, self.cs, "L2")
            for j, (w, sub) in enumerate(self.l2(e & OFFSET)):
                self._entry(i * self.l2_entries + j, w, sub, take, bad)

    def _entry(self, index, w, sub, take, bad):
        if w & COMPRESSED:
            if w & COPIED or sub:
                bad.append("cluster %d: compressed with flags" % index)
            take(*self.compressed_range(w), "compressed cluster")
            return
        reserved = L2_RESERVED | (1 if self.extended else 0)
        if w & reserved:
            bad.append("cluster %d reserved bits: %#x" % (index, w))
        if w & 1 and self.version < 3:
            bad.append("cluster %d: zero flag in v2" % index)
        if sub & (sub >> 32) & 0xFFFFFFFF:
            bad.append("cluster %d: subcluster bitmap %#x" % (index, sub))
        if w & OFFSET:
            if (w & OFFSET) % self.cs:
                bad.append("cluster %d unaligned: %#x" % (index, w))
            take(w & OFFSET, self.cs, "cluster %d" % index)
        elif w & COPIED or sub & 0xFFFFFFFF:
            bad.append("cluster %d: flags without a cluster" % index)

    def problems(self):
        """Everything wrong with the file: corruptions and leaks, as text."""
        refs, bad = self.references()
        clusters = (len(self.raw) + self.cs - 1) // self.cs
        for c in range(max(clusters, max(refs) + 1)):
            have, want = self.refcount(c), refs.get(c, 0)
            if have != want:
                bad.append("cluster %d (at %#x): refcount %d, references %d" %
                           (c, c * self.cs, have, want))
        for i, e in enumerate(self.l1()):
            if not e & OFFSET:
                continue
            self._copied(e, "L1 entry %d" % i, bad)
            for j, (w, _) in enumerate(self.l2(e & OFFSET)):
                if w & OFFSET and not w & COMPRESSED:
                    self._copied(w, "L2 entry %d/%d" % (i, j), bad)
        return bad

    def _copied(self, entry, what, bad):
        one = self.refcount((entry & OFFSET) // self.cs) == 1
        if one != bool(entry & COPIED):
            bad.append("%s: COPIED is %d" % (what, bool(entry & COPIED)))

    def allocated_ranges(self):
        """Guest ranges this image itself decides, as [(start, end)]."""
        out = []
        for i, e in enumerate(self.l1()):
            if not e & OFFSET:
                continue
            for j, (w, sub) in enumerate(self.l2(e & OFFSET)):
                start = (i * self.l2_entries + j) * self.cs
                if start >= self.size:
                    break
                if w & COMPRESSED or (not self.extended and
                                      w & (OFFSET | 1)):
                    out.append((start, min(start + self.cs, self.size)))
                elif self.extended and sub:
                    s = self.cs // 32
                    out += [(start + k * s, min(start + k * s + s, self.size))
                            for k in range(32)
                            if (sub | sub >> 32) >> k & 1 and
                            start + k * s < self.size]
        return out
