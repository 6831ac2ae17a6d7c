# SPDX-License-Identifier: MIT
"""A QEMU with the test guest in it, started in the ways that people do."""

import json
import os
import re
import signal
import subprocess
import time

from . import image
from .guest import TICK, Serial, Tick
from .qmp import QMP, Agent

# What a boot under TCG can do without.
# no_timer_check: on a busy host the kernel may see no tick of the timer in the
# time that it waits, and panics.
BOOT_FAST = "cryptomgr.notests mitigations=off nokaslr no_timer_check"
MEMORY_MIB = 96  # what the guest needs; what JUNK takes is added


class Disk:
    """A disk of the VM: `id` is the device's, `path` the image as first
    attached. bus: virtio or scsi. Without `fmt` known to QEMU's writers (vdi),
    pattern must be False."""

    def __init__(self, id, path, fmt="qcow2", size=32 << 20, bus="virtio",
                 pattern=True, fs=False, make=True, options="", front=""):
        self.id = id
        self.options = options  # more of -drive, of the format's -blockdev
        self.front = front      # more of -device
        self.fmt = fmt
        self.path = path
        self.bus = bus
        self.fs = fs
        if make:
            image.create(path, fmt, size, pattern and not fs)
        if fs:
            subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)


def file_name(name):
    """The image's own file: of a chain whose nodes were opened one by one,
    QEMU tells the whole chain as "json:"."""
    if not name.startswith("json:"):
        return name
    node = json.loads(name[5:])
    while "filename" not in node:
        node = node["file"]
    return node["filename"]


class VM:
    """Two monitors: `qmp` for the product, and one for the tests, so that
    neither takes the other's only client slot.

    style   drive: -drive if=none,id=ID plus -device;  if: -drive if=virtio
            (QEMU names the device);  blockdev: -blockdev nodes plus -device;
            throttle: the same in one -blockdev, with limits as a node on top
    memory  default, ram, memfd, file, hugetlb (a memfd of huge pages): the
            backend of the guest's RAM; backend: what `backend` says; none: all
            of it is in `extra`
    """

    ticks = True  # a guest runs in it that says so

    def __init__(self, case, qemu, guest_dir, folder, name="vm", disks=(),
                 style="drive", memory="default", machine="pc", smp=1,
                 append="", agent=False, extra=(), accel="tcg", cpu="max",
                 backend=""):
        self.case = case
        self.qemu = qemu
        self.guest_dir = guest_dir
        self.dir = folder
        self.name = name
        self.disks = list(disks)
        self.style = style
        self.memory = memory
        self.backend = backend
        self.machine = machine
        self.smp = smp
        self.append = append
        self.extra = list(extra)
        self.accel = accel
        self.cpu = cpu
        junk = re.search(r"JUNK=(\d+)", append)
        self.mib = MEMORY_MIB + int(junk.group(1) if junk else 0)
        self.qmp = os.path.join(folder, "qmp.sock")
        self.monitor_path = os.path.join(folder, "test.sock")
        self.agent = os.path.join(folder, "agent.sock") if agent else None
        self.log = os.path.join(folder, "qemu.out")
        self.process = None
        self.serial = Serial(os.path.join(folder, "serial.log"),
                             self._must_live)

    # ------------------------------------------------------------- its argv

    def _disk_args(self):
        args = []
        if any(d.bus == "scsi" for d in self.disks):
            args += ["-device", "virtio-scsi-pci,id=scsi0"]
        for d in self.disks:
            front = ("scsi-hd,bus=scsi0.0" if d.bus == "scsi"
                     else "virtio-blk-pci")
            if self.style == "if":
                args += ["-drive", "file=%s,format=%s,if=virtio" % (
                    d.path, d.fmt)]
            elif self.style == "drive":
                args += ["-drive", "file=%s,format=%s,if=none,id=%s%s" % (
                    d.path, d.fmt, d.id, d.options),
                    "-device", "%s,drive=%s,id=%s-dev%s" % (
                        front, d.id, d.id, d.front)]
            elif self.style == "blockdev":
                args += ["-blockdev", "driver=file,filename=%s,node-name=%s-f"
                         % (d.path, d.id),
                         "-blockdev", "driver=%s,file=%s-f,node-name=%s-n%s"
                         % (d.fmt, d.id, d.id, d.options),
                         "-device", "%s,drive=%s-n,id=%s" % (
                             front, d.id, d.id) + d.front]
            elif self.style == "throttle":
                args += self._throttle_args(d, front)
            else:
                raise ValueError(self.style)
        return args

    def _throttle_args(self, d, front):
        node = {"driver": "throttle", "node-name": d.id + "-t",
                "throttle-group": d.id + "-g", "file": {
                    "driver": d.fmt, "node-name": d.id + "-n",
                    "discard": "unmap", "detect-zeroes": "unmap", "file": {
                        "driver": "file", "node-name": d.id + "-f",
                        "filename": d.path, "discard": "unmap",
                        "aio": "threads"}}}
        return ["-object", "throttle-group,id=%s-g,x-iops-total=5000" % d.id,
                "-blockdev", json.dumps(node),
                "-device", "%s,drive=%s-t,id=%s" % (front, d.id, d.id) +
                d.front]

    def _memory_args(self):
        machine, size = self.machine, "%dM" % self.mib
        if self.memory == "default":
            return ["-machine", machine, "-m", size]
        if self.memory == "none":
            return ["-machine", machine]
        backend = {
            "backend": self.backend + ",id=ram0",
            "hugetlb": "memory-backend-memfd,id=ram0,share=on,hugetlb=on,"
                       "hugetlbsize=2M",
            "ram": "memory-backend-ram,id=ram0",
            "memfd": "memory-backend-memfd,id=ram0,share=on",
            "file": "memory-backend-file,id=ram0,share=on,mem-path=%s" %
                    os.path.join(self.dir, "guest.ram"),
        }[self.memory]
        return ["-object", "%s,size=%s" % (backend, size), "-machine",
                machine + ",memory-backend=ram0", "-m", size]

    def argv(self, paused=False):
        append = "console=ttyS0 quiet loglevel=1 %s DISKS=%d %s" % (
            BOOT_FAST, len(self.disks), self.append)
        if not self.agent and all(d.bus == "virtio" for d in self.disks):
            append += " LEAN=1"
        fs = [d.id for d in self.disks if d.fs]
        if fs:
            letter = "abcdefgh"[[d.fs for d in self.disks].index(True)]
            append += " FS=vd%s" % letter
        args = [self.qemu, "-name", self.name, *self._memory_args(),
                "-accel", self.accel, "-cpu", self.cpu, "-smp", str(self.smp),
                "-nodefaults", "-display", "none",
                "-kernel", os.path.join(self.guest_dir, "vmlinuz"),
                "-initrd", os.path.join(self.guest_dir, "initrd"),
                "-append", append.strip(),
                "-chardev", "file,id=ser,append=on,path=" + self.serial.path,
                "-serial", "chardev:ser",
                "-qmp", "unix:%s,server=on,wait=off" % self.qmp,
                "-qmp", "unix:%s,server=on,wait=off" % self.monitor_path]
        if self.agent:
            args += ["-device", "virtio-serial-pci",
                     "-chardev", "socket,id=ga,path=%s,server=on,wait=off" %
                     self.agent,
                     "-device", "virtserialport,chardev=ga,"
                     "name=org.qemu.guest_agent.0"]
        args += self._disk_args() + self.extra
        return args + (["-S"] if paused else [])

    # -------------------------------------------------------- start and end

    def start(self, wait=True, paused=False):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.argv(paused), stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, cwd=self.dir)
        since = self.serial.mark()
        self.case.track(self.process.pid)
        if wait and not paused:
            self.wait_up(since)
        else:
            try:
                with self.monitor():
                    pass
            except OSError as e:
                raise AssertionError("QEMU does not answer:\n" +
                                     self.words()) from e
        return self

    def wait_up(self, since=0):
        """The first two ticks of the guest that boots. Between `since` and a
        reset the one before it may have ticked."""
        nonce = self.serial.wait(r"GUEST-UP nonce=(\w{16})", since).group(1)

        def ticked(text):
            found = [t for t in map(Tick, TICK.finditer(text))
                     if t.nonce == nonce]
            return found if len(found) >= 2 else None
        return self.serial.wait(ticked, since)

    def monitor(self):
        return QMP(self.monitor_path)

    def cmd(self, name, **args):
        with self.monitor() as m:
            return m.cmd(name, **args)

    def hmp(self, line):
        return self.cmd("human-monitor-command", command_line=line)

    def guest_agent(self):
        return Agent(self.agent)

    def pid_start(self):
        """When it started, in ticks since boot, as proc(5) has it."""
        with open("/proc/%d/stat" % self.pid()) as f:
            return int(f.read().rsplit(")", 1)[1].split()[19])

    def pid(self):
        """Of the QEMU that is this VM now; None when it is off. (Connecting
        to find out fails when QEMU has not yet accepted the one before.)"""
        found = [p for p in self.case.processes(self.monitor_path)]
        for pid in found:
            self.case.track(pid)
        if len(found) < 2:
            return found[0] if found else None
        with self.monitor() as m:  # an old one is just ending
            return m.pid

    def alive(self):
        return self.pid() is not None

    def state(self):
        """running, paused (or what else QEMU says), or off."""
        return self.cmd("query-status")["status"] if self.alive() else "off"

    def _must_live(self):
        if self.process and self.process.poll() is not None and \
                not self.alive():
            raise AssertionError("QEMU has ended:\n" + self.words())

    def words(self):
        try:
            with open(self.log, errors="replace") as f:
                return f.read()[-2000:]
        except FileNotFoundError:
            return ""

    def end(self, sig=signal.SIGKILL, timeout=20):
        """Ends the QEMU that is this VM now, and waits for that."""
        pid = self.pid()
        if pid:
            os.kill(pid, sig)
            self.wait_off(timeout)

    def quit(self):
        with self.monitor() as m:
            m.send({"execute": "quit"})
            self.wait_off()

    def wait_off(self, timeout=20):
        """Until it is gone for good: a process that ends loses its command
        line before it closes its sockets."""
        deadline = time.monotonic() + timeout
        while self.alive() or self.case.lingering():
            if time.monotonic() > deadline:
                raise AssertionError("QEMU did not end in %d s" % timeout)
            time.sleep(0.02)

    # ---------------------------------------------------------- looking at it

    def heads(self):
        """The file that each disk's device writes to, by device, as QEMU
        says."""
        found = {}
        for b in self.cmd("query-block"):
            if "inserted" not in b:
                continue
            front = b.get("qdev", "") or b["device"]
            front = front.replace("/machine/peripheral/", "")
            front = front.split("/virtio-backend")[0]
            found[front] = file_name(b["inserted"]["image"]["filename"])
        return found

    def block_jobs(self):
        return self.cmd("query-jobs") + self.cmd("query-block-jobs")

    def ram_at(self, address, length):
        """Bytes of guest-physical memory, read by QEMU itself."""
        out = os.path.join(self.dir, "pmem")
        self.cmd("pmemsave", val=address, size=length, filename=out)
        with open(out, "rb") as f:
            data = f.read()
        os.unlink(out)
        return data
