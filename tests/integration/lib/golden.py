# SPDX-License-Identifier: MIT
"""A VM whose disk is an image with a base of its own."""

import json
import os

from lib import image, qemuio
from lib.case import Case

SIZE = 2 << 20
GOLDEN, OTHER = 7, 5


class OnGolden(Case):
    cost = 5

    def setUp(self):
        super().setUp()
        self.dir = os.path.join(self.tmp, "vm")
        self.bases = os.path.join(self.tmp, "bases")
        os.makedirs(self.dir)
        os.makedirs(self.bases)
        self.top = os.path.join(self.dir, "disk.qcow2")
        for name, byte in (("golden", GOLDEN), ("other", OTHER)):
            base = self.path(name + ".qcow2")
            image.run("qemu-img", "create", "-q", "-f", "qcow2", base,
                      str(SIZE))
            image.run("qemu-io", "-f", "qcow2", "-c",
                      "write -q -P %d 0 512k" % byte, base)
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
                  self.path("golden.qcow2"), "-F", "qcow2", self.top)

    def path(self, name):
        return os.path.join(self.bases, name)

    def node(self, name, path, **options):
        """Two words as libvirt has them: a storage node, a format node."""
        return ["-blockdev", json.dumps({
            "driver": "file", "filename": path, "node-name": name + "-storage",
            "auto-read-only": True, "discard": "unmap"}),
            "-blockdev", json.dumps({
                "driver": "qcow2", "node-name": name + "-format",
                "file": name + "-storage", "discard": "unmap",
                **{k.replace("_", "-"): v for k, v in options.items()}})]

    def libvirt(self, base="golden.qcow2"):
        return (self.node("libvirt-2", self.path(base), read_only=True,
                          backing=None) +
                self.node("libvirt-1", self.top, read_only=False,
                          backing="libvirt-2-format"))

    def run_vm(self, args, node="libvirt-1-format", attach=True):
        self.vm = self.tiny_vm(
            disks=[], attach=attach,
            extra=args + ["-device", "virtio-blk-pci,drive=%s,id=v" % node])
        return self.vm

    def io(self, command):
        with self.vm.monitor() as m:
            qemuio.run(m, "-d /machine/peripheral/v/virtio-backend", command)

    def reads(self, *bytes_):
        """What the guest reads at its parts, seen through the live chain."""
        for part, byte in enumerate(bytes_):
            self.io("read -q -P %d %d 64k" % (byte, part << 16))

    def head(self):
        return next(iter(self.vm.heads().values()))

    def drive(self, more):
        return ["-drive", "if=none,id=t,format=qcow2,file=%s,%s" % (
            self.top, more)]
