# SPDX-License-Identifier: MIT
"""Running qstill, qemu-img and qemu-io, and what is known of a file by them.

Nothing here judges: `Result` holds exit code and output, `guest_hash` is what
QEMU reads, `FileState` is what a merge must keep of a surviving file.
Set QSTILL to test another binary, QCOW2_TMP for the scratch directory.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../.."))
QSTILL = os.environ.get("QSTILL", os.path.join(TOP, "build/qstill"))
TIMEOUT = 120
# A representative part, for those who cannot wait: see sample().
SAMPLE = bool(os.environ.get("SAMPLE"))
# The command must not reach for a real store.
ENV = dict(os.environ, LC_ALL="C.UTF-8")


def scratch_root():
    for d in (os.environ.get("QCOW2_TMP"), "/dev/shm", "/tmp"):
        if d and os.path.isdir(d) and os.access(d, os.W_OK):
            return d
    return None


def scratch(prefix="qcow2-"):
    return tempfile.mkdtemp(prefix=prefix, dir=scratch_root())


class Scratch:
    """Of a TestCase: a folder of its own, and the name of a log beside it."""

    def setUp(self):
        self.dir = scratch()
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.log = self.dir + ".log"
        self.addCleanup(lambda: os.path.exists(self.log) and
                        os.unlink(self.log))

    def path(self, name):
        return os.path.join(self.dir, name)


def sample(choices, name, n=1):
    """All of the choices; with SAMPLE=1 n of them, which depend on the name,
    so that many tests together take each."""
    choices = list(choices)
    if not SAMPLE or len(choices) <= n:
        return choices
    at = int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(choices)
    return (choices[at:] + choices[:at])[:n]


def missing(*tools):
    """The reason to skip, or None."""
    if not os.access(QSTILL, os.X_OK):
        return "%s is not built" % QSTILL
    for t in tools or ("qemu-img", "qemu-io"):
        if not shutil.which(t):
            return "%s is not installed" % t
    return None


def as_nobody(*argv):
    """The command as another user, who may not look into the folder of the
    checkout (/root is closed to others): from a copy."""
    d = tempfile.mkdtemp(prefix="qcow2-nobody-")
    try:
        os.chmod(d, 0o755)
        program = shutil.copy(QSTILL, d)
        return subprocess.run([program, *argv], user=65534, group=65534,
                              extra_groups=[], capture_output=True, text=True,
                              cwd=d)
    finally:
        shutil.rmtree(d, True)


class Result:
    def __init__(self, argv, rc, out, err):
        self.argv, self.rc, self.out, self.err = argv, rc, out, err

    def json(self):
        return json.loads(self.out)

    def __str__(self):
        return "$ %s\nexit %d\n%s%s" % (" ".join(map(str, self.argv)), self.rc,
                                        self.out[-3000:], self.err[-3000:])


def run(*argv, timeout=TIMEOUT, cwd=None, env=None):
    argv = [os.fspath(a) if not isinstance(a, str) else a for a in argv]
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True,
                       timeout=timeout, cwd=cwd, env=env or ENV)
    return Result(argv, p.returncode, p.stdout.decode("utf-8", "replace"),
                  p.stderr.decode("utf-8", "replace"))


def run_measured(*argv, timeout=TIMEOUT):
    """As run(), with .seconds and .rss_kib (the peak) in the result. A command
    that outlives `timeout` is killed: its rc is then -9."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out,
                             stderr=err, env=ENV)
        timer = threading.Timer(timeout, p.kill)
        timer.start()
        _, status, usage = os.wait4(p.pid, 0)
        timer.cancel()
        p.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for f in (out, err):
            f.seek(0)
            texts.append(f.read().decode("utf-8", "replace"))
    r = Result(argv, p.returncode, *texts)
    r.seconds, r.rss_kib = time.monotonic() - start, usage.ru_maxrss
    return r


def must(*argv, **kw):
    r = run(*argv, **kw)
    if r.rc:
        raise RuntimeError(str(r))
    return r


def qstill(*argv, **kw):
    return run(QSTILL, *argv, **kw)


def loop_mount(test, fs, *mkfs):
    """(directory, device's name) of a new filesystem, gone when the test is."""
    if not shutil.which(mkfs[0]):
        test.skipTest("%s is not installed" % mkfs[0])
    root = scratch()
    path, mount = os.path.join(root, "fs.img"), os.path.join(root, "m")

    def undo():
        run("umount", mount)
        for line in run("losetup", "-j", path).out.splitlines():
            run("losetup", "-d", line.split(":")[0])
        shutil.rmtree(root, True)
    test.addCleanup(undo)
    os.makedirs(mount)
    with open(path, "wb") as f:
        f.truncate(1 << 30)
    must(*mkfs, path)
    device = must("losetup", "--find", "--show", path).out.strip()
    r = run("mount", "-t", fs, device, mount)
    if r.rc:
        test.skipTest("cannot mount %s: %s" % (fs, r.err))
    return mount, os.path.basename(device)


def image(verb, *argv, **kw):
    """`qstill --json image VERB ...`"""
    return run(QSTILL, "--json", "image", verb, *argv, **kw)


# ---------------------------------------------------------------- contents

class Stopped:
    """`qstill image ARGV` under strace, standing at its n-th such call with the
    file (None: with any); it goes on behind the `with`, and then has a
    result."""

    class NoSuchCall(AssertionError):
        pass

    def __init__(self, log, path, call, number, *argv):
        if os.path.exists(log):
            os.unlink(log)
        self.process = subprocess.Popen(
            ["strace", "-f", "-o", log, "-e", "trace=" + call,
             *(("-P", path) if path else ()), "-e", "inject=%s:signal=STOP:when=%d" % (call, number), QSTILL,
             "--json", "image", *argv], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.pid, until = None, time.monotonic() + 30
        while not self.pid and self.process.poll() is None and \
                time.monotonic() < until:
            if os.path.exists(log):
                with open(log, encoding="utf-8", errors="replace") as f:
                    m = re.search(r"^(\d+) .*stopped by SIGSTOP", f.read(),
                                  re.M)
                self.pid = m and int(m[1])
            time.sleep(0.02)

    def __enter__(self):
        if not self.pid:
            self.process.kill()
            self.process.communicate()
            raise self.NoSuchCall("it did not come to where it was to "
                                  "stop")
        return self

    def __exit__(self, *_):
        """Each of its threads may come to an n-th call."""
        until = time.monotonic() + 60
        while True:
            if self.pid:
                os.kill(self.pid, signal.SIGCONT)
            try:
                out, err = self.process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > until:
                    raise
        self.result = Result(self.process.args, self.process.returncode, out,
                             err)


def file_hash(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def guest_bytes(path, fmt, snapshot=None, cwd=None):
    """The whole guest view as QEMU reads it."""
    fd, out = tempfile.mkstemp(dir=scratch_root(), prefix="view-")
    os.close(fd)
    try:
        argv = ["qemu-img", "convert", "-U", "-f", fmt, "-O", "raw"]
        if snapshot is not None:
            argv = ["qemu-img", "convert", "-f", fmt, "-O", "raw",
                    "-l", "snapshot.id=%s" % snapshot]
        must(*argv, path, out, cwd=cwd)
        with open(out, "rb") as f:
            return f.read()
    finally:
        os.unlink(out)


def guest_hash(path, fmt, snapshot=None):
    return hashlib.sha256(guest_bytes(path, fmt, snapshot)).hexdigest()


def qemu_json(*argv):
    r = run("qemu-img", *argv)
    return r, (json.loads(r.out) if r.out.strip().startswith(("{", "["))
               else None)


def qemu_check(path, fmt="qcow2"):
    """(corruptions, leaks, errors) of `qemu-img check`."""
    r, j = qemu_json("check", "--output=json", "-f", fmt, path)
    if j is None:
        return None
    return (j.get("corruptions", 0), j.get("leaks", 0),
            j.get("check-errors", 0))


def forget_snapshots(path):
    """As if killed right before the header that `qemu-img snapshot -c` writes
    last: all the guest's clusters have a refcount of 2, none is COPIED. False
    where there can be no snapshot."""
    if run("qemu-img", "snapshot", "-c", "s", path).rc:
        return False
    with open(path, "r+b") as f:
        f.seek(60)
        f.write(bytes(12))
    return True


def xattrs(path):
    out = {}
    try:
        for n in os.listxattr(path, follow_symlinks=False):
            out[n] = os.getxattr(path, n, follow_symlinks=False)
    except OSError:
        pass
    return out


# By the letters of chattr: A c d j m s S t u x.
FS_IOC_GETFLAGS = 0x80086601
KEPT_FLAGS = (0x80 | 0x4 | 0x40 | 0x4000 | 0x400 | 0x1 | 0x8 | 0x8000 | 0x2 |
              0x2000000)


def flags(path):
    """Those that say how a file is kept; 0 where there are none."""
    raw = bytearray(8)
    try:
        with open(path, "rb") as f:
            fcntl.ioctl(f, FS_IOC_GETFLAGS, raw)
    except OSError:
        return 0
    return int.from_bytes(raw[:4], sys.byteorder) & KEPT_FLAGS


class Unreadable(RuntimeError):
    """QEMU cannot read what QEMU wrote: seen after `write -c` and `write -z
    -u` in one qemu-io 7.2 (seed 31). Such a chain proves nothing."""


class FileState:
    """What must survive a merge of this file, if the file survives."""

    def __init__(self, path, fmt):
        import qimage
        self.path, self.fmt = path, fmt
        st = os.lstat(path)
        self.owner, self.mode = (st.st_uid, st.st_gid), st.st_mode
        self.xattrs, self.flags = xattrs(path), flags(path)
        self.bytes = file_hash(path)
        try:
            self.view = guest_hash(path, fmt)
        except RuntimeError as e:
            raise Unreadable(str(e))
        self.size, self.snapshots, self.bitmaps = None, {}, {}
        self.allocated = []
        if fmt == "raw":
            self.size = st.st_size
            return
        img = qimage.Image(path)
        self.size = img.size // 512 * 512
        self.allocated = img.allocated_ranges()
        for s in img.snapshots():
            sid = s.id.decode()
            self.snapshots[sid] = (s.name, guest_hash(path, fmt, sid))
        for b in img.bitmaps():
            self.bitmaps[b.name] = (b.in_use, img.bitmap_ranges(b))


def covers(ranges, want):
    """Whether every byte of `want` lies in the merged sorted `ranges`."""
    for start, end in want:
        if not any(a <= start and end <= b for a, b in ranges):
            return False
    return True
