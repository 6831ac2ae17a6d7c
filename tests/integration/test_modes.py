# SPDX-License-Identifier: MIT
"""The capture modes. In each, memory and disks are of one instant; the proof
is a guest that writes one counter to RAM and to its disks without pause
(fixtures/guest/guest.c, sync_loop)."""

import hashlib
import json
import os
import signal
import time

from lib import image
from lib.case import QUICK, Case, share

ROUNDS = len(share(range(int(
    os.environ.get("ROUNDS", "4" if QUICK else "20")))))


class Mode(Case):
    """The tests of all modes; a subclass names one."""
    mode = None
    restores = ("eager", "mapped")
    limit = max(300, 10 * ROUNDS)
    cost = 60

    def create(self, vm, name, *more):
        made = self.q("create", vm.name, name, "--memory", "--mode", self.mode,
                      *more)
        self.assertEqual(self.mode, made["mode"])
        return made

    def check_rounds(self):
        vm = self.running_vm(style="blockdev", append="SYNC=vda,vdb JUNK=4 "
                             "DIRTY=1", disks=[self.disk("disk0"),
                                               self.disk("disk1", "raw")])
        paddr = self.sync_address(vm)
        nonce = vm.serial.ticks()[-1].nonce
        counts = []
        for i in range(ROUNDS):
            with self.subTest(round=i):
                made = self.create(vm, "round-%d" % i)
                page = self.check_instant(vm, made, paddr)
                tick = self.snapshot_ticks(vm, made["id"])[0]
                since = vm.serial.mark()
                self.q("revert", "vm", made["id"], "--restore",
                       self.restores[i % len(self.restores)])
                self.goes_on_from(vm, tick, nonce, since, 2)
                since = vm.serial.mark()
                vm.serial.wait(r"sync count=\d+ bad=0", since)
                vm.serial.wait(r"junk pass=\d+ bad=0", since)
                self.assertEqual([], vm.serial.wrong())
                counts.append(page.done)
        self.assertEqual(ROUNDS, len(counts))
        self.assertEqual(sorted(set(counts)), counts,
                         "each round goes on from the one before")

    def junk_vm(self):
        vm = self.shared(lambda: self.running_vm(append="JUNK=40"))
        vm.serial.wait("JUNK-READY")
        return vm

    def check_figures(self):
        """What create says of the pause, against QEMU's own events."""
        vm = self.junk_vm()
        with vm.monitor() as monitor:
            made = self.create(vm, "one")
            monitor.cmd("query-status")
            at = {e["event"]: e["timestamp"]["seconds"] * 1e3 +
                  e["timestamp"]["microseconds"] / 1e3
                  for e in monitor.events if e["event"] in ("STOP", "RESUME")}
        pause = at["RESUME"] - at["STOP"]
        self.assertGreater(made["pauseMs"], 0)
        # Ours is measured outside QEMU, and `cont` answers after RESUME.
        self.assertGreater(made["pauseMs"], pause - 5)
        self.assertLess(made["pauseMs"], pause * 1.3 + 60)
        self.assertGreaterEqual(made["longestStallMs"], 0)
        self.goes_on(vm)

    def check_verify(self, vm):
        self.q("verify", "vm", "one")
        ram = self.main_ram(vm, self.q.info("vm", "one"))
        self.assertGreater(os.stat(ram).st_blocks * 512, 40 << 20,
                           "40 MiB of known content are in the file")

    def ticks_while_created(self):
        """The ticks that the guest printed while a slowed-down create ran,
        and the tick that the snapshot's disk holds."""
        vm = self.junk_vm()
        process = self.q.start("create", "vm", "one", "--memory", "--mode",
                               self.mode, "--bwlimit", "20M")
        self.q.wait_journal("vm", process)
        since = vm.serial.mark()
        begun = time.monotonic()
        status, out, err = self.q.finish(process)
        self.assertEqual(0, status, err + out)
        lasted = time.monotonic() - begun
        self.assertGreater(lasted, 1.5, "40 MiB at 20 MiB/s")
        ticks = [t.number for t in vm.serial.ticks(since)]
        self.goes_on(vm)
        self.check_verify(vm)
        return ticks, self.snapshot_ticks(vm, "one")[0]


class Cow(Mode):
    mode = "cow"
    # A VM that maps its RAM from a file cannot be captured so.
    restores = ("eager",)

    def test_ram_and_disks_are_of_one_instant_in_every_round(self):
        self.check_rounds()

    def test_the_pause_that_is_told_is_the_pause_that_was(self):
        self.check_figures()

    def test_the_guest_runs_while_memory_is_copied_as_it_was(self):
        ticks, tick = self.ticks_while_created()
        self.assertGreater(len(ticks), 15)
        self.assertLess(tick, ticks[len(ticks) // 2],
                        "the instant is at the start")


class Paused(Mode):
    mode = "paused"

    def test_ram_and_disks_are_of_one_instant_in_every_round(self):
        self.check_rounds()

    def test_the_pause_that_is_told_is_the_pause_that_was(self):
        self.check_figures()

    def test_the_guest_stands_still_while_memory_is_copied(self):
        ticks, tick = self.ticks_while_created()
        # Some before the stop, some after the cont, none between.
        self.assertLess(len(ticks), 15)
        if ticks:  # else it stood still for all of what was looked at
            self.assertIn(tick, range(ticks[0] - 3, ticks[-1] + 1))


class Background(Mode):
    mode = "background"
    # A VM that maps its RAM from a file cannot be captured so (spec 3.3).
    restores = ("eager",)

    def test_ram_and_disks_are_of_one_instant_in_every_round(self):
        self.check_rounds()

    def test_the_pause_that_is_told_is_the_pause_that_was(self):
        self.check_figures()

    def test_the_guest_runs_while_memory_is_copied_as_it_was(self):
        ticks, tick = self.ticks_while_created()
        self.assertGreater(len(ticks), 12)
        self.assertLess(tick, ticks[len(ticks) // 2],
                        "the instant is at the start")


class Precopy(Mode):
    mode = "precopy"

    def test_ram_and_disks_are_of_one_instant_in_every_round(self):
        self.check_rounds()

    def test_the_pause_that_is_told_is_the_pause_that_was(self):
        self.check_figures()

    def test_a_pause_that_we_see_late_is_told_whole(self):
        vm = self.junk_vm()
        with vm.monitor() as other:
            p = self.q.start("create", "vm", "late", "--memory", "--mode",
                             "precopy")
            while json.loads(other.line()).get("event") != "STOP":
                pass
            p.send_signal(signal.SIGSTOP)
            time.sleep(0.4)
            p.send_signal(signal.SIGCONT)
            status, out, err = self.q.finish(p)
        self.assertEqual(0, status, err)
        self.assertGreater(json.loads(out)["pauseMs"], 400)

    def test_the_guest_runs_while_memory_is_copied_and_the_end_counts(self):
        ticks, tick = self.ticks_while_created()
        self.assertGreater(len(ticks), 12)
        self.assertGreater(tick, ticks[len(ticks) // 2],
                           "the instant is at the end")


def sums_of_ram(path):
    """What the file `sums` says of the RAM. Of the device state it holds the
    length, the sum and so a sum of its own: clocks of devices go on between
    two captures of a paused VM."""
    with open(path, "rb") as f:
        data = f.read()
    return hashlib.sha256(data[:32] + data[48:-8]).hexdigest()


class SameFiles(Case):
    """All modes end in the same files."""
    cost = 25

    def junk_vm(self):
        return self.shared(lambda: self.running_vm(append="JUNK=8"))

    def files(self, made, look):
        folder = self.q.memory_dir("vm", made["id"])
        return {name: look(os.path.join(folder, name))
                for name in os.listdir(folder) if name != "device.state"}

    def bytes_of(self, made):
        files = self.files(made, image.file_digest)
        files["sums"] = sums_of_ram(os.path.join(
            self.q.memory_dir("vm", made["id"]), "sums"))
        return files

    def test_every_mode_writes_the_same_set_of_files(self):
        vm = self.junk_vm()
        files = {}
        for mode in ("paused", "cow", "background", "precopy"):
            made = self.q("create", "vm", mode, "--memory", "--mode", mode)
            files[mode] = self.files(made, os.path.getsize)
            with open(self.q.manifest_path("vm", made["id"])) as f:
                files[mode]["blocks"] = json.load(f)["memory"]["blocks"]
        self.assertEqual(files["paused"], files["cow"])
        self.assertEqual(files["paused"], files["background"])
        self.assertEqual(files["paused"], files["precopy"])
        self.goes_on(vm)

    def test_of_a_paused_vm_they_write_the_same_bytes(self):
        vm = self.junk_vm()
        nonce = vm.serial.ticks()[-1].nonce
        vm.serial.wait("JUNK-READY")
        self.pause(vm)
        made = self.q("create", "vm", "paused", "--memory", "--mode", "paused")
        want = self.bytes_of(made)
        for mode in ("cow", "precopy", "background"):
            with self.subTest(mode=mode):
                status, out, err = self.q.finish(self.q.start(
                    "create", "vm", mode, "--memory", "--mode", mode))
                self.assertIn(vm.state(), ("paused", "postmigrate"))
                if status != 0:  # said so before anything was done
                    self.q.failed("precondition", "paused", ["create"],
                                  status, out, err)
                    continue
                self.assertEqual(want, self.bytes_of(self.q.parse(out)))
        self.cont(vm)
        self.goes_on(vm)
        for name in self.q.names("vm"):
            with self.subTest(revert=name):
                since = vm.serial.mark()
                tick = self.snapshot_ticks(vm, name)[0]
                self.q("revert", "vm", name, "--start")
                self.goes_on_from(vm, tick, nonce, since)

    def test_an_unknown_mode_is_refused(self):
        vm = self.junk_vm()
        with self.nothing_changes(vm):
            self.q.fails("usage", "mode", "create", "vm", "one", "--memory",
                         "--mode", "nosuch")

    def test_auto_takes_a_mode_and_says_which(self):
        vm = self.junk_vm()
        made = self.q("create", "vm", "one", "--memory")
        self.assertIn(made["mode"], ("cow", "background", "precopy", "paused"))
        ok = self.q.check("vm", "--memory")["captureModes"]
        self.assertIsNone(ok[made["mode"]])
        self.goes_on(vm)
