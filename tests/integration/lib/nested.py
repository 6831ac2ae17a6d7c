# SPDX-License-Identifier: MIT
"""A machine with a real /dev/kvm on a host without one (fixtures/kvm.sh): TCG
emulates AMD's SVM with an invariant TSC, the host's own files are the
machine's root folder, and a program of the host runs in it. So the same
command, QEMU and tests run there as here."""

import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
SCRATCH = "/media"  # exists on every Debian, and holds nothing that is needed
SLOW = 5            # what the tests inside multiply their patience by


def build(cache):
    """The folder of the machine's kernel and initrd; (folder, why not)."""
    p = subprocess.run([os.path.join(TOP, "fixtures", "kvm.sh"), cache],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       text=True)
    return p.stdout.strip() if p.returncode == 0 else None, p.stderr.strip()


def argv(qemu, machine, program, env, mib=1536, cpus=2):
    env = dict(env, RUN=program, SCRATCH=SCRATCH, QSTILL_TEST_SLOW=SLOW)
    words = ['"%s=%s"' % item for item in sorted(env.items())]
    return [qemu, "-accel", "tcg,thread=multi", "-smp", str(cpus),
            "-cpu", "max,+svm,+invtsc,x-force-features=on", "-m", str(mib),
            "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", os.path.join(machine, "vmlinuz"),
            "-initrd", os.path.join(machine, "initrd"),
            "-append", " ".join(["console=ttyS0 quiet loglevel=1 panic=-1"] +
                                words),
            "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,"
            "multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]


def start(log, *args, **kw):
    """The machine's QEMU, with its console in the file `log`."""
    words = log + ".qemu"
    with open(words, "wb") as out:
        return subprocess.Popen(
            argv(*args, **kw) + ["-serial", "file:" + log],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out)
