#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Flattens of random chains and of known ones: the new image reads as the top
did, by QEMU, and the chain is not touched.

COUNT (default 8) chains from SEED (default 1) on.
"""

import glob
import os
import random
import shutil
import signal
import struct
import subprocess
import time
import unittest

import qchain
import qmerge
import qtools

SEED = int(os.environ.get("SEED", "1"))
COUNT = int(os.environ.get("COUNT", "8"))


def one_flatten(seed, directory):
    chain = qchain.Chain.make(seed, directory)
    rng = random.Random("flatten %d" % seed)
    before = {f.path: qtools.file_hash(f.path) for f in chain.files()}
    fmt = rng.choice(("qcow2", "qcow2", "raw"))
    argv = ["--format", fmt]
    if fmt == "qcow2" and rng.random() < 0.4:
        argv.append("--compress")
    out = os.path.join(directory, "flat." + fmt)
    view = qtools.FileState(chain.top.path, chain.top.fmt).view
    r = qtools.image("flatten", chain.top.path, out, *argv)
    if r.rc:
        return chain, [str(r)]
    bad = ["%s was changed" % p for p, h in before.items()
           if qtools.file_hash(p) != h]
    if qtools.guest_hash(out, fmt) != view:
        bad.append("flattened content differs (%s)" % argv)
    if fmt == "qcow2":
        check = qtools.qemu_check(out)
        if check != (0, 0, 0):
            bad.append("flattened image: qemu-img check says %r" % (check,))
        _, info = qtools.qemu_json("info", "--output=json", out)
        if "backing-filename" in info:
            bad.append("the flattened image has a backing file")
    again = qtools.image("flatten", chain.top.path, out, *argv)
    if again.rc != 5:
        bad.append("over an existing file: %s" % again)
    return chain, bad


@unittest.skipIf(qtools.missing(), qtools.missing())
class FlattensLoseNothing(unittest.TestCase):
    def test_random_flattens(self):
        qmerge.each_seed(self, SEED, COUNT, one_flatten)



KIB, MIB = 1024, 1 << 20

# The owner rw, one user r, the group nothing, all others r: a mode of 0644.
ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 2, 4, 65534,
                  4, 0, 2**32 - 1, 16, 4, 2**32 - 1, 32, 4, 2**32 - 1)
FOLDER_ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 7, 2**32 - 1, 2, 0, 65534,
                         4, 5, 2**32 - 1, 16, 5, 2**32 - 1, 32, 5, 2**32 - 1)


@unittest.skipIf(qtools.missing(), qtools.missing())
class FlattenCase(unittest.TestCase):
    def setUp(self):
        self.dir = qtools.scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def create(self, name, size, *io, backing=None, fmt="qcow2", options=""):
        argv = ["qemu-img", "create", "-q", "-f", fmt]
        if options:
            argv += ["-o", options]
        if backing:
            argv += ["-b", backing[0], "-F", backing[1]]
        qtools.must(*argv, self.path(name), str(size))
        if io:
            argv = ["qemu-io", "-f", fmt]
            for c in io:
                argv += ["-c", c]
            r = qtools.must(*argv, self.path(name))
            self.assertNotIn("failed", r.out + r.err)
        return self.path(name)

    def flatten(self, top, out, *argv, rc=0):
        r = qtools.image("flatten", top, self.path(out), *argv)
        self.assertEqual(r.rc, rc, str(r))
        return r

    def same(self, top, out, fmt="qcow2", top_fmt="qcow2"):
        sizes = [qtools.qemu_json("info", "--output=json", "-f", f, p)[1][
            "virtual-size"] for f, p in ((top_fmt, top), (fmt, self.path(out)))]
        self.assertEqual(sizes[0], sizes[1])
        qtools.must("qemu-img", "compare", "-f", top_fmt, "-F", fmt, top,
                    self.path(out))
        if fmt == "qcow2":
            self.assertEqual(qtools.qemu_check(self.path(out)), (0, 0, 0))

    def noise(self, size):
        """A file of bytes that cannot be compressed."""
        path = self.path("noise.%d" % size)
        with open(path, "wb") as f:
            f.write(random.Random(size).randbytes(size))
        return path


class FlattenIsRight(FlattenCase):
    def test_clusters_that_are_holes_of_the_file(self):
        """Whole ones, parts of some, below a layer that cuts them."""
        for i, (options, most) in enumerate((
                ("cluster_size=512", 17), ("cluster_size=4k", 5),
                ("cluster_size=64k", 6), ("cluster_size=2M", 17),
                ("cluster_size=16k,extended_l2=on", 5))):
            with self.subTest(options):
                rng = random.Random(i)
                writes = [["write -q -P %d %d %d" % (
                    rng.randrange(1, 256), rng.randrange(0, 15 * MIB),
                    rng.choice((512, 4096, 20000, 200000)))
                    for _ in range(12)] for _ in range(2)]
                base = self.create("b%d" % i, 16 * MIB + 512, *writes[0],
                                   options="preallocation=metadata," + options)
                top = self.create("t%d" % i, 16 * MIB + 512, *writes[1],
                                  backing=(base, "qcow2"))
                for image in (base, top):
                    for fmt in ("qcow2", "raw"):
                        r = self.flatten(image, "o", "--format", fmt).json()
                        self.assertLess(r["bytesMoved"], most * MIB)
                        self.same(image, "o", fmt)
                        r = qtools.image("compare", image, self.path("o"),
                                         "--format-b", fmt)
                        self.assertEqual(r.rc, 0, str(r))
                        os.unlink(self.path("o"))
                os.unlink(top)

    def test_all_cluster_sizes_plain_and_compressed(self):
        noise = self.noise(MIB)
        for bits in range(9, 22):
            with self.subTest(cluster=1 << bits):
                base = self.create(
                    "base%d" % bits, 7 * MIB + 512,
                    "write -q -s %s 0 700k" % noise, "write -q -P 5 2M 1M",
                    "write -q -c -P 6 4M %d" % (1 << bits),
                    options="cluster_size=%d" % (1 << bits))
                top = self.create(
                    "top%d" % bits, 8 * MIB, "write -q -z -u 2M 64k",
                    "write -q -P 9 2500k 5k", "write -q -P 8 7500k 700",
                    options="cluster_size=%d" % (1 << bits),
                    backing=(os.path.basename(base), "qcow2"))
                for argv in ((), ("--compress",)):
                    out = "out%d%s" % (bits, "".join(argv))
                    self.flatten(top, out, *argv)
                    self.same(top, out)
                    info = qtools.qemu_json("info", "--output=json",
                                            self.path(out))[1]
                    self.assertEqual(info["cluster-size"], 1 << bits)
                    self.assertEqual(info["format-specific"]["data"]["compat"],
                                     "1.1")

    def test_short_middle_layer_reads_as_zeros_behind_its_end(self):
        self.create("b", 2 * MIB, "write -q -P 1 0 2M")
        self.create("m", MIB + 512, "write -q -P 2 0 64k",
                    backing=("b", "qcow2"))
        top = self.create("t", 3 * MIB, "write -q -P 3 2500k 1k",
                          backing=("m", "qcow2"))
        for fmt in ("qcow2", "raw"):
            self.flatten(top, "o." + fmt, "--format", fmt)
            self.same(top, "o." + fmt, fmt)
        self.assertEqual(os.stat(self.path("o.raw")).st_size, 3 * MIB)

    def test_raw_to_qcow2_and_a_raw_disk_that_looks_like_qcow2(self):
        raw = self.create("r", 3 * MIB, "write -q -P 4 1M 300k", fmt="raw")
        self.flatten(raw, "o")
        self.same(raw, "o", top_fmt="raw")
        fake = self.create("q", 64 * KIB)
        shutil.copy(fake, self.path("fake.raw"))
        self.flatten(self.path("fake.raw"), "f", "--top-format", "raw")
        self.same(self.path("fake.raw"), "f", top_fmt="raw")

    def test_zeros_take_no_room(self):
        """Zero flags, holes, and zeros that were written as data."""
        zeros = self.path("zeros")
        with open(zeros, "wb") as f:
            f.truncate(MIB)
        self.create("b", 64 * MIB, "write -q -s %s 0 1M" % zeros,
                    "write -q -P 1 8M 8M", "write -q -s %s 9M 1M" % zeros)
        top = self.create("t", 64 * MIB, "write -q -z -u 12M 4M",
                          backing=("b", "qcow2"))
        for fmt in ("qcow2", "raw"):
            self.flatten(top, "o." + fmt, "--format", fmt)
            self.same(top, "o." + fmt, fmt)
            used = os.stat(self.path("o." + fmt)).st_blocks * 512
            self.assertLess(used, 3 * MIB + 600 * KIB)
            self.assertGreaterEqual(used, 3 * MIB)

    def packed(self, path):
        return qtools.qemu_json("check", "--output=json", path)[1].get(
            "compressed-clusters", 0)

    def test_compressed_clusters_are_taken_over_as_they_are(self):
        """What cannot be compressed anew in the same bytes is still there:
        QEMU's own stream of a cluster, found in the new file."""
        for kind in ("zlib", "zstd"):
            with self.subTest(kind=kind):
                opts = "compression_type=" + kind
                base = self.create("b" + kind, 4 * MIB,
                                   "write -q -c -P 65 1M 64k", options=opts)
                top = self.create("t" + kind, 4 * MIB, "write -q -P 66 2M 64k",
                                  options=opts,
                                  backing=("b" + kind, "qcow2"))
                extent = [e for e in qtools.qemu_json(
                    "map", "--output=json", base)[1] if e["data"]]
                self.assertEqual(len(extent), 1)
                self.flatten(top, "o" + kind, "--compress")
                self.same(top, "o" + kind)
                self.assertEqual(self.packed(self.path("o" + kind)), 2)
                info = qtools.qemu_json("info", "--output=json",
                                        self.path("o" + kind))[1]
                self.assertEqual(
                    info["format-specific"]["data"]["compression-type"], kind)

    def test_damage_in_a_compressed_cluster_is_not_hidden_by_inflating(self):
        """The cluster is damaged: without --compress it cannot be read, and
        no file is made."""
        top = self.create("t", 4 * MIB, "write -q -c -P 65 1M 64k")
        with open(top, "r+b") as f:
            f.seek(5 * 64 * KIB)  # behind header, refcounts, L1 and L2
            self.assertNotEqual(f.read(16), bytes(16))
            f.seek(5 * 64 * KIB)
            f.write(b"\xff" * 64)
        self.assertNotEqual(qtools.run("qemu-img", "convert", "-O", "raw", top,
                                       self.path("x")).rc, 0)
        self.flatten(top, "o", rc=3)
        self.assertFalse(os.path.exists(self.path("o")))

    def test_many_refusals_leave_no_file(self):
        top = self.create("t", MIB)
        self.flatten(self.path("none"), "o", rc=4)
        self.flatten(top, "no/such/dir", rc=4)
        self.flatten(top, "o", "--format", "raw", "--compress", rc=2)
        self.flatten(top, "t", rc=5)
        os.symlink("t", self.path("link"))
        self.flatten(top, "link", rc=5)
        self.assertEqual(sorted(os.listdir(self.dir)), ["link", "t"])

    @unittest.skipUnless(os.geteuid() == 0, "needs root to mount")
    def test_what_is_stored_where_the_file_was_allotted_more(self):
        """XFS does so ahead of a file that grows, until it is closed."""
        mount, _ = qtools.loop_mount(self, "xfs", "mkfs.xfs", "-q")
        low, out = self.path("low"), os.path.join(mount, "out")
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", low, "100M")
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 100M",
                    low)
        r = qtools.image("flatten", low, out)
        self.assertEqual(r.rc, 0, str(r))
        os.sync()
        self.assertEqual(r.json()["bytesStored"],
                         512 * os.stat(out).st_blocks)

    def test_dry_run_and_json(self):
        top = self.create("t", MIB, "write -q -P 1 0 128k")
        r = self.flatten(top, "o", "--dry-run").json()
        self.assertEqual(r["bytesMoved"], 128 * KIB)
        self.assertIn("1 layer, 131072 bytes of data", r["plan"][0])
        self.assertEqual(os.listdir(self.dir), ["t"])
        r = self.flatten(top, "o").json()
        self.assertEqual(r["bytesMoved"], 128 * KIB)
        self.assertGreaterEqual(r["bytesStored"], 128 * KIB)

    def test_a_qemu_that_writes_the_top_makes_it_busy(self):
        top = self.create("t", MIB)
        p = subprocess.Popen(["qemu-io", "-f", "qcow2", top],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            p.stdin.write(b"length\n")  # it answers when the image is open
            p.stdin.flush()
            self.assertIn(b"1 MiB", p.stdout.readline())
            r = self.flatten(top, "o", rc=5)
            self.assertIn("another process writes to it", r.err)
        finally:
            p.stdin.close()
            p.stdout.close()
            p.wait()
        self.flatten(top, "o")

    def test_the_result_has_the_mode_of_the_top(self):
        top = self.create("t", MIB)
        os.chmod(top, 0o640)
        self.flatten(top, "o")
        self.assertEqual(os.stat(self.path("o")).st_mode & 0o777, 0o640)

    def test_the_result_shows_nobody_what_he_may_not_read(self):
        """Whoever makes an image names its backing file by himself."""
        base, mid = self.path("base"), self.create("mid", MIB)
        with open(base, "wb") as f:
            f.write(b"secret" * 1000)
        qtools.must("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", base,
                    "-F", "raw", mid)
        qtools.must("qemu-img", "create", "-q", "-f", "qcow2", "-b", mid, "-F",
                    "qcow2", self.path("t"))
        out = self.path("o")
        for modes, want, acl, fmt in (
                ((0o644, 0o644, 0o600), 0o600, None, "raw"),
                ((0o666, 0o600, 0o644), 0o600, None, "qcow2"),
                ((0o664, 0o640, 0o644), 0o660, None, "raw"),
                ((0o644, 0o644, 0o604), 0o604, None, "raw"),
                ((0o664, 0o444, 0o444), 0o664, None, "raw"),
                ((0o644, 0o644, 0o644), 0o600, ACL, "raw")):
            for name, mode in zip(("t", "mid", "base"), modes):
                os.chmod(self.path(name), mode)
            if acl:
                os.setxattr(base, "system.posix_acl_access", acl)
            with self.subTest(modes=[oct(m) for m in modes], acl=acl):
                r = self.flatten(self.path("t"), "o", "--format", fmt)
                self.assertEqual(oct(os.stat(out).st_mode & 0o777), oct(want))
                self.assertEqual("neither may they read" in r.err,
                                 want != modes[0], str(r))
            os.unlink(out)

    def test_a_folder_that_others_may_not_search(self):
        """Its files have modes that look as if anybody might read them."""
        folder = self.path("folder")
        os.makedirs(folder + "/inner")
        for name in ("", "inner/"):
            base = self.create("folder/%sbase" % name, MIB)
            os.chmod(base, 0o644)
            top = self.create("t", MIB, backing=(base, "qcow2"))
            os.chmod(top, 0o644)
            for mode, out, want, acl in (
                    (0o755, "o", 0o644, None), (0o711, "o", 0o644, None),
                    (0o700, "o", 0o600, None), (0o710, "o", 0o640, None),
                    (0o700, "folder/o", 0o644, None),
                    (0o755, "o", 0o600, FOLDER_ACL)):
                os.chmod(folder, mode)
                if acl:
                    os.setxattr(folder, "system.posix_acl_access", acl)
                with self.subTest(mode=oct(mode), out=out, acl=acl):
                    r = self.flatten(top, out)
                    self.assertEqual(oct(os.stat(self.path(out)).st_mode &
                                         0o777), oct(want))
                    self.assertEqual("neither may they read" in r.err,
                                     want != 0o644, str(r))
                os.unlink(self.path(out))
            os.removexattr(folder, "system.posix_acl_access")
            os.unlink(top)

    def test_a_top_in_the_folder_of_its_backing_file(self):
        """It was named to us, and is as readable as that."""
        os.mkdir(self.path("folder"), 0o700)
        base = self.create("folder/base", MIB)
        top = self.create("folder/t", MIB, backing=(base, "qcow2"))
        os.chmod(base, 0o644)
        os.chmod(top, 0o644)
        self.flatten(top, "o")
        self.assertEqual(oct(os.stat(self.path("o")).st_mode & 0o777), "0o644")

    def test_a_folder_that_lets_somebody_read_what_is_made_in_it(self):
        top, folder = self.create("t", MIB), self.path("folder")
        os.chmod(top, 0o640)
        os.mkdir(folder)
        os.setxattr(folder, "system.posix_acl_default", ACL)
        self.flatten(top, "folder/o")
        out = self.path("folder/o")
        self.assertEqual(oct(os.stat(out).st_mode & 0o777), "0o640")
        self.assertNotIn("system.posix_acl_access", os.listxattr(out))

    @unittest.skipUnless(os.geteuid() == 0, "needs root for another's file")
    def test_the_result_is_for_another_group_than_the_files(self):
        top = self.create("t", MIB)
        os.chown(top, 65534, 65534)
        for mode, want in ((0o640, 0o600), (0o644, 0o644), (0o604, 0o600)):
            os.chmod(top, mode)
            self.flatten(top, "o")
            self.assertEqual(oct(os.stat(self.path("o")).st_mode & 0o777),
                             oct(want), oct(mode))
            os.unlink(self.path("o"))


class FlattenIsCutShort(FlattenCase):
    def start(self, top, out, *argv):
        return subprocess.Popen(
            [qtools.QSTILL, "--json", "image", "flatten", top, self.path(out),
             *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=qtools.ENV)

    def wait_for(self, name, p):
        for _ in range(1000):
            if glob.glob(self.path(name)):
                return
            self.assertIsNone(p.poll())
            time.sleep(0.01)
        self.fail("%s never came" % name)

    def test_sigint_and_a_limit_on_the_bytes(self):
        top = self.create("t", 64 * MIB, "write -q -P 1 0 64M")
        for argv in ((), ("--compress",), ("--format", "raw")):
            with self.subTest(argv=argv):
                p = self.start(top, "o", "--bwlimit", "4M", *argv)
                self.wait_for(".o.*.flatten", p)
                time.sleep(0.5)
                self.assertIsNone(p.poll(), "4 MiB/s made no difference")
                start = time.monotonic()
                p.send_signal(signal.SIGINT)
                out, err = p.communicate(timeout=60)
                self.assertEqual(p.returncode, 10, out + err)
                self.assertLess(time.monotonic() - start, 5)
                self.assertEqual(os.listdir(self.dir), ["t"])

    def test_killed_and_done_again(self):
        """What was left goes; what only looks like it is somebody's."""
        top = self.create("t", 64 * MIB, "write -q -P 1 0 64M")
        others = {".o.flatten", ".o.0123.flatten", ".o2.0123456789abcdef"
                  ".flatten", "o.0123456789abcdef.flatten"}
        for name in others:
            with open(self.path(name), "w") as f:
                f.write("precious")
        p = self.start(top, "o", "--bwlimit", "4M")
        self.wait_for(".o." + 16 * "?" + ".flatten", p)
        second = qtools.image("flatten", top, self.path("o"))
        self.assertEqual(second.rc, 5, "two at once: %s" % second)
        p.kill()
        p.communicate()
        self.assertFalse(os.path.exists(self.path("o")))
        self.flatten(top, "o")
        self.same(top, "o")
        self.assertEqual(set(os.listdir(self.dir)), {"o", "t"} | others)

    @unittest.skipUnless(os.geteuid() == 0, "needs root for a mount")
    def test_full_filesystem(self):
        top = self.create("t", 8 * MIB, "write -q -P 1 0 4M")
        mount = self.path("small")
        os.makedirs(mount)
        qtools.must("mount", "-t", "tmpfs", "-o", "size=2m", "none", mount)
        try:
            for argv in ((), ("--format", "raw")):
                r = self.flatten(top, "small/o", *argv, rc=7)
                self.assertIn("space", r.err)
                self.assertEqual(os.listdir(mount), [])
            self.flatten(top, "small/o", "--compress")
            self.same(top, "small/o")
        finally:
            qtools.must("umount", mount)


if __name__ == "__main__":
    unittest.main(verbosity=1)
