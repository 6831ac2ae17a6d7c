# SPDX-License-Identifier: MIT
"""Disks whose limits are a node of their own, on top of the format's: as
Proxmox VE 9 starts all of them, and libvirt what has throttle groups."""

import json
import os
import struct
import subprocess

from lib import image
from lib.case import Case
from lib.tiny import content


class Throttle(Case):
    FMT = "qcow2"

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm(style="throttle", disks=[self.disk(
            fmt=self.FMT, size=2 << 20, pattern=False)])
        self.d = self.vm.disks[0]
        self.write(1)

    def write(self, byte):
        self.vm.write(self.d, 0, byte)

    def reads(self, *good):
        """The guest's disk, under its limits still."""
        for byte in good:
            try:
                self.vm.io(self.d, "read -P %d 0 64k" % byte)
                break
            except AssertionError:
                if byte == good[-1]:
                    raise
        root = [b["inserted"] for b in self.vm.cmd("query-block")
                if "disk0" in b["qdev"]]
        self.assertEqual([("disk0-t", "throttle")],
                         [(i["node-name"], i["drv"]) for i in root])
        group = self.vm.cmd("qom-get", path="/objects/disk0-g",
                            property="limits")
        self.assertEqual(5000, group["iops-total"])
        head = self.vm.heads()["disk0"]
        self.assertEqual([head], self.head_paths(self.vm))
        nodes = {n["node-name"]: n for n in
                 self.vm.cmd("query-named-block-nodes", flat=True)}
        now = [n for n in nodes.values() if n["file"] == head
               and n["drv"] in ("qcow2", "raw")]
        self.assertEqual(["unmap"], [n["detect_zeroes"] for n in now])
        self.check(head)

    def check(self, head):
        """No header names anything but images."""
        for i in image.info(head, chain=True):
            self.assertIn(i.get("backing-filename-format", "qcow2"),
                          ("qcow2", "raw"))
            self.assertNotIn("json:", i.get("backing-filename", ""))
        self.assertTrue(self.q.check("vm")["ok"])

    def off(self):
        self.vm.quit()
        self.q("recover", "vm")

    def start(self):
        self.q("start", "vm")

    def test_round(self):
        self.q("create", "vm", "a")
        self.write(2)
        self.q("create", "vm", "b", "--memory")
        self.write(3)
        self.reads(3)
        self.q("create", "vm", "c")
        self.write(4)
        self.q("revert", "vm", "b", "--restore", "inplace")
        self.reads(2)
        self.write(5)
        self.q("revert", "vm", "c", "--start")
        self.reads(3)
        self.q("revert", "vm", "b", "--restore", "eager")
        self.reads(2)
        self.write(6)
        self.q("revert", "vm", "a", "--start")
        self.reads(1)

    def chain(self):
        for n, name in enumerate("abcd"):
            self.q("create", "vm", name)
            self.write(n + 2)

    def test_live_deletes(self):
        self.chain()
        for name in "bdca":  # inner, top (twice), first
            self.q("delete", "vm", name)
            self.reads(5)
        self.assertEqual([self.d.path], image.chain(self.vm.heads()["disk0"]))
        self.off()
        self.start()
        self.reads(5)

    def test_deletes_after_a_revert(self):
        self.chain()
        self.q("revert", "vm", "c", "--start")
        self.reads(3)
        self.write(9)
        for name in "acbd":
            self.q("delete", "vm", name)
            self.reads(9)

    def test_off(self):
        self.chain()
        self.off()
        self.q("create", "vm", "e")
        for name in "bda":
            self.q("delete", "vm", name)
        self.start()
        self.reads(5)
        self.write(7)
        self.off()
        self.q("revert", "vm", "c")
        self.start()
        self.reads(3)
        self.q("delete", "vm", "c")
        self.q("delete", "vm", "e")
        self.reads(3)
        self.off()
        head, = self.head_paths(self.vm)
        self.assertEqual(3, content(head, image.info(head)["format"])[0])

    def killed(self, at, *args):
        """Whether the command came that far."""
        return subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e",
             "trace=fsync,fdatasync,renameat2", "-e",
             "inject=fsync,fdatasync,renameat2:signal=KILL:when=%d" % at,
             *self.q.argv(args)], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL).returncode != 0

    def test_killed_at_any_moment(self):
        self.q("create", "vm", "a", "--memory")
        self.write(2)
        for args, good in ((("revert", "vm", "a", "--restore", "inplace"),
                            (1, 2)), (("create", "vm", "x"), (2,)),
                           (("delete", "vm", "x"), (2,))):
            for n in range(1, 200, 2):
                if args[0] == "delete" and "x" not in self.q.names("vm"):
                    self.q("create", "vm", "x")
                self.write(2)
                if not self.killed(n, *args):
                    break
                self.q("recover", "vm")
                if self.vm.state() != "running":
                    self.vm.cmd("cont")
                self.reads(*good)
                if args[0] == "create" and "x" in self.q.names("vm"):
                    self.q("delete", "vm", "x")
            self.assertGreater(n, 3)
            self.reads(*good)


class Early(Throttle):
    """Snapshots of an earlier version, for which the node on top was the
    image: its format is in the record, a manifest and a header."""

    AFTER_DELETE = "stays for now.*recover vm"

    def age(self):
        record = os.path.join(self.store, "vm", "vm.json")
        self.edit(record, lambda r: r["disks"][0].update(
            attachFormat="throttle"))
        for snapshot in self.q.snapshots("vm"):
            path = self.q.manifest_path("vm", snapshot["id"])
            self.edit(path, self.age_manifest)

    def edit(self, path, change):
        with open(path) as f:
            read = json.load(f)
        change(read)
        read.pop("sum", None)
        with open(path, "w") as f:
            json.dump(read, f)

    def age_manifest(self, manifest):
        disk, = manifest["disks"]
        disk.pop("bases", None)
        if disk["path"] == self.d.path:
            disk.update(format="throttle", headerHash=None)
        elif self.age_header(disk["path"]):
            disk.update(headerHash=None)

    def age_header(self, path):
        if image.info(path)["full-backing-filename"] != self.d.path:
            return False
        self.unprotect(path)
        with open(path, "r+b") as f:
            st = os.fstat(f.fileno())
            head = f.read(4096)
            name = self.FMT.encode()
            old = struct.pack(">II", 0xe2792aca, len(name)) + name.ljust(
                8, b"\0")
            self.assertEqual(1, head.count(old))
            f.seek(head.index(old))
            f.write(struct.pack(">II", 0xe2792aca, 8) + b"throttle")
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        return True

    def setUp(self):
        super().setUp()
        self.chain()
        self.vm.quit()
        self.age()

    def is_mended(self, *names):
        self.assertEqual([], self.q.check("vm")["problems"])
        for name in names:
            self.q("verify", "vm", name)
        self.start()
        self.reads(5)
        self.q("revert", "vm", "a", "--start")
        self.reads(1)
        self.q("revert", "vm", "d", "--start")
        self.reads(4)
        self.q("create", "vm", "e", "--memory")
        for name in (*names, "e"):
            self.q("delete", "vm", name)
            self.reads(4)
        self.assertEqual([self.d.path], image.chain(self.vm.heads()["disk0"]))
        self.off()
        self.start()
        self.reads(4)

    def test_recover_mends_them(self):
        problems = {p["code"]: p for p in self.q.check("vm")["problems"]}
        self.assertEqual({"image-shape", "not-startable"}, set(problems))
        failure = self.q.fails("precondition", "was attached as 'throttle'",
                               "create", "vm", "e")
        self.assertEqual("qstill recover vm mends that", failure.hint)
        said = self.q("recover", "vm", "--dry-run")["actions"]
        self.assertRegex(said[0], "disk0 was attached as 'throttle': will be "
                         + self.FMT)
        self.assertIn("image-shape",
                      [p["code"] for p in self.q.check("vm")["problems"]])
        said = self.q("recover", "vm")["actions"]
        self.assertRegex(said[0], "'throttle': is now " + self.FMT)
        self.is_mended("b", "d", "a", "c")

    def test_after_a_delete(self):
        self.q("delete", "vm", "b")
        self.assertRegex(self.q.stderr, self.AFTER_DELETE)
        self.q("recover", "vm")
        self.is_mended("c", "a", "d")

    def test_mending_is_killed_at_any_moment(self):
        for n in range(1, 100):
            if not self.killed(n, "recover", "vm"):
                break
            self.age_again(n)
        self.assertGreater(n, 6)
        self.is_mended("b", "d", "a", "c")

    def age_again(self, n):
        """Each second time on top of what was done before."""
        if n % 2:
            return
        self.q("recover", "vm")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.age()

    def test_what_has_changed_since_is_not_touched(self):
        path = self.q.info("vm", "b")["disks"][0]["path"]
        st = os.stat(path)
        self.unprotect(path)
        os.utime(path)
        self.q.fails("corrupt", "was written to after", "recover", "vm")
        self.assertEqual("throttle", self.backing_format(path))
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        self.q("recover", "vm")
        self.assertEqual(self.FMT, self.backing_format(path))

    def backing_format(self, path):
        said = subprocess.run(["qemu-img", "info", "-U", "--output=json", path],
                              stdout=subprocess.PIPE, check=True).stdout
        return json.loads(said)["backing-filename-format"]

    def test_while_the_vm_runs(self):
        # the nodes of the old chain cannot be had again: this one's will do
        self.q("recover", "vm")
        self.start()
        self.edit(os.path.join(self.store, "vm", "vm.json"),
                  lambda r: r["disks"][0].update(attachFormat="throttle"))
        said = self.q("recover", "vm")["actions"]
        self.assertRegex(said[0], "can be mended while the VM is off")
        failure = self.q.fails("precondition", "attached as 'throttle'",
                               "create", "vm", "e")
        self.assertIn("end it, then qstill recover vm", failure.hint)


for _name in [n for n in vars(Throttle) if n.startswith("test_")]:
    setattr(Early, _name, None)


class EarlyRaw(Early):
    FMT = "raw"
    # what lies below the merged layers is not read, whatever it is called
    AFTER_DELETE = "^$"


class Raw(Throttle):
    FMT = "raw"


class Others(Case):
    """Other ways to have such a node."""

    FORMAT = '{"driver":"qcow2",%s"file":{"driver":"file","filename":"FILE"}}'
    OVER = '{"driver":"throttle","node-name":"%s","throttle-group":"g",' \
           '"file":%s}'

    def round(self, name, *args):
        with self.subTest(name):
            disk = self.disk(vm=name, size=2 << 20, pattern=False)
            args = [a.replace("FILE", disk.path) for a in args]
            vm = self.tiny_vm(name, disks=[], extra=[
                "-object", "throttle-group,id=g,x-iops-total=5000", *args,
                "-device", "virtio-blk-pci,drive=t,id=disk0-dev"])
            vm.disks = [disk]
            root, nodes = self.filters(vm)
            for n, snap in enumerate("abc"):
                vm.write(disk, 0, n + 1)
                self.q("create", name, snap)
            vm.write(disk, 0, 9)
            for gone, want in (("b", 9), ("c", 9)):
                self.q("delete", name, gone)
                self.reads(vm, want)
            self.q("revert", name, "a", "--start")
            self.reads(vm, 1)
            vm.quit()
            self.q("start", name)
            self.reads(vm, 1)
            self.assertEqual((root, nodes), self.filters(vm))
            self.q("delete", name, "a")
            self.reads(vm, 1)
            self.assertTrue(self.q.check(name)["ok"])

    def filters(self, vm):
        """The device's root, by its name where that is no automatic one, and
        how many throttle nodes there are."""
        root, = [b["inserted"]["node-name"] for b in vm.cmd("query-block")
                 if "disk0" in b.get("qdev", "")]
        nodes = [n for n in vm.cmd("query-named-block-nodes", flat=True)
                 if n["drv"] == "throttle"]
        return root.rstrip("0123456789"), len(nodes)

    def reads(self, vm, byte):
        head, = vm.heads().values()
        vm.io(vm.disks[0], "flush")
        self.assertEqual(byte, content(head, "qcow2")[0])

    def test_nodes_one_by_one(self):
        self.round("single", "-blockdev",
                   "driver=file,node-name=f,filename=FILE", "-blockdev",
                   "driver=qcow2,node-name=q,file=f", "-blockdev",
                   "driver=throttle,node-name=t,throttle-group=g,file=q")

    def test_a_format_node_without_a_name(self):
        self.round("noname", "-blockdev", self.OVER % ("t", self.FORMAT % ""))

    def test_two_of_them(self):
        self.round("two", "-blockdev", self.OVER % (
            "t", self.OVER % ("u", self.FORMAT % '"node-name":"q",')))

    def test_what_was_attached_as_the_node_on_top(self):
        """Who once took it for the image: no start can do with the record."""
        vm = self.tiny_vm(style="throttle")
        self.edit_record(vm, "throttle")
        self.q.fails("precondition", "was attached as 'throttle'", "create",
                     "vm", "live")
        vm.quit()
        self.q.fails("precondition", "was attached as 'throttle'", "create",
                     "vm", "off")
        report = self.q.check("vm")
        self.assertIn("image-shape", [p["code"] for p in report["problems"]])
        self.assertEqual({vm.disks[0].path}, self.disk_files(vm))

    def edit_record(self, vm, fmt):
        path = os.path.join(self.store, vm.name, "vm.json")
        with open(path) as f:
            record = json.load(f)
        for disk in record["disks"]:
            disk["attachFormat"] = disk["headFormat"] = fmt
        with open(path, "w") as f:
            json.dump(record, f)

    def test_in_a_drive(self):
        self.round("drive", "-drive",
                   "if=none,id=t,driver=throttle,throttle-group=g,"
                   "file.driver=qcow2,file.file.driver=file,"
                   "file.file.filename=FILE")
