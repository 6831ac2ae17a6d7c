# SPDX-License-Identifier: MIT
"""What is in the CD drive belongs to the memory of the guest that has it
mounted: it is the snapshot's again after a revert, whatever the way."""

import contextlib
import json
import os
import pwd
import subprocess
import time

from lib.case import QEMU_VERSION, Case
from lib.tiny import content

STYLES = {
    "ide": ("-drive", "if=none,id=cd,media=cdrom,format=raw,readonly=on%s",
            "-device", "ide-cd,drive=cd,id=cd0"),
    "anon": ("-drive", "if=none,id=cd,media=cdrom,format=raw,readonly=on%s",
             "-device", "ide-cd,drive=cd"),
    "scsi": ("-blockdev", "driver=raw,node-name=m,read-only=on,"
             "file.driver=file%s", "-device", "virtio-scsi-pci", "-device",
             "scsi-cd,drive=m,id=cd0"),
    "cdrom": ("-drive", "if=ide,index=2,media=cdrom,format=raw%s"),
    "floppy": ("-drive", "if=none,id=cd,format=raw,readonly=on%s",
               "-device", "floppy,drive=cd,id=cd0"),
}


class Media(Case):
    cost = 20
    made = 0

    def iso(self, name):
        folder = os.path.join(self.tmp, "isos")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, name + ".iso")
        with open(path, "wb") as f:
            f.write(name[0].encode() * 1474560)
        return path

    def make(self, style="ide", name="vm"):
        """A VM that is started with a in its drive."""
        self.a, self.b = self.iso("a"), self.iso("b")
        key = ",file.filename=" if style == "scsi" else ",file="
        args = [w % (key + self.a) if "%s" in w else w for w in STYLES[style]]
        self.vm = self.tiny_vm(name, extra=args)
        return self.vm

    def drive(self):
        return [d for d in self.vm.cmd("query-block")
                if d["removable"] and d.get("qdev")][0]

    def medium(self):
        d = self.drive()
        self.assertFalse(d.get("tray_open"))
        return d["inserted"]["file"] if "inserted" in d else None

    def change(self, path):
        id = self.drive()["qdev"]
        if path:
            self.vm.cmd("blockdev-change-medium", id=id, filename=path,
                        format="raw", force=True)
        else:
            self.vm.cmd("eject", id=id, force=True)
            if "tray_open" in self.drive():
                self.vm.cmd("blockdev-close-tray", id=id)
        self.assertEqual(path, self.medium())

    def comes_back(self, then, later, *ways):
        for way in ways or ("inplace", "eager", "mapped", "off"):
            with self.subTest(way=way, then=then, later=later):
                self.change(then)
                self.made += 1
                name = "s%d" % self.made
                self.q("create", self.vm.name, name, "--memory")
                self.change(later)
                if way == "off":
                    self.vm.quit()
                self.q("revert", self.vm.name, name, *(
                    [] if way == "off" else ["--restore", way]))
                self.assertEqual(then, self.medium())
                self.assertEqual("running", self.vm.state())

    def test_each_kind_of_drive(self):
        for style in STYLES:
            with self.subTest(style):
                self.make(style, style)
                self.comes_back(self.b, self.a, "inplace", "eager")
                self.comes_back(None, self.a, "inplace", "eager")
                self.vm.end()

    def test_each_way(self):
        self.make()
        self.comes_back(self.b, self.a)
        self.comes_back(self.b, None)
        self.comes_back(self.a, self.a)

    def test_one_that_the_guest_holds(self):
        """A tray that the guest has locked, and one that is open."""
        self.make()
        self.change(self.b)
        self.q("create", "vm", "one", "--memory")
        self.change(self.a)
        self.vm.cmd("blockdev-open-tray", id="cd0", force=True)
        self.q("revert", "vm", "one")
        self.assertEqual(self.b, self.medium())

    def test_one_that_is_gone(self):
        self.make()
        self.change(self.b)
        self.q("create", "vm", "one", "--memory")
        os.unlink(self.b)
        # it is in the drive, and stays there
        self.q("revert", "vm", "one", "--restore", "inplace")
        self.assertEqual(self.b, self.medium())
        says = "drive cd had .*/b.iso in it at the snapshot"
        with self.nothing_changes(self.vm):
            self.q.fails("not-found", says, "revert", "vm", "one",
                         "--restore", "eager")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.change(self.a)
        problem, = self.q.check("vm")["problems"]
        self.assertEqual("medium-missing", problem["code"])
        self.assertRegex(problem["message"], "snapshot one: " + says)
        for way in ("inplace", "eager", "mapped", "auto"):
            for more in ([], ["--dry-run"]):
                with self.subTest(way=way, more=more), \
                        self.nothing_changes(self.vm):
                    failure = self.q.fails("not-found", says, "revert", "vm",
                                           "one", "--restore", way, *more)
                    self.assertIn("--force", failure.hint)
        for way in ("inplace", "eager"):
            self.q("revert", "vm", "one", "--restore", way, "--force")
            self.assertRegex(self.q.stderr, says + ".*is not put back")
            self.assertEqual(self.a, self.medium())
        self.vm.quit()
        self.q.fails("not-found", says, "revert", "vm", "one")
        self.assertEqual("off", self.vm.state())
        # the disks alone need no CD
        self.q("revert", "vm", "one", "--stopped")
        self.q("start", "vm")

    @contextlib.contextmanager
    def written(self, path):
        """By a program that locks it as QEMU does."""
        p = subprocess.Popen(["qemu-io", "-f", "raw", path],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            p.stdin.write(b"read 0 512\n")
            p.stdin.flush()
            p.stdout.readline()
            yield
        finally:
            p.stdin.close()
            p.wait()
            p.stdout.close()

    def is_written(self, then, later, eager):
        """Who writes to it keeps QEMU from opening it."""
        self.change(then)
        self.q("create", "vm", "one", "--memory")
        self.change(later)
        says = "drive cd had .*/.*iso in it .*another process writes to it"
        with self.written(then):
            codes = {p["code"]: p for p in self.q.check("vm")["problems"]}
            self.assertEqual(eager[2:], tuple(sorted(codes)))
            self.assertRegex(codes["medium-busy"]["message"],
                             "snapshot one: " + says)
            for way, code, text in (("inplace", "busy", says),
                                    ("auto", "busy", says),
                                    ("eager", *eager[:2])):
                with self.subTest(way), self.nothing_changes(self.vm):
                    failure = self.q.fails(code, text, "revert", "vm", "one",
                                           "--restore", way)
                    self.assertRegex(failure.hint, r"end process \d+ .qemu-io")
            self.q("revert", "vm", "one", "--restore", "inplace", "--force")
            self.assertRegex(self.q.stderr, says + ".*is not put back")
            self.assertEqual(later, self.medium())
        self.assertEqual([], self.q.check("vm")["problems"])
        for way in ("inplace", "eager"):
            self.q("revert", "vm", "one", "--restore", way)
            self.assertEqual(then, self.medium())
            self.change(later)

    def test_one_that_is_written(self):
        self.make()
        self.is_written(self.b, self.a, (
            "busy", "drive cd had .*/b.iso", "medium-busy"))

    def test_one_of_the_command_line_that_is_written(self):
        self.make()
        self.is_written(self.a, self.b, (
            "precondition", "-drive: .*/a.iso is in use", "medium-busy",
            "not-startable"))
        # what QEMU has open itself is not in its way
        self.change(self.a)
        self.assertEqual([], self.q.check("vm")["problems"])
        self.vm.quit()
        with self.written(self.a):
            problem, = [p for p in self.q.check("vm")["problems"]
                        if p["code"] != "medium-busy"]
            self.assertEqual("not-startable", problem["code"])
            self.q.fails("precondition", "a.iso is in use", "start", "vm")
        self.q("start", "vm")

    def test_one_that_cannot_be_put_in(self):
        """Nobody had looked: the old one is in the drive again."""
        self.make()
        self.vm.quit()
        # whose locks are asked for no more
        self.vm.extra += ["-device", "ide-cd,share-rw=on,id=cd1"]
        self.vm.start()
        self.q("detach", "vm")
        self.attach(self.vm)
        self.change(self.b)
        self.q("create", "vm", "one", "--memory")
        for before in (self.a, None):
            self.change(before)
            with self.written(self.b):
                self.assertEqual([], self.q.check("vm")["problems"])
                self.q("revert", "vm", "one", "--restore", "inplace")
                self.assertRegex(self.q.stderr, "drive cd had .*/b.iso in it, "
                                 "which cannot be put back .*lock")
                self.assertEqual(before, self.medium())

    def test_one_that_is_shared_with_writers(self):
        self.make()
        self.vm.quit()
        self.vm.extra = [w + ",share-rw=on" if w.startswith("ide-cd") else w
                         for w in self.vm.extra]
        self.vm.start()
        self.q("detach", "vm")
        self.attach(self.vm)
        self.change(self.b)
        self.q("create", "vm", "one", "--memory")
        self.change(self.a)
        with self.written(self.b):
            self.assertEqual([], self.q.check("vm")["problems"])
            for way in ("inplace", "eager"):
                self.q("revert", "vm", "one", "--restore", way)
                self.assertEqual(self.b, self.medium())
                self.change(self.a)

    def test_one_that_qemus_user_may_not_read(self):
        """It was opened by root, before QEMU became another user."""
        self.make()
        self.vm.quit()
        for path in (self.tmp, self.vm.dir, os.path.dirname(self.b)):
            os.chmod(path, 0o755)
        for path in (self.vm.disks[0].path, self.vm.serial.path):
            os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        # what it is started as from the beginning, it makes its sockets as
        os.chmod(self.vm.dir, 0o777)
        user = ["-runas", "nobody"] if QEMU_VERSION.startswith("7.") else [
            "-run-with", "user=nobody"]
        self.vm.extra = user + [
            w.replace(self.a, self.b) for w in self.vm.extra]
        os.chmod(self.b, 0o600)
        self.vm.start()
        self.q("detach", "vm")
        self.attach(self.vm)
        self.q("create", "vm", "one", "--memory")
        self.change(self.a)
        says = "drive cd had .*/b.iso in it at the snapshot.*user"
        for way, code, says in (
                ("inplace", "permission", says),
                # the command line names it, too
                ("eager", "precondition", "b.iso cannot be opened by the")):
            with self.subTest(way), self.nothing_changes(self.vm):
                self.q.fails(code, says, "revert", "vm", "one",
                             "--restore", way)
        self.q("revert", "vm", "one", "--restore", "inplace", "--force")
        self.assertEqual(self.a, self.medium())

    def test_a_failure_puts_the_old_one_back(self):
        self.make()
        self.change(self.b)
        self.q("create", "vm", "one", "--memory")
        self.change(self.a)
        # the name of the node that the device state comes from is taken
        self.vm.cmd("blockdev-add", driver="null-co",
                    node_name="qstill-vmstate")
        self.q.fails("failed", "qstill-vmstate", "revert", "vm", "one",
                     "--restore", "inplace")
        self.assertEqual(self.a, self.medium())
        self.assertEqual("running", self.vm.state())

    def test_ourselves_killed_at_any_moment(self):
        self.make()
        self.change(self.b)
        self.q("create", "vm", "one", "--memory")
        for n in range(24):
            with self.subTest(n=n):
                self.change(self.a)
                self.vm.write(self.vm.disks[0], 0, 7)
                process = self.q.start("revert", "vm", "one", "--restore",
                                       "inplace")
                time.sleep(n * 0.004)
                process.kill()
                process.wait()
                self.q("recover", "vm")
                self.assertEqual("running", self.vm.state())
                back = content(self.head_paths(self.vm)[0], "qcow2")[0] == 0
                self.assertEqual(self.b if back else self.a, self.medium())
        self.q("revert", "vm", "one", "--restore", "inplace")
        self.assertEqual(self.b, self.medium())

    def test_what_is_no_file(self):
        """Whatever QEMU can open is in a CD drive; nothing has changed."""
        a = self.iso("a")
        folder = os.path.join(self.tmp, "folder")
        os.mkdir(folder)
        for n, words in enumerate((
                ["-drive", "if=none,readonly=on,id=cd,format=raw,file=fat:" +
                 folder],
                ["-drive", "if=none,readonly=on,id=cd,file.driver=null-co,"
                 "file.read-zeroes=on"],
                ["-blockdev", "driver=raw,node-name=cd,read-only=on,offset="
                 "2048,file.driver=file,file.filename=" + a],
                ["-object", "throttle-group,id=g,x-iops-total=1000",
                 "-blockdev", "driver=throttle,throttle-group=g,node-name=cd,"
                 "read-only=on,file.driver=raw,file.file.driver=file,"
                 "file.file.filename=" + a])):
            with self.subTest(words[-1].split(",")[0], n=n):
                name = "vm%d" % n
                vm = self.tiny_vm(name, extra=words + [
                    "-device", "ide-cd,drive=cd,id=cd0"])
                self.q("create", name, "one", "--memory")
                self.assertTrue(self.q.check(name, "--memory")["ok"])
                for way in ("eager", "inplace"):
                    self.q("revert", name, "one", "--restore", way)
                    self.assertEqual("running", vm.state())
                vm.quit()

    def test_a_snapshot_that_does_not_tell(self):
        """As earlier versions made them."""
        self.make()
        self.change(self.b)
        made = self.q("create", "vm", "one", "--memory")
        path = self.q.manifest_path("vm", made["id"])
        with open(path) as f:
            manifest = json.load(f)
        medium, = manifest["memory"].pop("media")
        self.assertEqual(("cd0", "cd", self.b, "raw"), (
            medium["qdev"], medium["device"], medium["path"],
            medium["format"]))
        del manifest["sum"]
        with open(path, "w") as f:
            json.dump(manifest, f)
        self.change(self.a)
        for way in ("inplace", "eager"):
            self.q("revert", "vm", "one", "--restore", way)
            self.assertEqual(self.a, self.medium())
