# SPDX-License-Identifier: MIT
"""src/memstate against a real QEMU, through memory_probe.c: three ways to
capture one stopped VM give the same files, and what was captured runs again."""

import array
import json
import os
import re
import socket
import struct
import subprocess
import time

from lib.case import BUILD, QEMU_VERSION, Case
from lib.qmp import QMP

PROBE = os.path.join(BUILD, "memory_probe")
PAGE = 4096


def said(text):
    """{key: [values]} of lines "key=value"."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        found.setdefault(key, []).append(value)
    return found


def escaped(block):
    return re.sub(r"[^A-Za-z0-9._-]", lambda m: "%%%02X" % ord(m.group(0)),
                  block) + ".ram"


class Lab(Case):
    """What tests of src/memstate share: one VM and captures of it."""

    def folder(self, name):
        path = os.path.join(self.tmp, name)
        os.mkdir(path, 0o700)
        return path

    def probe(self, *args, **kw):
        p = subprocess.run([PROBE, *map(str, args)], timeout=100,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           **kw)
        out = p.stdout.decode(errors="replace")
        self.assertEqual(0, p.returncode, out + p.stderr.decode())
        return said(out)

    # ------------------------------------------------------------ the monitor

    def send_fd(self, monitor, fd, name):
        monitor.sock.sendmsg(
            [b'{"execute":"getfd","arguments":{"fdname":"%s"}}\n' %
             name.encode()],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        self.assertIn("return", self.reply(monitor))

    def reply(self, monitor):
        while True:
            message = json.loads(monitor.line())
            if "event" not in message:
                return message

    def migrate(self, monitor, capabilities, *args):
        """`migrate` into a probe; what the probe says."""
        every = {"background-snapshot": False, "events": True}
        every.update(capabilities)
        monitor.cmd("migrate-set-capabilities", capabilities=[
            {"capability": k, "state": v} for k, v in every.items()])
        monitor.cmd("migrate-set-parameters", max_bandwidth=1 << 40)
        r, w = os.pipe()
        probe = subprocess.Popen(
            [PROBE, "stream", str(r), *args], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, pass_fds=[r])
        os.close(r)
        self.send_fd(monitor, w, "mig")
        os.close(w)
        monitor.cmd("migrate", uri="fd:mig")
        out = probe.communicate(timeout=100)[0]
        self.assertEqual(0, probe.returncode, out)
        status = self.wait_migrated(monitor)
        self.assertEqual("completed", status["status"], status)
        return said(out)

    def wait_migrated(self, monitor):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status = monitor.cmd("query-migrate")
            if status.get("status") in ("completed", "failed", "cancelled"):
                return status
            time.sleep(0.01)
        self.fail("the migration never ends: %s" % status)

    def machine(self, vm):
        return vm.cmd("qom-get", path="/machine",
                      property="type").replace("-machine", "")

    def ram_blocks(self, vm):
        """{id: (used, max, hva)}; hva 0 where this QEMU does not say."""
        lines = vm.hmp("info ramblock").splitlines()
        head = lines[0].split()
        found = {}
        for line in lines[1:]:
            # the name comes first and may hold spaces
            m = re.match(r"\s*(.+?)\s+(\d+ \w+)\s+(0x\w+)\s+(0x\w+)\s+(0x\w+)"
                         r"(.*)$", line)
            if not m:
                continue
            rest = re.findall(r"0x\w+", m.group(6))
            hva = int(rest[0], 16) if "HVA" in head and rest else 0
            found[m.group(1)] = (int(m.group(4), 16), int(m.group(5), 16), hva)
        return found

    def known(self, vm, blocks):
        """{id: address} of what QEMU tells by guest-physical address."""
        found = {}
        for line in vm.hmp("info mtree -f").splitlines():
            m = re.match(r"\s+([0-9a-f]{16})-[0-9a-f]{16} \(prio \d+, "
                         r"(?:ram|rom|romd)\): (\S+)(?: @([0-9a-f]+))?", line)
            if not m:
                continue
            ids = [b for b in blocks if ("/" + b).endswith("/" + m.group(2))]
            said = re.search(r"is (0x\w+)",
                             vm.hmp("gpa2hva 0x" + m.group(1)))
            if len(ids) == 1 and said:
                hva = int(said.group(1), 16) - int(m.group(3) or "0", 16)
                self.assertEqual(hva, found.setdefault(ids[0], hva))
        return found

    def pci_ids(self, vm):
        """{"0000:00:02.0": vendor << 16 | device} of the devices on bus 0."""
        return {"0000:00:%02x.%d" % (d["slot"], d["function"]):
                d["id"]["vendor"] << 16 | d["id"]["device"]
                for d in vm.cmd("query-pci")[0]["devices"]}

    # ------------------------------------------------------------ comparisons

    def addresses(self, vm):
        """Address of each block: as QEMU says, by gpa2hva, or found."""
        blocks = self.ram_blocks(vm)
        known = self.known(vm, blocks)
        pci = self.pci_ids(vm)
        args = ["%s:%#x:%#x:%#x:%#x" % (b, used, top, known.get(b, 0),
                                        pci.get(b.split("/")[0], 0))
                for b, (used, top, _) in blocks.items()]
        found = {}
        for line in self.probe("find", vm.pid(), *args)["found"]:
            block, how, _, hva = line.split(" ")
            found[block] = (how, int(hva, 16))
        return blocks, found

    def layout(self, vm):
        """What to look at when a block was not found."""
        with open("/proc/%d/maps" % vm.pid()) as f:
            maps = f.read()
        return vm.hmp("info ramblock") + maps

    def capture_copy(self, vm, name):
        """Mode paused, of a VM that is stopped."""
        blocks, found = self.addresses(vm)
        device = os.path.join(self.tmp, name + ".device")
        vm.cmd("xen-save-devices-state", filename=device, live=False)
        args = ["%s:%#x:%#x" % (b, found[b][1], used)
                for b, (used, _, _) in blocks.items()
                if found[b][0] in ("known", "unique", "same")]
        path = self.folder(name)
        out = self.probe("copy", path, vm.pid(), device, *args, input=b"go\n")
        return path, out, found

    def expect_same_files(self, a, b, but=()):
        names = sorted(f for f in os.listdir(a) if f.endswith(".ram"))
        self.assertEqual(names, sorted(f for f in os.listdir(b)
                                       if f.endswith(".ram")))
        for f in names:
            if f in but:
                continue
            with open(os.path.join(a, f), "rb") as x, \
                    open(os.path.join(b, f), "rb") as y:
                left, right = x.read(), y.read()
            self.assertEqual(len(left), len(right), f)
            differ = [i for i in range(0, len(left), PAGE)
                      if left[i:i + PAGE] != right[i:i + PAGE]]
            self.assertEqual([], differ, "pages of %s that differ" % f)


class Memory(Lab):
    cost = 60

    def check_captures_agree(self, **kw):
        vm = self.running_vm(attach=False, append="JUNK=16", **kw)
        vm.serial.wait("JUNK-READY")
        vm.cmd("stop")
        copy, copied, found = self.capture_copy(vm, "copy")
        for block, (how, _) in found.items():
            self.assertIn(how, ("known", "unique", "same"), (
                block, self.layout(vm)))
        with self.subTest("background equals the copy"), QMP(vm.qmp) as q:
            path = self.folder("background")
            out = self.migrate(q, {"background-snapshot": True}, path,
                               "background")
            self.assertEqual([self.machine(vm)], out["machine"])
            self.assertEqual(copied["memory"], out["memory"])
            self.assertEqual(copied["written"], out["written"])
            self.assertEqual(["1"], out["footers"])
            self.assertEqual(["1"], out["vmdesc"])
            self.assertTrue(out["instant"])
            self.expect_same_files(copy, path)
            q.cmd("stop")  # 7.2 lets a guest go on that was paused before
        with self.subTest("precopy equals the copy"), QMP(vm.qmp) as q:
            copy, copied, _ = self.capture_copy(vm, "copy2")
            path = self.folder("precopy")
            out = self.migrate(q, {}, path, "precopy")
            self.assertEqual(copied["written"], out["written"])
            self.assertNotIn("instant", out)
            self.expect_same_files(copy, path)
        for name in ("copy", "background", "copy2", "precopy"):
            self.probe("verify", os.path.join(self.tmp, name))
        vm.cmd("cont")
        self.goes_on(vm)
        return vm

    def test_captures_of_one_stopped_vm_are_the_same_pc(self):
        self.check_captures_agree()

    def test_captures_of_one_stopped_vm_are_the_same_q35_with_option_roms(self):
        # pc.bios, e1000 and e1000e: 256 KiB each; vga.rom is as long as the
        # table loader's block
        self.check_captures_agree(
            machine="q35", memory="memfd", smp=2,
            extra=["-vga", "std", "-device", "e1000", "-device", "e1000e",
                   "-device", "e1000e"])

    # --------------------------------------------------------------- restore

    def captured(self, **kw):
        """A VM without disks, captured in mode paused and ended: its file set,
        its machine type and its last tick."""
        vm = self.running_vm("first", attach=False, disks=[], memory="ram",
                             append="JUNK=16", **kw)
        vm.serial.wait("JUNK-READY")
        vm.cmd("stop")
        path, out, _ = self.capture_copy(vm, "set")
        machine = self.machine(vm)
        last = vm.serial.ticks()[-1]
        vm.quit()
        self.vms.remove(vm)
        return path, machine, last, out

    def incoming(self, name, **kw):
        extra = ["-incoming", "defer", *kw.pop("extra", [])]
        return self.make_vm(name, disks=[], extra=extra, append="JUNK=16",
                            **kw).start(paused=True)

    def load(self, vm, argv, fails=False):
        """Runs a probe that writes a stream into `vm`; what it says."""
        r, w = os.pipe()
        with QMP(vm.qmp) as q:
            self.send_fd(q, r, "mig")
            os.close(r)
            probe = subprocess.Popen([PROBE, *argv], stdout=w,
                                     stderr=subprocess.PIPE, text=True)
            os.close(w)
            q.cmd("migrate-incoming", uri="fd:mig")
            said_of_it = probe.communicate(timeout=100)[1]
            if fails:
                self.assertEqual(1, probe.returncode, said_of_it)
                return said(said_of_it)
            self.assertEqual(0, probe.returncode, said_of_it)
            self.assertEqual("completed", self.wait_migrated(q)["status"])
        return said(said_of_it)

    def check_goes_on(self, vm, last, again):
        """RAM is the captured one; the guest goes on from its last tick; and a
        reset finds its ROMs."""
        path, _, _ = self.capture_copy(vm, "again-" + vm.name)
        self.expect_same_files(again, path)
        since = vm.serial.mark()
        vm.cmd("cont")
        ticks = self.goes_on(vm, since)
        self.assertIn(ticks[0].number, (last.number, last.number + 1))
        self.assertEqual(last.nonce, ticks[0].nonce)
        vm.serial.wait(r"junk pass=\d+ bad=0", since)
        self.assertNotIn("GUEST-UP", vm.serial.text(since))
        vm.cmd("system_reset")
        vm.serial.wait("GUEST-UP", since)

    def test_a_capture_runs_again_eagerly_into_any_ram(self):
        path, machine, last, out = self.captured()
        with self.subTest("fresh anonymous RAM"):
            vm = self.incoming("fresh", memory="ram")
            told = self.load(vm, ["restore", path, machine, "all"])
            self.assertEqual(out["written"], told["sent"])
            self.check_goes_on(vm, last, path)
        with self.subTest("a file that is full of something else"):
            vm = self.make_vm("dirty", disks=[], memory="file", append="JUNK=16",
                              extra=["-incoming", "defer"])
            with open(os.path.join(vm.dir, "guest.ram"), "wb") as f:
                f.write(b"\xaa" * (vm.mib << 20))
            vm.start(paused=True)
            self.load(vm, ["restore", path, machine, "zeros"])
            self.check_goes_on(vm, last, path)

    def test_a_capture_runs_again_mapped(self):
        path, machine, last, out = self.captured(machine="q35")
        ram = os.path.join(path, "ram0.ram")
        before = os.stat(ram)
        backend = ("memory-backend-file,id=ram0,size=%d,share=off,mem-path=%s" %
                   (before.st_size, ram))
        kw = {"machine": "q35,memory-backend=ram0",
              "extra": ["-object", backend]}
        with self.subTest("small blocks through a pipe"):
            vm = self.incoming("mapped", **kw)
            told = self.load(vm, ["restore", path, machine, "ram0"])
            self.assertLess(int(told["stream"][0]), 2 << 20)
            self.check_goes_on(vm, last, path)
        with self.subTest("listed pages, built as bytes"):
            vm = self.incoming("built", **kw)
            ranges = ["%s:0:%d" % (b.split(" ")[0], int(b.split(" ")[1]))
                      for b in out["block"] if not b.startswith("ram0 ")]
            self.load(vm, ["build", path, machine, *ranges])
            self.check_goes_on(vm, last, path)
        after = os.stat(ram)
        self.assertEqual((before.st_mtime_ns, before.st_size),
                         (after.st_mtime_ns, after.st_size))
        self.probe("verify", path)

    def test_a_damaged_capture_never_runs(self):
        path, machine, _, _ = self.captured()
        with open(os.path.join(path, "ram0.ram"), "r+b") as f:
            f.seek(95 << 20)
            f.write(b"damaged")
        vm = self.incoming("damaged", memory="ram")
        told = self.load(vm, ["restore", path, machine, "all"], fails=True)
        self.assertEqual(["corrupt"], told["error"])
        self.assertIn("ram0.ram, 1048576 bytes at offset 99614720: does not "
                      "match its checksum", told["message"][0])
        vm.wait_off()
        self.assertEqual("", vm.serial.text())
