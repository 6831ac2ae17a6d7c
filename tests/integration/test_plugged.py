# SPDX-License-Identifier: MIT
"""Devices that came or went while the VM ran: a QEMU that is started from its
command line is without the ones, and has the others."""

import json
import os

from lib import image
from lib.case import Case

TABLET = ["-device", "piix3-usb-uhci,id=u", "-device",
          "usb-tablet,bus=u.0,id=tab"]


class Plugged(Case):
    cost = 5

    def refused(self, says, *more):
        """A revert that would start a QEMU, before anything is touched."""
        on = self.vm.alive()
        for way in ("eager", "mapped"):
            for more in ((), ("--dry-run",)):
                argv = ["revert", "vm", "one", "--restore", way, *more]
                with self.subTest(argv=argv, on=on), \
                        self.nothing_changes(self.vm):
                    self.q.fails("precondition", says, *argv)

    def on_and_off(self, code, says):
        """Of a snapshot that the running process alone can take back."""
        problems = self.q.check("vm", "--memory")["problems"]
        self.assertEqual([code], [p["code"] for p in problems])
        self.assertRegex(problems[0]["message"], says)
        self.q("create", "vm", "one", "--memory")
        self.assertRegex(self.q.stderr, says + ".*needs this process")
        self.refused(says)
        pid = self.vm.pid()
        self.assertEqual("inplace", self.q("revert", "vm", "one")["restore"])
        self.assertEqual(pid, self.vm.pid())
        self.vm.quit()
        self.refused(says)
        problem, = [p for p in self.q.check("vm")["problems"]
                    if p["message"].startswith("snapshot one:")]
        self.assertEqual("other-devices", problem["code"])
        self.assertRegex(problem["message"], says)
        self.q("revert", "vm", "one", "--stopped")
        self.q("start", "vm")
        self.refused(says)

    def restart(self, extra):
        """By its owner, on its present heads."""
        self.vm.disks[0].path, = self.head_paths(self.vm)
        self.vm.disks[0].fmt = "qcow2"
        self.vm.quit()
        self.vm.extra = extra
        self.vm.start()
        self.q("create", "vm", "restarted")  # sees the command line

    def test_with_an_id(self):
        self.vm = self.tiny_vm()
        self.vm.cmd("device_add", driver="virtio-rng-pci", id="n1")
        self.on_and_off("plugged-device", "device .*virtio-rng-pci,n1.* was "
                        "plugged in")
        # whoever starts it with the device has all that it takes
        self.restart(["-device", "virtio-rng-pci,id=n1"])
        self.vm.quit()
        self.q("revert", "vm", "one", "--dry-run")

    def test_without_one(self):
        self.vm = self.tiny_vm(extra=["-device", "virtio-rng-pci"])
        self.vm.cmd("device_add", driver="virtio-rng-pci")
        self.on_and_off("plugged-device", "virtio-rng-pci.* plugged in")
        self.restart(["-device", "virtio-rng-pci"] * 2)
        self.vm.quit()
        self.q("revert", "vm", "one", "--dry-run")

    def test_a_cpu(self):
        self.vm = self.tiny_vm(extra=["-smp", "1,maxcpus=2"])
        at = [c for c in self.vm.cmd("query-hotpluggable-cpus")
              if "qom-path" not in c][0]
        self.vm.cmd("device_add", driver=at["type"], id="cpu1", **at["props"])
        self.on_and_off("plugged-device", "(cpu1|CPUs).* plugged in")
        self.restart(["-smp", "2"])
        self.vm.quit()
        self.q("revert", "vm", "one", "--dry-run")

    def test_a_disk_that_is_only_read(self):
        self.vm = self.tiny_vm()
        path = os.path.join(self.tmp, "ro.qcow2")
        image.run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
        self.vm.cmd("blockdev-add", **{
            "driver": "qcow2", "node-name": "ro", "read-only": True,
            "file": {"driver": "file", "filename": path}})
        self.vm.cmd("device_add", driver="virtio-blk-pci", id="x", drive="ro")
        self.on_and_off("plugged-device", "device .*virtio-blk-pci,x.* was "
                        "plugged in")

    def test_one_that_was_taken_out(self):
        self.vm = self.tiny_vm(extra=TABLET)
        self.assertEqual([], self.q.check("vm", "--memory")["problems"])
        self.q("create", "vm", "before", "--memory")
        self.vm.cmd("device_del", id="tab")
        self.on_and_off("unplugged-device",
                        "device tab is on the command line of QEMU, and is "
                        "not in the (VM|snapshot)")
        self.q("revert", "vm", "before", "--restore", "eager")
        self.restart(TABLET[:2])
        self.q("revert", "vm", "one", "--restore", "eager")
        self.q.fails("precondition", "tab", "revert", "vm", "before")

    def test_one_without_an_id_that_was_taken_out(self):
        self.vm = self.tiny_vm(extra=TABLET[:2] + [
            "-device", "usb-tablet,bus=u.0", "-device", "usb-kbd,bus=u.0"])
        devices = self.vm.cmd("qom-list", path="/machine/peripheral-anon")
        name, = (d["name"] for d in devices if "tablet" in d["type"])
        self.vm.cmd("device_del", id="/machine/peripheral-anon/" + name)
        self.on_and_off("unplugged-device", "1 of them are not in the")

    def test_one_that_a_later_command_line_adds(self):
        self.vm = self.tiny_vm(extra=TABLET[:2])
        self.q("create", "vm", "one", "--memory")
        self.restart(TABLET)
        self.assertEqual([], self.q.check("vm", "--memory")["problems"])
        self.refused("device tab .* not in the snapshot")
        self.vm.quit()
        self.refused("device tab .* not in the snapshot")

    def test_a_snapshot_that_does_not_tell(self):
        """As earlier versions made them."""
        self.vm = self.tiny_vm(extra=TABLET[:2])
        made = self.q("create", "vm", "one", "--memory")
        path = self.q.manifest_path("vm", made["id"])
        with open(path) as f:
            manifest = json.load(f)
        del manifest["memory"]["userDevices"], manifest["sum"]
        with open(path, "w") as f:
            json.dump(manifest, f)
        self.q("rename", "vm", "one", "two")
        with open(path) as f:
            self.assertIsNone(json.load(f)["memory"]["userDevices"])
        self.q("rename", "vm", "two", "one")
        self.q("revert", "vm", "one", "--restore", "eager")
        self.restart(TABLET)
        self.refused("device tab .* not in the snapshot")
        self.vm.quit()
        self.q("revert", "vm", "one", "--dry-run")
