# SPDX-License-Identifier: MIT
"""revert: all ways back, all states afterwards, branches, resets."""

import os
import shutil
import subprocess
import time

from lib import image
from lib.case import Case

RESTORES = ("eager", "mapped")


class Revert(Case):
    limit = 180
    cost = 60

    def snapshot(self, vm, name="one", *more):
        """(the snapshot's tick, the nonce)"""
        nonce = vm.serial.ticks()[-1].nonce
        self.q("create", vm.name, name, "--memory", *more)
        return self.snapshot_ticks(vm, name)[0], nonce

    def reset_boots(self, vm, nonce):
        """ROM blocks are back too: a reset of the guest boots it again."""
        since = vm.serial.mark()
        vm.cmd("system_reset")
        first = vm.wait_up(since)[0]
        self.assertEqual(1, first.number)
        self.assertNotEqual(nonce, first.nonce)

    def test_to_running_paused_and_stopped_each_way(self):
        vm = self.running_vm(append="JUNK=8",
                             disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        vm.serial.wait("JUNK-READY")
        tick, nonce = self.snapshot(vm)
        frozen = self.frozen(vm, "one").values()
        contents = [image.digest(path, fmt) for path, fmt in frozen]
        for restore in RESTORES:
            with self.subTest(restore=restore, to="running"):
                self.goes_on(vm)
                since = vm.serial.mark()
                said = self.q("revert", "vm", "one", "--start", "--restore",
                              restore)
                self.assertEqual(("running", restore),
                                 (said["state"], said["restore"]))
                self.assertGreater(said["ms"]["total"], 0)
                self.goes_on_from(vm, tick, nonce, since)
                vm.serial.wait(r"junk pass=\d+ bad=0", since)
                vm.serial.wait(r"junk pass=\d+ bad=0", vm.serial.mark())
                self.assertEqual([], vm.serial.wrong(since))
                self.reset_boots(vm, nonce)
            with self.subTest(restore=restore, to="paused"):
                since = vm.serial.mark()
                said = self.q("revert", "vm", "one", "--paused", "--restore",
                              restore)
                self.assertEqual("paused", said["state"])
                self.assertEqual("paused", vm.state())
                self.stands_still(vm)
                self.assertEqual(contents, [image.digest(p, "qcow2")
                                            for p in self.head_paths(vm)])
                vm.cmd("cont")
                self.goes_on_from(vm, tick, nonce, since)
        with self.subTest(to="stopped"):
            since = vm.serial.mark()
            said = self.q("revert", "vm", "one", "--stopped")
            self.assertEqual("stopped", said["state"])
            self.assertEqual("off", vm.state())
            heads = self.head_paths(vm)
            self.assertEqual(contents, [image.digest(p, "qcow2")
                                        for p in heads])
            self.q("start", "vm")
            vm.wait_up(since)
            vm.serial.wait(r"disk vda had=%d\n" % tick, since)
        self.assertEqual(contents, [image.digest(path, fmt)
                                    for path, fmt in frozen])

    def test_of_a_vm_that_is_off(self):
        vm = self.shared(self.running_vm)
        tick, nonce = self.snapshot(vm)
        self.goes_on(vm)
        vm.end()
        for restore in RESTORES:
            with self.subTest(restore=restore):
                since = vm.serial.mark()
                self.q("revert", "vm", "one", "--restore", restore)
                self.goes_on_from(vm, tick, nonce, since)
                vm.end()

    def test_the_new_process_is_the_old_one_again(self):
        """Same command line, folder and user; only disks and what the way
        back needs are different."""
        vm = self.running_vm(memory="ram", agent=True)
        tick, nonce = self.snapshot(vm)
        before = self.process(vm)
        since = vm.serial.mark()
        self.q("revert", "vm", "one", "--restore", "eager")
        self.goes_on_from(vm, tick, nonce, since)
        after = self.process(vm)
        self.assertNotEqual(before["pid"], after["pid"])
        self.assertFalse(os.path.exists("/proc/%d/exe" % before["pid"]))
        for what in ("exe", "cwd", "uid"):
            self.assertEqual(before[what], after[what])
        gone = [a for a in before["argv"] if a not in after["argv"]]
        self.assertTrue(all(vm.disks[0].path in a for a in gone), gone)
        with vm.guest_agent() as agent:
            agent.cmd("guest-ping")

    @staticmethod
    def process(vm):
        pid = vm.pid()
        with open("/proc/%d/cmdline" % pid) as f:
            argv = f.read().split("\0")
        return {"pid": pid, "argv": argv,
                "exe": os.readlink("/proc/%d/exe" % pid),
                "cwd": os.readlink("/proc/%d/cwd" % pid),
                "uid": os.stat("/proc/%d" % pid).st_uid}

    def test_to_a_snapshot_without_memory(self):
        vm = self.running_vm(style="blockdev",
                             disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        self.q("create", "vm", "disks")
        ticks = self.snapshot_ticks(vm, "disks")
        nonce = vm.serial.ticks()[-1].nonce
        self.goes_on(vm, count=8)
        for again in range(2):
            with self.subTest(again=again):
                since = vm.serial.mark()
                said = self.q("revert", "vm", "disks")
                self.assertEqual(("running", "disk"),
                                 (said["state"], said["restore"]))
                first = vm.wait_up(since)[0]
                self.assertNotEqual(nonce, first.nonce)
                for disk, tick in zip(("vda", "vdb"), ticks):
                    vm.serial.wait(r"disk %s had=%d\n" % (disk, tick), since)
        with self.subTest("the VM is off, and stays off"):
            vm.quit()
            said = self.q("revert", "vm", "disks")
            self.assertEqual("stopped", said["state"])
            self.assertEqual("off", vm.state())
            self.assertEqual(ticks, [image.tick(p, "qcow2")
                                     for p in self.head_paths(vm)])

    def test_branches_of_the_tree(self):
        """one - two; back to one, on to three; then each of them again."""
        vm = self.running_vm(append="SYNC=vda SYNCMS=2")
        ticks, ids = {}, {}
        nonce = vm.serial.ticks()[-1].nonce

        def take(name):
            made = self.q("create", "vm", name, "--memory", "--mode", "paused")
            ids[name] = made["id"]
            ticks[name] = self.snapshot_ticks(vm, name)[0]
            self.goes_on(vm)
            return made

        def back(name):
            since = vm.serial.mark()
            self.q("revert", "vm", name)
            self.assertEqual(ids[name], self.q("list", "vm")["current"])
            self.goes_on_from(vm, ticks[name], nonce, since)

        take("one")
        self.assertEqual(ids["one"], take("two")["parentId"])
        back("one")
        self.assertEqual(ids["one"], take("three")["parentId"])
        back("two")
        self.assertEqual(ids["two"], take("four")["parentId"])
        for name in ("three", "one", "four", "two"):
            back(name)
        tree = {s["name"]: s for s in self.q.snapshots("vm")}
        self.assertEqual(["one", "two", "three", "four"], list(tree))
        self.assertEqual({ids["two"], ids["three"]},
                         set(tree["one"]["children"]))
        self.assertEqual([ids["four"]], tree["two"]["children"])
        self.assertEqual([], tree["three"]["children"])
        self.assertEqual(["two"], [n for n, s in tree.items()
                                   if s["current"]])
        rows = [r for r in self.q.text("list", "vm", "--tree").splitlines()
                if any(n in r for n in tree)]
        order = [next(n for n in tree if n in r) for r in rows]
        self.assertEqual("one", order[0])
        self.assertEqual(order.index("two") + 1, order.index("four"),
                         "a child stands under its parent")

    def test_to_paused_when_the_snapshot_was_of_a_paused_vm(self):
        vm = self.shared(self.running_vm)
        self.pause(vm)
        tick, nonce = self.snapshot(vm, "one", "--mode", "paused")
        vm.cmd("cont")
        self.goes_on(vm)
        since = vm.serial.mark()
        self.assertEqual("paused", self.q("revert", "vm", "one")["state"])
        self.stands_still(vm)
        self.cont(vm)
        self.goes_on_from(vm, tick, nonce, since)

    def test_memory_of_other_backends(self):
        for memory in ("ram", "memfd", "file"):
            vm = self.running_vm(name=memory, memory=memory)
            tick, nonce = self.snapshot(vm, "one", "--mode", "paused")
            for restore in RESTORES if memory == "ram" else \
                    RESTORES + ("auto",):
                with self.subTest(memory=memory, restore=restore):
                    self.goes_on(vm)
                    if restore == "mapped" and memory != "ram":
                        # Whoever else maps it would see nothing of it.
                        with self.nothing_changes(vm):
                            self.q.fails("precondition", "shared", "revert",
                                         memory, "one", "--restore", restore)
                        continue
                    since = vm.serial.mark()
                    self.q("revert", memory, "one", "--restore", restore)
                    self.goes_on_from(vm, tick, nonce, since)
            vm.end()

    def test_what_would_be_lost_can_be_kept(self):
        vm = self.shared(self.running_vm)
        tick, nonce = self.snapshot(vm)
        later = self.goes_on(vm)[-1].number
        since = vm.serial.mark()
        self.q("revert", "vm", "one", "--keep")
        self.goes_on_from(vm, tick, nonce, since)
        kept, = [s for s in self.q.snapshots("vm") if s["name"] != "one"]
        self.assertEqual(self.q.info("vm", "one")["id"], kept["parentId"])
        self.assertGreaterEqual(self.snapshot_ticks(vm, kept["id"])[0], later)

    def test_an_unknown_way_is_refused(self):
        vm = self.shared(self.running_vm)
        self.snapshot(vm)
        with self.nothing_changes(vm):
            self.q.fails("usage", "restore|nosuch", "revert", "vm", "one",
                         "--restore", "nosuch")
            self.q.fails("usage", "", "revert", "vm", "one", "--paused",
                         "--stopped")


class LeftPaused(Case):
    """QEMU 10.0 gives a guest that came by a migration its images when it runs
    first: who leaves it paused has them taken up."""

    def test_all_verbs_go_on(self):
        for way in ("eager", "mapped"):
            for style in ("drive", "blockdev"):
                with self.subTest(way=way, style=style):
                    self.go(way, style)

    def go(self, way, style):
        name = way + style
        vm = self.tiny_vm(name, style=style)
        self.paused_on_purpose.add(name)
        disk, = vm.disks
        for i, snap in enumerate(("one", "two")):
            vm.write(disk, 0, i + 1)
            self.q("create", name, snap, "--memory")
        self.q("revert", name, "two", "--paused", "--restore", way)
        self.assertEqual("paused", vm.state())
        vm.write(disk, 1, 9)  # as another monitor may
        self.q("create", name, "three", "--memory")
        self.q("create", name, "four")
        self.q("delete", name, "one", "two")
        self.q("revert", name, "three", "--paused")
        self.q("delete", name, "four", "three")
        self.assertEqual(0, len(self.q.names(name)))
        self.assertEqual("paused", vm.state())
        self.paused_on_purpose.remove(name)
        vm.cmd("cont")
        vm.io(disk, "read -q -P 2 0 64k")
        vm.io(disk, "read -q -P 9 64k 64k")
        self.assertEqual({disk.path}, self.disk_files(vm))


class Ending(Case):
    """The QEMU that a revert in a new process ends first."""
    either = True
    idle = True

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm()
        self.disk0, = self.vm.disks
        self.vm.write(self.disk0, 0, 1)
        self.q("create", "vm", "one", "--memory")

    def shows(self, byte):
        self.assertEqual("running", self.vm.state())
        self.vm.io(self.disk0, "read -q -P %d 0 64k" % byte)
        self.assertFalse(os.path.exists(self.q.journal_path("vm")))

    def test_a_quit_that_it_did_not_hear_is_said_again(self):
        for argv, now in ((("revert", "vm", "one", "--restore", "eager"), 1),
                          (("undo", "vm"), 2)):
            self.vm.write(self.disk0, 0, 2)
            p, calls = self.traced(argv, "--errno", "EPIPE")
            self.assertEqual(0, p.returncode, p.stdout)
            if argv[0] == "undo":
                self.q("revert", "vm", "one", "--restore", "eager")
            self.vm.write(self.disk0, 0, 3 - now)
            at, = [n for n, c in enumerate(calls, 1) if '"quit"' in c]
            p, calls = self.traced(argv, "--errno", "EPIPE", "--at", str(at))
            self.assertEqual(0, p.returncode, p.stdout)
            self.assertEqual(2, str(calls).count('"quit"'))
            self.shows(now)

    def test_one_that_takes_too_long_is_left_to_the_next_command(self):
        self.vm.write(self.disk0, 0, 2)
        if not shutil.which("strace"):
            self.skipTest("needs strace")
        head, = self.head_paths(self.vm)
        slow = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-P", head, "-e",
             "trace=close", "-e", "inject=close:delay_enter=85s:when=1",
             "-p", str(self.vm.pid())])
        self.addCleanup(slow.kill)
        time.sleep(0.5)
        p = self.q.start("revert", "vm", "one", "--restore", "eager")
        status, _, err = self.q.finish(p, 82)
        self.assertEqual(9, status, err)
        self.assertIn("has not answered 'quit'", err)
        self.assertNotIn("was started again", err)
        self.assertIn("qstill recover vm", err)
        self.assertTrue(os.path.exists(self.q.journal_path("vm")))
        slow.wait(60)
        self.q("recover", "vm")
        self.shows(2)
        self.assertEqual(["one"], self.q.names("vm"))
