# SPDX-License-Identifier: MIT
"""check predicts: what it passes can be created, reverted to and deleted, and
what it does not pass cannot, with the same words."""

import contextlib
import os
import subprocess
import time

from lib import image
from lib.case import Case
from lib.tiny import content


# The PIIX4's SLP_EN: 7.2 takes no byte there, and 11.1's monitor swaps a word's.
POWER_OFF = "o /w 0x604 0x2000", "o /b 0x605 0x20"


class Check(Case):
    either = True
    cost = 20

    def vm_of(self, name, **kw):
        """With a snapshot `base`, and something written since."""
        vm = self.tiny_vm(name, disks=[
            self.disk("disk0", "qcow2", vm=name, size=2 << 20, pattern=False),
            self.disk("disk1", "raw", vm=name, size=2 << 20, pattern=False)],
            **kw)
        self.write(vm, 1)
        self.q("create", name, "base")
        self.write(vm, 2)
        return vm

    @staticmethod
    def write(vm, byte):
        for d in vm.disks:
            vm.write(d, 0, byte)

    def passes(self, vm, *more):
        """And so it is: all three, with memory if that was asked for."""
        said = self.q.check(vm.name, *more)
        self.assertEqual([], said["problems"])
        extra = [m for m in more if m == "--memory"]
        state = vm.state()
        self.q("create", vm.name, "new", *extra)
        self.q("revert", vm.name, "new")
        self.q("revert", vm.name, "base")
        self.q("delete", vm.name, "new")
        self.assertEqual(["base"], self.q.names(vm.name))
        self.assertEqual([], self.q.check(vm.name)["problems"])
        self.check_nothing_left(vm)
        return state

    def test_a_vm_that_runs(self):
        vm = self.vm_of("vm")
        self.passes(vm)
        self.passes(vm, "--memory")
        modes = self.q.check("vm", "--memory")["captureModes"]
        for mode in [m for m, why in modes.items() if why is None]:
            with self.subTest(mode=mode):
                self.q("create", "vm", mode, "--memory", "--mode", mode)
                self.q("revert", "vm", mode)
                self.q("delete", "vm", mode)
        for mode in [m for m, why in modes.items() if why is not None]:
            with self.subTest(mode=mode):
                self.q.fails("precondition|permission", "", "create", "vm",
                             mode, "--memory", "--mode", mode)

    def test_a_vm_that_is_paused_or_off(self):
        vm = self.vm_of("vm")
        self.pause(vm)
        self.q("create", "vm", "new")
        self.assertEqual("paused", vm.state())
        self.q("delete", "vm", "new")
        self.cont(vm)
        vm.quit()
        self.passes(vm)
        said = self.q.check("vm", "--memory")
        self.assertEqual(["not-running"], [p["code"] for p in
                                           said["problems"]])
        self.q.fails("unreachable|precondition", "not run", "create", "vm",
                     "new", "--memory")

    def test_after_a_delete_that_left_a_layer(self):
        vm = self.vm_of("vm")
        self.q("create", "vm", "one")
        self.q("revert", "vm", "base")
        self.q("create", "vm", "two")
        self.q("delete", "vm", "base", "--keep-hidden")
        self.assertEqual([], self.q.check("vm")["problems"])
        for name in ("one", "two"):
            self.q("revert", "vm", name)
        self.q("delete", "vm", "one", "two")
        self.check_nothing_left(vm)

    def does_not_pass(self, code, message, *argvs):
        said = self.q.check("vm")
        found = [p for p in said["problems"] if p["code"] == code]
        self.assertTrue(found, said["problems"])
        self.assertRegex(found[0]["message"], message)
        self.assertTrue(found[0]["hint"])
        for argv in argvs:
            self.q.fails("precondition|corrupt|not-found|failed", message,
                         *argv)

    def test_a_layer_that_is_gone(self):
        vm = self.vm_of("vm")
        (path, _), _ = self.frozen(vm, "base").values()
        self.q("create", "vm", "new")
        vm.quit()
        self.unprotect(path)
        os.rename(path, path + ".away")
        self.does_not_pass("layer-changed", "disk0.*gone",
                           ["revert", "vm", "base"], ["revert", "vm", "new"],
                           ["delete", "vm", "base"])
        os.rename(path + ".away", path)
        self.passes_all(vm)

    def test_a_head_that_is_gone(self):
        vm = self.vm_of("vm")
        vm.quit()
        path = self.head_paths(vm)[0]
        os.rename(path, path + ".away")
        self.does_not_pass("head-missing", "disk0",
                           ["create", "vm", "new"], ["start", "vm"])
        os.rename(path + ".away", path)
        self.passes_all(vm)

    def passes_all(self, vm):
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("create", "vm", "again")
        self.q("revert", "vm", "base")
        self.q("start", "vm")
        self.q("delete", "vm", *self.q.names("vm"))
        self.check_nothing_left(vm)

    def test_a_file_system_without_room(self):
        """Nothing is left over, and nothing of what was there is harmed."""
        small = os.path.join(self.tmp, "small")
        self.mount_tmpfs(small, "size=600k")
        vm = self.vm_of("vm")
        self.q("create", "vm", "new", "--disk-dir", small)
        with contextlib.suppress(OSError), \
                open(small + "/fill", "wb", buffering=0) as f:
            while True:
                f.write(bytes(4096))
        self.q.fails("no-space", "", "create", "vm", "more", "--disk-dir",
                     small)
        self.assertEqual(["base", "new"], self.q.names("vm"))
        self.assertEqual("running", vm.state())
        os.unlink(small + "/fill")
        self.q("revert", "vm", "base")
        self.q("delete", "vm", "new")
        self.q("delete", "vm", "base")
        self.check_nothing_left(vm)


class Refused(Case):
    """What create, revert or delete refuse, check says before, in the same
    words."""
    either = True
    cost = 20

    def setUp(self):
        super().setUp()
        self.small = os.path.join(self.tmp, "small")

    def refuses(self, code, problem, message, *argv, hint=".", also=()):
        """check has that problem, and no other than `also`; the command fails
        likewise."""
        with self.nothing_changes(self.vms[0]):
            problems = self.q.check("vm")["problems"]
            self.assertEqual([problem, *also], [p["code"] for p in problems])
            self.assertRegex(problems[0]["message"], message)
            self.assertRegex(problems[0]["hint"], hint)
            failure = self.q.fails(code, message,
                                   *(argv or ["create", "vm", "new"]))
            self.assertRegex(failure.hint or "", hint)

    def immutable(self, path):
        subprocess.run(["chattr", "+i", path], check=True)
        self.addCleanup(subprocess.run, ["chattr", "-i", path])

    def test_a_guest_that_panicked(self):
        vm = self.tiny_vm(extra=["-device", "pvpanic", "-action",
                                 "panic=pause"])
        vm.hmp("o /b 0x505 1")
        self.paused_on_purpose.add("vm")
        self.assertEqual("guest-panicked", vm.state())
        with self.nothing_changes(vm):
            problem, = self.q.check("vm", "--memory")["problems"]
            self.assertEqual("vm-state", problem["code"])
            failure = self.q.fails("precondition", "guest-panicked", "create",
                                   "vm", "new", "--memory")
            self.assertEqual(problem["hint"], failure.hint)
            self.assertRegex(failure.hint, "without --memory")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("create", "vm", "new")
        self.assertEqual("guest-panicked", vm.state())
        vm.end()
        self.assertEqual([], self.q.check("vm")["problems"])

    def test_the_disks_of_a_guest_that_has_halted_are_kept(self):
        for state, *how in (("guest-panicked", "o /b 0x505 1"),
                           ("shutdown", *POWER_OFF)):
            with self.subTest(state=state):
                vm = self.tiny_vm(state, extra=[
                    "-device", "pvpanic", "-action", "panic=pause",
                    "-no-shutdown"])
                vm.write(vm.disks[0], 0, 1)
                self.q("create", state, "base", "--memory")
                vm.write(vm.disks[0], 0, 2)
                while vm.state() != state:  # once the firmware is up
                    for line in how:
                        vm.hmp(line)
                    time.sleep(0.1)
                self.q("revert", state, "base", "--keep")
                self.assertIn("is in state %s: of what it is now the disks "
                              "alone are kept" % state, self.q.stderr)
                self.assertEqual("running", vm.state())
                vm.io(vm.disks[0], "read -q -P 1 0 64k")
                kept, = [s for s in self.q.snapshots(state)
                         if s["name"].startswith("kept-")]
                self.assertFalse(kept["memoryIncluded"])
                self.q("revert", state, kept["name"])
                vm.io(vm.disks[0], "read -q -P 2 0 64k")

    def test_a_folder_that_cannot_be_written(self):
        vm = self.tiny_vm()
        self.q("create", "vm", "base")
        self.immutable(vm.dir)
        also = ["not-startable"]  # nor could QEMU make its sockets there
        self.refuses("permission", "folder", vm.dir, hint="chattr -i", also=also)
        self.refuses("permission", "folder", vm.dir, "revert", "vm", "base",
                     hint="chattr -i", also=also)
        self.refuses("permission", "folder", vm.dir, "delete", "vm", "base",
                     hint="chattr -i", also=also)
        self.q("create", "vm", "elsewhere", "--disk-dir", self.tmp)
        subprocess.run(["chattr", "-i", vm.dir], check=True)
        self.immutable(self.tmp)
        try:
            self.refuses("permission", "folder", self.tmp, "delete", "vm",
                         "elsewhere", hint="chattr -i")
        finally:
            subprocess.run(["chattr", "-i", self.tmp], check=True)
        self.q("delete", "vm", "base", "elsewhere")

    def test_a_name_that_no_header_holds(self):
        """1023 bytes; the second head is 13 bytes longer than the first."""
        folder = self.tmp
        while len(folder) < 800:
            folder += "/" + 200 * "d"
        folder += "/" + (1023 - len(folder) - len("//disk0.qcow2")) * "e"
        os.makedirs(folder)
        disk = self.disk(size=2 << 20, pattern=False)
        os.rename(disk.path, folder + "/disk0.qcow2")
        disk.path = folder + "/disk0.qcow2"
        self.assertEqual(1023, len(disk.path))
        vm = self.tiny_vm(disks=[disk])
        vm.write(disk, 0, 1)
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("create", "vm", "one")
        vm.write(disk, 0, 2)
        self.refuses("precondition", "folder", "no overlay can stand on its "
                     "image: .* has 1036 bytes", hint="bind mount")
        vm.quit()
        self.refuses("precondition", "folder", "no overlay can stand on its "
                     "image: .* has 1036 bytes", hint="bind mount")
        self.q("revert", "vm", "one")
        self.q("delete", "vm", "one")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.assertEqual([1, 0], content(disk.path, "qcow2")[:2])

    def test_a_folder_without_room(self):
        self.mount_tmpfs(self.small, "size=600k")
        vm = self.tiny_vm(disks=[self.disk(size=2 << 20, pattern=False,
                                           vm="small")])
        vm.dir = self.small
        with contextlib.suppress(OSError), \
                open(self.small + "/fill", "wb", buffering=0) as f:
            while True:
                f.write(bytes(4096))
        self.refuses("no-space", "no-space", self.small)
        os.unlink(self.small + "/fill")
        self.q("create", "vm", "new")
        self.q("delete", "vm", "new")

    def test_a_store_that_cannot_be_written(self):
        vm = self.tiny_vm()
        self.q("create", "vm", "base")
        folder = os.path.join(self.store, "vm")
        for path in (folder, folder + "/snapshots"):
            with self.subTest(path=path):
                self.immutable(path)
                for argv in (["create", "vm", "new"],
                             ["delete", "vm", "base"]):
                    self.refuses("permission", "store", "store", *argv,
                                 hint="chattr -i")
                subprocess.run(["chattr", "-i", path], check=True)
        self.q("delete", "vm", "base")

    def test_a_store_without_room(self):
        self.mount_tmpfs(self.small, "size=600k")
        self.q.store = self.store = self.small + "/store"
        self.tiny_vm()
        with contextlib.suppress(OSError), \
                open(self.small + "/fill", "wb", buffering=0) as f:
            while True:
                f.write(bytes(4096))
        self.refuses("no-space", "no-space", "store")
        os.unlink(self.small + "/fill")
        self.q("create", "vm", "new")

    def test_a_head_that_is_no_image(self):
        vm = self.tiny_vm()
        self.q("create", "vm", "base")
        vm.quit()
        path = self.head_paths(vm)[0]
        with open(path, "r+b") as f:
            whole = f.read(8)
            f.seek(0)
            f.write(b"no image")
        self.refuses("corrupt", "head-damaged", path, hint="backup")
        with open(path, "r+b") as f:
            f.write(whole)
        self.q("create", "vm", "new")

    def test_a_job_of_the_users(self):
        vm = self.tiny_vm()
        vm.write(vm.disks[0], 0, 1)
        vm.cmd("drive-mirror", device="disk0", sync="full", format="qcow2",
               target=vm.dir + "/mirror.qcow2", **{"job-id": "mine"})
        try:
            problems = self.q.check("vm")["problems"]
            self.assertEqual(["block-job"], [p["code"] for p in problems])
            self.assertIn("mirror", problems[0]["message"])
            failure = self.q.fails("busy", "mirror", "create", "vm", "new")
            self.assertEqual(problems[0]["hint"], failure.hint)
            self.assertIn("block-job-cancel mine", failure.hint)
        finally:
            vm.cmd("block-job-cancel", device="mine")
            while vm.block_jobs():
                pass
            os.unlink(vm.dir + "/mirror.qcow2")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("create", "vm", "new")

    def test_a_migration_of_the_users(self):
        """Who takes the VM over would write to what is frozen meanwhile."""
        vm = self.tiny_vm()
        self.q("create", "vm", "base")
        vm.cmd("migrate-set-parameters", **{"max-bandwidth": 100})
        vm.cmd("migrate", uri="exec:cat >/dev/null")
        for argv in (["create", "vm", "new"], ["revert", "vm", "base"],
                     ["revert", "vm", "base", "--stopped"],
                     ["delete", "vm", "base"],
                     ["create", "vm", "new", "--memory"]):
            with self.subTest(argv=argv):
                self.refuses("precondition", "migrating", "migration.*under "
                             "way", *argv)
        vm.cmd("migrate_cancel")
        while vm.cmd("query-migrate")["status"] != "cancelled":
            pass
        self.q("create", "vm", "new")
        self.q("delete", "vm", "base", "new")

    def test_a_vm_whose_guest_has_halted_runs_after_a_revert(self):
        vm = self.tiny_vm(extra=["-device", "pvpanic", "-action",
                                 "panic=pause", "-no-shutdown"])
        self.q("create", "vm", "base")
        for state, *how in (("guest-panicked", "o /b 0x505 1"),
                           ("shutdown", *POWER_OFF)):
            with self.subTest(state=state):
                while vm.state() != state: # once the firmware is up
                    for line in how:
                        vm.hmp(line)
                    time.sleep(0.1)
                said = self.q("revert", "vm", "base")
                self.assertEqual("running", said["state"])
                self.assertEqual("running", vm.state())

    def state(self, vm, wanted):
        while vm.state() != wanted:
            time.sleep(0.02)

    def migrated(self, paused=False):
        """(source in postmigrate, who took it over and writes to its head)."""
        vm = self.tiny_vm()
        self.q("create", "vm", "base")
        vm.write(vm.disks[0], 0, 5)
        head, = self.head_paths(vm)
        disk = self.disk(vm="taken", size=2 << 20, pattern=False)
        disk.path = head
        taken = self.tiny_vm("taken", disks=[disk], attach=False,
                             extra=["-incoming", "defer"] + paused * ["-S"])
        uri = "unix:" + os.path.join(self.tmp, "mig")
        taken.cmd("migrate-incoming", uri=uri)
        vm.cmd("migrate", uri=uri)
        self.state(vm, "postmigrate")
        if paused:
            self.state(taken, "paused")
            return vm, taken, head
        self.state(taken, "running")
        taken.write(taken.disks[0], 0, 6)
        return vm, taken, head

    def left_alone(self, head):
        for argv in (["revert", "vm", "base"], ["delete", "vm", "base"],
                     ["revert", "vm", "base", "--stopped"],
                     ["create", "vm", "new"]):
            with self.subTest(argv=argv):
                status, out, err = self.q.finish(self.q.start(*argv))
                self.assertNotEqual(0, status)
                self.assertRegex(err, "postmigrate|is in use")
                self.assertTrue(os.path.exists(head))

    def test_a_vm_that_has_moved_to_another_qemu(self):
        vm, taken, head = self.migrated()
        self.paused_on_purpose.add("vm")
        self.left_alone(head)
        said = self.q.check("vm")["problems"]
        self.assertEqual(["vm-state", "migrating"], [p["code"] for p in said])
        self.assertIn("is in use", said[1]["message"])
        taken.write(taken.disks[0], 0, 7)
        taken.quit()

    def test_a_vm_that_waits_in_another_qemu(self):
        """It was started with -S: of 10.0 it holds no lock before `cont`."""
        vm, taken, head = self.migrated(paused=True)
        self.paused_on_purpose.update(("vm", "taken"))
        self.left_alone(head)
        taken.cmd("cont")
        taken.write(taken.disks[0], 0, 7)
        taken.quit()

    def test_a_vm_that_waits_in_another_qemu_when_the_first_has_ended(self):
        vm, taken, head = self.migrated(paused=True)
        self.paused_on_purpose.update(("vm", "taken"))
        vm.quit()
        self.left_alone(head)
        said, = self.q.check("vm")["problems"]
        self.assertIn("is in use", said["message"])
        taken.cmd("cont")
        taken.write(taken.disks[0], 0, 7)
        taken.quit()
        self.q("delete", "vm", "base")

    def test_a_delete_after_a_migration_to_nowhere(self):
        """To a file, say: all can be done once nobody has taken it over."""
        vm, taken, head = self.migrated()
        taken.quit()
        if not any(c["name"] == "blockdev-set-active"
                   for c in vm.cmd("query-commands")):
            with self.nothing_changes(vm):
                self.q.fails("precondition", "cannot write", "delete", "vm",
                             "base")
            vm.cmd("cont")
        self.q("delete", "vm", "base")
        if vm.state() != "running":
            self.assertEqual("postmigrate", vm.state())
            vm.cmd("cont")
        vm.write(vm.disks[0], 1, 8)
        self.assertEqual([6, 8], content(self.head_paths(vm)[0], "qcow2")[:2])

    def test_a_revert_after_a_migration_to_nowhere(self):
        vm, taken, head = self.migrated()
        taken.quit()
        self.q("revert", "vm", "base", "--start")
        self.assertEqual("running", vm.state())
        vm.write(vm.disks[0], 1, 8)
        self.assertEqual([0, 8], content(self.head_paths(vm)[0], "qcow2")[:2])

    def test_a_revert_after_a_migration_to_a_file(self):
        """Where there are no locks the VM's own QEMU is not another one."""
        vm = self.tiny_vm(disks=[self.disk(
            size=2 << 20, pattern=False, options=",file.locking=off")])
        self.q("create", "vm", "base")
        vm.cmd("migrate", uri="exec:cat >/dev/null")
        self.state(vm, "postmigrate")
        self.q("revert", "vm", "base", "--start")
        self.assertEqual("running", vm.state())


class Shapes(Case):
    """What the guest sees must be the image file, and all of it."""

    SIZE = 2 << 20

    def vm(self, name, args, attach=False):
        path = self.disk("disk0", "raw", vm=name, make=False).path
        with open(path, "wb") as f:
            f.write(b"\1" * self.SIZE)
        argv = [a.replace("FILE", path) for a in args]
        device = ["-device", "virtio-blk-pci,drive=t,id=v"]
        return path, self.tiny_vm(name, disks=[], attach=attach,
                                  extra=argv + device)

    def refused(self, name, words, *args):
        with self.subTest(name):
            path, vm = self.vm(name, args)
            with open(path, "rb") as f:
                was = f.read()
            self.q.fails("precondition", words, "attach", name, "--qmp",
                         vm.qmp)
            self.vms.remove(vm)
            vm.quit()
            with open(path, "rb") as f:
                self.assertEqual(was, f.read())

    def test_a_part_of_the_file(self):
        for name, more in (("off", '"offset":65536,"size":1048576'),
                           ("tail", '"offset":65536'),
                           ("size", '"size":1048576')):
            self.refused(name, "node 't' shows a part of", "-blockdev",
                         '{"driver":"raw","node-name":"t",%s,"file":{"driver":'
                         '"file","filename":"FILE"}}' % more)
        self.refused("drive", "shows a part of", "-drive",
                     "if=none,id=t,format=raw,size=1048576,file=FILE")

    def test_nodes_between(self):
        over = '{"driver":"%s","node-name":"t",%s"file":{"driver":"raw",' \
               '"file":{"driver":"file","filename":"FILE"}}}'
        self.refused("cor", "node 't' is no image format right over",
                     "-blockdev", over % ("copy-on-read", ""))
        self.refused("throttle", "node 't' is no image format right over",
                     "-object", "throttle-group,id=tg", "-blockdev",
                     '{"driver":"throttle","throttle-group":"tg",'
                     '"node-name":"t","file":{"driver":"file",'
                     '"filename":"FILE"}}')
        self.refused("below", "node 't' is no image format right over",
                     "-object", "throttle-group,id=tg", "-blockdev",
                     '{"driver":"raw","node-name":"t","file":{"driver":'
                     '"throttle","throttle-group":"tg","file":{"driver":'
                     '"file","filename":"FILE"}}}')
        self.refused("cor-below", "node 'c' is no image format right over",
                     "-object", "throttle-group,id=tg", "-blockdev",
                     '{"driver":"throttle","throttle-group":"tg",'
                     '"node-name":"t","file":{"driver":"copy-on-read",'
                     '"node-name":"c","file":{"driver":"raw","file":{"driver":'
                     '"file","filename":"FILE"}}}}')
        self.refused("rawraw", "node 't' is no image format right over",
                     "-blockdev", over % ("raw", ""))

    def test_data_that_is_elsewhere(self):
        folder = os.path.join(self.tmp, "data")
        os.makedirs(folder)
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                  "data_file=%s/raw" % folder, folder + "/q.qcow2", "2M")
        self.refused("elsewhere", "external data file", "-drive",
                     "if=none,id=t,format=qcow2,file=%s/q.qcow2" % folder)

    def test_a_command_line_that_came_later(self):
        path, vm = self.vm("vm", ["-drive",
                                  "if=none,id=t,format=raw,file=FILE"], True)
        self.q("create", "vm", "one")
        self.q("delete", "vm", "one")
        vm.quit()
        vm.extra[1] += ",size=1048576"
        vm.start()
        report = self.q.check("vm")
        self.assertFalse(report["ok"])
        self.assertIn("image-shape", [p["code"] for p in report["problems"]])
        self.q.fails("precondition", "shows a part of", "create", "vm", "two")
        self.assertEqual(self.SIZE, os.stat(path).st_size)

    def test_options_that_are_no_nodes(self):
        for name, more in (("cor", ",copy-on-read=on"),
                           ("slow", ",throttling.iops-total=100000"),
                           ("zeroes", ",detect-zeroes=unmap,discard=unmap")):
            with self.subTest(name):
                self.vm(name, ["-drive", "if=none,id=t,format=raw,file=FILE" +
                               more], True)
                self.q("create", name, "one")
                self.q("delete", name, "one")
