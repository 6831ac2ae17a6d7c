# SPDX-License-Identifier: MIT
"""What somebody else does to a layer that is kept for undo, or that a merge
would write to, is found: it is told, nothing is built on it, and no merge or
undo takes it in. When the original file is back all goes on."""

import json
import os
import signal
import subprocess
import time

from lib import image
from lib.case import Case
from lib.tiny import PART, content

FOREIGN = 0x66
HINT = ("bring the original file back, or take it as it is: "
        "qstill recover --force")


class Changed(Case):
    either = True
    cost = 20

    def setUp(self):
        super().setUp()
        self.d = self.disk("disk0", size=2 << 20, pattern=False)
        self.other = self.disk("disk1", "raw", size=2 << 20, pattern=False)
        self.vm = self.tiny_vm(disks=[self.d, self.other])
        self.byte = 0

    def snapshot(self, name, part):
        self.byte += 1
        for d in self.vm.disks:
            self.vm.write(d, part, self.byte)
        self.q("create", "vm", name)

    def layer(self, name):
        return self.frozen(self.vm, name)[self.disk_names(self.vm)[0]][0]

    def see(self, name):
        path, fmt = self.frozen(self.vm, name)[self.disk_names(self.vm)[0]]
        return content(path, fmt)

    def change(self, path):
        """Returns what brings the original back, as out of a backup."""
        kept = os.path.join(self.tmp, os.path.basename(path) + ".kept")
        subprocess.run(["cp", "-a", path, kept], check=True)
        self.unprotect(path)
        time.sleep(0.02)  # the filesystem's clock
        image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %d %d" %
                  (FOREIGN, 7 * PART, PART), path)

        def bring_back():
            self.unprotect(path)
            os.replace(kept, path)
        return bring_back

    def told(self):
        """What check says of changed layers."""
        said = self.q.check("vm")
        self.assertEqual({"layer-changed"},
                         {p["code"] for p in said["problems"]}, said)
        return "\n".join(p["message"] for p in said["problems"])

    def all_is_well(self, **parts):
        """The parts' bytes of snapshots, by name."""
        self.assertEqual([], self.q.check("vm")["problems"])
        for name, want in parts.items():
            self.assertEqual(want, self.see(name)[:len(want)])
            self.assertEqual(0, self.see(name)[7])

    def record(self):
        with open(os.path.join(self.store, "vm", "vm.json")) as f:
            return json.load(f)

    def hidden(self):
        return [h["path"] for h in self.record()["hidden"]]


class Trash(Changed):
    """Layers that undo may bring back."""

    def test_of_a_delete_below_a_snapshot_that_stays(self):
        self.snapshot("a", 0)
        self.snapshot("b", 1)
        a = self.layer("a")
        self.vm.quit()
        self.q("delete", "vm", "a", "--keep-trash", "9")
        bring_back = self.change(a)
        message = self.told()
        self.assertIn("kept for undo", message)
        self.assertIn(a, message)
        for verb, name in (("revert", "b"), ("create", "c"), ("verify", "b")):
            self.q.fails("corrupt", "written to after", verb, "vm", name)
        self.q.fails("corrupt", "written to after", "undo", "vm")
        self.q.fails("corrupt", "written to after", "undo", "vm", "--dry-run")
        bring_back()
        self.q("revert", "vm", "b", "--keep-trash", "0")
        self.q("undo", "vm")
        self.all_is_well(a=[1], b=[1, 2])

    def test_of_a_snapshot_that_undo_would_list(self):
        """Its identity is not taken anew from what it has become."""
        self.snapshot("a", 0)
        self.snapshot("b", 1)
        b = self.layer("b")
        self.vm.quit()
        self.q("delete", "vm", "b", "--keep-trash", "1")
        bring_back = self.change(b)
        self.assertIn(b, self.told())
        failure = self.q.fails("corrupt", "kept for undo.*written to after",
                               "undo", "vm")
        self.assertEqual(HINT, failure.hint)
        bring_back()
        self.q("undo", "vm")
        self.all_is_well(a=[1], b=[1, 2])
        self.assertEqual(["a", "b"], self.q.names("vm"))

    def test_that_no_listed_snapshot_stands_on(self):
        """With none listed, or the deleted one above the current one."""
        self.snapshot("a", 0)
        self.snapshot("b", 1)
        for gone, left in (("b", ["a"]), ("a", [])):
            with self.subTest(gone=gone):
                if self.vm.state() != "off":
                    self.vm.quit()
                layer = self.layer(gone)
                self.q("delete", "vm", gone, "--keep-trash", "9")
                bring_back = self.change(layer)
                self.assertIn(layer, self.told())
                for more in (("--dry-run",), ()):
                    with self.nothing_changes(self.vm):
                        self.q.fails("corrupt", "would stand on it.*%s was "
                                     "written to after" % layer,
                                     "create", "vm", "c", *more)
                bring_back()
                self.assertEqual(left, self.q.names("vm"))
        self.q("create", "vm", "c")
        self.q("undo", "vm")
        self.q("undo", "vm")
        self.all_is_well(a=[1], b=[1, 2], c=[1, 2])

    def test_changed_when_the_undo_is_on_its_way(self):
        """The undo that goes on after a crash lists it as it was."""
        self.snapshot("a", 0)
        self.snapshot("b", 1)
        b = self.layer("b")
        self.vm.quit()
        self.q("delete", "vm", "b", "--keep-trash", "1")
        tag = self.trash(self.vm)[0]["tag"]
        with open(self.q.journal_path("vm"), "w") as f:
            json.dump({"version": 1, "op": "undo", "phase": "committed",
                       "snapshot": "", "tag": "0" * 12, "undone": tag,
                       "ids": [], "disks": []}, f)
        bring_back = self.change(b)
        self.q("recover", "vm")
        self.assertEqual(["a", "b"], self.q.names("vm"))
        self.assertIn("snapshot b", self.told())
        self.q.fails("corrupt", "written to after", "revert", "vm", "b")
        bring_back()
        self.all_is_well(a=[1], b=[1, 2])

    def fork(self):
        """a - b, and the present on a branch that reads neither."""
        self.snapshot("root", 0)
        self.snapshot("a", 1)
        self.snapshot("b", 2)
        self.q("revert", "vm", "root", "--keep-trash", "0")

    def expires_by(self, off, *argv):
        """a's layer is changed, and what comes next would merge it into b's."""
        self.fork()
        a = self.layer("a")
        if off:
            self.vm.quit()
        self.q("delete", "vm", "a", "--keep-trash", "1")
        bring_back = self.change(a)
        self.q(*argv)
        self.assertRegex(self.q.stderr, "%s is not merged: .*written to after"
                         % a)
        self.assertEqual([a], self.hidden())
        self.assertIn("deleted snapshot", self.told())
        self.q.fails("corrupt", "written to after", "recover", "vm")
        bring_back()
        self.assertIn("merged", "\n".join(self.q("recover", "vm")["actions"]))
        self.assertEqual([], self.hidden())
        self.all_is_well(b=[1, 2, 3])

    def test_a_create_lets_it_expire(self):
        self.expires_by(True, "create", "vm", "c")

    def test_a_create_lets_it_expire_while_the_vm_runs(self):
        self.expires_by(False, "create", "vm", "c")

    def test_a_revert_lets_it_expire_while_the_vm_runs(self):
        self.expires_by(False, "revert", "vm", "root", "--keep-trash", "0")

    def test_a_delete_that_would_merge_it_is_refused(self):
        self.fork()
        self.q("create", "vm", "leaf")
        a = self.layer("a")
        self.vm.quit()
        self.q("delete", "vm", "a", "--keep-trash", "1")
        bring_back = self.change(a)
        for more in ((), ("--dry-run",)):
            with self.nothing_changes(self.vm):
                self.q.fails("corrupt", "kept for undo.*written to after",
                             "delete", "vm", "leaf", *more)
        bring_back()
        self.q("delete", "vm", "leaf")
        self.all_is_well(root=[1], b=[1, 2, 3])

    def test_a_delete_that_leaves_it_is_not(self):
        self.fork()
        self.q("create", "vm", "leaf")
        a = self.layer("a")
        self.vm.quit()
        self.q("delete", "vm", "a", "--keep-trash", "9")
        bring_back = self.change(a)
        self.q("delete", "vm", "leaf")
        bring_back()
        self.q("undo", "vm")
        self.all_is_well(root=[1], a=[1, 2], b=[1, 2, 3])

    def test_of_a_revert_with_the_vm_off_and_on(self):
        """The head that it left."""
        for more in (("--stopped",), ("--start",)):
            with self.subTest(more=more):
                if not self.q.names("vm"):
                    self.snapshot("a", 0)
                self.vm_is_on()
                self.vm.write(self.d, 3, 9)
                head = self.head_paths(self.vm)[0]
                self.q("revert", "vm", "a", *more)
                self.assertEqual([], self.q.check("vm")["problems"])
                bring_back = self.change(head)
                self.assertIn(head, self.told())
                self.q.fails("corrupt", "kept for undo", "undo", "vm")
                self.q("create", "vm", "c", "--dry-run")
                bring_back()
                self.q("undo", "vm")
                self.all_is_well(a=[1])
                self.assertEqual(9, content(self.head_paths(self.vm)[0],
                                            "qcow2")[3])

    def vm_is_on(self):
        if self.vm.state() == "off":
            self.q("start", "vm")

    def test_a_revert_in_place_has_closed_it_by_then(self):
        self.snapshot("a", 0)
        self.q("create", "vm", "m", "--memory")
        self.vm.write(self.d, 3, 9)
        self.q("revert", "vm", "m")
        self.assertEqual([], self.q.check("vm")["problems"])
        left, = self.trash(self.vm)
        self.assertTrue(all(layer["ino"] for layer in left["layers"]), left)
        self.q("undo", "vm")
        self.all_is_well(a=[1])

    def test_an_undo_that_failed_has_changed_none(self):
        """QEMU notes in an image with a bitmap that it has it open."""
        self.snapshot("a", 0)
        (node,) = [n["node-name"] for n in
                   self.vm.cmd("query-named-block-nodes")
                   if n["file"] == self.head_paths(self.vm)[0] and
                   n["drv"] == "qcow2"]
        self.vm.cmd("transaction", actions=[
            {"type": "block-dirty-bitmap-add",
             "data": {"node": node, "name": "b", "persistent": True}}])
        heads = self.head_paths(self.vm)
        self.q("revert", "vm", "a")
        was = os.stat(heads[0]).st_mtime_ns
        with subprocess.Popen(["qemu-io", "-r", "-f", "qcow2", heads[1]],
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as p:
            p.stdout.read(1)  # its prompt: the image is open
            self.q.fails("failed", "another process", "undo", "vm")
            p.stdin.close()
        self.assertNotEqual(was, os.stat(heads[0]).st_mtime_ns)
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("undo", "vm")
        self.assertEqual(heads, self.head_paths(self.vm))

    def test_a_record_of_before_is_read(self):
        """It knows nothing of what the files were; the next one does."""
        self.snapshot("a", 0)
        self.snapshot("b", 1)
        b = self.layer("b")
        self.vm.quit()
        self.q("delete", "vm", "b", "--keep-trash", "3")
        record = self.record()
        for layer in record["trash"][0]["layers"]:
            layer.update(dev=0, ino=0, fileSize=0, mtimeNs=0, headerHash=None)
        record.pop("sum", None)
        with open(os.path.join(self.store, "vm", "vm.json"), "w") as f:
            json.dump(record, f)
        self.unprotect(b)
        os.utime(b, (1, 1))
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("undo", "vm")
        self.assertEqual(["a", "b"], self.q.names("vm"))
        self.all_is_well(a=[1], b=[1, 2])


class Merged(Changed):
    """Layers of snapshots that stay, which a merge would write to."""

    def fork(self):
        """z - a - (b, c); the VM stands on b."""
        self.snapshot("z", 0)
        self.snapshot("a", 1)
        self.snapshot("b", 2)
        self.q("revert", "vm", "a", "--keep-trash", "0")
        self.snapshot("c", 3)
        self.q("revert", "vm", "b", "--keep-trash", "0")

    def refused(self, off):
        self.fork()
        if off:
            self.vm.quit()
        self.q("delete", "vm", "a", "--keep-hidden")
        self.assertNotEqual([], self.hidden())
        b = self.layer("b")
        st = os.stat(b)
        self.unprotect(b)
        os.utime(b, (1, 1))
        self.assertIn("snapshot b", self.told())
        for more in (("--dry-run",), ()):
            with self.nothing_changes(self.vm):
                failure = self.q.fails(
                    "corrupt", "snapshot b.*written to after",
                    "delete", "vm", "c", *more)
            self.assertEqual(HINT, failure.hint)
        os.utime(b, ns=(st.st_atime_ns, st.st_mtime_ns))
        self.q("delete", "vm", "c")
        self.assertEqual([], self.hidden())
        self.all_is_well(z=[1], b=[1, 2, 3])

    def test_a_delete_next_to_it_is_refused(self):
        self.refused(True)

    def test_a_delete_next_to_it_is_refused_while_the_vm_runs(self):
        self.refused(False)

    def left(self, *argv):
        """b's layer is in use, so a's waits; then b's is changed."""
        self.snapshot("z", 0)
        self.snapshot("a", 1)
        self.snapshot("b", 2)
        self.vm.quit()
        a, b = self.layer("a"), self.layer("b")
        with subprocess.Popen(["qemu-io", "-r", "-f", "qcow2", b],
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as p:
            p.stdout.read(1)  # its prompt: the image is open
            self.q("delete", "vm", "a")
            p.stdin.close()
        self.assertIn(a, self.hidden())
        bring_back = self.change(b)
        was = image.file_digest(a), image.file_digest(b)
        self.q(*argv)
        self.assertRegex(self.q.stderr,
                         "%s is not merged: snapshot b.*written to after" % a)
        self.assertEqual([a], self.hidden())
        self.assertEqual(was, (image.file_digest(a), image.file_digest(b)))
        self.assertIn("snapshot b", self.told())
        self.q.fails("corrupt", "", "verify", "vm", "b")
        bring_back()
        self.q("recover", "vm")
        self.assertEqual([], self.hidden())
        self.all_is_well(z=[1], b=[1, 2, 3])

    def test_recover_leaves_it(self):
        self.left("recover", "vm")

    def test_the_merge_after_a_revert_leaves_it(self):
        self.left("revert", "vm", "z", "--keep-trash", "0")

    def test_what_a_cancelled_merge_has_undone_is_no_change(self):
        """It goes up, into the layer of the snapshot that stays."""
        self.snapshot("z", 0)
        self.vm.io(self.d, "write -q -P 8 512k 512k")
        self.snapshot("a", 1)
        self.vm.io(self.d, "write -q -P 9 1M 1M")
        self.snapshot("b", 2)
        self.vm.quit()
        b = self.layer("b")
        was = os.stat(b).st_mtime_ns
        p = self.q.start("delete", "vm", "a", "--bwlimit", "128k")
        deadline = time.time() + 20
        while os.stat(b).st_mtime_ns == was and time.time() < deadline:
            time.sleep(0.01)
        p.send_signal(signal.SIGINT)
        self.assertEqual(10, self.q.finish(p)[0], self.q.stderr)
        self.assertNotEqual(was, os.stat(b).st_mtime_ns)
        self.assertNotEqual([], self.hidden())
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("recover", "vm")
        self.assertEqual([], self.hidden())
        self.all_is_well(z=[1], b=[1, 2, 3])

    def test_the_layer_of_a_snapshot_that_went(self):
        """It waits to be merged: from the delete on it is known what it is."""
        self.snapshot("z", 0)
        self.snapshot("a", 1)
        self.snapshot("b", 2)
        self.vm.quit()
        a = self.layer("a")
        with subprocess.Popen(["qemu-io", "-r", "-f", "qcow2",
                               self.layer("b")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as p:
            p.stdout.read(1)
            self.q("delete", "vm", "a")
            p.stdin.close()
        bring_back = self.change(a)
        self.assertIn(a, self.told())
        self.q("revert", "vm", "z", "--keep-trash", "0")
        self.assertIn("%s is not merged" % a, self.q.stderr)
        bring_back()
        self.q("recover", "vm")
        self.all_is_well(z=[1], b=[1, 2, 3])


class Accepted(Changed):
    """recover --force takes what somebody else made of a layer as it is: for
    good, and what was in the way goes on."""

    def accepts(self, *paths):
        argv = ("recover", "vm", "--force")
        with self.nothing_changes(self.vm):
            said = self.q(*argv, "--dry-run")["accepted"]
        self.assertEqual(len(paths), len(said), said)
        said = self.q(*argv)["accepted"]
        for path in paths:
            self.assertEqual(1, sum("%s is taken as it is" % path in line
                                    for line in said), said)
        self.assertEqual([], self.q(*argv)["accepted"])
        self.assertEqual([], self.q.check("vm")["problems"])

    def three(self):
        self.snapshot("a", 0)
        self.snapshot("b", 1)
        self.snapshot("c", 2)
        self.vm.quit()

    def seen(self, **parts):
        for name, want in parts.items():
            self.assertEqual(want, self.see(name))
            self.q("verify", "vm", name)

    def test_of_the_trash(self):
        self.three()
        b = self.layer("b")
        self.q("delete", "vm", "b", "--keep-trash", "9")
        self.change(b)
        self.q.fails("corrupt", "", "create", "vm", "d")
        failure = self.q.fails("corrupt", "", "undo", "vm")
        self.assertIn("qstill recover --force", failure.hint)
        self.accepts(b)
        self.q("create", "vm", "d")
        self.q("undo", "vm")
        changed = [1, 2] + [0] * 5 + [FOREIGN]
        self.seen(a=[1] + [0] * 7, b=changed,
                  c=[1, 2, 3] + [0] * 4 + [FOREIGN])
        self.q("revert", "vm", "b")
        self.assertEqual(changed, content(self.head_paths(self.vm)[0],
                                          "qcow2"))

    def test_of_the_trash_lets_the_vm_be_detached(self):
        self.three()
        b = self.layer("b")
        self.q("delete", "vm", "b", "--keep-trash", "5")
        self.change(b)
        self.q("delete", "vm", "c")
        self.q("delete", "vm", "a")
        self.q.fails("precondition", "to be merged", "detach", "vm")
        self.accepts(b)
        self.assertEqual([], self.hidden())
        disks = [d.path for d in self.vm.disks]
        self.assertEqual(disks, self.head_paths(self.vm))
        self.assertEqual([1, 2, 3] + [0] * 4 + [FOREIGN],
                         content(disks[0], "qcow2"))
        self.q("detach", "vm")

    def test_of_a_listed_one_while_the_vm_runs(self):
        self.snapshot("a", 0)
        self.snapshot("b", 1)
        a = self.layer("a")
        self.unprotect(a)
        os.utime(a, (1, 1))
        self.q.fails("corrupt", "written to after", "create", "vm", "c")
        self.accepts(a)
        self.q("create", "vm", "c")
        self.seen(a=[1] + [0] * 7, b=[1, 2] + [0] * 6)
        self.q("delete", "vm", "a")
        self.seen(b=[1, 2] + [0] * 6)

    def test_one_that_no_image_is_left_of_is_not(self):
        self.three()
        a, b = self.layer("a"), self.layer("b")
        self.change(a)
        bring_back = self.change(b)
        os.truncate(b, 3)
        with self.nothing_changes(self.vm):
            self.q.fails("corrupt", "snapshot b.*%s" % b, "recover", "vm",
                         "--force")
        self.assertIn(a, self.told())
        bring_back()
        self.accepts(a)

    def test_a_vm_must_be_named(self):
        self.q.fails("usage", "name of the VM", "recover", "--force")
