# SPDX-License-Identifier: MIT
"""Memory that comes and goes while the VM runs: between the look at the RAM
and the instant of a snapshot, and what no device uses."""

import json
import os

from lib.case import Case

FREEZE = "guest-fsfreeze-freeze"


def plug(vm, name):
    vm.cmd("object-add", **{"qom-type": "memory-backend-ram", "id": name,
                            "size": 128 << 20})
    vm.cmd("device_add", driver="pc-dimm", id="dimm-" + name, memdev=name)


class Window(Case):
    """What the agent does in its freeze comes after the look, and before the
    instant."""
    cost = 20

    def make(self, *extra, **kw):
        self.tiny_vm_with_agent(extra=["-m", "8M,slots=8,maxmem=2G", *extra],
                                **kw)

    def in_the_freeze(self, action):
        def behave(name):
            if name == FREEZE:
                self.agent.behave = lambda name: None
                action()
        self.agent.behave = behave

    def create(self, mode):
        return ("create", "vm", mode, "--quiesce", "--memory", "--mode", mode)

    def refused(self, says, mode):
        with self.subTest(mode=mode), self.nothing_changes(self.vm):
            failure = self.q.fails("busy", says, *self.create(mode))
            self.assertIn("again", failure.hint)
        self.agent.wait_thawed()

    def blocks(self, snap):
        path = self.q.manifest_path("vm", self.q.info("vm", snap)["id"])
        with open(path) as f:
            return {b["id"] for b in json.load(f)["memory"]["blocks"]}

    def test_memory_that_is_plugged_in(self):
        self.make()
        # Behind TCG's migration we look at the RAM that we know.
        refuse = ["auto", "cow", "paused", "precopy"]
        for mode in refuse:
            self.in_the_freeze(lambda: plug(self.vm, "d-" + mode))
            self.refused("RAM block d-%s was plugged in" % mode, mode)
        modes = self.q.check("vm", "--memory")["captureModes"]
        if modes["background"] is None:
            # QEMU's own migration looks at the instant.
            self.in_the_freeze(lambda: plug(self.vm, "d-background"))
            self.q(*self.create("background"))
            self.assertIn("d-background", self.blocks("background"))
        self.q(*self.create("auto"))
        self.assertLessEqual({"d-" + m for m in refuse}, self.blocks("auto"))

    def test_memory_that_is_taken_out(self):
        """A slot without power needs no guest that lets the device go."""
        rom = os.path.join(self.tmp, "rom")
        with open(rom, "wb") as f:
            f.write(b"\x55\xaa" + bytes(65534))
        self.make("-device", "pcie-root-port,id=slot1,chassis=1", "-global",
                  "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
                  machine="q35")
        for mode in ("cow", "paused"):
            self.vm.cmd("device_add", driver="virtio-net-pci", id="net",
                        bus="slot1", romfile=rom)
            self.in_the_freeze(lambda: self.vm.cmd("device_del", id="net"))
            self.refused(r"RAM block .*virtio-net-pci\.rom was taken out",
                         mode)
            self.assertNotIn("virtio-net-pci.rom",
                             self.vm.hmp("info ramblock"))

    def test_memory_that_no_device_uses_is_none(self):
        """Neither plugged in nor taken out; what is no part of a migration is
        none of a snapshot."""
        self.make()
        for mode in ("cow", "paused"):
            self.in_the_freeze(lambda: self.vm.cmd(
                "object-add", **{"qom-type": "memory-backend-ram",
                                 "id": "spare", "size": 4 << 20}))
            self.q(*self.create(mode))
            self.assertNotIn("spare", self.blocks(mode))
            self.vm.cmd("object-del", id="spare")
