# SPDX-License-Identifier: MIT
"""A command whose reads take long, to be stopped in the middle of them."""

import os
import re
import struct
import subprocess
import time


def l2_table(path):
    """Where the first one of an image is."""
    with open(path, "rb") as f:
        f.seek(40)
        at, = struct.unpack(">Q", f.read(8))
        f.seek(at)
        return struct.unpack(">Q", f.read(8))[0] & 0x00FFFFFFFFFFFE00


class Slowed:
    """Under strace: without io_uring, and each of its reads takes a while."""

    READ = re.compile(r"^(\d+) +pread64\(\d+<(.*?)>, .*, (\d+), (\d+)\)", re.M)

    def __init__(self, log, ms, *argv):
        self.log = log
        self.process = subprocess.Popen(
            ["strace", "-f", "-b", "execve", "-y", "-s", "0", "-o", log, "-e",
             "trace=pread64,io_uring_setup", "-e",
             "inject=io_uring_setup:error=EPERM", "-e",
             "inject=pread64:delay_enter=%d" % (1000 * ms), *argv],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    def _lines(self):
        if not os.path.exists(self.log):
            return []
        with open(self.log) as f:
            return self.READ.findall(f.read())

    def reads(self):
        """Those that are over: (path, bytes, offset)."""
        return [(path, int(n), int(at)) for _, path, n, at in self._lines()]

    def wait(self, wanted):
        """Until there is a read like that."""
        until = time.monotonic() + 60
        while not any(wanted(*r) for r in self.reads()):
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                out, err = self.process.communicate()
                raise AssertionError("no such read: %s%s" % (out, err))
            time.sleep(0.005)

    def end(self, number):
        """By a signal: exit code, stdout, stderr; .seconds that it took."""
        start = time.monotonic()
        os.kill(int(self._lines()[0][0]), number)
        out, err = self.process.communicate(timeout=60)
        self.seconds = time.monotonic() - start
        return self.process.returncode, out, err
