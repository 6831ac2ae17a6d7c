# SPDX-License-Identifier: MIT
"""A layer that others stand on (another VM of the store, an overlay in the same
folder) or have open is neither removed nor changed, and is named."""

import json
import os
import re
import subprocess
import time
import unittest

from lib import image
from lib.case import QEMU_VERSION, Case
from lib.cli import Qstill
from lib.tiny import content


class Others(Case):
    """root - middle - leaf - head; the byte is the first part's."""

    either = True
    cost = 15

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm()
        for n, name in enumerate(("root", "middle", "leaf")):
            self.write(n + 1)
            self.q("create", "vm", name)
        self.write(9)

    def write(self, byte):
        self.vm.write(self.vm.disks[0], 0, byte)

    def layer(self, name):
        (path, _), = self.frozen(self.vm, name).values()
        return path

    def off(self):
        """The VM off, as by itself."""
        self.vm.quit()

    def overlay(self, path, on):
        """Without a byte of its own."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        image.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F",
                  "qcow2", "-b", on, path, "2M")
        return path

    def clone(self, on, attach=True):
        """VM b, running, on an overlay in a folder of its own."""
        disk = self.disk(vm="b", size=2 << 20, pattern=False)
        self.overlay(disk.path, on)
        return self.tiny_vm("b", disks=[disk], attach=attach)

    def byte(self, path):
        return content(path, "qcow2")[0]

    def refused(self, code, words, *names, path):
        """Nothing was done, by the plan as by the delete."""
        before = self.byte(path)
        for more in ((), ("--dry-run",), ("--paranoid",)):
            with self.nothing_changes(self.vm):
                self.q.fails(code, words, "delete", "vm", *names, *more)
        self.assertEqual(before, self.byte(path))
        self.assertFalse(os.path.exists(self.q.journal_path("vm")))

    def left(self):
        """The hidden layers."""
        with open(os.path.join(self.store, "vm", "vm.json")) as f:
            return [h["path"] for h in json.load(f)["hidden"]]

    # ------------------------------------------------------------ other VMs

    def test_a_leaf_below_a_clone_of_another_vm(self):
        leaf = self.layer("leaf")
        self.q("revert", "vm", "middle", "--keep-trash", "0")
        b = self.clone(leaf)
        path = b.disks[0].path
        for state in ("running", "off"):
            with self.subTest(b=state):
                self.refused("precondition", path + " of VM b stands on it",
                             "leaf", path=path)
                self.refused("precondition", "snapshot leaf, disk disk0",
                             "root", "--children", path=path)
            said = self.q.check("vm")["problems"]
            self.assertEqual(["layer-shared"], [p["code"] for p in said])
            self.assertIn(path, said[0]["message"])
            if state == "running":
                b.quit()
        self.q("create", "b", "in-b")  # its head is another now
        self.refused("precondition", "of VM b stands on it", "leaf", path=path)
        self.q("delete", "b", "in-b")
        image.run("qemu-img", "rebase", "-q", "-b", "", path)
        self.assertTrue(self.q.check("vm")["ok"])
        self.q("delete", "vm", "leaf")
        self.assertFalse(os.path.exists(leaf))
        self.assertEqual(3, self.byte(path))

    def test_the_layer_that_others_stand_on_is_named(self):
        """Of those that go as one."""
        middle = self.layer("middle")
        self.q("revert", "vm", "leaf", "--keep-trash", "0")
        b = self.clone(middle)
        self.refused("precondition", r"snapshot middle, disk disk0.*: %s must "
                     r"stay: %s of VM b stands on it" % (
                         re.escape(middle), re.escape(b.disks[0].path)),
                     "middle", "leaf", path=b.disks[0].path)

    def test_a_second_store(self):
        """The one has frozen what the other takes for the head."""
        other = Qstill(self, self.q.binary, os.path.join(self.tmp, "other"))
        for protect in ("--no-protect", None):
            with self.subTest(protect=protect):
                other("attach", "vm", "--qmp", self.vm.qmp)
                self.q("create", "vm", "again", *([protect] if protect else []))
                self.write(8)
                self.off()
                words = "is immutable" if not protect else \
                    self.head_paths(self.vm)[0] + " stands on head"
                for argv in (("create", "vm", "x"), ("start", "vm")):
                    other.fails("precondition", words, *argv)
                self.assertIn("head-shared", [
                    p["code"] for p in other.check("vm")["problems"]])
                self.assertEqual([], self.q.check("vm")["problems"])
                self.q("start", "vm")
                self.q("verify", "vm", "again")
                self.q("delete", "vm", "again")
                other("detach", "vm")

    def test_a_layer_that_is_an_external_data_file(self):
        root = self.layer("root")
        folder, name = os.path.split(root)
        # made with another file, for qemu-img makes that anew
        other, x = os.path.join(folder, "z" * len(name)), folder + "/x"
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                  "data_file=" + other, x, "2M")
        os.unlink(other)
        with open(x, "r+b") as f:
            raw = f.read()
            f.seek(0)
            f.write(raw.replace(other.encode(), root.encode()))
        self.refused("precondition", "x stands on it", "root", path=root)

    def test_an_inner_layer_below_a_clone_of_another_vm(self):
        """By a file between that nobody knows."""
        between = self.overlay(os.path.join(self.tmp, "c", "between.qcow2"),
                               self.layer("middle"))
        path = self.clone(between).disks[0].path
        self.vms[-1].quit()
        for state in ("running", "off"):
            if state == "off":
                self.off()
            with self.subTest(vm=state):
                self.refused("precondition", "of VM b stands on it", "middle",
                             path=path)
        self.q("start", "vm")
        self.q("delete", "vm", "root")  # it is merged later, if ever
        middle = self.layer("middle")
        self.assertEqual([self.vm.disks[0].path], self.left())
        self.assertEqual(2, self.byte(path))
        self.off()
        self.q("delete", "vm", "middle", "--keep-trash", "1")
        self.q("undo", "vm")  # nothing had been merged
        self.q("delete", "vm", "middle", "--keep-trash", "1")
        self.q("create", "vm", "more")
        self.assertIn(middle + " stays: " + path, self.q.stderr)
        self.assertIn(middle, self.left())
        self.assertEqual(2, self.byte(path))
        image.run("qemu-img", "rebase", "-q", "-b", "", path)
        self.q("recover", "vm")
        self.assertEqual([], self.left())

    def test_the_first_image_below_a_clone_is_not_folded_into(self):
        self.q("delete", "vm", "root", "middle")
        path = self.clone(self.layer("leaf")).disks[0].path
        self.vms[-1].quit()
        for state in ("running", "off"):
            if state == "off":
                self.off()
            with self.subTest(vm=state):
                self.refused("precondition", "of VM b stands on it", "leaf",
                             path=path)

    def test_a_record_that_cannot_be_read(self):
        """What stands on the layers is not known: they wait."""
        leaf = self.layer("leaf")
        self.q("revert", "vm", "middle", "--keep-trash", "0")
        path = self.clone(leaf).disks[0].path
        self.vms[-1].quit()
        record = os.path.join(self.store, "b", "vm.json")
        with open(record) as f:
            text = f.read()
        with open(record, "w") as f:
            f.write("{")
        said = self.q("delete", "vm", "leaf", "--dry-run")
        self.assertIn("cannot be told (VM b:", " ".join(said["plan"]))
        self.q("delete", "vm", "leaf")
        self.assertIn(leaf + " stays: who stands on it cannot be told (VM b:",
                      self.q.stderr)
        self.assertEqual([leaf], self.left())
        with open(record, "w") as f:
            f.write(text)
        self.q("recover", "vm")
        self.assertIn("of VM b stands on it", self.q.stderr)
        self.assertEqual(3, self.byte(path))
        image.run("qemu-img", "rebase", "-q", "-b", "", path)
        self.q("recover", "vm")
        self.assertEqual([], self.left())
        self.assertFalse(os.path.exists(leaf))

    # ------------------------------------------------------- in the same folder

    def test_a_leaf_below_an_overlay_of_nobody(self):
        leaf = self.layer("leaf")
        self.q("revert", "vm", "middle", "--keep-trash", "0")
        over = self.overlay(os.path.join(self.vm.dir, "copy.of.leaf"), leaf)
        for state in ("running", "off"):
            if state == "off":
                self.off()
            with self.subTest(vm=state):
                self.refused("precondition", over + " stands on it", "leaf",
                             path=over)
        os.unlink(over)
        self.q("delete", "vm", "leaf")
        self.assertFalse(os.path.exists(leaf))

    def test_a_leaf_by_a_name_that_is_no_plain_one(self):
        """As QEMU writes it where a name is not ASCII."""
        leaf = self.layer("leaf")
        self.q("revert", "vm", "middle", "--keep-trash", "0")
        name = os.path.basename(leaf)
        over = self.overlay(
            os.path.join(self.vm.dir, "copy.of.leaf"),
            'json:{"driver":"qcow2","file":{"driver":"file","filename":"%s"}}' %
            leaf.replace(name, "\\u%04x%s" % (ord(name[0]), name[1:])))
        self.refused("precondition", over + " stands on it", "leaf", path=over)
        os.unlink(over)
        self.q("delete", "vm", "leaf")
        self.assertFalse(os.path.exists(leaf))

    def test_an_inner_layer_below_an_overlay_of_nobody(self):
        """The engine gives it what it needs; not beside a running VM."""
        over = self.overlay(os.path.join(self.vm.dir, "copy.of.middle"),
                            self.layer("middle"))
        self.refused("precondition", over + " stands on it", "middle",
                     path=over)
        self.off()
        # by a link no merge could give it another name for its backing file
        link = os.path.join(self.vm.dir, "link")
        real = self.overlay(os.path.join(self.tmp, "c", "real"), "/nowhere")
        image.run("qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F",
                  "qcow2", "-b", os.path.basename(self.layer("middle")), real)
        os.symlink(real, link)
        self.refused("precondition", link + " stands on it", "middle",
                     path=over)
        os.unlink(link)
        os.symlink(over, link)
        self.q("delete", "vm", "middle")
        self.assertEqual(2, self.byte(over))
        self.assertEqual([], self.left())
        os.unlink(over)

    @unittest.skipUnless(os.geteuid() == 0, "needs root for another's file")
    def test_an_inner_layer_below_an_overlay_of_who_may_not_read_it(self):
        """It is not given what the layer holds, which stays hidden for it."""
        middle = self.layer("middle")
        over = self.overlay(os.path.join(self.vm.dir, "copy.of.middle"),
                            middle)
        os.chown(over, 65534, 65534)
        self.off()
        before = self.disk_files(self.vm)
        self.q("delete", "vm", "middle")
        self.assertIn("its owner (user 65534) may not read", self.q.stderr)
        self.assertEqual([middle], self.left())
        self.assertEqual(before, self.disk_files(self.vm))
        self.assertEqual(2, self.byte(over))
        self.assertEqual(9, self.byte(self.head_paths(self.vm)[0]))
        os.chown(over, 0, 0)
        self.q("recover", "vm")
        self.assertEqual([], self.left())
        self.assertEqual(2, self.byte(over))
        os.unlink(over)

    @unittest.skipUnless(os.geteuid() == 0, "needs root for another's files")
    def test_a_base_that_qemus_user_may_not_read(self):
        """Root opened it for QEMU, which became another user then; a larger
        cluster of the disk's first image is filled from it."""
        secret = os.path.join(self.tmp, "secret")
        os.makedirs(secret, 0o700)
        base = os.path.join(secret, "base.qcow2")
        image.create(base, "qcow2", 16 << 20, False)
        image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 16M", base)
        os.chmod(base, 0o600)
        disk = self.disk(vm="other", size=16 << 20, make=False)
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                  "cluster_size=2M", "-F", "qcow2", "-b", base, disk.path)
        image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 6 8M 6M",
                  disk.path)
        os.chown(disk.path, 65534, 65534)
        os.chmod(self.tmp, 0o755)
        os.chmod(os.path.dirname(disk.path), 0o777)
        vm = self.tiny_vm("other", disks=[disk], extra=[
            "-runas", "nobody"] if QEMU_VERSION.startswith("7.") else [
            "-run-with", "user=nobody"])
        self.q("create", "other", "one")
        vm.write(disk, 1, 7)
        vm.quit()
        want = content(self.head_paths(vm)[0], "qcow2")
        self.q("delete", "other", "one")
        self.assertEqual({disk.path}, self.disk_files(vm))
        self.assertEqual(want, content(disk.path, "qcow2"))
        info = image.run("qemu-img", "info", "--output=json", disk.path)
        self.assertEqual(2 << 20, json.loads(info)["cluster-size"])

    def test_the_first_image_below_an_overlay_of_nobody(self):
        """QEMU's commit would change what it reads."""
        self.q("delete", "vm", "root", "middle")
        over = self.overlay(os.path.join(self.vm.dir, "copy.of.leaf"),
                            self.layer("leaf"))
        self.refused("precondition", over + " stands on it", "leaf",
                     path=over)
        self.off()
        self.q("delete", "vm", "leaf")
        self.assertEqual(3, self.byte(over))
        self.assertEqual({self.vm.disks[0].path}, self.disk_files(self.vm))
        os.unlink(over)

    # --------------------------------------------------------- by QEMU's lock

    def test_a_leaf_that_a_qemu_has_open(self):
        leaf = self.layer("leaf")
        self.q("revert", "vm", "middle", "--keep-trash", "0")
        b = self.clone(leaf, attach=False)
        path = b.disks[0].path
        for state in ("running", "off"):
            if state == "off":
                self.off()
            with self.subTest(vm=state):
                self.refused("busy", leaf + " is in use", "leaf", path=path)
        b.quit()
        self.q("delete", "vm", "leaf")  # nobody could know
        self.assertFalse(os.path.exists(leaf))

    def reader(self, path):
        """As a backup does."""
        sock = os.path.join(self.tmp, "nbd")
        p = subprocess.Popen(["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", sock,
                              path])
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        deadline = time.monotonic() + 20
        while not os.path.exists(sock):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        return p

    def test_what_a_backup_reads_is_merged_later(self):
        """QEMU cannot begin its own merge then; no other verb waits."""
        self.q("delete", "vm", "root", "middle")
        leaf = self.layer("leaf")
        reader = self.reader(leaf)
        self.q("delete", "vm", "leaf")
        self.assertIn('%s stays for now: ' % leaf, self.q.stderr)
        self.assertIn('Failed to get "write" lock', self.q.stderr)
        self.assertEqual([], self.q.names("vm"))
        self.q("create", "vm", "more")
        self.assertEqual("running", self.vm.state())
        self.assertIn(leaf, self.left())
        self.q("delete", "vm", "more")
        reader.kill()
        reader.wait()
        self.q("recover", "vm")
        self.assertEqual([], self.left())
        self.assertEqual({self.vm.disks[0].path}, self.disk_files(self.vm))
        self.vm.io(self.vm.disks[0], "read -P 9 0 64k")

    def test_a_swap_below_what_a_backup_reads(self):
        """The layer above cannot be given another backing file then."""
        self.swap_below_what_a_backup_reads()

    def test_the_same_with_a_node_whose_name_qemu_made(self):
        self.swap_below_what_a_backup_reads(self.restart)

    def restart(self):
        self.vm.quit()
        self.q("start", "vm")

    def swap_below_what_a_backup_reads(self, before=lambda: None):
        self.q("create", "vm", "top")
        self.write(8)
        before()
        middle, leaf, top = map(self.layer, ("middle", "leaf", "top"))
        reader = self.reader(top)
        files = self.disk_files(self.vm)
        self.q("delete", "vm", "middle")
        self.assertIn("%s stays for now: " % middle, self.q.stderr)
        self.assertIn('Failed to get "write" lock', self.q.stderr)
        self.assertEqual(files, self.disk_files(self.vm))
        self.assertEqual([middle], self.left())
        self.assertFalse(os.path.exists(self.q.journal_path("vm")))
        self.q("create", "vm", "more")
        reader.kill()
        reader.wait()
        self.q("recover", "vm")
        self.assertEqual([], self.left())
        self.assertFalse(os.path.exists(leaf))
        self.assertEqual(3, self.byte(self.layer("leaf")))
        self.assertEqual(9, self.byte(top))
        self.reads_only(top)
        self.vm.io(self.vm.disks[0], "read -P 8 0 64k")

    def reads_only(self, path):
        """QEMU has the layer open, and not for writing."""
        nodes = [n for n in self.vm.cmd("query-named-block-nodes", flat=True)
                 if n["file"] == path]
        self.assertEqual([True, True], [n["ro"] for n in nodes])

    # ------------------------------------------------------- dropped otherwise

    def test_a_head_that_a_revert_drops(self):
        self.off()
        head, = self.head_paths(self.vm)
        over = self.overlay(os.path.join(self.vm.dir, "copy.of.head"), head)
        self.q("revert", "vm", "root", "--keep-trash", "0")
        self.assertIn("%s stays: %s stands on it" % (head, over),
                      self.q.stderr)
        self.assertEqual([head], self.left())
        self.assertEqual(9, self.byte(over))
        self.q("delete", "vm", "leaf")  # its child, the head, stays
        self.assertEqual(9, self.byte(over))
        os.unlink(over)
        self.q("recover", "vm")
        self.assertEqual([], self.left())
        self.assertFalse(os.path.exists(head))

    def test_a_head_that_leaves_the_trash(self):
        self.off()
        head, = self.head_paths(self.vm)
        self.q("revert", "vm", "root")
        b = self.clone(head, attach=False)
        path = b.disks[0].path
        self.q("create", "vm", "more")
        self.assertIn(head + " stays for now: %s is in use" % head,
                      self.q.stderr)
        self.assertEqual([head], self.left())
        self.q("recover", "vm")
        self.assertEqual(9, self.byte(path))
        b.quit()
        self.q("recover", "vm")
        self.assertEqual([], self.left())

    def test_a_delete_that_was_interrupted(self):
        """Its recovery looks anew."""
        for name in ("one", "other"):
            self.q("revert", "vm", "root", "--keep-trash", "0")
            self.write(7)
            self.q("create", "vm", name)
        self.q("revert", "vm", "leaf", "--keep-trash", "0")
        p, calls = self.traced(["delete", "vm", "one"])
        self.assertEqual(0, p.returncode, p.stdout)
        # the layer goes (and a record of its removal), then the journal
        at = [n for n, call in enumerate(calls, 1) if "unlinkat" in call][-3]
        other = self.layer("other")
        p, _ = self.traced(["delete", "vm", "other"], "--at", str(at))
        self.assertEqual(137, p.returncode, p.stdout)
        self.assertTrue(os.path.exists(other))
        over = self.overlay(os.path.join(self.vm.dir, "copy.of.other"), other)
        self.q("recover", "vm")
        self.assertIn("%s stays: %s stands on it" % (other, over),
                      self.q.stderr)
        self.assertEqual(7, self.byte(over))
        os.unlink(over)
        self.q("recover", "vm")
        self.assertEqual([], self.left())
        self.assertFalse(os.path.exists(other))
