# SPDX-License-Identifier: MIT
"""A real QEMU that costs next to nothing: no firmware runs and no guest, its
disks are written through QEMU's own qemu-io. For everything that the product
asks about disks it is a VM like any other."""

import os
import signal
import subprocess
import time

from lib import qemuio
from lib.qmp import QMP

# How the disks are given: what matters to a merge is whether the first nodes
# have names of their own (QEMU can reopen only those).
STYLES = ("drive", "named", "blockdev")


class Machine:
    def __init__(self, case, qemu, folder, disks, style):
        self.case = case
        self.qemu = qemu
        self.dir = folder
        self.disks = disks  # [(name, path, format)]
        self.style = style
        self.qmp = os.path.join(folder, "qmp.sock")
        self.test = os.path.join(folder, "test.sock")
        self.log = os.path.join(folder, "qemu.out")

    def argv(self):
        args = [self.qemu, "-nodefaults", "-display", "none", "-S",
                "-machine", "microvm" if self.style == "blockdev" else "none",
                "-qmp", "unix:%s,server=on,wait=off" % self.qmp,
                "-qmp", "unix:%s,server=on,wait=off" % self.test]
        for name, path, fmt in self.disks:
            if self.style == "blockdev":
                args += ["-blockdev", "driver=file,node-name=%s-f,filename=%s"
                         % (name, path),
                         "-blockdev", "driver=%s,node-name=%s-n,file=%s-f" % (
                             fmt, name, name),
                         "-device", "virtio-blk-device,id=%s,drive=%s-n" % (
                             name, name)]
            else:
                args += ["-drive", "if=none,id=%s,format=%s,file=%s%s" % (
                    name, fmt, path, ",node-name=%s-n" % name
                    if self.style == "named" else "")]
        return args + (["-m", "16M"] if self.style == "blockdev" else [])

    def start(self):
        with open(self.log, "ab") as log:
            process = subprocess.Popen(self.argv(), stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, cwd=self.dir)
        self.case.track(process.pid)
        with self.monitor() as m:
            m.cmd("cont")

    def monitor(self):
        return QMP(self.test)

    def pids(self):
        found = list(self.case.processes(self.test))
        for pid in found:
            self.case.track(pid)
        return found

    def alive(self):
        return bool(self.pids())

    def cmd(self, name, **args):
        with self.monitor() as m:
            return m.cmd(name, **args)

    def io(self, name, line):
        """One qemu-io command on a disk of the running QEMU."""
        with self.monitor() as m:
            qemuio.run(m, "-d " + name if self.style == "blockdev" else name,
                       line)

    def words(self):
        """All that QEMUs of this VM have printed."""
        text = ""
        for path in (self.log, os.path.join(self.case.store, "vm",
                                            "qemu.log")):
            if os.path.exists(path):
                with open(path, errors="replace") as f:
                    text += f.read()
        return text

    def kill(self):
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.wait_off()

    def quit(self):
        with self.monitor() as m:
            m.send({"execute": "quit"})
            self.wait_off()

    def wait_off(self):
        deadline = time.monotonic() + 20
        while self.alive() or self.case.lingering():
            if time.monotonic() > deadline:
                raise AssertionError("QEMU does not end")
            time.sleep(0.005)
