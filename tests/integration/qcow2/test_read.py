#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""info, map, check and compare agree with qemu-img on random chains.

COUNT (default 12) chains from SEED (default 1) on; a failure prints the seed,
the commands that made the images, and keeps the directory.
"""

import os
import random
import shutil
import struct
import subprocess
import unittest

import qchain
import qcompare
import qmerge
import qtools

SEED = int(os.environ.get("SEED", "1"))
COUNT = int(os.environ.get("COUNT", "12"))
FAILALLOC = os.path.join(os.path.dirname(qtools.QSTILL), "crash/failalloc.so")


def each_chain(test, check):
    def one(seed, directory):
        chain = qchain.Chain.make(seed, directory)
        return chain, check(chain)
    qmerge.each_seed(test, SEED, COUNT, one)


@unittest.skipIf(qtools.missing(), qtools.missing())
class ReadsAsQemuDoes(unittest.TestCase):
    def test_info_map_and_check_of_random_chains(self):
        def check(chain):
            bad = []
            for f in chain.files():
                bad += qcompare.same_info(f.path, f.fmt)
                bad += qcompare.same_map(f.path, f.fmt, loose_zero=True)
                if f.fmt == "qcow2":
                    bad += qcompare.same_check(f.path)
            return bad
        each_chain(self, check)

    @unittest.skipUnless(os.path.exists(FAILALLOC), "failalloc.so: make it")
    def test_compare_says_different_only_of_what_differs(self):
        """1 is an answer, and never "I cannot tell"."""
        work = qtools.scratch()
        self.addCleanup(shutil.rmtree, work, True)
        a, b = os.path.join(work, "a"), os.path.join(work, "b")
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", a, "1M")
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write 0 64k", a)
        shutil.copy(a, b)
        self.assertEqual(qtools.image("compare", a, b).rc, 0)
        count = os.path.join(work, "count")
        argv = [qtools.QSTILL, "image", "compare", a, b]
        env = dict(qtools.ENV, LD_PRELOAD=FAILALLOC)
        qtools.run(*argv, env=dict(env, FAILALLOC_COUNT=count))
        with open(count) as f:
            total = int(f.read())
        self.assertGreater(total, 10)
        statuses = set()
        for n in range(1, total + 1):
            r = qtools.run(*argv, env=dict(env, FAILALLOC_AT=str(n)))
            self.assertNotEqual(r.rc, 1, "allocation %d\n%s" % (n, r))
            statuses.add(r.rc)
        self.assertIn(11, statuses)
        reader = subprocess.Popen(argv, stdout=subprocess.PIPE, env=qtools.ENV)
        reader.stdout.close()
        self.assertIn(reader.wait(), (0, 11))
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", b)
        self.assertEqual(qtools.image("compare", a, b).rc, 1)

    def test_a_raw_layer_that_ends_within_a_sector(self):
        work = qtools.scratch()
        self.addCleanup(shutil.rmtree, work, True)
        raw, top = os.path.join(work, "raw"), os.path.join(work, "top")
        with open(raw, "wb") as f:
            f.write(random.Random(SEED).randbytes(5000))
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw",
                    "-b", raw, top, "64k")
        self.assertEqual([], qcompare.same_map(raw, "raw"))
        self.assertEqual([], qcompare.same_map(top, "qcow2"))

    def test_info_of_backing_names_with_a_protocol(self):
        work = qtools.scratch()
        self.addCleanup(shutil.rmtree, work, True)
        path = os.path.join(work, "top")
        for name in ("file:low", "nbd://host/x", 'json:{"driver":"qcow2",'
                     '"file":{"driver":"file","filename":"low"}}'):
            with self.subTest(name):
                qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-u",
                            "-F", "qcow2", "-b", name, path, "1M")
                r, want = qtools.qemu_json("info", "--output=json", path)
                got = qtools.image("info", path).json()
                for key in ("backing-filename", "full-backing-filename"):
                    self.assertEqual(want[key], got.get(key))

    def test_info_of_what_is_not_merged(self):
        """Data in another file, encryption: named as qemu-img names them."""
        work = qtools.scratch()
        self.addCleanup(shutil.rmtree, work, True)
        secret = ["--object", "secret,id=s,data=x"]
        for name, before, options in (
                ("data", [], "data_file=%s/d.img" % work),
                ("raw", [], "data_file=%s/r.img,data_file_raw=on" % work),
                ("luks", secret, "encrypt.format=luks,encrypt.key-secret=s,"
                 "encrypt.iter-time=10"),
                ("aes", secret, "encrypt.format=aes,encrypt.key-secret=s")):
            with self.subTest(name):
                path = os.path.join(work, name)
                for _ in range(9):
                    # it measures the host's CPU for LUKS, and may fail to
                    r = qtools.run("qemu-img", "create", "-q", "-f", "qcow2",
                                   *before, "-o", options, path, "4M")
                    if r.rc == 0:
                        break
                self.assertEqual(0, r.rc, str(r))
                self.assertEqual([], qcompare.same_info(path, "qcow2"))
                said = qtools.must(qtools.QSTILL, "image", "info", path).out
                if "data_file" in options:
                    self.assertIn("data file", said)
                    self.assertIn(options.split("=")[1].split(",")[0], said)
                else:
                    self.assertRegex(said, r"encryption +%s\n" % name)

    def luks_image(self, work, *options):
        """An image of 4 MiB, and where its LUKS header begins."""
        path = os.path.join(work, "luks")
        said = ",".join(("encrypt.format=luks", "encrypt.key-secret=s",
                         "encrypt.iter-time=10") + options)
        for _ in range(9):  # as above
            r = qtools.run("qemu-img", "create", "-q", "-f", "qcow2",
                           "--object", "secret,id=s,data=x", "-o", said, path,
                           "4M")
            if r.rc == 0:
                break
        self.assertEqual(0, r.rc, str(r))
        with open(path, "rb") as f:
            head = f.read(65536)
        at = head.index(struct.pack(">II", 0x0537be77, 16)) + 8
        return path, at, struct.unpack(">Q", head[at:at + 8])[0]

    def test_what_a_luks_header_says(self):
        work = qtools.scratch()
        self.addCleanup(shutil.rmtree, work, True)
        for options in (
                (), ("encrypt.cipher-alg=aes-128",),
                ("encrypt.cipher-alg=serpent-256", "encrypt.cipher-mode=cbc",
                 "encrypt.ivgen-alg=essiv", "encrypt.ivgen-hash-alg=sha256",
                 "encrypt.hash-alg=sha512"),
                ("encrypt.cipher-alg=aes-256", "encrypt.cipher-mode=cbc",
                 "encrypt.ivgen-alg=plain", "encrypt.hash-alg=sha1")):
            with self.subTest(options=options):
                path, _, _ = self.luks_image(work, *options)
                self.assertEqual([], qcompare.same_info(path, "qcow2"))
                e = qtools.image("info", path).json()
                e = e["format-specific"]["data"]["encrypt"]
                self.assertEqual(8, len(e["slots"]))
                for o in options:
                    key, value = o.split(".")[1].split("=")
                    self.assertEqual(value, e[key])
                said = qtools.must(qtools.QSTILL, "image", "info", path).out
                self.assertRegex(said, r"cipher +%s\n" % e["cipher-alg"])

    def test_a_damaged_luks_header(self):
        """Shown, or refused, as qemu-img does; a byte of each field, and what
        is just too much."""
        work = qtools.scratch()
        self.addCleanup(shutil.rmtree, work, True)
        path, extension, at = self.luks_image(work)
        with open(path, "rb") as f:
            whole = f.read()
        size = len(whole)
        rng = random.Random(7)

        def be(fmt, *values):
            return struct.pack(">" + fmt, *values)
        cases = [(at + i, be("B", rng.randrange(256)))
                 for i in (0, 5, 6, 7, 8, 40, 43, 44, 72, 78, *range(104, 112),
                           164, 167)]
        for slot in (0, 7):
            p = at + 208 + 48 * slot
            cases += [(p + i, be("B", rng.randrange(256)))
                      for i in (0, 3, 4, 7, 40, 43, 44, 47)]
            cases += [(p, be("I", 0x00ac71f3)), (p, be("I", 0xdead)),
                      (p + 4, be("I", 0)), (p + 40, be("I", 7)),
                      (p + 40, be("I", 8)), (p + 40, be("I", 9)),
                      (p + 44, be("I", 0))]
        cases += [(at + 8, b"a" * 32), (at + 40, b"xts-plain64:sha1\0"),
                  (at + 40, b"cbc-essiv\0"), (at + 40, b"cbc-essiv:sha1\0"),
                  (at + 40, b"x" * 32), (at + 40, b"-:\0"),
                  (at + 72, b"m" * 32),
                  (at + 168, b"u" * 40), (at + 104, be("I", 7)),
                  (at + 104, be("I", 0xffffffff)), (at + 108, be("I", 63)),
                  (at + 108, be("I", 32)), (at + 108, be("I", 48)),
                      (at + 108, be("I", 0)),
                  (at + 108, be("I", 0xffffffff)), (at + 164, be("I", 0)),
                  (extension, be("Q", 0)), (extension, be("Q", size)),
                  (extension, be("Q", at + 512)),
                  (extension, be("Q", size - size % 65536)),
                  (extension, be("Q", 0xffffffffffff0000)),
                  (extension, be("Q", 0x7fffffffffff0000)),
                  (extension + 8, be("Q", 591)), (extension + 8, be("Q", 592)),
                  (extension + 8, be("Q", 0)),
                  (extension + 8, be("Q", 0xffffffffffffffff))]
        refused = 0
        for where, data in cases:
            with self.subTest(at=where - at, data=data):
                with open(path, "wb") as f:
                    f.write(whole[:where] + data + whole[where + len(data):])
                self.assertEqual([], qcompare.same_info(path, "qcow2"))
                r = qtools.image("info", path)
                refused += r.rc != 0
                self.assertIn(r.rc, (0, 3, 6), str(r))
        self.assertGreater(refused, len(cases) // 3)
        # there qemu-img adds up in 32 bits and believes it
        with open(path, "wb") as f:
            f.write(whole[:at + 248] + be("I", 0xffffffff) + whole[at + 252:])
        r = qtools.image("info", path)
        self.assertEqual(r.rc, 3, str(r))
        self.assertIn("a key slot's place", r.err)
        for end in (at, at + 591, at + 592):
            with open(path, "wb") as f:
                f.write(whole[:end])
            self.assertEqual([], qcompare.same_info(path, "qcow2"))

    def test_compare_of_random_chains(self):
        def check(chain):
            rng, top, bad = random.Random(chain.seed), chain.top.path, []
            flat = os.path.join(chain.dir, "flat.img")
            r = qtools.run("qemu-img", "convert", "-O", "raw", "-f",
                           chain.top.fmt, top, flat)
            if r.rc:  # seed 31: QEMU cannot read what it wrote
                return bad
            argv = ["--format", chain.top.fmt, "--format-b", "raw", top, flat]
            r = qtools.image("compare", *argv)
            if r.rc != 0:
                bad.append(str(r))
            size = os.path.getsize(flat)
            at = rng.choice((0, size - 1, rng.randrange(size)))
            with open(flat, "r+b") as f:
                f.seek(at)
                byte = f.read(1)
                f.seek(at)
                f.write(bytes([byte[0] ^ 0x40]))
            r = qtools.image("compare", *argv)
            if r.rc != 1 or r.json().get("offset") != at // 512 * 512:
                bad.append("a changed byte at %d: %s" % (at, r))
            return bad
        each_chain(self, check)


if __name__ == "__main__":
    unittest.main(verbosity=1)
