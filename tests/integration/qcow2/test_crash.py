#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random small chains, made by our own writer, through tests/crash: every
state a crash can leave of their merges is recovered and judged.

COUNT (default 6) chains from SEED on; DEEP=1 takes 300 random cuts for each
interval between two syncs instead of 6, and has qemu-img look at more states.
"""

import os
import random
import re
import shutil
import unittest

import qbuild
import qtools

SEED = int(os.environ.get("SEED", "1"))
COUNT = int(os.environ.get("COUNT", "6"))
DEEP = bool(os.environ.get("DEEP"))
PROGRAM = os.path.join(os.path.dirname(qtools.QSTILL), "crash/crash_merge")


def with_zeros(data):
    """Some clusters are all zeros, which become holes of the file."""
    return bytes(len(data)) if data[0] < 40 else data


def write(b, path):
    b.write(path)
    qtools.must("fallocate", "--dig-holes", path)
    return path


def layer(rng, path, size, backing, fmt):
    """One image with a few clusters of each kind."""
    bits = rng.choice((9, 10, 12, 12, 14, 16))
    extended = bits >= 14 and rng.random() < 0.4
    version = 3 if extended or rng.random() < 0.8 else 2
    v3 = version == 3
    b = qbuild.Builder(
        rng, size, bits, version,
        rng.choice((4, 4, 4, 3, 2, 5)) if v3 else 4, extended,
        rng.choice(("zlib", "zstd")) if v3 else "zlib", backing, fmt,
        feature_names=rng.random() < 0.5, gaps=rng.choice((0, 0.2)),
        autoclear=rng.choice((0, 0, 1 << 9)) if v3 else 0)
    clusters = (size + b.cs - 1) >> bits
    for _ in range(rng.randrange(1, 24)):
        i, kind = rng.randrange(clusters), rng.randrange(5)
        data = with_zeros(rng.randbytes(b.cs // 2) + bytes(
            [rng.randrange(256)]) * (b.cs - b.cs // 2))
        if kind == 0 and v3:
            b.zero(i)
        elif kind == 1 and v3:
            b.zero_alloc(i)
        elif kind == 2:
            b.compressed(i, data)
        elif extended:
            alloc = rng.getrandbits(32)
            b.sub(i, alloc, rng.getrandbits(32) & ~alloc, data)
        else:
            b.data(i, data)
    if v3 and rng.random() < 0.15:
        b.bitmap("backup", 12, {1, 2, 5})
    try:
        return write(b, path)
    except OverflowError:
        return layer(rng, path, size, backing, fmt)


def fill(rng, b, cluster, extended):
    """Mostly data."""
    data, kind = with_zeros(rng.randbytes(b.cs)), rng.randrange(12)
    if kind == 0:
        b.zero(cluster)
    elif kind == 1:
        b.zero_alloc(cluster)
    elif kind == 2:
        b.compressed(cluster, bytes(b.cs // 2) + data[:b.cs // 2])
    elif extended:
        alloc = rng.getrandbits(32) | rng.getrandbits(32)
        b.sub(cluster, alloc, rng.getrandbits(32) & ~alloc, data)
    else:
        b.data(cluster, data)


def dense_chain(rng, directory):
    """The same, of plain data: what is above a layer mostly lies over it, so
    that a fold writes over what is there. Some clusters have other owners: a
    snapshot, compressed neighbours."""
    os.makedirs(directory)
    size = rng.randrange(96, 300) * 512
    n = rng.choice((2, 2, 3))
    for i in range(n):
        bits = rng.choice((9, 10, 11, 12, 12, 14, 14))
        extended = bits == 14 and rng.random() < 0.7
        b = qbuild.Builder(rng, size, bits, 3, 4, extended, "zlib",
                           "l%d" % (i - 1) if i else None,
                           "qcow2" if i else None)
        clusters = (size + b.cs - 1) >> bits
        owned = rng.randrange(2 * clusters) if i == 0 else clusters
        for c in range(clusters):
            if c == owned:
                b.snapshot("kept")
            if rng.random() < (0.5 if i else 0.85):
                fill(rng, b, c, extended)
        write(b, os.path.join(directory, "l%d" % i))
    return "l%d" % (n - 1), ["l%d" % i for i in reversed(range(n - 1))][
        :rng.choice((1, n - 1))]


def is_written_over(directory, top, drop):
    r = qtools.run(qtools.QSTILL, "image", "merge", "--dry-run",
                   "--direction", "down", os.path.join(directory, top),
                   *(a for d in drop
                     for a in ("--drop", os.path.join(directory, d))))
    return "it is written over" in r.out


def chain_to_write_over(rng, directory):
    """A dense chain; some have nothing that may be written over: not those."""
    for _ in range(20):
        top, drop = dense_chain(rng, directory)
        if is_written_over(directory, top, drop):
            return top, drop
        shutil.rmtree(directory)
    raise AssertionError("no fold would write over what is there")


def counted(out, what):
    return int(re.search(r"(\d+) with " + what, out).group(1))


def chain(rng, directory):
    """(top, layers to drop): names in the directory."""
    os.makedirs(directory)
    size = rng.randrange(40, 400) * 512
    names, fmt = [], None
    for i in range(rng.choice((2, 3, 3, 4))):
        name = "l%d" % i
        path = os.path.join(directory, name)
        if i == 0 and rng.random() < 0.2:
            with open(path, "wb") as f:
                f.write(rng.randbytes(size // 2))
                f.truncate(size)
            fmt = "raw"
        else:
            layer(rng, path, size, names[-1] if names else None, fmt)
            fmt = "qcow2"
        names.append(name)
        if rng.random() < 0.3:
            size = max(512, size + rng.randrange(-60, 60) * 512)
    if rng.random() < 0.3 and len(names) > 2:
        layer(rng, os.path.join(directory, "kid"), size, names[-2], "qcow2")
    n = rng.choice((1, 1, 1, 2, len(names) - 1))
    return names[-1], rng.sample(names[:-1], min(n, len(names) - 1))


def prove(case, root, seed, top, direction, drop, more=()):
    """The program's last line. The images stay when it fails."""
    d = os.path.join(root, "images")
    shutil.copytree(d, os.path.join(root, "before"))
    r = qtools.run(PROGRAM, "-s", str(seed), "-n", "300" if DEEP else "6",
                   "-q", "200" if DEEP else "100", *more, d, top, direction,
                   *drop, timeout=3600)
    case.assertEqual(r.rc, 0, "kept in %s\n%s" % (root, r))
    shutil.rmtree(root)
    return r.out


@unittest.skipUnless(os.access(PROGRAM, os.X_OK), "crash_merge is not built")
class NoCrashLosesAnything(unittest.TestCase):
    def test_every_state_a_crash_can_leave(self):
        print("%s: seeds %d..%d" % (self.id(), SEED, SEED + COUNT - 1))
        states = refused = 0
        for seed in range(SEED, SEED + COUNT):
            rng = random.Random("crash %d" % seed)
            root = qtools.scratch("crash-")
            d = os.path.join(root, "images")
            top, drop = chain(rng, d)
            direction = rng.choice(("up", "down", "new", "auto"))
            more = []
            if rng.random() < 0.25:  # the lowest name, perhaps a raw image's
                drop = ["l%d" % i for i in reversed(range(int(top[1:])))]
                direction, more = "auto", ["-l", top]
            with self.subTest(seed=seed):
                out = prove(self, root, seed, top, direction, drop, more)
                refused += out.startswith("refused")
                if out.startswith("states: "):
                    states += int(out.split()[1])
        print("states: %d of %d merges, %d refused" % (states, COUNT,
                                                       refused))

    def test_an_overlay_with_a_header_beyond_a_sector_is_refused(self):
        """It would have to name another file, which takes one sector; found
        out before anything is written."""
        rng, root = random.Random(1), qtools.scratch("crash-")
        d = os.path.join(root, "images")
        os.makedirs(d)
        for i, bits in enumerate((12, 12, 12)):
            b = qbuild.Builder(
                rng, 65536, bits, backing="l%d" % (i - 1) if i else None,
                backing_format="qcow2" if i else None, feature_names=False,
                extensions=[(0x12345678, bytes(600))] if i == 2 else ())
            b.data(i, rng.randbytes(4096))
            b.write(os.path.join(d, "l%d" % i))
        before = {n: qtools.file_hash(os.path.join(d, n))
                  for n in os.listdir(d)}
        r = qtools.run(PROGRAM, "-l", "l1", d, "l1", "auto", "l0")
        self.assertEqual(r.rc, 0, str(r))
        self.assertRegex(r.out, "^refused: .*l2")
        self.assertEqual(before, {n: qtools.file_hash(os.path.join(d, n))
                                  for n in os.listdir(d)})
        shutil.rmtree(root)

    def test_an_empty_layer_of_another_size_takes_over_the_lower_file(self):
        """Nothing but the size changes in the lower image's header: until it
        has, the lower image must not be taken for the result."""
        for sizes in ((40, 40, 24, 40), (24, 40), (40, 24)):
            with self.subTest(sizes=sizes):
                rng, root = random.Random(1), qtools.scratch("crash-")
                d = os.path.join(root, "images")
                os.makedirs(d)
                upper = len(sizes) - 2 if len(sizes) > 2 else 1
                for i, kib in enumerate(sizes):
                    b = qbuild.Builder(
                        rng, kib * 1024, 12,
                        backing="l%d" % (i - 1) if i else None,
                        backing_format="qcow2" if i else None)
                    for c in range(kib // 4 if i < upper else 0):
                        b.data(c, rng.randbytes(4096))
                    b.write(os.path.join(d, "l%d" % i))
                out = prove(self, root, 1, "l%d" % (len(sizes) - 1), "down",
                            ["l%d" % (upper - 1)])
                self.assertTrue(out.startswith("states: "), out)

    def test_an_overlay_reads_right_while_its_backing_file_gets_a_new_name(
            self):
        """The upper image takes over the lower one's name, and what stands on
        it has to name that: a VM that stands on it can be started at every
        moment, before any recovery, and by the old name, too."""
        rng, root = random.Random(1), qtools.scratch("crash-")
        for n in (3, 4):
            d = os.path.join(root, "images")
            os.makedirs(d)
            for i in range(n):
                b = qbuild.Builder(rng, 65536, 12,
                                   backing="l%d" % (i - 1) if i else None,
                                   backing_format="qcow2" if i else None)
                for c in rng.sample(range(16), 5):
                    b.data(c, rng.randbytes(4096))
                b.write(os.path.join(d, "l%d" % i))
            drop = ["l%d" % i for i in reversed(range(n - 2))]
            out = prove(self, root, 1, "l%d" % (n - 2), "up", drop,
                        ("-l", "l%d" % (n - 2)))
            self.assertTrue(out.startswith("states: "), out)
            os.makedirs(root)
        shutil.rmtree(root)

    def test_layers_that_are_no_neighbours(self):
        """One goes after the other; what has gone is known until both have."""
        for direction in ("up", "down", "new"):
            with self.subTest(direction=direction):
                rng, root = random.Random(1), qtools.scratch("crash-")
                d = os.path.join(root, "images")
                os.makedirs(d)
                for i in range(5):
                    b = qbuild.Builder(rng, 65536, 12,
                                       backing="l%d" % (i - 1) if i else None,
                                       backing_format="qcow2" if i else None)
                    for c in rng.sample(range(16), 5):
                        b.data(c, rng.randbytes(4096))
                    b.write(os.path.join(d, "l%d" % i))
                out = prove(self, root, 1, "l4", direction, ("l3", "l1"))
                self.assertGreater(counted(out, "a part of it done"), 20)

    def three_layers(self, versions):
        """The lowest full, the middle one shows it, the top masks some of each,
        so that the middle one is a mixture once the lowest is the result."""
        rng, root = random.Random(1), qtools.scratch("crash-")
        d = os.path.join(root, "images")
        os.makedirs(d)
        for i, version in enumerate(versions):
            b = qbuild.Builder(rng, 65536, 12, version,
                               backing="l%d" % (i - 1) if i else None,
                               backing_format="qcow2" if i else None)
            for c in (range(16), (3,), (3, 5))[i]:
                b.data(c, rng.randbytes(4096))
            b.write(os.path.join(d, "l%d" % i))
        return root, d

    def test_a_layer_that_shows_what_is_written_over_is_marked_too(self):
        root, d = self.three_layers((3, 3, 3))
        self.assertTrue(is_written_over(d, "l2", ("l1", "l0")))
        out = prove(self, root, 1, "l2", "down", ("l1", "l0"))
        self.assertGreater(counted(out, "an image that is marked"), 0)
        root, d = self.three_layers((3, 3, 3))
        out = prove(self, root, 1, "l2", "down", ("l1", "l0"), ("-l", "l2"))
        self.assertGreater(counted(out, "an image that is marked"), 0)

    def test_nothing_is_written_over_below_a_layer_without_room_for_a_mark(
            self):
        for versions in ((3, 2, 3), (2, 3, 3)):
            with self.subTest(versions=versions):
                root, d = self.three_layers(versions)
                self.assertFalse(is_written_over(d, "l2", ("l1", "l0")))
                out = prove(self, root, 1, "l2", "down", ("l1", "l0"))
                self.assertEqual(counted(out, "clusters written over"), 0)

    def test_folds_that_write_over_what_is_there(self):
        print("%s: seeds %d..%d" % (self.id(), SEED, SEED + COUNT - 1))
        states = torn = 0
        for seed in range(SEED, SEED + (COUNT if DEEP else (COUNT + 1) // 2)):
            rng = random.Random("over %d" % seed)
            root = qtools.scratch("crash-")
            top, drop = chain_to_write_over(rng,
                                            os.path.join(root, "images"))
            more = []
            if rng.random() < 0.3:
                drop = ["l%d" % i for i in reversed(range(int(top[1:])))]
                more = ["-l", top]
            with self.subTest(seed=seed):
                out = prove(self, root, seed, top, "down", drop, more)
                states += int(out.split()[1])
                over = counted(out, "clusters written over")
                self.assertGreater(over, int(out.split()[1]) / 8)
                torn += over
        print("states: %d, %d of them with a journal that only goes forward" %
              (states, torn))


if __name__ == "__main__":
    unittest.main(verbosity=1)
