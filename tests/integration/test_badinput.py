# SPDX-License-Identifier: MIT
"""Bad input: a clear error, its exit code, nothing changed, nothing left."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time

from lib import image
from lib.case import Case
from lib.cli import plain
from lib.qmp import QMP

BAD_NAMES = ("a/b", "..", ".", "", "a b", "x" * 65, "a\nb", "\u00e4", "../vm")


class Sockets(Case):
    either = True
    cost = 25

    def listen(self, name, answer):
        """A socket whose peer sends `answer` to whoever connects."""
        path = os.path.join(self.tmp, name)
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen(4)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    client.sendall(answer)
                    kept.append(client)
        kept = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()

        def end():
            # A thread in accept() must not wake up with the number of a
            # socket that the next test has opened.
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            server.close()
            for client in kept:
                client.close()
        self.addCleanup(end)
        return path

    def refused(self, code, message, path):
        begun = time.monotonic()
        failure = self.q.fails(code, message, "attach", "vm", "--qmp", path)
        self.assertIn(path, failure.message, "names the socket")
        self.assertLess(time.monotonic() - begun, 15)
        self.assertFalse(os.path.exists(os.path.join(self.store, "vm")))

    def test_a_dead_socket(self):
        stale = os.path.join(self.tmp, "stale")
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(stale)
        dead.close()
        self.refused("unreachable", "", stale)
        self.refused("unreachable", "", os.path.join(self.tmp, "nosuch"))
        text = os.path.join(self.tmp, "text")
        with open(text, "w") as f:
            f.write("no socket\n")
        self.refused("unreachable", "", text)

    def test_a_foreign_socket(self):
        for name, answer in (
                ("ssh", b"SSH-2.0-OpenSSH_9.2\r\n"),
                ("json", b'{"hello": "world"}\n'),
                ("binary", bytes(range(256)) * 16),
                ("deep", b"[" * 100000),
                ("endless", b'{"QMP": "' + b"x" * (32 << 20))):
            with self.subTest(name):
                self.refused("unreachable",
                             "", self.listen(name, answer))

    def test_a_silent_socket(self):
        """It looks like a QEMU that has another client."""
        self.refused("busy", "no greeting", self.listen("silent", b""))
        self.refused("busy|unreachable", "", self.listen(
            "half", b'{"QMP": {"version": {}, "capabilities"'))

    def test_a_socket_whose_client_slot_is_taken(self):
        vm = self.running_vm(attach=False)
        with QMP(vm.qmp):
            failure = self.q.fails("busy", "client", "attach", "vm", "--qmp",
                                   vm.qmp)
            self.assertIn(vm.qmp, failure.message)
            self.assertTrue(failure.hint)
            self.assertFalse(os.path.exists(os.path.join(self.store, "vm")))
        self.attach(vm)
        with self.nothing_changes(vm):
            with QMP(vm.qmp):
                self.q.fails("busy", "client", "create", "vm", "one",
                             "--memory")
        self.q("create", "vm", "one")

    def test_a_vm_that_is_off_has_no_memory_to_save(self):
        vm = self.running_vm()
        vm.quit()
        with self.nothing_changes(vm):
            failure = self.q.fails("unreachable", "does not run",
                                   "create", "vm", "one", "--memory")
            self.assertTrue(failure.hint)


class Names(Case):
    either = True
    cost = 15

    def test_of_vms(self):
        for name in BAD_NAMES:
            for verb in (["attach", name, "--qmp", "/nosuch"], ["list", name],
                         ["create", name, "one"], ["detach", name],
                         ["revert", name, "one"], ["delete", name, "one"],
                         ["info", name, "one"], ["start", name],
                         ["check", name], ["recover", name],
                         ["path", name, "disk"],
                         ["rename", name, "one", "two"]):
                with self.subTest(verb=verb[0], name=name):
                    self.q.fails("usage", "name", *verb)
        self.assertFalse(os.path.exists(self.store))
        self.assertEqual([], os.listdir(self.tmp))

    def test_of_snapshots(self):
        vm = self.running_vm()
        self.q("create", "vm", "one")
        with self.nothing_changes(vm):
            for name in BAD_NAMES:
                with self.subTest(name=name):
                    self.q.fails("usage", "name", "create", "vm", name)
                    self.q.fails("usage", "name", "rename", "vm", "one", name)
            failure = self.q.fails("busy", "one", "create", "vm", "one")
            self.assertTrue(failure.hint)
            self.q.fails("busy", "one", "create", "vm", "one", "--memory")
        with self.subTest("unknown"), self.nothing_changes(vm):
            for verb in (["info", "vm", "nosuch"], ["revert", "vm", "nosuch"],
                         ["delete", "vm", "nosuch"],
                         ["delete", "vm", "one", "nosuch"],
                         ["verify", "vm", "nosuch"],
                         ["rename", "vm", "nosuch", "two"]):
                self.q.fails("not-found", "nosuch", *verb)
            for verb in (["list", "nosuch"], ["create", "nosuch", "one"],
                         ["info", "nosuch", "one"], ["detach", "nosuch"],
                         ["revert", "nosuch", "one"], ["start", "nosuch"],
                         ["delete", "nosuch", "one"], ["check", "nosuch"],
                         ["path", "nosuch", "disk"]):
                self.q.fails("not-found", "nosuch", *verb)
            self.assertFalse(os.path.exists(os.path.join(self.store,
                                                         "nosuch")))

    def test_of_the_store(self):
        text = os.path.join(self.tmp, "text")
        with open(text, "w") as f:
            f.write("no directory\n")
        os.mkdir(os.path.join(self.tmp, "real"))
        link = os.path.join(self.tmp, "link")
        os.symlink("real", link)
        for path, code, words in ((text, "precondition", plain(text)),
                                  (link, "unreachable", "/nosuch")):
            with self.subTest(path=path):
                self.q.store = path
                self.q.fails(code, words, "attach", "vm", "--qmp", "/nosuch")
        self.assertEqual([], os.listdir(os.path.join(self.tmp, "real")))

    def test_labels_that_are_shown_alike(self):
        """They are members of one JSON object."""
        self.tiny_vm()
        one, other, third = (os.fsdecode(k) for k in (
            b"x\xff=1", b"x\xfe=2", b"x\xef\xbf\xbd=3"))
        for a, b in ((one, other), (third, one), (one, one)):
            p = subprocess.run(self.q.argv(
                ["create", "vm", "one", "--label", a, "--label", b]),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, timeout=60)
            self.assertEqual(2, p.returncode, p.stderr)
            self.assertRegex(p.stderr, b"shown alike|is given twice")
        made = self.q("create", "vm", "one", "--label", one, "--label",
                      os.fsdecode(b"x\xff\xff=2"), "--label", "x=3")
        self.assertEqual({"x\ufffd": "1", "x\ufffd\ufffd": "2", "x": "3"},
                         made["labels"])


class Stores(Case):
    either = True
    cost = 40
    limit = 180

    def test_that_are_full(self):
        """Memory does not fit: the VM runs on, its disks are folded back."""
        self.mount_tmpfs(self.store, "size=12m")
        vm = self.running_vm(append="JUNK=24 SYNC=vda,vdb SYNCMS=2",
                             disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        vm.serial.wait("JUNK-READY")
        self.assertTrue(self.q.check("vm", "--memory")["ok"])
        self.assertRegex(self.q.stderr, "[0-9]+ MiB left, .*MiB of RAM")
        for mode in ("paused", "background", "precopy"):
            with self.subTest(mode=mode):
                since = vm.serial.mark()
                free = os.statvfs(self.store).f_bfree
                with self.nothing_changes(vm):
                    failure = self.q.fails(
                        "no-space", "[Nn]o space|not fit|full", "create", "vm",
                        "one", "--memory", "--mode", mode)
                    self.assertTrue(failure.hint)
                self.assertEqual([], self.q.snapshots("vm"))
                self.assertEqual(sorted(d.path for d in vm.disks),
                                 sorted(vm.heads().values()))
                self.assertEqual(free, os.statvfs(self.store).f_bfree)
                vm.serial.wait(r"sync count=\d+ bad=0", vm.serial.mark())
                self.assertEqual([], vm.serial.wrong(since))
        with self.subTest("what fits still works"):
            self.q("create", "vm", "disks")

    def test_a_limit_of_the_size_of_files(self):
        """The kernel ends who writes beyond it, unless that is told not to."""
        vm = self.tiny_vm(paused=False)
        for mode in ("paused", "cow"):
            argv = ["create", "vm", "one", "--memory", "--mode", mode]
            p = subprocess.run(["prlimit", "--fsize=1000000",
                                *self.q.argv(argv)], timeout=60,
                               stdin=subprocess.DEVNULL, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            with self.subTest(mode):
                self.q.failed("no-space", "File too large", argv,
                              p.returncode, p.stdout, p.stderr)
                self.assertEqual([], self.q.snapshots("vm"))
                self.assertEqual("running", vm.state())

    def test_the_limits_of_a_command_are_none_of_the_vms(self):
        """A new QEMU has those of the one before it, of today."""
        def limits():
            with open("/proc/%d/limits" % vm.pid()) as f:
                return f.read()
        vm = self.tiny_vm()
        self.q("create", "vm", "one", "--memory")
        subprocess.run(["prlimit", "--pid", str(vm.pid()),
                        "--nofile=3000:3000", "--core=0:0"], check=True)
        before, pid = limits(), vm.pid()
        self.assertIn("3000", before)
        for argv in (["revert", "vm", "one", "--restore", "eager"],
                     ["revert", "vm", "one", "--restore", "mapped"],
                     ["revert", "vm", "one", "--stopped"], ["start", "vm"]):
            with self.subTest(argv=argv):
                p = self.limited(":", *argv)
                self.assertEqual(0, p.returncode, p.stderr)
                if "--stopped" not in argv:
                    self.assertEqual("running", vm.state())
                    self.assertNotEqual(pid, vm.pid())
                    self.assertEqual(before, limits())
                    pid = vm.pid()
        argv = ["revert", "vm", "one", "--restore", "eager"]
        p = self.limited("", *argv)
        if p.returncode != 0: # who may raise a hard limit can do it
            self.q.failed("precondition", "limit of as=unlimited", argv,
                          p.returncode, p.stdout, p.stderr)
            self.assertEqual(pid, vm.pid())
        self.assertEqual("running", vm.state())
        self.assertEqual(before, limits())

    def limited(self, soft_only, *argv):
        return subprocess.run(
            ["prlimit", *["--%s%s" % (word, soft_only) for word in (
                "as=80000000", "fsize=64000000", "nofile=64",
                "memlock=65536")], *self.q.argv(argv)], timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    def test_a_limit_of_open_files(self):
        """Whatever it is: told to have failed is what was not made."""
        vm = self.tiny_vm()
        made = 0
        for n in range(6, 34):
            argv = ["create", "vm", "s%d" % n]
            p = subprocess.run(["prlimit", "--nofile=%d" % n,
                                *self.q.argv(argv)], timeout=60,
                               stdin=subprocess.DEVNULL, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            with self.subTest(n=n):
                self.q("recover", "vm")
                there = "s%d" % n in self.q.names("vm")
                self.assertEqual(there, p.returncode == 0, p.stderr)
                self.assertEqual("running", vm.state())
                if there:
                    self.assertIn(self.q.parse(p.stdout)["id"],
                                  [s["id"] for s in self.q.snapshots("vm")])
                made += there
        self.assertTrue(0 < made < 28, made)

    def test_that_are_read_only(self):
        self.mount_tmpfs(self.store, "size=200m")
        vm = self.running_vm()
        self.q("create", "vm", "one")
        self.assertEqual(0, os.system("mount -o remount,ro " + self.store))
        with self.nothing_changes(vm):
            for argv in (["create", "vm", "two"],
                         ["create", "vm", "two", "--memory"],
                         ["delete", "vm", "one"], ["revert", "vm", "one"],
                         ["rename", "vm", "one", "two"]):
                with self.subTest(verb=argv[0]):
                    self.q.fails("permission", "[Rr]ead-only", *argv)
            self.assertEqual(["one"], self.q.names("vm"))
            self.q.info("vm", "one")
        self.assertEqual(0, os.system("mount -o remount,rw " + self.store))

    def test_whose_disk_folder_is_full(self):
        folder = os.path.join(self.tmp, "small")
        self.mount_tmpfs(folder, "size=64k")
        vm = self.running_vm(disks=[self.disk("disk0"), self.disk("disk1")])
        with self.nothing_changes(vm):
            for more in ([], ["--memory"]):
                self.q.fails("no-space", "[Nn]o space", "create", "vm", "one",
                             "--disk-dir", folder, *more)
            self.assertEqual([], os.listdir(folder))


    def test_that_have_no_room_for_a_new_vm(self):
        self.mount_tmpfs(self.store, "size=1m")
        vm = self.tiny_vm(attach=False)
        fill = os.path.join(self.store, "fill")
        for room in (0, 4096):  # for the lock alone
            with self.subTest(room=room):
                with contextlib.suppress(OSError), open(fill, "wb", 0) as f:
                    while True:
                        f.write(b"x" * 4096)
                os.truncate(fill, os.stat(fill).st_size // 4096 * 4096 - room)
                self.q.fails("no-space", "[Nn]o space", "attach", "vm",
                             "--qmp", vm.qmp)
                self.assertEqual(["fill"], os.listdir(self.store))
        os.unlink(fill)
        self.attach(vm)
        self.q("create", "vm", "one")

    def test_that_have_no_room_at_all(self):
        """What was begun is undone, nothing new begins but a delete, and it
        is said what to do."""
        self.mount_tmpfs(self.store, "size=1m")
        vm = self.tiny_vm()
        self.q("create", "vm", "one")
        fill = os.path.join(self.store, "fill")
        for journal in (False, True):
            if journal:
                with open(self.q.journal_path("vm"), "w") as f:
                    json.dump({"version": 1, "op": "create", "phase": "begun",
                               "snapshot": "aaaaaaaaaaaa", "ids": [],
                               "disks": [], "wasRunning": True}, f)
            with contextlib.suppress(OSError), open(fill, "wb", 0) as f:
                while True:
                    f.write(b"x" * 4096)
            self.assertEqual(0, os.statvfs(self.store).f_bfree)
            if journal:
                self.q("recover", "vm")
                self.assertFalse(os.path.exists(self.q.journal_path("vm")))
            else:
                with self.nothing_changes(vm):
                    failure = self.q.fails("no-space", "[Nn]o space",
                                           "create", "vm", "two")
                    self.assertIn("room", failure.hint)
                    failure = self.q.fails("no-space", "[Nn]o space",
                                           "revert", "vm", "one")
                    self.assertIn("room", failure.hint)
            if journal:
                self.q("delete", "vm", "one")
                self.assertEqual([], self.q.names("vm"))
            os.unlink(fill)

    def test_whose_disk_folder_cannot_be_used(self):
        readonly = os.path.join(self.tmp, "readonly")
        self.mount_tmpfs(readonly, "size=64k,ro")
        text = os.path.join(self.tmp, "text")
        with open(text, "w") as f:
            f.write("no directory\n")
        vm = self.tiny_vm()
        with self.nothing_changes(vm):
            for folder, code, words in (
                    (os.path.join(self.tmp, "nosuch"), "precondition",
                     "no directory"),
                    ("nosuch", "precondition", "no directory"),
                    (text, "precondition", "no directory"),
                    ("", "precondition", "no directory"),
                    (readonly, "permission", "[Rr]ead-only"),
                    ("/proc", "not-found|permission|failed", "/proc/")):
                with self.subTest(folder):
                    self.q.fails(code, words, "create", "vm", "one",
                                 "--disk-dir", folder)
                    self.assertFalse(os.path.exists(self.q.journal_path("vm")))
        with self.subTest("and one that has gone since"):
            gone = os.path.join(self.tmp, "gone")
            path = self.q.journal_path("vm")
            with open(path, "w") as f:
                json.dump({
                    "version": 1, "op": "create", "phase": "begun",
                    "snapshot": "aaaaaaaaaaaa", "ids": [], "wasRunning": True,
                    "disks": [{"disk": self.disk_names(vm)[0],
                               "oldPath": vm.disks[0].path,
                               "oldFormat": "qcow2", "newFormat": "qcow2",
                               "newPath": gone + "/disk0.qcow2"}]}, f)
            self.q("recover", "vm")
        self.q("create", "vm", "one")


class Damage(Case):
    """Something in the store or a disk is not as we left it."""
    either = True
    cost = 60
    limit = 240

    def setUp(self):
        super().setUp()
        self.vm = self.shared(lambda: self.running_vm(
            append="JUNK=8",
            disks=[self.disk("disk0"), self.disk("disk1", "raw")]))
        self.made = self.q("create", "vm", "one", "--memory", "--mode",
                           "paused")
        self.q("create", "vm", "two")
        self.frozen_one = self.frozen(self.vm, "one")
        self.goes_on(self.vm)

    @contextlib.contextmanager
    def damaged(self, path, change):
        """`path` changed while inside; what runs inside changes nothing."""
        self.unprotect(path)
        kept = path + ".kept"
        shutil.copy2(path, kept)
        stat = os.stat(path)
        try:
            change(path)
            with self.nothing_changes(self.vm):
                yield
        finally:
            if os.path.isdir(path):
                os.rmdir(path)
            # The same file again, not only the same bytes.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino != stat.st_ino:
                    os.unlink(path)
            with open(path, "r+b" if os.path.exists(path) else "wb") as f:
                with open(kept, "rb") as k:
                    shutil.copyfileobj(k, f)
                f.truncate()
            os.unlink(kept)

    @contextlib.contextmanager
    def lives_on(self):
        """The running QEMU is not given up for files that cannot take its
        place: same process, and a guest that has not booted."""
        since, pid = self.vm.serial.mark(), self.vm.pid()
        yield
        self.assertEqual(pid, self.vm.pid())
        self.goes_on(self.vm)
        self.assertEqual(1, len({t.nonce for t in
                                 self.vm.serial.ticks(since)}))

    @staticmethod
    def flip(offset):
        def change(path):
            with open(path, "r+b") as f:
                f.seek(offset)
                byte = f.read(1)
                f.seek(offset)
                f.write(bytes([byte[0] ^ 0x10]))
        return change

    @staticmethod
    def shorten(keep):
        return lambda path: os.truncate(path, keep)

    @staticmethod
    def text(content):
        def change(path):
            with open(path, "w") as f:
                f.write(content)
        return change

    def all_fail(self, code, message, *argvs):
        for argv in argvs:
            with self.subTest(verb=argv[0]):
                failure = self.q.fails(code, message, *argv)
                self.assertLess(len(failure.message), 500)

    def json_damage(self):
        return (("empty", self.text("")), ("garbage", self.text("}{")),
                ("half", self.shorten(40)), ("list", self.text("[]")),
                ("null", self.text("null")),
                ("no members", self.text('{"version": 1}')),
                ("deep", self.text("[" * 100000)))

    def test_of_vm_json(self):
        path = os.path.join(self.store, "vm", "vm.json")
        for what, change in self.json_damage():
            with self.subTest(what), self.damaged(path, change):
                self.all_fail("corrupt", "vm.json", ["list", "vm"],
                              ["create", "vm", "three"],
                              ["revert", "vm", "one"],
                              ["delete", "vm", "one"], ["start", "vm"])
                known, = self.q("vms")["vms"]
                self.assertEqual("damaged", known["state"])
        with open(path) as f:
            newer = json.load(f)
        newer["version"] = 99
        with self.damaged(path, self.text(json.dumps(newer))):
            self.all_fail("precondition", "vm.json.*version 99",
                          ["create", "vm", "three"])
        self.q("list", "vm")

    def test_of_a_manifest(self):
        path = self.q.manifest_path("vm", self.made["id"])
        for what, change in self.json_damage():
            with self.subTest(what), self.damaged(path, change):
                self.all_fail("corrupt", "manifest.json",
                              ["info", "vm", self.made["id"]],
                              ["revert", "vm", self.made["id"]],
                              ["verify", "vm", self.made["id"]])
        with open(path) as f:
            good = json.load(f)
        for what, member, value in (
                ("negative size", "bytes", -1), ("no machine", "machine", 7),
                ("blocks are no list", "blocks", {}),
                ("huge block", "blocks", [dict(good["memory"]["blocks"][0],
                                               size=1 << 62)])):
            bad = json.loads(json.dumps(good))
            bad["memory"][member] = value
            with self.subTest(what), \
                    self.damaged(path, self.text(json.dumps(bad))):
                self.all_fail("corrupt", "", ["revert", "vm", self.made["id"]])
        bad = json.loads(json.dumps(good))
        bad["disks"][0]["path"] = "../../etc/passwd"
        with self.subTest("relative path"), \
                self.damaged(path, self.text(json.dumps(bad))):
            self.all_fail("corrupt", "", ["revert", "vm", self.made["id"]])
        self.assertEqual(["one", "two"], self.q.names("vm"))

    def test_of_the_memory(self):
        folder = self.q.memory_dir("vm", self.made["id"])
        ram = self.main_ram(self.vm, self.made)
        with open(ram, "rb") as f:  # a page that is not zero
            data = f.read()
        page = next(i for i in range(0, len(data), 4096)
                    if any(data[i:i + 4096]))
        cases = (
            ("sums: a bit", os.path.join(folder, "sums"), self.flip(100)),
            ("sums: short", os.path.join(folder, "sums"), self.shorten(33)),
            ("sums: empty", os.path.join(folder, "sums"), self.shorten(0)),
            ("RAM: short", ram, self.shorten(len(data) - 4096)),
            ("RAM: empty", ram, self.shorten(0)),
            ("device state: short",
             os.path.join(folder, "device.state"), self.shorten(1000)),
            ("device state: a bit",
             os.path.join(folder, "device.state"), self.flip(2000)),
        )
        for what, path, change in cases:
            name = os.path.basename(path)
            with self.subTest(what), self.damaged(path, change), \
                    self.lives_on():
                self.all_fail("corrupt", plain(name),
                              ["verify", "vm", "one"],
                              ["revert", "vm", "one", "--restore", "eager"])
                if what.endswith(("short", "empty")):
                    problem, = self.q.check("vm")["problems"]
                    self.assertEqual("memory-changed", problem["code"])
                    self.assertRegex(problem["message"], plain(name))
        for what in ("RAM: short", "device state: short"):
            path, change = next((p, c) for w, p, c in cases if w == what)
            with self.subTest(what + ", mapped"), \
                    self.damaged(path, change), self.lives_on():
                self.all_fail("corrupt", plain(os.path.basename(path)),
                              ["revert", "vm", "one", "--restore", "mapped"])
        with self.subTest("RAM: a bit"), \
                self.damaged(ram, self.flip(page + 5)):
            self.all_fail("corrupt", plain(os.path.basename(ram)),
                          ["verify", "vm", "one"],
                          ["revert", "vm", "one", "--restore", "eager"])
        with self.subTest("and it was only that"):
            self.q("verify", "vm", "one")
            since = self.vm.serial.mark()
            tick = self.snapshot_ticks(self.vm, "one")[0]
            self.q("revert", "vm", "one", "--restore", "eager")
            self.goes_on_from(
                self.vm, tick,
                self.vm.serial.ticks()[0].nonce, since)

    def test_of_a_disk_replaced_behind_our_back(self):
        for (path, fmt), disk in zip(self.frozen_one.values(), self.vm.disks):
            def another(path, fmt=fmt):
                os.rename(path, path + ".aside")
                image.create(path, fmt)

            def back(path):
                os.rename(path + ".aside", path)
            self.unprotect(path)
            with self.subTest(disk=disk.id, what="another file"):
                another(path)
                try:
                    self.q.fails("corrupt", plain(path), "revert", "vm", "one")
                    self.assertEqual("running", self.vm.state())
                    self.goes_on(self.vm)
                finally:
                    os.unlink(path)
                    back(path)
            with self.subTest(disk=disk.id, what="gone"):
                os.rename(path, path + ".aside")
                try:
                    self.q.fails("not-found", plain(path), "revert", "vm",
                                 "one")
                    self.goes_on(self.vm)
                finally:
                    back(path)
            with self.subTest(disk=disk.id, what="a symbolic link"):
                os.rename(path, path + ".aside")
                os.symlink(path + ".aside", path)
                try:
                    self.q.fails("corrupt", plain(path), "revert", "vm", "one")
                    self.goes_on(self.vm)
                finally:
                    os.unlink(path)
                    back(path)
        since = self.vm.serial.mark()
        tick = self.snapshot_ticks(self.vm, "one")[0]
        self.q("revert", "vm", "one")
        self.goes_on_from(self.vm, tick, self.vm.serial.ticks()[0].nonce,
                          since)
