# SPDX-License-Identifier: MIT
"""Images, seen through qemu-img: never through the product."""

import hashlib
import json
import os
import re
import subprocess
import tempfile

from . import guest


def run(*argv):
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       text=True, timeout=120)
    if p.returncode != 0:
        raise AssertionError("%s: %s" % (" ".join(argv), p.stderr.strip()))
    return p.stdout


def create(path, fmt="qcow2", size=32 << 20, pattern=True):
    """A new image; with `pattern`, bytes of known content behind what the
    guest writes, so that a base has something to lose."""
    run("qemu-img", "create", "-q", "-f", fmt, path, str(size))
    if pattern:
        # The first bytes too: a raw image must not look like anything else.
        run("qemu-io", "-f", fmt, "-c", "write -q -P 0x5a 8M 1M",
            "-c", "write -q -P 0xa5 12345k 77k",
            "-c", "write -q -P 0x20 0 512", path)
    return path


def info(path, fmt=None, chain=False):
    argv = ["qemu-img", "info", "-U", "--output=json"]
    if chain:
        argv.append("--backing-chain")
    if fmt:
        argv += ["-f", fmt]
    return json.loads(run(*argv, path))


def chain(path):
    """The paths of the files of an image's chain, top first."""
    base = os.path.dirname(os.path.abspath(path))
    return [os.path.normpath(os.path.join(base, i["filename"]))
            for i in info(path, chain=True)]


def read(path, fmt, offset, length):
    """Guest-visible bytes; also of an image that a QEMU has open."""
    with tempfile.NamedTemporaryFile(prefix="qstill-read-") as out:
        run("qemu-img", "convert", "-U", "--image-opts",
            "driver=raw,offset=%d,size=%d,file.driver=%s,file.file.driver=file,"
            "file.file.filename=%s" % (offset, length, fmt, path),
            "-O", "raw", out.name)
        data = out.read()
    return data + bytes(length - len(data))


def digest(path, fmt):
    """A sum of the guest-visible content."""
    with tempfile.NamedTemporaryFile(prefix="qstill-sum-") as out:
        run("qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", path, out.name)
        h = hashlib.sha256()
        while True:
            data = out.read(1 << 20)
            if not data:
                return h.hexdigest()
            h.update(data)


def file_digest(path):
    """A sum of the file's own bytes: for "was never written"."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for data in iter(lambda: f.read(1 << 20), b""):
            h.update(data)
    return h.hexdigest()


def tick(path, fmt):
    """The tick that the disk holds; 0 for none."""
    m = re.match(rb"tick (\d+) ", read(path, fmt, 0, guest.SECTOR))
    return int(m.group(1)) if m else 0


def ring(path, fmt, nonce):
    """The count that the SYNC thread's ring on the disk holds."""
    raw = read(path, fmt, guest.RING_OFFSET, guest.RING_SLOTS * guest.SECTOR)
    return guest.ring_count(raw, nonce)


def check(path, fmt="qcow2"):
    run("qemu-img", "check", "-q", "-U", "-f", fmt, path)


def behind_a_link(folder, *names):
    """NAME.qcow2 of each becomes NAME/golden.qcow2. Returns the link
    FOLDER/current and what leads it to one of the names."""
    link = os.path.join(folder, "current")
    for name in names:
        os.mkdir(os.path.join(folder, name))
        os.rename(os.path.join(folder, name + ".qcow2"),
                  os.path.join(folder, name, "golden.qcow2"))

    def lead_to(name):
        if os.path.islink(link):
            os.unlink(link)
        os.symlink(name, link)
    return link, lead_to
