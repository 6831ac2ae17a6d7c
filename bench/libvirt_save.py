# SPDX-License-Identifier: MIT
"""libvirt's `snapshot-create-as --memspec --live` beside ours, on one and the
same VM: libvirt starts it (its QEMU driver embedded in virsh, with all its
folders in ours: no daemon runs), and qstill gets a QMP socket of its own."""

import os
import shutil
import subprocess
import time

import meter

CONF = """user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
seccomp_sandbox = 0
"""
DOMAIN = """<domain type='qemu'
 xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>bench</name><memory unit='MiB'>{mib}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{guest}/vmlinuz</kernel>
<initrd>{guest}/initrd</initrd><cmdline>{append}</cmdline></os>
<cpu mode='maximum'/>
<devices><emulator>{qemu}</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{dir}/disk.qcow2'/><target dev='vda' bus='virtio'/></disk>
<serial type='file'><source path='{dir}/serial'/></serial></devices>
<qemu:commandline><qemu:arg value='-qmp'/>
<qemu:arg value='unix:{dir}/qmp,server=on,wait=off'/><qemu:arg value='-qmp'/>
<qemu:arg value='unix:{dir}/qmp.test,server=on,wait=off'/>
</qemu:commandline></domain>
"""


class Virsh:
    """One virsh for all commands: the VM lives in it."""

    def __init__(self, root):
        self.log = os.path.join(root, "virsh.log")
        self.out = open(self.log, "w+b")
        self.process = subprocess.Popen(
            ["virsh", "-c", "qemu:///embed?root=" + root],
            stdin=subprocess.PIPE, stdout=self.out, stderr=self.out)

    def __call__(self, command, done, timeout=120):
        """Until `done` is in what it prints since."""
        since = os.fstat(self.out.fileno()).st_size
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        deadline = time.monotonic() + timeout
        while True:
            with open(self.log, "rb") as f:
                f.seek(since)
                text = f.read().decode(errors="replace")
            if done in text:
                return
            if "error:" in text or self.process.poll() is not None or \
                    time.monotonic() > deadline:
                raise RuntimeError("virsh %s: %s" % (command, text))
            time.sleep(0.002)

    def end(self):
        self.process.stdin.write(b"destroy bench\nquit\n")
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.out.close()


class VM:
    """What meter.VM is, started by libvirt."""

    def __init__(self, folder, program, qemu_bin, mib):
        os.makedirs(os.path.join(folder, "etc"))
        self.dir, self.qmp = folder, os.path.join(folder, "qmp")
        with open(os.path.join(folder, "etc/qemu.conf"), "w") as f:
            f.write(CONF)
        xml = os.path.join(folder, "bench.xml")
        with open(xml, "w") as f:
            f.write(DOMAIN.format(
                mib=mib, guest=meter.guest(), dir=folder, qemu=qemu_bin,
                append="console=ttyS0 quiet loglevel=1 DISKS=1 NOAGENT=1 "
                "METER=1 JUNK=%d" % (mib // 2)))
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2",
                        os.path.join(folder, "disk.qcow2"), "64M"],
                       check=True)
        self.virsh = Virsh(folder)
        try:
            self.virsh("define " + xml, "defined from")
            self.virsh("start bench", "' started")
            self.monitor = meter.QMP(self.qmp + ".test")
            self.meter = meter.Meter(
                program, self.monitor.pid,
                meter.Serial(os.path.join(folder, "serial")), self.monitor)
        except BaseException:
            self.virsh.end()
            raise

    def stops(self):
        self.monitor.cmd("query-status")
        return meter.take_stops(self.monitor)

    def save(self, n):
        """(seconds, pause) of one snapshot by libvirt, fsync included."""
        memory = os.path.join(self.dir, "memory.%d" % n)
        os.sync()
        time.sleep(0.3)
        self.stops()
        with self.meter.watch() as w:
            start = time.monotonic()
            self.virsh("snapshot-create-as bench s%d --memspec "
                       "file=%s,snapshot=external --live --diskspec vda,"
                       "snapshot=external,file=%s/disk.%d.qcow2" % (
                           n, memory, self.dir, n), "created")
            fd = os.open(memory, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            took = time.monotonic() - start
        pause = w.pause(self.stops())
        os.unlink(memory)
        return took, pause


def compare(folder, program, mib, reps, cow):
    """`cow` is memory.py's: our side on the same VM. With the distribution's
    own QEMU, which its libvirt knows."""
    shutil.rmtree(folder, True)
    os.makedirs(folder)
    version = subprocess.run(["virsh", "--version"], text=True, check=True,
                             stdout=subprocess.PIPE).stdout.strip()
    vm = VM(folder, program, shutil.which("qemu-system-x86_64"), mib)
    try:
        ours = cow(vm, os.path.join(folder, "store"), reps)
        runs = [vm.save(n) for n in range(reps)]
    finally:
        vm.virsh.end()
    return {
        "version": version,
        "libvirt": {"seconds": summary([t for t, _ in runs]),
                    "pause": summary([p for _, p in runs])},
        "qstill": ours}


def summary(values):
    values = sorted(values)
    return {"median": values[len(values) // 2], "min": values[0],
            "max": values[-1], "n": len(values)}
