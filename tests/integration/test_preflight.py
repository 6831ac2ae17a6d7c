# SPDX-License-Identifier: MIT
"""What a revert compares before anything is stopped: a difference is refused
with both values, and only what a guest can survive can be forced."""

import json

from lib.case import Case


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
