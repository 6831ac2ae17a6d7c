# SPDX-License-Identifier: MIT
"""undo: takes back the last revert or delete while its trash is there."""

import json
import os
import subprocess

from lib import image
from lib.case import Case
from lib.tiny import PART, content


class Undo(Case):
    either = True
    cost = 20
    disks_of = (("disk0", "qcow2"), ("disk1", "raw"))

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm(disks=[
            self.disk(name, fmt, size=2 << 20, pattern=False)
            for name, fmt in self.disks_of])

    def write(self, byte, part=0):
        for d in self.vm.disks:
            self.vm.write(d, part, byte)

    def heads(self):
        """The first part's byte of every head; all disks must agree."""
        found = {content(p, "qcow2" if p.endswith(".qcow2") else "raw")[0]
                 for p in self.head_paths(self.vm)}
        self.assertEqual(1, len(found))
        return found.pop()

    def snapshot(self, name, byte, *more):
        self.write(byte)
        return self.q("create", "vm", name, *more)["id"]

    def three(self):
        """root(1) - middle(2) - leaf(3), and 9 on top."""
        ids = [self.snapshot(n, i + 1)
               for i, n in enumerate(("root", "middle", "leaf"))]
        self.write(9)
        return ids

    # ---------------------------------------------------------------- revert

    def test_of_a_revert_gives_the_heads_back(self):
        root, _, leaf = self.three()
        self.q("revert", "vm", "root")
        self.assertEqual(1, self.heads())
        self.assertEqual(root, self.q("list", "vm")["current"])
        said = self.q("undo", "vm")
        self.assertIn("the last revert is taken back", said["actions"])
        self.assertEqual("running", self.vm.state())
        self.assertEqual(9, self.heads())
        self.assertEqual(leaf, self.q("list", "vm")["current"])
        self.assertEqual(sorted(self.head_paths(self.vm)),
                         sorted(self.vm.heads().values()))

    def test_of_an_undo_gives_the_revert_back(self):
        self.three()
        self.q("revert", "vm", "root")
        self.write(7)
        self.q("undo", "vm")
        self.assertEqual(9, self.heads())
        self.q("undo", "vm")
        self.assertEqual(7, self.heads())
        self.assertEqual(1, len(self.trash(self.vm)))

    def undone(self, what, *more):
        """Takes one back; what goes for good with that is said."""
        plan = self.q("undo", "vm", *more, "--dry-run")["plan"]
        said = self.q("undo", "vm", *more)["actions"]
        self.assertEqual("the last %s is taken back" % what, said[0])
        self.assertEqual(plan, said[:len(plan)])
        self.check_nothing_left(self.vm)
        return [line for line in said if "no more" in line]

    def test_one_after_the_other(self):
        """The undo of a revert does not hide a delete before it."""
        _, middle, _ = self.three()
        self.q("delete", "vm", "middle", "--keep-trash", "9")
        self.q("revert", "vm", "root", "--keep-trash", "9")
        self.write(7)
        self.assertEqual([], self.undone("revert"))
        self.assertEqual(9, self.heads())
        self.assertEqual(["leaf", "root"], sorted(self.q.names("vm")))
        self.assertEqual([], self.undone("delete"))
        self.assertEqual(["leaf", "middle", "root"],
                         sorted(self.q.names("vm")))
        self.assertEqual(9, self.heads())
        self.undone("undo", "--redo")
        self.assertEqual(7, self.heads())
        self.q.fails("not-found", "no undo of a revert", "undo", "vm",
                     "--redo")
        self.undone("revert")
        self.assertEqual(9, self.heads())
        self.undone("undo")
        self.assertEqual(7, self.heads())
        self.q("revert", "vm", middle)
        self.assertEqual(2, self.heads())
        self.assertTrue(self.q.check("vm")["ok"])

    def test_several_reverts_there_and_back(self):
        self.three()
        self.q("revert", "vm", "root", "--keep-trash", "9")
        self.write(5)
        self.q("revert", "vm", "middle", "--keep-trash", "9")
        self.write(6)
        for way, bytes_ in ((("revert",), (5, 9)),
                            (("undo", "--redo"), (5, 6)),
                            (("revert",), (5, 9))):
            for byte in bytes_:
                self.assertEqual([], self.undone(*way))
                self.assertEqual(byte, self.heads())
        self.assertEqual(2, len(self.trash(self.vm)))
        self.q("delete", "vm", *self.q.names("vm"))
        self.assertEqual(2, len(self.trash(self.vm)), "as --keep-trash says")
        self.undone("undo", "--redo")
        self.assertEqual(5, self.heads())

    def test_what_an_undo_ends_for_good_is_said(self):
        self.three()
        self.q("delete", "vm", "middle", "--keep-trash", "2")
        self.q("revert", "vm", "root")
        self.write(7)
        self.assertEqual(["the last delete can be taken back no more"],
                         self.undone("revert"))
        self.assertEqual(9, self.heads())
        self.assertEqual(["leaf", "root"], sorted(self.q.names("vm")))
        plan = self.q("delete", "vm", "root", "--dry-run")["plan"]
        self.assertIn("the last undo can be taken back no more", plan)
        self.q("create", "vm", "more")
        self.q.fails("not-found", "no undo of a revert", "undo", "vm",
                     "--redo")
        self.assertEqual([], self.trash(self.vm))

    def test_of_a_revert_with_the_vm_off_and_paused(self):
        self.three()
        self.q("revert", "vm", "root", "--stopped")
        self.assertEqual("off", self.vm.state())
        self.q("undo", "vm")
        self.assertEqual("off", self.vm.state())
        self.assertEqual(9, self.heads())
        self.q("start", "vm")
        self.pause(self.vm)
        self.q("revert", "vm", "middle")
        self.assertEqual(2, self.heads())
        self.q("undo", "vm")
        self.assertEqual(9, self.heads())
        self.assertIn(self.vm.state(), ("paused", "prelaunch"))
        self.cont(self.vm)

    def test_the_next_operation_takes_the_trash_away(self):
        for verb in ("create", "revert", "delete"):
            with self.subTest(verb=verb):
                ids = self.three()
                self.q("revert", "vm", ids[0])
                left = [t["path"] for t in self.trash(self.vm)[0]["layers"]]
                self.assertEqual(2, len(left))
                if verb == "create":
                    self.q("create", "vm", "more")
                elif verb == "revert":
                    self.q("revert", "vm", "middle", "--keep-trash", "0")
                else:
                    self.q("delete", "vm", "leaf")
                self.assertFalse(any(map(os.path.exists, left)))
                self.assertEqual([], self.trash(self.vm))
                self.q.fails("not-found", "no revert or delete to take back",
                             "undo", "vm")
                self.check_nothing_left(self.vm)
                self.q("delete", "vm", *self.q.names("vm"))

    def test_a_failed_operation_leaves_the_trash(self):
        self.three()
        self.q("revert", "vm", "root")
        self.q.fails("busy", "exists", "create", "vm", "root")
        self.q.fails("not-found", "", "delete", "vm", "nothing")
        self.mount_tmpfs(os.path.join(self.tmp, "full"), "size=16k")
        self.q.fails("no-space", "", "create", "vm", "more", "--disk-dir",
                     os.path.join(self.tmp, "full"))
        self.q("undo", "vm")
        self.assertEqual(9, self.heads())

    def test_keep_trash_counts_operations(self):
        self.three()
        self.q("revert", "vm", "root", "--keep-trash", "3")
        self.snapshot("b1", 21)
        self.snapshot("b2", 22)
        self.assertEqual(1, len(self.trash(self.vm)))
        self.q("undo", "vm")
        self.assertEqual(9, self.heads())
        self.assertEqual(5, len(self.q.names("vm")), "branches stay")
        self.q.fails("usage", "32", "revert", "vm", "root", "--keep-trash",
                     "33")
        self.q("revert", "vm", "root", "--keep-trash", "0")
        self.assertEqual([], self.trash(self.vm))

    # ---------------------------------------------------------------- delete

    def test_of_a_delete_lists_the_snapshots_again(self):
        ids = self.three()
        tree = self.q("list", "vm")
        for gone in (["root"], ["middle"], ["leaf"], ["root", "leaf"],
                     ["root", "middle", "leaf"]):
            with self.subTest(gone=gone):
                self.q("delete", "vm", *gone, "--keep-trash", "1")
                self.assertEqual(
                    [n for n in ("root", "middle", "leaf") if n not in gone],
                    self.q.names("vm"))
                self.check_nothing_left(self.vm)
                self.q("undo", "vm")
                self.assertEqual(tree, self.q("list", "vm"))
                self.assertTrue(self.q.check("vm")["ok"])
                self.check_nothing_left(self.vm)
        for i, id in enumerate(ids):
            self.q("revert", "vm", id)
            self.assertEqual(i + 1, self.heads())

    def test_of_a_delete_after_other_operations(self):
        root, middle, leaf = self.three()
        self.q("delete", "vm", "middle", "--keep-trash", "4")
        self.q("delete", "vm", "root")
        self.snapshot("top", 5)
        self.check_nothing_left(self.vm)
        self.q("undo", "vm")
        found = {s["name"]: s for s in self.q.snapshots("vm")}
        self.assertEqual({"middle", "leaf", "top"}, set(found))
        self.assertIsNone(found["middle"]["parentId"])
        self.assertEqual(middle, found["leaf"]["parentId"])
        self.q("revert", "vm", "middle")
        self.assertEqual(2, self.heads())
        self.q("revert", "vm", "leaf")
        self.assertEqual(3, self.heads())

    def test_of_a_delete_is_the_parent_of_those_made_since(self):
        """A chain on what went, and a branch: by the layers."""
        root, middle, leaf = self.three()
        self.q("delete", "vm", "middle", "leaf", "--keep-trash", "5")
        top = self.snapshot("top", 5)
        self.q("revert", "vm", "root", "--keep-trash", "0")
        side = self.snapshot("side", 6)
        self.q("undo", "vm")
        self.assertEqual(
            {root: None, middle: root, leaf: middle, top: leaf, side: root},
            {s["id"]: s["parentId"] for s in self.q.snapshots("vm")})
        self.assertEqual(side, self.q("list", "vm")["current"])
        self.assertTrue(self.q.check("vm")["ok"])
        self.q("delete", "vm", "middle", "--children")
        self.assertEqual(["root", "side"], self.q.names("vm"))
        self.check_nothing_left(self.vm)

    def test_of_a_delete_of_all_there_was(self):
        a = self.snapshot("a", 1)
        self.q("delete", "vm", "a", "--keep-trash", "5")
        self.snapshot("b", 2)
        self.q("undo", "vm")
        found = {s["name"]: s for s in self.q.snapshots("vm")}
        self.assertIsNone(found["a"]["parentId"])
        self.assertEqual(a, found["b"]["parentId"])
        self.assertGreater(found["b"]["sharedBytes"], 0)

    def test_a_delete_without_it_frees_at_once(self):
        self.three()
        self.q("delete", "vm", "root", "middle", "leaf")
        self.q.fails("not-found", "no revert or delete", "undo", "vm")
        self.assertEqual({d.path for d in self.vm.disks},
                         self.disk_files(self.vm))

    def test_a_name_that_was_taken_since(self):
        self.three()
        self.q("delete", "vm", "middle", "--keep-trash", "2")
        self.q("create", "vm", "middle")
        self.q.fails("busy", "named middle exists again", "undo", "vm")
        self.q("rename", "vm", "middle", "other")
        self.q("undo", "vm")
        self.assertIn("middle", self.q.names("vm"))

    def test_what_a_revert_in_place_opened_is_closed_with_its_layer(self):
        self.three()
        self.q("revert", "vm", "root")
        self.q("create", "vm", "more")
        self.q("delete", "vm", *self.q.names("vm"))
        open_now = {n["image"]["filename"] for n in
                    self.vm.cmd("query-named-block-nodes")}
        self.assertEqual({d.path for d in self.vm.disks}, open_now)
        self.q("create", "vm", "again")

    def test_dry_run_says_what(self):
        self.three()
        self.q("revert", "vm", "root")
        with self.nothing_changes(self.vm):
            plan = self.q("undo", "vm", "--dry-run")["plan"]
            self.assertEqual("the last revert is taken back", plan[0])
            self.assertEqual(3, len(plan))

    def test_a_plan_with_trash_is_what_is_done(self):
        self.three()
        layers = {p for p, _ in self.frozen(self.vm, "middle").values()}
        argv = ("delete", "vm", "middle", "--keep-trash", "3")
        with self.nothing_changes(self.vm):
            plan = self.q(*argv, "--dry-run")["plan"]
        files = self.disk_files(self.vm)
        self.q(*argv)
        self.assertEqual(files, self.disk_files(self.vm))
        self.assertEqual(layers, {line.split()[2] for line in plan
                                  if line.endswith(" stays for undo")})
        self.assertIn("moves 0 bytes of disks, frees about 0", plan[-1])
        self.assertNotRegex("\n".join(plan), "merge|pull|remove")
        self.q("undo", "vm")

    def test_a_plan_takes_expired_trash_away(self):
        """What stood on a layer for undo alone hinders its merge no more."""
        self.three()
        self.q("delete", "vm", "leaf", "--keep-trash", "2")
        self.q("revert", "vm", "root")
        argv = ("delete", "vm", "middle")
        plan = "\n".join(self.q(*argv, "--dry-run")["plan"])
        for what in ("revert", "delete"):
            self.assertIn("the last %s can be taken back no more" % what, plan)
        before = self.disk_files(self.vm)
        self.q(*argv)
        gone = before - self.disk_files(self.vm)
        self.assertEqual(6, len(gone))
        for path in gone:
            self.assertRegex(plan, r"(remove|merge)[^\n]* %s\b" % path)
        self.assertNotIn("stays hidden", plan)

    def test_detach_empties_the_trash(self):
        self.three()
        self.q("revert", "vm", "leaf", "--keep-trash", "9")
        self.q("delete", "vm", "root", "middle", "leaf", "--keep-trash", "9")
        self.assertEqual([], self.q.names("vm"))
        self.q("detach", "vm")
        self.assertEqual({d.path for d in self.vm.disks},
                         self.disk_files(self.vm))
        self.assertEqual(sorted(d.path for d in self.vm.disks),
                         sorted(self.vm.heads().values()))


class NewFile(Case):
    """A merge of before gave a snapshot a new file while the VM ran; what the
    trash kept stayed on the old one, which is nobody's any more."""
    either = True
    cost = 15

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm(disks=[self.disk("disk0", size=2 << 20,
                                                pattern=False)])
        self.vm.quit()
        self.ids = {}
        for n in (1, 3):
            self.snapshot("s%d" % n, n)
        self.write(9)
        self.q("revert", "vm", "s3", "--keep-trash", "9")
        self.write(5)
        self.give_new_file("s3")
        self.q("undo", "vm")

    def give_new_file(self, name):
        (old, _), = self.frozen(self.vm, name).values()
        head, = self.head_paths(self.vm)
        new = old + ".new"
        subprocess.run(["cp", "-a", old, new], check=True)
        image.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2",
                  "-b", new, head)
        path = self.q.manifest_path("vm", self.ids[name])
        with open(path) as f:
            manifest = json.load(f)
        manifest["disks"][0]["path"] = new
        manifest["sum"] = None
        with open(path, "w") as f:
            json.dump(manifest, f)
        self.assertEqual([], self.q.check("vm")["problems"])

    def write(self, n):
        image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P %d %d %d" %
                  (n, n % 8 * PART, PART), self.head_paths(self.vm)[0])

    def snapshot(self, name, n):
        self.write(n)
        self.ids[name] = self.q("create", "vm", name)["id"]

    def listed(self, current, **parents):
        said = self.q("list", "vm")
        self.assertEqual(self.ids[current], said["current"])
        self.assertEqual(
            {self.ids[n]: p and self.ids[p] for n, p in parents.items()},
            {s["id"]: s["parentId"] for s in said["snapshots"]})
        self.assertEqual([], self.q.check("vm")["problems"])

    def reads(self, *bytes_):
        """The head's parts, of which the last one written is number 1."""
        want = [0] * 8
        for n in bytes_:
            want[n % 8] = n
        path, = self.head_paths(self.vm)
        self.assertEqual(want, content(path, "qcow2"))

    def test_what_comes_next_has_the_right_parent(self):
        self.listed("s3", s1=None, s3="s1")
        self.reads(3, 9)
        self.snapshot("x", 4)
        self.listed("x", s1=None, s3="s1", x="s3")
        self.q("undo", "vm")  # the undo
        self.listed("s3", s1=None, s3="s1", x="s3")
        self.reads(1, 3, 5)
        self.q("revert", "vm", "x", "--keep-trash", "0")
        self.q("delete", "vm", "s3")
        self.listed("x", s1=None, x="s1")
        self.reads(3, 9, 4)
        self.q("verify", "vm", "x")

    def test_a_delete_that_is_taken_back(self):
        for gone, current, left in (("s1", "s3", {"s3": None}),
                                    ("s3", "s1", {"s1": None})):
            with self.subTest(gone=gone):
                self.q("delete", "vm", gone, "--keep-trash", "9")
                self.listed(current, **left)
                self.q("undo", "vm")
                self.listed("s3", s1=None, s3="s1")
                self.reads(3, 9)
        self.q("delete", "vm", "s1", "s3", "--keep-trash", "9")
        self.assertIsNone(self.q("list", "vm")["current"])
        self.q("undo", "vm")
        self.listed("s3", s1=None, s3="s1")

    def test_a_snapshot_above_that_had_it_as_its_parent(self):
        self.snapshot("x", 4)
        for gone in ("s3",), ("s1", "s3"), ("s1",), ("s3", "x"):
            with self.subTest(gone=gone):
                self.q("delete", "vm", *gone, "--keep-trash", "9")
                self.q("undo", "vm")
                self.listed("x", s1=None, s3="s1", x="s3")
                self.reads(3, 9, 4)


class InTheMiddle(Undo):
    """A delete that is kept for undo, and then one below it: with the VM on,
    what reads the merged layer is not rewritten."""
    disks_of = (("disk0", "qcow2"),)

    def test_it_is_still_there_afterwards(self):
        for style, protect in (("drive", True), ("blockdev", True),
                               ("drive", False)):
            with self.subTest(style, protect=protect):
                self.round("%s%d" % (style, protect), style,
                           [] if protect else ["--no-protect"])

    def round(self, name, style, more):
        vm = self.tiny_vm(name, style=style)
        disk, = vm.disks
        for n in range(1, 6):
            vm.write(disk, n, n)
            self.q("create", name, "s%d" % n, *more)
        vm.write(disk, 6, 6)
        self.q("delete", name, "s4", "--keep-trash", "5")
        self.q("delete", name, "s2")
        self.sees(name, vm, "s1", "s3", "s5")
        self.q("create", name, "s6", *more)
        self.q("delete", name, "s3")
        self.q("revert", name, "s5")
        self.sees(name, vm, "s1", "s5", "s6")

    def test_undo_brings_it_back(self):
        vm = self.tiny_vm("vm2")
        disk, = vm.disks
        for n in range(1, 6):
            vm.write(disk, n, n)
            self.q("create", "vm2", "s%d" % n)
        vm.write(disk, 6, 6)
        self.q("delete", "vm2", "s4", "--keep-trash", "5")
        self.q("delete", "vm2", "s2")
        self.q("undo", "vm2")
        self.sees("vm2", vm, "s1", "s3", "s4", "s5")

    def sees(self, name, vm, *names):
        self.assertEqual(sorted(names), sorted(self.q.names(name)))
        self.assertEqual([], self.q.check(name)["problems"])
        for snap in names:
            n = int(snap[1:])
            (path, fmt), = self.frozen(vm, snap).values()
            self.assertEqual([0] + list(range(1, n + 1)) + [0] * (7 - n),
                             content(path, fmt))
            self.q("verify", name, snap)


for _name in [n for n in vars(Undo) if n.startswith("test_")]:
    setattr(InTheMiddle, _name, None)
