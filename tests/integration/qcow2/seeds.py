#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seeds of the qcow2 fuzzers: small images of 512-byte clusters
(16 KiB with extended L2), alone and in chains.

    seeds.py tests/fuzz/corpus
"""

import os
import random
import struct
import sys

import hostile
import qbuild

# Of the hostile images those that reach different checks.
HOSTILE = ("l2-used-twice", "cluster-past-end", "cluster-over-l1",
           "compressed-past-end", "compressed-over-l1", "refblock-over-l1",
           "snapshot-l1-past-end", "snapshot-extra-all-ones",
           "bitmap-table-past-end", "bitmap-name-past-directory",
           "bitmap-directory-huge", "extension-length-all-ones")


def builder(seed, backing=None, fmt="qcow2", **kw):
    rng = random.Random(seed)
    bits = kw.pop("bits", 9)
    b = qbuild.Builder(rng, kw.pop("size", 12 << bits), bits,
                       backing=backing, backing_format=fmt if backing
                       else None, feature_names=False, **kw)
    for i in range(0, 12, 2):
        kind = rng.randrange(5)
        data = bytes([rng.randrange(256)]) * (b.cs // 2) + b"x" * (b.cs // 2)
        if kind == 0 and b.version == 3:
            b.zero(i)
        elif kind == 1 and b.version == 3:
            b.zero_alloc(i)
        elif kind == 2:
            b.compressed(i, data)
        elif b.extended:
            b.sub(i, 0x0F0F, 0xF0, data)
        else:
            b.data(i, data)
    return b


SINGLE = {
    "plain": {}, "version-2": {"version": 2},
    "zstd": {"compression": "zstd"}, "one-bit-refcounts":
    {"refcount_order": 0}, "wide-refcounts": {"refcount_order": 6},
    "odd-size": {"size": 5 * 512}, "long-header": {"header_length": 120},
    "extended": {"bits": 14, "extended": True, "size": 6 << 14},
}


def image(path, b, snapshot=False, bitmap=False):
    if snapshot:
        b.snapshot("s")
        b.data(0, b"after")
    if bitmap:
        b.bitmap("bm", 9, {1, 3})
    b.write(path)
    with open(path, "rb") as f:
        raw = f.read()
    os.unlink(path)
    return raw


def pack(*layers):
    return (bytes([len(layers) - 1]) +
            b"".join(struct.pack(">I", len(x)) for x in layers) +
            b"".join(layers))


def chains(tmp):
    """(name, packed files) as tests/lib/memio_layers.h has them."""
    base = image(tmp, builder(1))
    small = image(tmp, builder(2, size=5 << 9))
    v2 = image(tmp, builder(3, version=2))
    for name, lower, kw in (
            ("two", base, {}), ("short-below", small, {}),
            ("longer-top", base, {"size": 20 << 9}),
            ("onto-version-2", v2, {}), ("other-clusters", base,
                                         {"bits": 10}),
            ("zstd-on-zlib", base, {"compression": "zstd"}),
            ("extended-on-plain", base, {"bits": 14, "extended": True,
                                         "size": 2 << 14})):
        yield name, pack(image(tmp, builder(7, "l1", **kw)), lower)
    raw = bytes(range(256)) * 13
    yield "on-raw", pack(image(tmp, builder(8, "l1", "raw")), raw)
    mid = image(tmp, builder(9, "l2", size=8 << 9))
    yield "three", pack(image(tmp, builder(10, "l1")), mid, base)
    yield "three-on-raw", pack(image(tmp, builder(11, "l1")),
                               image(tmp, builder(12, "l2", "raw")), raw)


def main(root):
    tmp = os.path.join(root, ".tmp")
    for d in ("qcow2_open", "qcow2_map", "qcow2_merge"):
        os.makedirs(os.path.join(root, d), exist_ok=True)

    def put(corpus, name, raw):
        with open(os.path.join(root, corpus, name), "wb") as f:
            f.write(raw)

    for name, kw in SINGLE.items():
        put("qcow2_open", name, image(tmp, builder(5, **kw)))
    put("qcow2_open", "snapshot", image(tmp, builder(6), snapshot=True))
    put("qcow2_open", "bitmap", image(tmp, builder(6), bitmap=True))
    for name, packed in chains(tmp):
        put("qcow2_map", name, packed)
    for i, (name, packed) in enumerate(chains(tmp)):
        how = packed[0] | i % 4 << 2 | (i & 1) << 4
        put("qcow2_merge", name, bytes([how]) + packed[1:])
    for name in HOSTILE:
        put("qcow2_open", name, damaged(name, root))


def damaged(name, root):
    """A hostile image, with clusters of 512 bytes."""
    good = hostile.good
    hostile.good = lambda bits=12, version=3, **kw: good(9, version, **kw)
    try:
        path = hostile.make(name, root)
    finally:
        hostile.good = good
    with open(path, "rb") as f:
        raw = f.read()
    os.unlink(path)
    return raw


if __name__ == "__main__":
    main(sys.argv[1])
