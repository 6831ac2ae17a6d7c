# SPDX-License-Identifier: MIT
"""A QEMU without a guest: it starts in a tenth of a second, and the test
writes its disks through QEMU itself. For what needs hundreds of rounds."""

import os
import tempfile

from . import image, qemuio
from .vm import VM

PART = 64 << 10  # the test writes and compares parts of this size
PARTS = 8


class Tiny(VM):
    """The same front and back as lib.vm.VM; RAM of 8 MiB with firmware in
    it, no kernel."""

    ticks = False

    def argv(self, paused=False):
        args = [self.qemu, "-name", self.name, "-machine", self.machine,
                "-m", "8M", "-accel", "tcg,tb-size=8", "-nodefaults",
                "-display", "none", "-no-user-config",
                "-chardev", "file,id=ser,append=on,path=" + self.serial.path,
                "-serial", "chardev:ser",
                "-qmp", "unix:%s,server=on,wait=off" % self.qmp,
                "-qmp", "unix:%s,server=on,wait=off" % self.monitor_path]
        args += self._disk_args() + self.extra
        return args + (["-S"] if paused else [])

    def start(self, wait=True, paused=False):
        return super().start(False, paused)

    def wait_up(self, since=0):
        with self.monitor():
            pass

    def io(self, disk, command):
        """A command of qemu-io, on the disk's device: as a guest would."""
        name = disk.id + ("-dev" if self.style == "drive" else "")
        with self.monitor() as m:
            qemuio.run(m, "-d /machine/peripheral/%s/virtio-backend" % name,
                       command)

    def write(self, disk, part, byte):
        self.io(disk, "write -q -P %d %d %d" % (byte, part * PART, PART))
        self.io(disk, "flush")  # others may look at the file now


def content(path, fmt):
    """The first byte of each part; every part must be of one byte."""
    with tempfile.NamedTemporaryFile(dir=ramdisk()) as out:
        image.run("qemu-img", "dd", "-U", "-f", fmt, "-O", "raw", "bs=%d" %
                  PART, "count=%d" % PARTS, "if=" + path, "of=" + out.name)
        data = out.read()
    parts = []
    for at in range(0, len(data), PART):
        part = data[at:at + PART]
        if part != part[:1] * len(part):
            raise AssertionError("part %d of %s is torn" % (at // PART, path))
        parts.append(part[0])
    return parts


def ramdisk():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
