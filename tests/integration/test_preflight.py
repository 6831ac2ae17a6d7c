# SPDX-License-Identifier: MIT
"""What a revert compares before anything is stopped: a difference is refused
with both values, and only what a guest can survive can be forced."""

import json
import os
import shutil
import subprocess

from lib.case import QEMU, Case


class Preflight(Case):
    either = True
    cost = 25

    def edit(self, vm, snap, **values):
        """Changes the manifest as if another host or QEMU had written it."""
        path = self.q.manifest_path(vm.name, self.q.info(vm.name, snap)["id"])
        with open(path) as f:
            manifest = json.load(f)
        before = json.dumps(manifest)
        for key, value in values.items():
            part = manifest
            *above, last = key.split("__")
            for word in above:
                part = part[word]
            self.assertIn(last, part)
            part[last] = value
        with open(path, "w") as f:
            json.dump(manifest, f)
        self.addCleanup(self.write, path, before)
        return lambda: self.write(path, before)

    @staticmethod
    def write(path, text):
        try:
            with open(path, "w") as f:
                f.write(text)
        except FileNotFoundError:
            pass

    def foreseen(self, says):
        said = {p["code"]: p for p in self.q.check("vm")["problems"]}
        self.assertIn("machine-changed", said)
        self.assertRegex(said["machine-changed"]["message"],
                         "snapshot one: .*" + says)
        self.assertTrue(said["machine-changed"]["hint"])

    def test_a_difference_is_refused_with_both_values(self):
        vm = self.running_vm()
        nonce = vm.serial.ticks()[-1].nonce
        self.q("create", "vm", "one", "--memory")
        tick = self.snapshot_ticks(vm, "one")[0]
        machine = vm.cmd("qom-get", path="/machine",
                         property="type").replace("-machine", "")
        version = ".".join(str(vm.cmd("query-version")["qemu"][k])
                           for k in ("major", "minor", "micro"))
        for name, values, says in (
                ("machine", {"memory__machine": "pc-q35-1.0"},
                 "machine type .*was pc-q35-1.0, now it is %s" % machine),
                ("accelerator", {"memory__accel": "kvm"},
                 "accelerator .*was kvm, now it is tcg"),
                ("cpu", {"memory__cpuType": "nosuch-x86_64-cpu"},
                 "CPU type .*was nosuch-x86_64-cpu, now it is max-x86_64"),
                ("version", {"qemuVersion": "1.2.3"},
                 "QEMU version .*was 1.2.3, now it is %s" % version)):
            for way in ("auto", "eager"):
                with self.subTest(what=name, way=way):
                    back = self.edit(vm, "one", **values)
                    self.foreseen(says)
                    with self.nothing_changes(vm):
                        self.q.fails("precondition", says, "revert", "vm",
                                     "one", "--restore", way)
                    if name != "version":
                        with self.nothing_changes(vm):
                            failure = self.q.fails(
                                "precondition", says, "revert", "vm", "one",
                                "--restore", way, "--force")
                            self.assertIn("--force", failure.hint)
                    else:
                        since = vm.serial.mark()
                        self.q("revert", "vm", "one", "--restore", way,
                               "--force")
                        self.goes_on_from(vm, tick, nonce, since)
                    back()

    def test_the_host_of_a_kvm_guest_is_compared(self):
        """The VM is off, so that its snapshot can be said to be KVM's."""
        vm = self.running_vm()
        self.q("create", "vm", "one", "--memory")
        vm.end()
        cases = [({"host__cpuModel": "Nosuch 9000"},
                  "CPU model .*was Nosuch 9000, now it is ")]
        if self.tsc_is_known():
            cases.append(({"host__tscKhz": 1234567}, "TSC frequency "
                          ".*was 1234567 kHz, now it is [0-9]+ kHz"))
        for values, says in cases:
            with self.subTest(**values):
                back = self.edit(vm, "one", memory__accel="kvm", **values)
                self.foreseen(says)
                with self.nothing_changes(vm):
                    self.q.fails("precondition", says, "revert", "vm", "one")
                back()

    @staticmethod
    def tsc_is_known():
        with open("/proc/cpuinfo") as f:
            return "nonstop_tsc" in f.read()

    def test_a_new_process_is_asked_before_memory_is_loaded(self):
        """A VM that is off: only the process that was started can tell."""
        vm = self.running_vm()
        self.q("create", "vm", "one", "--memory")
        tick = self.snapshot_ticks(vm, "one")[0]
        nonce = vm.serial.ticks()[-1].nonce
        vm.end()
        back = self.edit(vm, "one", qemuVersion="1.2.3")
        with self.nothing_changes(vm):
            self.q.fails("precondition", "QEMU version .*was 1.2.3", "revert",
                         "vm", "one")
        since = vm.serial.mark()
        self.q("revert", "vm", "one", "--force")
        self.goes_on_from(vm, tick, nonce, since)
        back()

    def test_a_plugged_dimm_needs_the_process_that_has_it(self):
        """No command line makes it, so that a new QEMU cannot take it."""
        vm = self.tiny_vm(extra=["-m", "8M,slots=4,maxmem=1G"])
        self.q("create", "vm", "bare", "--memory")
        self.plug(vm, "0")
        self.q("create", "vm", "one", "--memory")
        says = "RAM block d0 is no memory backend of the command line"
        pid = vm.pid()
        for way in ("eager", "mapped"):
            with self.subTest(way=way), self.nothing_changes(vm):
                failure = self.q.fails("precondition", says, "revert", "vm",
                                       "one", "--restore", way)
                self.assertIn("--restore inplace", failure.hint)
        self.q("revert", "vm", "one", "--restore", "inplace")
        self.assertEqual(pid, vm.pid())
        self.plug(vm, "1")
        with self.nothing_changes(vm):
            failure = self.q.fails("precondition", says, "revert", "vm", "one")
            self.assertIn("--launcher", failure.hint)
        self.assertEqual(pid, vm.pid())
        self.q("revert", "vm", "bare", "--restore", "eager")
        self.assertNotEqual(pid, vm.pid())

    def test_a_launcher_may_plug_the_dimm(self):
        vm = self.tiny_vm(attach=False, extra=["-m", "8M,slots=4,maxmem=1G"])
        plug = ["-object", "memory-backend-ram,id=d0,size=128M",
                "-device", "pc-dimm,id=dimm0,memdev=d0"]
        self.attach(vm, *self.launcher(more=plug))
        self.plug(vm, "0")
        self.q("create", "vm", "one", "--memory")
        pid = vm.pid()
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertNotEqual(pid, vm.pid())

    @staticmethod
    def plug(vm, n):
        vm.cmd("object-add", **{"qom-type": "memory-backend-ram",
                                "id": "d" + n, "size": 128 << 20})
        vm.cmd("device_add", driver="pc-dimm", id="dimm" + n, memdev="d" + n)


class Media(Case):
    """QEMU opens again what its command line names, also what was ejected."""

    either = True

    def iso(self, name):
        path = os.path.join(self.tmp, name)
        with open(path, "wb") as f:
            f.write(b"\0" * (1 << 20))
        return path

    def test_a_cd_that_was_ejected_and_removed(self):
        iso = self.iso("a.iso")
        for n, (media, device) in enumerate((
                (["-drive", "file=%s,format=raw,if=none,id=cd,media=cdrom,"
                  "readonly=on" % iso], "drive=cd"),
                (["-blockdev", '{"driver":"raw","node-name":"cd","read-only":'
                  'true,"file":{"driver":"file","filename":"%s"}}' % iso],
                 "drive=cd"),
                (["-cdrom", iso], None))):
            with self.subTest(media=media[0]):
                self.iso("a.iso")
                name = "vm%d" % n
                vm = self.tiny_vm(name, extra=media + (
                    ["-device", "ide-cd,id=cd0," + device] if device else []))
                self.q("create", name, "one", "--memory")
                self.assertTrue(self.q.check(name, "--memory")["ok"])
                vm.hmp("eject -f %s" % ("ide1-cd0" if n == 2 else
                                        "cd" if n == 0 else "cd0"))
                os.unlink(iso)
                pid = vm.pid()
                report = self.q.check(name, "--memory")
                self.assertIn("a.iso is gone", str(report["problems"]))
                for restore in ("eager", "mapped"):
                    self.q.fails("precondition", "a.iso is gone", "revert",
                                 name, "one", "--restore", restore)
                    self.assertEqual((pid, "running"), (vm.pid(), vm.state()))
                vm.quit()
                self.q.fails("precondition", "a.iso is gone", "start", name)
                self.iso("a.iso")
                self.q("revert", name, "one", "--start")
                self.assertEqual("running", vm.state())


class Upgraded(Case):
    """The QEMU that took the snapshot has been replaced by a newer one."""

    versions = ("10.0",)

    def test_an_alias_of_the_machine_type(self):
        """"pc" is another machine now; the snapshot knows which it was."""
        old = "/usr/bin/qemu-system-x86_64"
        said = subprocess.run([old, "--version"], stdout=subprocess.PIPE,
                              text=True).stdout if os.path.exists(old) else ""
        if "version 7.2" not in said:
            self.skipTest("no QEMU 7.2 here")
        for name, kw in (("pc", {}), ("q35", {"machine": "q35,usb=on"})):
            with self.subTest(name):
                vm = self.vm_of(old, name, **kw)
                vm.write(vm.disks[0], 0, 1)
                self.q("create", name, "one", "--memory")
                vm.write(vm.disks[0], 0, 2)
                vm.quit()
                self.upgrade(name)
                self.q.fails("precondition", "7.2.*10.0", "revert", name,
                             "one")
                self.q("revert", name, "one", "--force", "--start")
                self.assertEqual("running", vm.state())
                vm.io(vm.disks[0], "read -q -P 1 0 64k")
                self.assertRegex(self.machine(vm), "-7.2$")
                vm.quit()
                self.q("start", name)
                self.assertRegex(self.machine(vm), "-10.0$")

    def test_a_binary_that_was_replaced_while_the_vm_runs(self):
        binary = os.path.join(self.tmp, "qemu-system-x86_64")
        shutil.copy(os.path.realpath(
            os.path.join(os.path.dirname(QEMU), "root/usr/bin",
                         "qemu-system-x86_64")), binary)
        vm = self.vm_of(binary, "vm", extra=self.firmware())
        self.q("create", "vm", "one", "--memory")
        self.q.check("vm")
        self.assertNotIn("binary", self.q.stderr)
        with open(binary, "rb") as f:
            other = f.read() + b"1"
        with open(binary + ".new", "wb") as f:
            f.write(other)
        os.chmod(binary + ".new", 0o755)
        os.rename(binary + ".new", binary)
        self.q.check("vm")
        self.assertRegex(self.q.stderr,
                         "snapshot one: a revert that needs a new process is "
                         "refused: the QEMU binary is not the snapshot's")
        pid = vm.pid()
        self.q.fails("precondition", "QEMU binary", "revert", "vm", "one",
                     "--restore", "eager")
        self.q("revert", "vm", "one", "--restore", "inplace")
        self.assertEqual(pid, vm.pid())

    def vm_of(self, qemu, name, **kw):
        vm = self.tiny_vm(name, attach=False, **kw)
        vm.quit()
        vm.qemu = qemu
        vm.start()
        self.attach(vm)
        return vm

    @staticmethod
    def machine(vm):
        return vm.cmd("qom-get", path="/machine", property="type").replace(
            "-machine", "")

    @staticmethod
    def firmware():
        root = os.path.join(os.path.dirname(QEMU), "root")
        return [x for d in (root + "/usr/share/qemu",
                            root + "/usr/share/seabios",
                            "/usr/lib/ipxe/qemu") for x in ("-L", d)]

    def upgrade(self, name):
        root = os.path.join(os.path.dirname(QEMU), "root")
        path = os.path.join(self.store, name, "vm.json")
        with open(path) as f:
            record = json.load(f)
        launch = record["launch"]
        launch["exe"] = os.path.join(root, "usr/bin/qemu-system-x86_64")
        launch["argv"] = [launch["exe"]] + self.firmware() + \
            launch["argv"][1:]
        with open(path, "w") as f:
            json.dump(record, f)
