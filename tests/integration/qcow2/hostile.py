#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Images made to harm whoever opens them, each named after what is wrong.

    hostile.py DIR      writes them all, and prints name, kind and reason

Kinds: "damaged" (every use is refused, exit 3), "foreign" (valid, but not for
us to merge: exit 6), "readonly" (reads are right; a merge that must write or
drop it is refused), "odd" (legal, has to work: the control group).
A case is a function that damages a good image by the addresses its builder
left; most are one line in the tables below.
"""

import os
import random
import struct
import sys

import qbuild
import qimage

DAMAGED, FOREIGN, ASIDE, READONLY, ODD = (
    "damaged", "foreign", "aside", "readonly", "odd")
CASES = {}


class Case:
    def __init__(self, name, kind, words, make):
        self.name, self.kind, self.words, self.make = name, kind, words, make


def good(bits=12, version=3, **kw):
    """A builder with a bit of everything; no backing file by default."""
    rng = random.Random(bits * 100 + version)
    b = qbuild.Builder(rng, kw.pop("size", 40 << bits), bits, version, **kw)
    if not b.extended:
        for i in (0, 1, 2, 5, 9):
            b.data(i, rng.randbytes(b.cs))
        for i in (20, 21, 22):
            b.compressed(i, rng.randbytes(b.cs // 4))
        if version == 3:
            b.zero(30)
            b.zero_alloc(31)
    else:
        b.sub(0, 0xFF, 0xFF00, rng.randbytes(b.cs))
        b.data(3, rng.randbytes(b.cs))
    return b


def patch(path, at, fmt, *values):
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(struct.pack(">" + fmt, *values))


def case(name, kind, words):
    """Registers make(path); `words`: any of them is in the message."""
    def wrap(make):
        CASES[name] = Case(name, kind, words.split("|"), make)
        return make
    return wrap


def header(name, kind, words, *patches, **builder):
    """Fields of the header, set to what they must not be."""
    def make(path):
        good(**builder).write(path)
        for p in patches:
            patch(path, *p)
    case(name, kind, words)(make)


def table(name, kind, words, change, snapshot=False, bitmap=False, **builder):
    """`change(path, image, where)` damages something behind the header."""
    def make(path):
        b = good(**builder)
        if snapshot:
            b.snapshot("one")
            b.data(3, bytes([7]) * b.cs)
        if bitmap:
            b.bitmap("backup", 9, {0, 5, 77})
        b.write(path)
        change(path, qimage.Image(path), b.where)
    case(name, kind, words)(make)


# ------------------------------------------------------------------ header

header("version-1", FOREIGN, "version", (4, "I", 1))
header("version-4", FOREIGN, "version", (4, "I", 4))
header("cluster-bits-8", DAMAGED, "cluster", (20, "I", 8))
header("cluster-bits-22", DAMAGED, "cluster", (20, "I", 22))
header("cluster-bits-64", DAMAGED, "cluster", (20, "I", 64))
header("cluster-bits-4294967295", DAMAGED, "cluster", (20, "I", 2**32 - 1))
header("header-length-96", DAMAGED, "header", (100, "I", 96))
header("header-length-107", DAMAGED, "header", (100, "I", 107))
header("header-longer-than-cluster", DAMAGED, "header", (100, "I", 4104))
header("refcount-order-7", DAMAGED, "refcount", (96, "I", 7))
header("size-beyond-l1", DAMAGED, "L1", (24, "Q", 1 << 40))
header("size-8-exbibytes", DAMAGED, "L1|size", (24, "Q", 1 << 63))
header("size-all-ones", DAMAGED, "L1|size", (24, "Q", 2**64 - 1))
header("l1-larger-than-32-mib", DAMAGED, "L1", (36, "I", 4194305))
header("l1-size-all-ones", DAMAGED, "L1", (36, "I", 2**32 - 1))
header("l1-empty", DAMAGED, "L1", (36, "I", 0))
header("l1-unaligned", DAMAGED, "L1", (40, "Q", 4096 + 512))
header("l1-past-end", DAMAGED, "L1|end", (40, "Q", 1 << 40))
header("l1-offset-overflows", DAMAGED, "L1|end", (40, "Q", 2**64 - 4096))
header("l1-over-header", DAMAGED, "L1|overlap|header", (40, "Q", 0))
header("reftable-empty", DAMAGED, "refcount", (56, "I", 0))
header("reftable-larger-than-8-mib", DAMAGED, "refcount", (56, "I", 2049))
header("reftable-clusters-all-ones", DAMAGED, "refcount",
       (56, "I", 2**32 - 1))
header("reftable-unaligned", DAMAGED, "refcount", (48, "Q", 4096 + 8))
header("reftable-past-end", DAMAGED, "refcount|end", (48, "Q", 1 << 50))
header("reftable-over-header", DAMAGED, "refcount|overlap", (48, "Q", 0))
header("snapshots-65537", DAMAGED, "snapshot", (60, "I", 65537))
header("snapshots-past-end", DAMAGED, "snapshot|end",
       (60, "I", 1), (64, "Q", 1 << 40))
header("snapshots-unaligned", DAMAGED, "snapshot",
       (60, "I", 1), (64, "Q", 4096 + 8))
header("incompatible-bit-63", FOREIGN, "incompatible|feature",
       (72, "Q", 1 << 63))
header("incompatible-bit-5", FOREIGN, "incompatible|feature",
       (72, "Q", 1 << 5))
header("external-data-file", FOREIGN, "data file", (72, "Q", 4))
header("encrypted-aes", FOREIGN, "encrypt", (32, "I", 1))
header("encrypted-luks", FOREIGN, "encrypt", (32, "I", 2))
header("crypt-method-3", DAMAGED, "encrypt|crypt", (32, "I", 3))
header("corrupt-bit", FOREIGN, "corrupt", (72, "Q", 2))
header("compression-bit-without-type", DAMAGED, "compression",
       (72, "Q", 8))
header("compression-type-without-bit", DAMAGED, "compression",
       (104, "B", 1))
header("compression-type-2", FOREIGN, "compression", (72, "Q", 8),
       (104, "B", 2))
header("extended-l2-with-small-clusters", DAMAGED, "extended|cluster",
       (72, "Q", 16))
header("raw-data-autoclear-without-file", DAMAGED, "data file|autoclear|raw",
       (88, "Q", 2))


def cut(length):
    def make(path):
        good().write(path)
        os.truncate(path, length)
    return make


for n in (5, 71, 90, 103, 111):
    case("ends-in-header-at-%d" % n, DAMAGED, "header|end|bytes")(cut(n))
case("ends-after-header", DAMAGED, "end|L1|refcount")(cut(4096))


# -------------------------------------------------------------- extensions

def extension(name, kind, words, data, length=None, **kw):
    """One extension, written over those that are there."""
    def make(path):
        b = good(**kw)
        b.write(path)
        raw = b"".join(struct.pack(">II", k, len(d) if length is None
                                   else length) +
                       d.ljust((len(d) + 7) // 8 * 8, b"\0")
                       for k, d in data) + bytes(8)
        with open(path, "r+b") as f:
            f.seek(b.where["extensions"])
            f.write(raw)
    case(name, kind, words)(make)


BITMAPS = qimage.EXT_BITMAPS
extension("extension-longer-than-header", DAMAGED, "extension",
          [(0x1234, b"x")], length=100000)
extension("extension-length-all-ones", DAMAGED, "extension",
          [(0x1234, b"x")], length=2**32 - 1)
extension("end-mark-longer-than-header", DAMAGED, "extension",
          [(0, b"x")], length=100000)
extension("backing-format-of-16-bytes", DAMAGED, "format|extension",
          [(qimage.EXT_BACKING_FORMAT, b"q" * 16)])
extension("bitmaps-extension-of-8-bytes", DAMAGED, "bitmap",
          [(BITMAPS, bytes(8))], autoclear=1)
extension("bitmaps-none", DAMAGED, "bitmap",
          [(BITMAPS, struct.pack(">IIQQ", 0, 0, 32, 4096))], autoclear=1)
extension("bitmaps-65536", DAMAGED, "bitmap",
          [(BITMAPS, struct.pack(">IIQQ", 65536, 0, 32, 4096))], autoclear=1)
extension("bitmaps-reserved-set", DAMAGED, "bitmap",
          [(BITMAPS, struct.pack(">IIQQ", 1, 9, 32, 4096))], autoclear=1)
extension("bitmap-directory-unaligned", DAMAGED, "bitmap",
          [(BITMAPS, struct.pack(">IIQQ", 1, 0, 32, 4100))], autoclear=1)
extension("bitmap-directory-past-end", DAMAGED, "bitmap|end",
          [(BITMAPS, struct.pack(">IIQQ", 1, 0, 32, 1 << 44))], autoclear=1)
extension("bitmap-directory-huge", DAMAGED, "bitmap",
          [(BITMAPS, struct.pack(">IIQQ", 1, 0, 1 << 62, 4096))],
          autoclear=1)
extension("bitmaps-void-without-autoclear", ODD, "",
          [(BITMAPS, struct.pack(">IIQQ", 1, 0, 32, 1 << 44))])
extension("unknown-extensions", ODD, "",
          [(0x11111111, b""), (0x22222222, b"x" * 900)])


# ----------------------------------------------------------------- backing

def backing(name, kind, words, text, fmt="qcow2", setup=None, **kw):
    """An image whose backing name is `text` (or text(path))."""
    def make(path):
        if setup:
            setup(path)
        t = text(path) if callable(text) else text
        b = good(backing=t, backing_format=fmt, **kw)
        b.write(path)
    case(name, kind, words)(make)


def beside(path, suffix):
    return path + suffix


backing("backing-json", FOREIGN, "json|protocol",
        'json:{"driver":"file","filename":"/etc/passwd"}')
backing("backing-nbd", FOREIGN, "nbd|protocol", "nbd://127.0.0.1:1/x")
backing("backing-protocol-file", FOREIGN, "protocol|file:", "file:/etc/passwd",
        fmt="raw")
backing("backing-fat", FOREIGN, "protocol|fat", "fat:/etc", fmt="raw")
backing("backing-device", FOREIGN, "regular", "/dev/zero", fmt="raw")
backing("backing-directory", FOREIGN, "regular", "/tmp", fmt="raw")
backing("backing-fifo", FOREIGN, "regular", lambda p: p + ".fifo", fmt="raw",
        setup=lambda p: os.path.exists(p + ".fifo") or os.mkfifo(p + ".fifo"))
backing("backing-without-format", FOREIGN, "format",
        lambda p: p + ".base", fmt=None,
        setup=lambda p: good().write(p + ".base"))
backing("backing-format-vmdk", FOREIGN, "format|vmdk", lambda p: p + ".base",
        fmt="vmdk", setup=lambda p: good().write(p + ".base"))
backing("backing-missing", FOREIGN, "open|No such", "not-there.qcow2")
backing("backing-is-itself", FOREIGN, "loop|itself|twice", os.path.basename)
backing("backing-raw-but-named-qcow2", DAMAGED, "magic|qcow2",
        lambda p: p + ".base",
        setup=lambda p: open(p + ".base", "wb").write(b"raw" * 99999))
backing("backing-qcow2-but-named-raw", ODD, "", lambda p: p + ".base",
        fmt="raw", setup=lambda p: good().write(p + ".base"))


@case("backing-loop-of-two", FOREIGN, "loop|twice")
def _loop(path):
    other = path + ".other"
    good(backing=os.path.basename(other), backing_format="qcow2").write(path)
    good(backing=os.path.basename(path), backing_format="qcow2").write(other)


@case("backing-chain-of-300", FOREIGN, "deep|long|layers|depth")
def _deep(path):
    below = None
    for i in range(300):
        p = path if i == 299 else "%s.%03d" % (path, i)
        b = qbuild.Builder(random.Random(i), 4096, 9, backing=below,
                           backing_format="qcow2" if below else None)
        b.write(p)
        below = os.path.basename(p)


@case("backing-name-of-1024", DAMAGED, "backing")
def _long_name(path):
    good(backing="x" * 1024, backing_format="qcow2").write(path)


def backing_at(name, offset, size, words="backing", kind=DAMAGED):
    def make(path):
        good(backing="x.qcow2", backing_format="qcow2").write(path)
        patch(path, 8, "QI", offset, size)
    case(name, kind, words)(make)


backing_at("backing-name-past-cluster", 4090, 7)
backing_at("backing-name-far-away", 1 << 40, 7)
backing_at("backing-name-in-header", 8, 7, "backing|header|extension")
backing_at("backing-name-overflows", 2**64 - 2, 7)
backing_at("backing-name-empty-but-placed", 1000, 0, "", ODD)
backing("backing-name-with-nul", DAMAGED, "backing|NUL", "a\0b.qcow2")


# ------------------------------------------------------------------ tables

def l1_entry(value, slot=0):
    def change(path, img, where):
        v = value(img, where) if callable(value) else value
        patch(path, img.l1_offset + 8 * slot, "Q", v)
    return change


def l2_entry(value, index=0):
    """The first word of entry `index` of the first L2 table."""
    def change(path, img, where):
        at = img.l1()[0] & qimage.OFFSET
        v = value(img, where) if callable(value) else value
        patch(path, at + index * img.l2_entry, "Q", v)
    return change


def sub_entry(value, index=0, word=None):
    def change(path, img, where):
        at = (img.l1()[0] & qimage.OFFSET) + index * 16
        if word is not None:
            patch(path, at, "Q", word)
        patch(path, at + 8, "Q", value)
    return change


def first(img, index=0):
    return img.l2(img.l1()[0] & qimage.OFFSET)[index][0]


C = qimage.COPIED
table("l1-entry-reserved-bits", DAMAGED, "reserved|L1",
      l1_entry(lambda i, w: i.l1()[0] | 1))
table("l1-entry-unaligned", DAMAGED, "align|L2|L1",
      l1_entry(lambda i, w: i.l1()[0] + 512))
table("l1-entry-past-end", DAMAGED, "end|L2", l1_entry(C | 1 << 45))
table("l2-over-header-and-l1", DAMAGED, "overlap|L2|twice",
      l1_entry(lambda i, w: C | i.l1_offset))
table("l2-over-reftable", DAMAGED, "over|twice|refcount",
      l1_entry(lambda i, w: C | i.reftable_offset))
table("l2-used-twice", DAMAGED, "twice|share|L2|overlap",
      l1_entry(lambda i, w: i.l1()[0], 1), size=1 << 20, bits=9)
table("cluster-reserved-bits", DAMAGED, "reserved",
      l2_entry(lambda i, w: first(i) | 4))
table("cluster-high-reserved-bit", DAMAGED, "reserved",
      l2_entry(lambda i, w: first(i) | 1 << 57))
table("cluster-unaligned", DAMAGED, "align",
      l2_entry(lambda i, w: first(i) + 512))
table("cluster-past-end", DAMAGED, "end", l2_entry(C | 1 << 50))
table("cluster-just-past-end", DAMAGED, "end",
      l2_entry(lambda i, w: C | (len(i.raw) + 4095) // 4096 * 4096))
table("cluster-over-l1", DAMAGED, "overlap|metadata|L1",
      l2_entry(lambda i, w: C | i.l1_offset))
table("cluster-over-its-l2", DAMAGED, "overlap|metadata|L2",
      l2_entry(lambda i, w: i.l1()[0]))
table("cluster-over-reftable", DAMAGED, "over|metadata|belongs",
      l2_entry(lambda i, w: C | i.reftable_offset))
table("cluster-over-refblock", DAMAGED, "over|metadata|belongs",
      l2_entry(lambda i, w: C | w["refblocks"][0]))
table("cluster-shared-with-refcount-1", ASIDE,
      "share|twice|refcount|referenc",
      l2_entry(lambda i, w: first(i, 1)))
table("zero-flag-in-version-2", DAMAGED, "zero|version", l2_entry(1, 10),
      version=2)
table("compressed-past-end", DAMAGED, "end|compress",
      l2_entry(qimage.COMPRESSED | 1 << 44, 20))
table("compressed-and-copied", DAMAGED, "compress|reserved|COPIED",
      l2_entry(lambda i, w: first(i, 20) | C, 20))
table("compressed-over-header", DAMAGED, "overlap|metadata|compress",
      l2_entry(qimage.COMPRESSED | 64, 20))
table("compressed-over-l1", DAMAGED, "overlap|metadata|compress",
      l2_entry(lambda i, w: qimage.COMPRESSED | i.l1_offset, 20))
table("subcluster-allocated-and-zero", DAMAGED, "subcluster|bitmap",
      sub_entry(1 << 32 | 1), bits=14, extended=True)
table("subcluster-allocated-without-cluster", DAMAGED, "subcluster|bitmap",
      sub_entry(1, 5), bits=14, extended=True)
table("subclusters-of-compressed", DAMAGED, "subcluster|compress|bitmap",
      lambda p, i, w: sub_entry(
          1, 0, qimage.COMPRESSED | first(i) & qimage.OFFSET)(p, i, w),
      bits=14, extended=True)
table("zero-flag-with-extended-l2", DAMAGED, "reserved",
      l2_entry(lambda i, w: first(i) | 1), bits=14, extended=True)


def refblock(value, n=0):
    return lambda path, img, where: patch(
        path, where["reftable"][0] + 8 * n, "Q",
        value(img, where) if callable(value) else value)


def refcount(value, cluster):
    """Sets one 16-bit refcount."""
    def change(path, img, where):
        c = cluster(img, where) // img.cs
        patch(path, where["refblocks"][0] + 2 * c, "H", value)
    return change


table("refblock-reserved-bits", ASIDE, "refcount|reserved",
      refblock(lambda i, w: w["refblocks"][0] | 1))
table("refblock-unaligned", ASIDE, "refcount|align",
      refblock(lambda i, w: w["refblocks"][0] + 512))
table("refblock-past-end", ASIDE, "refcount|end", refblock(1 << 47))
table("refblock-over-l1", ASIDE, "refcount|overlap",
      refblock(lambda i, w: i.l1_offset))
table("refblock-over-header", ASIDE, "refcount|overlap",
      refblock(0x1000000000000000))
table("refcount-0-of-data", READONLY, "refcount",
      refcount(0, lambda i, w: first(i) & qimage.OFFSET))
table("refcount-0-of-l2", READONLY, "refcount",
      refcount(0, lambda i, w: i.l1()[0] & qimage.OFFSET))
table("refcount-0-of-header", READONLY, "refcount",
      refcount(0, lambda i, w: 0))
table("refcount-too-high", ASIDE, "refcount",
      refcount(7, lambda i, w: first(i) & qimage.OFFSET))


# ------------------------------------------------------ snapshots, bitmaps

def snap(at, fmt, *values):
    return lambda path, img, where: patch(
        path, img.snapshots_offset + at, fmt, *values)


table("snapshot-extra-of-1025", ASIDE, "snapshot", snap(36, "I", 1025),
      snapshot=True)
table("snapshot-extra-of-8", ASIDE, "snapshot", snap(36, "I", 8),
      snapshot=True)
table("snapshot-extra-all-ones", ASIDE, "snapshot",
      snap(36, "I", 2**32 - 1), snapshot=True)
table("snapshot-l1-past-end", ASIDE, "snapshot|L1|end",
      snap(0, "Q", 1 << 44), snapshot=True)
table("snapshot-l1-unaligned", ASIDE, "snapshot|L1",
      snap(0, "Q", 4100), snapshot=True)
table("snapshot-l1-huge", ASIDE, "snapshot|L1",
      snap(8, "I", 2**32 - 1), snapshot=True)
table("snapshot-name-past-end", ASIDE, "snapshot",
      snap(12, "HH", 65535, 65535), snapshot=True)


def bit(at, fmt, *values):
    return lambda path, img, where: patch(
        path, where["bitmaps"] + at, fmt, *values)


table("bitmap-table-past-end", ASIDE, "bitmap|end", bit(0, "Q", 1 << 44),
      bitmap=True)
table("bitmap-table-unaligned", ASIDE, "bitmap", bit(0, "Q", 4100),
      bitmap=True)


@case("bitmaps-that-share-a-table", ASIDE, "tables are larger")
def bitmaps_that_share_a_table(path):
    """Each is within all bounds, as is the file: 2 MiB long, 128 MiB to hold
    in memory (or 4 GiB with 65,535 of them)."""
    b = good(16)
    b.bitmap("backup", 9, {0, 5, 77})
    b.write(path)
    entries = 8192  # QEMU's 512 MiB of clusters
    at = -(-os.path.getsize(path) // b.cs) * b.cs
    directory = b"".join(
        struct.pack(">QIIBBHI8s", at, entries, 0, 1, 9, 8, 0, b"%08d" % i)
        for i in range(2000))
    with open(path, "r+b") as f:
        head = f.read(4096)
        ext = head.index(struct.pack(">II", BITMAPS, 24))
        f.seek(ext + 8)
        f.write(struct.pack(">IIQQ", 2000, 0, len(directory),
                            at + 8 * entries))
        f.truncate(at + 8 * entries)
        f.seek(at + 8 * entries)
        f.write(directory)
        f.truncate(-(-f.tell() // b.cs) * b.cs)


table("bitmap-table-huge", ASIDE, "bitmap", bit(8, "I", 2**32 - 1),
      bitmap=True)
table("bitmap-granularity-63", ASIDE, "bitmap|granularity",
      bit(17, "B", 63), bitmap=True)
table("bitmap-of-type-9", ASIDE, "bitmap|type", bit(16, "B", 9),
      bitmap=True)
table("bitmap-name-past-directory", ASIDE, "bitmap|name",
      bit(18, "H", 65535), bitmap=True)
table("bitmap-unknown-flags", ASIDE, "bitmap|flag",
      bit(12, "I", 0x80000000), bitmap=True)


# ------------------------------------------------------- exhausting ones

def sparse(path, size):
    with open(path, "r+b") as f:
        f.truncate(size)


@case("l1-of-4194304-slots-on-one-l2", DAMAGED, "twice|share|overlap|L2|limit")
def _one_l2(path):
    """32 MiB of L1, each entry the same L2: a terabyte of tables to read."""
    b = good(bits=16, size=1 << 20)
    b.write(path)
    l2 = b.where["l2"][0] | qimage.COPIED
    end = (os.path.getsize(path) + 65535) // 65536 * 65536
    with open(path, "r+b") as f:
        f.seek(end)
        f.write(struct.pack(">Q", l2) * 4194304)
    patch(path, 36, "I", 4194304)
    patch(path, 40, "Q", end)
    patch(path, 24, "Q", 4194304 * (8192 << 16))


def l2_tables_in_holes(path, count):
    """So many tables of 64 KiB to read, none of which is on the disk."""
    b = good(bits=16, size=1 << 20)
    b.write(path)
    end = (os.path.getsize(path) + 65535) // 65536 * 65536
    first = end + (8 * count + 65535) // 65536 * 65536
    with open(path, "r+b") as f:
        f.seek(end)
        f.write(b"".join(struct.pack(">Q", qimage.COPIED | first + i * 65536)
                         for i in range(count)))
        f.truncate(first + count * 65536)
    patch(path, 36, "I", count)
    patch(path, 40, "Q", end)
    patch(path, 24, "Q", count * (8192 << 16))


def half_a_hole(path, clusters):
    """Clusters of 4 KiB, none behind its neighbour; the file has no data for
    the later half of them."""
    b = qbuild.Builder(random.Random(1), clusters << 12, 12)
    for i in reversed(range(clusters)):
        b.data(i, b"data" * 1024)
    b.write(path)
    at = b.guest[clusters // 2 - 1][0]
    with open(path, "rb") as f:
        raw = f.read()
    os.unlink(path)
    with open(path, "wb") as f:
        f.write(raw[:at])
        f.seek(at + (clusters // 2 << 12))
        f.write(raw[f.tell():])


def sparse_with_a_snapshot(path):
    """A hundred million clusters, nearly none of them in use."""
    b = good(bits=9)
    b.snapshot("s")
    b.write(path)
    os.truncate(path, 512 << 27)


def compressed_in_holes(path, clusters):
    """Clusters of 2 MiB, each in a few bytes that are said to be 4 MiB: the
    rest is a hole of the file. Returns the content."""
    content = [b"".join(bytes([(7 * i + k) % 256]) * 512 for k in range(4096))
               for i in range(clusters)]
    b = qbuild.Builder(random.Random(1), clusters << 21, 21)
    for i in range(clusters):
        b.data(i, bytes(1 << 21))
    b.write(path)
    img = qimage.Image(path)
    table, end = img.l1()[0] & qimage.OFFSET, os.path.getsize(path)
    with open(path, "r+b") as f:
        for i in range(clusters):
            # up to where the next one is: 2 MiB more than a cluster has
            at = end + (i << 22)
            f.seek(table + 8 * i)
            f.write(struct.pack(">Q", qimage.COMPRESSED | 8191 << 49 | at))
            f.seek(at)
            f.write(qbuild.deflate(content[i]))
        f.truncate(end + (clusters << 22))
    return b"".join(content)


@case("snapshots-65536-of-huge-l1", ASIDE, "snapshot|L1|limit|refcount")
def _many_l1(path):
    """65536 snapshots that share one hole of 32 MiB as their L1."""
    b = good(bits=16, size=1 << 20)
    b.write(path)
    end = (os.path.getsize(path) + 65535) // 65536 * 65536
    entry = struct.pack(">QIHHIIQII", end + (8 << 20), 4194304, 1, 1, 0, 0, 0,
                        0, 24) + struct.pack(">QQQ", 0, 1 << 20, 0)
    entry += b"1a".ljust(8, b"\0")
    with open(path, "r+b") as f:
        f.seek(end)
        f.write(entry * 65536)
        f.truncate(end + (8 << 20) + (32 << 20))
    patch(path, 60, "IQ", 65536, end)


@case("sparse-8-tib-of-zero-l1", ODD, "")
def _empty_giant(path):
    """A valid empty image of 2 TiB with 512-byte clusters needs too large a
    table; with 64 KiB it is 32 KiB of L1: it must open at once."""
    b = qbuild.Builder(random.Random(1), 8 << 40, 16)
    b.write(path)


@case("reftable-of-8-mib-in-a-hole", ODD, "")
def _wide_reftable(path):
    b = good(bits=16, size=1 << 20)
    b.write(path)
    old, size = b.where["reftable"]
    end = (os.path.getsize(path) + 65535) // 65536 * 65536
    with open(path, "r+b") as f:
        f.seek(old)
        raw = f.read(size)
        f.seek(end)
        f.write(raw)
        f.truncate(end + (8 << 20))
    patch(path, 48, "QI", end, 128)
    # its clusters have no refcounts now: a read does not need them
    block = b.where["refblocks"][0]
    for c in range(end // 65536, end // 65536 + 128):
        patch(path, block + 2 * c, "H", 1)
    for c in range(old // 65536, (old + size) // 65536):
        patch(path, block + 2 * c, "H", 0)


def wide_reftable(path, entries, length):
    """A refcount table at the end of the image, whose further entries lead
    where `entries` says, in a file of so many bytes."""
    b = good(bits=16, size=1 << 20)
    b.write(path)
    end = (os.path.getsize(path) + 65535) // 65536 * 65536
    first = b.where["refblocks"][0]
    with open(path, "r+b") as f:
        f.seek(end)
        f.write(struct.pack(">Q", first))
        f.write(b"".join(struct.pack(">Q", e) for e in entries(first, end)))
        f.truncate(length)
    patch(path, 48, "QI", end, 1)


@case("refblocks-in-8000-holes", ASIDE, "refcount")
def _hole_blocks(path):
    """500 MiB of refcounts, none of which is on the disk."""
    wide_reftable(path, lambda first, end: [
        end + (i + 1) * 65536 for i in range(8000)], 600 << 20)


@case("one-refblock-8000-times", DAMAGED, "refcount")
def _one_block(path):
    wide_reftable(path, lambda first, end: [first] * 8000, 600 << 20)


@case("names-with-control-characters", ODD, "")
def _control(path):
    b = good(bits=12)
    b.snapshot('evil"\n\x1b[31m\\')
    b.write(path)


def make(name, directory):
    path = os.path.join(directory, name + ".qcow2")
    CASES[name].make(path)
    return path


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    for c in sorted(CASES.values(), key=lambda c: (c.kind, c.name)):
        make(c.name, sys.argv[1])
        print("%-9s %-42s %s" % (c.kind, c.name, " or ".join(c.words)))
