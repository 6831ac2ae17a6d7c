# SPDX-License-Identifier: MIT
"""One damaged manifest does not take its whole VM with it, and nothing that a
damaged snapshot may need is merged or removed; who is at work on a VM, here or
on another host, is named."""

import fcntl
import json
import os
import re
import shutil
import struct
import subprocess

from lib import image
from lib.case import BUILD, Case
from lib.tiny import content

OFD_SETLK = 37


class Tree(Case):
    """root - middle - leaf - head, and twig on root, each with a byte."""

    either = True
    cost = 20

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm(disks=[
            self.disk("disk0", "qcow2", size=2 << 20, pattern=False),
            self.disk("disk1", "raw", size=2 << 20, pattern=False)])
        self.want = {}
        self.ids = {}
        self.snapshot("root", 1)
        self.snapshot("twig", 2)
        self.q("revert", "vm", "root", "--keep-trash", "0")
        self.snapshot("middle", 3)
        self.snapshot("leaf", 4)
        self.write(5)

    def write(self, byte):
        for d in self.vm.disks:
            self.vm.write(d, byte, byte)
        self.head = self.heads()

    def heads(self):
        return [content(p, "raw" if p.endswith(".img") else "qcow2")
                for p in self.head_paths(self.vm)]

    def snapshot(self, name, byte):
        self.write(byte)
        self.ids[name] = self.q("create", "vm", name)["id"]
        self.want[name] = self.head

    def layers(self, name):
        return [p for p, _ in self.frozen(self.vm, name).values()]

    def is_whole(self, *names):
        """Those listed, each with its content; and the head."""
        self.assertEqual(sorted(names), sorted(self.q.names("vm")))
        for name in names:
            self.assertEqual(self.want[name], [
                content(p, f) for p, f in
                self.frozen(self.vm, name).values()], name)
        self.assertEqual(self.head, self.heads())
        for head in self.head_paths(self.vm):
            for path in image.chain(head):
                self.assertTrue(os.path.exists(path), path)


class Damaged(Tree):
    def damage(self, name, text="{"):
        """The manifest is not JSON; returns what brings it back."""
        path = self.q.manifest_path("vm", self.ids[name])
        shutil.copy(path, self.tmp + "/good")
        with open(path, "w") as f:
            f.write(text)
        self.damaged_on_purpose.add("vm")
        return lambda: shutil.copy(self.tmp + "/good", path)

    def test_the_others_are_listed_and_it_is_named(self):
        layers = {n: self.layers(n) for n in self.want}
        self.damage("middle")
        bad = self.ids["middle"]
        said = self.q("list", "vm")
        self.assertIn(bad, self.q.stderr)
        self.assertEqual({"root", "twig", "leaf"},
                         {s["name"] for s in said["snapshots"]})
        self.assertEqual([bad], [d["id"] for d in said["damaged"]])
        self.assertEqual(self.ids["leaf"], said["current"])
        self.assertNotIn("middle", self.q.text("list", "vm", "--tree"))
        for verb in ("info", "verify", "revert"):
            self.q.fails("corrupt", "manifest.json is damaged", verb, "vm",
                         bad)
        self.q.fails("not-found", "middle", "info", "vm", "middle")
        said = self.q.check("vm")
        self.assertEqual(["damaged-snapshot"],
                         [p["code"] for p in said["problems"]])
        vms, = self.q("vms")["vms"]
        self.assertEqual(("running", 4), (vms["state"], vms["snapshots"]))
        self.q.fails("precondition", "4 snapshots", "detach", "vm")
        self.is_whole("root", "twig", "leaf")
        self.assertTrue(all(map(os.path.exists, sum(layers.values(), []))))

    def test_nothing_that_it_may_need_goes(self):
        layers = {n: self.layers(n) for n in self.want}
        mend = self.damage("middle")
        self.snapshot("new", 6)
        self.is_whole("root", "twig", "leaf", "new")
        said = self.q("delete", "vm", "root", "leaf", "twig", "--dry-run")
        self.assertIn("no layer is merged", " ".join(said["plan"]))
        self.q("delete", "vm", "root", "leaf", "twig")
        self.is_whole("new")
        self.assertTrue(all(map(os.path.exists, sum(layers.values(), []))))
        self.q("revert", "vm", "new")
        self.head = self.want["new"]
        self.is_whole("new")
        mend()
        self.q("recover", "vm")
        self.damaged_on_purpose.clear()
        self.is_whole("middle", "new")
        self.assertNotIn("damaged", self.q("list", "vm"))
        self.assertTrue(self.q.check("vm")["ok"])
        self.check_nothing_left(self.vm)
        self.q("revert", "vm", "middle")
        self.head = self.want["middle"]
        self.is_whole("middle", "new")

    def test_it_is_deleted_by_its_id_and_its_children_keep_their_layers(self):
        layers = self.layers("middle")
        self.damage("middle", "")
        said = self.q("delete", "vm", self.ids["middle"], "--dry-run")
        self.assertIn("is damaged", " ".join(said["plan"]))
        said = self.q("delete", "vm", self.ids["middle"])
        self.assertEqual([self.ids["middle"]], said["deleted"])
        self.is_whole("root", "twig", "leaf")
        leaf = self.q.info("vm", "leaf")
        self.assertIsNone(leaf["parentId"])
        self.assertTrue(self.q.check("vm")["ok"])
        # its layers have no owner, and root's have it for a child
        self.q("delete", "vm", "root", "twig")
        self.is_whole("leaf")
        self.assertTrue(all(map(os.path.exists, layers)))
        self.q("revert", "vm", "leaf")
        self.head = self.want["leaf"]
        self.is_whole("leaf")
        self.vm.quit()
        self.q("delete", "vm", "leaf")
        self.assertEqual(self.want["leaf"], self.heads())

    def cut(self, name, at):
        """The manifest's end is lost."""
        with open(self.q.manifest_path("vm", self.ids[name])) as f:
            text = f.read()
        at = text.index(at)
        self.damage(name, text[:at])

    def test_what_its_manifest_still_names_goes_with_it(self):
        for name in ("twig", "middle"):
            with self.subTest(name):
                layers = self.layers(name)
                files = self.disk_files(self.vm)
                self.cut(name, '"memory"')
                self.q("delete", "vm", self.ids[name])
                self.damaged_on_purpose.clear()
                self.assertNotIn("stays", self.q.stderr)
                self.assertEqual(len(files) - 2,
                                 len(self.disk_files(self.vm)))
                if name == "twig":  # nobody's child; the other is merged
                    self.assertFalse(any(map(os.path.exists, layers)))
                del self.want[name]
                self.is_whole(*self.want)
                self.check_nothing_left(self.vm)

    def test_what_is_not_named_stays_and_is_told(self):
        layers = self.layers("twig")
        self.damage("twig", "")
        self.q("delete", "vm", self.ids["twig"])
        for path in layers:
            self.assertTrue(os.path.exists(path))
            self.assertRegex(self.q.stderr, re.escape(path) +
                             " stays: .*chattr -i FILE; rm FILE")
        for path in self.disk_files(self.vm) - set(layers):
            self.assertNotIn(path + " stays", self.q.stderr)
        self.unprotect(self.vm.dir)
        for path in layers:
            os.unlink(path)
        self.damaged_on_purpose.clear()
        self.is_whole("root", "middle", "leaf")
        self.check_nothing_left(self.vm)
        self.q("delete", "vm", "root", "middle", "leaf")
        self.check_nothing_left(self.vm)

    def test_what_stays_is_told_by_whoever_ends_the_delete(self):
        """Killed at its last step, the next command says it."""
        argv = ["delete", "vm", self.ids["twig"]]
        self.damage("twig", "")
        _, calls = self.traced(argv)
        # the journal goes
        at = max(n for n, call in enumerate(calls, 1) if "unlinkat" in call)
        self.unprotect(self.vm.dir)
        for path in self.layers_left():
            os.unlink(path)
        # the same tree once more
        self.q("revert", "vm", "root", "--keep-trash", "0")
        self.snapshot("twig", 2)
        layers = self.layers("twig")
        self.q("revert", "vm", "leaf", "--keep-trash", "0")
        self.head = self.heads()
        self.damage("twig", "")
        argv[2] = self.ids["twig"]
        p, calls = self.traced(argv, "--at", str(at))
        self.assertEqual(137, p.returncode, p.stdout)
        self.assertTrue(os.path.exists(self.q.journal_path("vm")), calls[-3:])
        self.q("list", "vm")
        for path in layers:
            self.assertIn(path + " stays: ", self.q.stderr)
        self.is_whole("root", "middle", "leaf")
        self.q("list", "vm")
        self.assertNotIn(" stays: ", self.q.stderr)

    def layers_left(self):
        """Files that no chain of a snapshot or head has."""
        tops = self.head_paths(self.vm) + sum(
            map(self.layers, self.q.names("vm")), [])
        used = set().union(*map(image.chain, tops))
        return self.disk_files(self.vm) - used

    def test_a_manifest_that_names_what_is_not_its_own_takes_nothing(self):
        """Files of others, named as ours or not, and layers that are needed."""
        name = self.layers("twig")[0]
        mine = os.path.join(self.vm.dir, "disk0.aaaaaaaaaaaa.qcow2")
        over = os.path.join(self.vm.dir, "backup.qcow2")
        image.create(mine, "qcow2", 2 << 20, pattern=False)
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
                  "-b", name, over)
        other = os.path.join(self.tmp, "text")
        with open(other, "w") as f:
            f.write("text\n")
        link = os.path.join(self.vm.dir, "disk0.bbbbbbbbbbbb.qcow2")
        os.symlink(name, link)
        named = [mine, over, other, link, *self.layers("leaf"),
                 *self.head_paths(self.vm)]
        self.damage("twig", "".join('{"path": "%s", ' % p for p in named))
        self.q("delete", "vm", self.ids["twig"])
        for path in named:
            self.assertTrue(os.path.exists(path), path)
        self.is_whole("root", "middle", "leaf")

    def test_a_whole_manifest_that_names_a_file_of_others(self):
        """It is believed in all but this: what goes must be ours."""
        text = os.path.join(self.tmp, "text")
        with open(text, "w") as f:
            f.write("text\n" * 1000)
        like = os.path.join(self.tmp, "disk0.aaaaaaaaaaaa.qcow2")
        image.create(like, "qcow2", 2 << 20, pattern=False)
        over = os.path.join(self.vm.dir, "backup.qcow2")
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
                  "-b", self.layers("root")[0], over)
        for n, (path, fmt) in enumerate(
                ((text, "raw"), (like, "qcow2"), (over, "qcow2"))):
            with self.subTest(path=os.path.basename(path)):
                name = "bad%d" % n
                self.snapshot(name, 10 + n)
                self.q("revert", "vm", "leaf", "--keep-trash", "0")
                lost = self.layers(name)[0]
                manifest = self.q.manifest_path("vm", self.ids[name])
                with open(manifest) as f:
                    said = json.load(f)
                said["disks"][0].update(path=path, format=fmt, ino=0,
                                        mtimeNs=0, fileSize=0,
                                        headerHash=None)
                with open(manifest, "w") as f:
                    json.dump(said, f)
                plan = self.q("delete", "vm", name, "--dry-run")["plan"]
                self.assertTrue(any(
                    "leave (no layer that qstill has made of that disk) " +
                    path in line for line in plan), plan)
                self.assertNotIn("remove " + path, " ".join(plan))
                self.q("delete", "vm", name)
                self.assertTrue(os.path.exists(path))
                self.assertIn(path + " stays", self.q.stderr)
                del self.want[name]
                self.head = self.want["leaf"]
                self.is_whole("root", "twig", "middle", "leaf")
                self.q("recover", "vm")
                self.assertTrue(os.path.exists(path))
                self.unprotect(self.vm.dir)
                os.unlink(lost)  # no manifest names it any more
        os.unlink(over)

    def test_all_are_damaged_and_go(self):
        """Back to the first images."""
        for name in self.want:
            self.cut(name, '"memory"')
        self.q("delete", "vm", *self.ids.values())
        self.damaged_on_purpose.clear()
        self.is_whole()
        self.assertEqual({d.path for d in self.vm.disks},
                         self.disk_files(self.vm))
        self.check_nothing_left(self.vm)

    def test_one_of_a_newer_version_is_not_given_up(self):
        """Others are listed, created and deleted; it is named, and kept."""
        path = self.q.manifest_path("vm", self.ids["middle"])
        with open(path) as f:
            newer = json.load(f)
        newer["version"] = 99
        mend = self.damage("middle", json.dumps(newer))
        bad = self.ids["middle"]
        said = self.q("list", "vm")
        self.assertEqual({"root", "twig", "leaf"},
                         {s["name"] for s in said["snapshots"]})
        self.assertIn("hint: use the qstill that wrote it", self.q.stderr)
        self.assertIn("manifest.json has version 99, this qstill knows version "
                      "1", said["damaged"][0]["message"])
        problem, = self.q.check("vm")["problems"]
        self.assertEqual("use the qstill that wrote it, or a newer one",
                         problem["hint"])
        for verb in ("info", "verify", "revert", "delete"):
            self.q.fails("precondition", "version 99", verb, "vm", bad)
        layers = {n: self.layers(n) for n in ("root", "leaf", "twig")}
        self.snapshot("new", 6)
        said = self.q("delete", "vm", "root", "leaf", "twig", "--dry-run")
        self.assertIn("snapshot %s is of another version" % bad,
                      " ".join(said["plan"]))
        self.q("delete", "vm", "root", "leaf", "twig")
        self.is_whole("new")
        self.assertTrue(all(map(os.path.exists, sum(layers.values(), []))))
        self.q.fails("precondition", "2 snapshots", "detach", "vm")
        mend()
        self.q("recover", "vm")
        self.damaged_on_purpose.clear()
        for name in ("root", "leaf", "twig"):
            del self.want[name]
        self.is_whole("middle", "new")

    def test_one_behind_a_symbolic_link_is_damaged_like_others(self):
        """Nothing in the store is followed, and the others go on."""
        folder = os.path.join(self.store, "vm", "snapshots", self.ids["twig"])
        manifest = self.q.manifest_path("vm", self.ids["twig"])
        self.damaged_on_purpose.add("vm")
        for path in (manifest, folder):
            with self.subTest(path=os.path.basename(path)):
                aside = os.path.join(self.tmp, "aside")
                os.rename(path, aside)
                os.symlink(aside, path)
                said = self.q("list", "vm")
                self.assertEqual([self.ids["twig"]],
                                 [d["id"] for d in said["damaged"]])
                self.assertEqual(3, len(said["snapshots"]))
                self.assertEqual(["damaged-snapshot"], [
                    p["code"] for p in self.q.check("vm")["problems"]])
                self.q("rename", "vm", "leaf", "leaf2")
                self.q("rename", "vm", "leaf2", "leaf")
                os.unlink(path)
                os.rename(aside, path)
        os.rename(folder, aside)
        os.symlink(aside, folder)
        self.q("delete", "vm", self.ids["twig"])
        self.assertFalse(os.path.lexists(folder))
        self.assertTrue(os.path.exists(os.path.join(aside, "manifest.json")))
        self.is_whole("root", "middle", "leaf")

    def test_a_vm_behind_a_symbolic_link_is_told(self):
        os.rename(self.store + "/vm", self.tmp + "/elsewhere")
        os.symlink(self.tmp + "/elsewhere", self.store + "/vm")
        vms, = self.q("vms")["vms"]
        self.assertEqual(("vm", "damaged"), (vms["name"], vms["state"]))
        self.assertIn("symbolic links are not followed", self.q.stderr)
        self.q.fails("precondition", "symbolic links", "recover")
        os.unlink(self.store + "/vm")
        os.rename(self.tmp + "/elsewhere", self.store + "/vm")

    def test_a_current_one(self):
        self.damage("leaf", "[]")
        self.q("delete", "vm", self.ids["leaf"])
        self.assertIsNone(self.q("list", "vm")["current"])
        self.is_whole("root", "twig", "middle")

    def test_one_without_its_parent(self):
        layers = self.layers("middle")
        shutil.rmtree(os.path.join(self.store, "vm", "snapshots",
                                   self.ids["middle"]))
        said = self.q.check("vm")
        self.assertEqual(["lost-parent"], [p["code"] for p in
                                           said["problems"]])
        self.assertIsNone(self.q.info("vm", "leaf")["parentId"])
        self.q("delete", "vm", "root")
        self.is_whole("twig", "leaf")
        self.assertTrue(all(map(os.path.exists, layers)))
        self.q("recover", "vm")
        self.assertTrue(self.q.check("vm")["ok"])
        self.is_whole("twig", "leaf")

    def test_a_loop_of_parents(self):
        path = self.q.manifest_path("vm", self.ids["root"])
        with open(path) as f:
            manifest = json.load(f)
        manifest["parentId"] = self.ids["leaf"]
        self.damage("root", json.dumps(manifest))
        said = self.q("list", "vm")
        self.assertEqual(1, len(said["damaged"]))
        self.assertIn("form a loop", said["damaged"][0]["message"])
        self.assertEqual(3, len(said["snapshots"]))


class Edited(Case):
    """A manifest that is well-formed, and not as it was written."""

    either = True

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm()
        self.write(5)
        self.made = self.q("create", "vm", "one", "--memory")
        self.path = self.q.manifest_path("vm", self.made["id"])
        self.write(6)

    def write(self, byte):
        self.vm.write(self.vm.disks[0], 0, byte)

    def edit(self, old, new, path=None):
        with open(path or self.path) as f:
            text = f.read()
        self.assertEqual(1, text.count(old), old)
        with open(path or self.path, "w") as f:
            f.write(text.replace(old, new))

    def problems(self):
        return [p["code"] for p in self.q.check("vm")["problems"]]

    def test_it_is_told_and_hinders_nothing(self):
        told = "snapshot one: manifest.json was changed after it was written"
        self.q("verify", "vm", "one")
        self.assertEqual([], self.problems())
        self.edit('"labels": []', '"labels": ["by=hand"]')
        self.q.fails("corrupt", told, "verify", "vm", "one")
        self.assertEqual(["manifest-changed"], self.problems())
        self.assertEqual({"by": "hand"},
                         self.q.info("vm", "one")["labels"])
        self.assertNotIn("changed", self.q.stderr)
        self.q("revert", "vm", "one")
        self.assertIn(told, self.q.stderr)
        # nothing that writes it anew makes it good
        self.q("create", "vm", "two")
        self.q("rename", "vm", "one", "first")
        self.assertEqual(["manifest-changed"], self.problems())
        self.q.fails("corrupt", "snapshot first: .*changed", "verify", "vm",
                     "first")
        # but who meant it
        self.edit('"sum": "changed"', '"sum": null')
        self.q("verify", "vm", "first")
        self.q("rename", "vm", "first", "one")
        self.edit('"description": ""', '"description": "2"')
        self.q.fails("corrupt", told, "verify", "vm", "one")
        self.q("delete", "vm", "one")
        self.assertEqual(["two"], self.q.names("vm"))
        self.check_nothing_left(self.vm)

    def test_a_bit_of_a_name_takes_no_memory_away(self):
        """As a member that nobody knows it would be a revert by booting."""
        vm = self.vm
        for old, new in (("memory", "memorx"), ("parentId", "parentHd"),
                         ("devices", "debices"), ("ino", "hno")):
            with self.subTest(old):
                self.edit('"%s":' % old, '"%s":' % new)
                self.damaged_on_purpose.add("vm")
                said = self.q("list", "vm")
                self.assertEqual([], said["snapshots"])
                for verb in ("verify", "revert"):
                    self.q.fails("corrupt", "manifest.json is damaged: ", verb,
                                 "vm", self.made["id"])
                    self.q.fails("not-found", "no snapshot named one", verb,
                                 "vm", "one")
                self.assertEqual(["damaged-snapshot"], self.problems())
                self.edit('"%s":' % new, '"%s":' % old)
                self.damaged_on_purpose.clear()
        self.assertEqual("running", vm.state())
        self.q("verify", "vm", "one")

    def test_another_format(self):
        """The guest would see the tables of the image as its disk."""
        self.edit('"format": "qcow2"', '"format": "raw"')
        for more in ((), ("--stopped",)):
            self.q.fails("corrupt", "is a qcow2 image, not raw", "revert",
                         "vm", "one", *more)
        self.q.fails("corrupt", "is a qcow2 image, not raw", "delete", "vm",
                     "one")
        self.assertIn("layer-changed", self.problems())
        self.edit('"format": "raw"', '"format": "qcow2"')
        self.q("verify", "vm", "one")

    def test_the_record_of_a_vm(self):
        path = os.path.join(self.store, "vm", "vm.json")
        self.edit('"mapped": null', '"mapped": "%s"' % self.made["id"], path)
        self.assertEqual(["record-changed"], self.problems())
        self.edit('"mapped":', '"lapped":', path)
        self.q.fails("corrupt", 'vm.json is damaged: "lapped" is unknown',
                     "list", "vm")
        self.edit('"lapped": "%s"' % self.made["id"], '"mapped": null', path)
        self.assertEqual([], self.problems())


class LayerGone(Tree):
    """Its files are gone for good, the manifest is whole."""

    def lose(self, *names):
        self.unprotect(self.vm.dir)
        for path in sum(map(self.layers, names), []):
            os.rename(path, self.aside(path))

    def aside(self, path):
        return os.path.join(self.tmp, os.path.basename(path))

    def refuses(self, name, *more, hint):
        for argv in ([name], [name, "--dry-run"], *more):
            with self.nothing_changes(self.vm):
                failure = self.q.fails(
                    "not-found", "the frozen layer .* is gone", "delete", "vm",
                    *argv)
                self.assertRegex(failure.hint, hint)

    def test_a_leaf_is_given_up(self):
        for state in ("running", "off"):
            with self.subTest(state):
                if state == "off":
                    self.q("revert", "vm", "root", "--keep-trash", "0")
                    self.snapshot("twig", 2)
                    self.q("revert", "vm", "leaf", "--keep-trash", "0")
                    self.head = self.heads()
                    self.vm.quit()
                files = self.disk_files(self.vm)
                twig = set(self.layers("twig"))
                self.lose("twig")
                self.refuses("twig", hint="--force deletes")
                self.q("delete", "vm", "twig", "--force")
                self.assertIn("is gone", self.q.stderr)
                self.assertEqual(files - twig, self.disk_files(self.vm))
                self.is_whole("root", "middle", "leaf")
                self.assertEqual([], self.q.check("vm")["problems"])

    def test_what_stands_on_it_goes_too_or_it_stays(self):
        self.q("revert", "vm", "twig", "--keep-trash", "0")
        self.snapshot("sprout", 6)
        self.q("revert", "vm", "leaf", "--keep-trash", "0")
        self.head = self.heads()
        sprout = self.layers("sprout")
        self.lose("twig")
        self.refuses("twig", ["twig", "--force"], hint="the file back from a backup$")
        self.refuses("root", ["root", "--force"], hint="the file back from a backup$")
        self.q("delete", "vm", "twig", "sprout", "--force")
        self.assertFalse(any(map(os.path.exists, sprout)))
        self.is_whole("root", "middle", "leaf")
        self.q("delete", "vm", "root")
        self.is_whole("middle", "leaf")

    def test_one_that_the_head_needs_stays(self):
        self.vm.quit()
        self.lose("middle")
        self.refuses("middle", ["middle", "--force"],
                     ["root", "middle", "leaf", "--force"],
                     hint="the file back from a backup$")
        for path in self.layers("middle"):
            os.rename(self.aside(path), path)
        self.is_whole("root", "twig", "middle", "leaf")


class Twice(Tree):
    """A manifest that was brought back has the name of another by now."""

    def test_a_name_of_two_is_nobodys(self):
        path = self.q.manifest_path("vm", self.ids["leaf"])
        self.q("rename", "vm", "twig", "other")
        self.q("rename", "vm", "leaf", "twig")
        shutil.copy(path, self.tmp + "/backup")
        self.q("rename", "vm", "twig", "leaf")
        self.q("rename", "vm", "other", "twig")
        shutil.copy(self.tmp + "/backup", path)
        both = sorted([self.ids["leaf"], self.ids["twig"]])
        with self.nothing_changes(self.vm):
            for argv in (["info", "vm", "twig"], ["verify", "vm", "twig"],
                         ["delete", "vm", "twig"], ["revert", "vm", "twig"],
                         ["rename", "vm", "twig", "new"]):
                failure = self.q.fails("precondition", "two snapshots.*twig",
                                       *argv)
                self.assertEqual(both, sorted(
                    i for i in both if i in failure.message))
                self.assertIn("id", failure.hint)
            self.q.fails("busy", "exists", "create", "vm", "twig")
            self.q.fails("busy", "exists", "rename", "vm", "root", "twig")
            problems = self.q.check("vm")["problems"]
            self.assertEqual(["name-twice"], [p["code"] for p in problems])
        self.q("delete", "vm", self.ids["twig"])
        self.q("rename", "vm", "twig", "leaf")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.is_whole("root", "middle", "leaf")


class Several(Case):
    """Recovery of all VMs of a store."""

    either = True

    def journal(self, name, text):
        with open(self.q.journal_path(name), "w") as f:
            f.write(text)

    def test_one_that_fails_does_not_keep_the_next_from_it(self):
        good = json.dumps({
            "version": 1, "op": "create", "phase": "begun",
            "snapshot": "aaaaaaaaaaaa", "ids": [], "disks": [],
            "wasRunning": True})
        for name in ("a", "b", "c", "d"):
            self.tiny_vm(name)
        self.journal("a", good)
        self.journal("b", "{")
        self.journal("c", good.replace("create", "nonsense"))
        self.journal("d", good)
        failure = self.q.fails("corrupt", "journal.json is damaged",
                               "recover")
        self.assertNotIn("nonsense", failure.message)  # the first is told
        left = {n for n in "abcd" if os.path.exists(self.q.journal_path(n))}
        self.assertEqual({"b", "c"}, left)
        for name in left:
            os.unlink(self.q.journal_path(name))

    def test_what_needs_nothing_is_not_written(self):
        """A layer that has to wait, for an undo that may need what reads it."""
        vm = self.tiny_vm()
        for name in ("one", "two"):
            self.q("create", "vm", name)
        self.q("delete", "vm", "two", "--keep-trash", "9")
        self.q("delete", "vm", "one")
        path = os.path.join(self.store, "vm", "vm.json")
        with open(path) as f:
            self.assertEqual(1, len(json.load(f)["hidden"]))
        before = os.stat(path)
        self.q("recover", "vm")
        after = os.stat(path)
        self.assertEqual((before.st_ino, before.st_mtime_ns),
                         (after.st_ino, after.st_mtime_ns))
        self.check_nothing_left(vm)


class Locked(Tree):
    def test_a_busy_vm_is_no_unreachable_one(self):
        with open(os.path.join(self.store, "vm", "lock"), "r+") as f:
            fcntl.fcntl(f, OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0,
                                                  0, 0, 0))
            f.write("%d 1 %s 00000000-0000-4000-8000-000000000000 create\n" % (
                os.getpid(), os.uname().nodename))
            f.flush()
            # and it has QEMU's only place for a client
            with self.vm_client():
                vms, = self.q("vms")["vms"]
            self.assertEqual("busy", vms["state"])
            self.assertIn("process %d is at work on it (qstill create)" %
                          os.getpid(), self.q.stderr)
            f.truncate(0)
        vms, = self.q("vms")["vms"]
        self.assertEqual("running", vms["state"])

    def vm_client(self):
        from lib.qmp import QMP
        return QMP(self.vm.qmp)

    def elsewhere(self, *argv, at):
        """Killed in the middle, on a host of another name and another boot."""
        boot = os.path.join(self.tmp, "boot")
        with open(boot, "w") as f:
            f.write("11111111-2222-4333-8444-555555555555\n")
        script = ("hostname elsewhere && mount --bind %s "
                  "/proc/sys/kernel/random/boot_id && exec \"$@\"" % boot)
        p = subprocess.run(
            ["unshare", "--uts", "--mount", "sh", "-c", script, "sh",
             os.path.join(BUILD, "crash", "syskill"), "--at", str(at), "--",
             *self.q.argv(argv)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if "unshare" in p.stdout or "mount:" in p.stdout:
            self.skipTest("namespaces are not to be had: " + p.stdout.strip())
        return p.returncode

    def test_what_another_host_left_is_refused_and_says_who(self):
        self.assertEqual(137, self.elsewhere("create", "vm", "new", at=30))
        lock = os.path.join(self.store, "vm", "lock")
        with open(lock) as f:
            self.assertIn(" elsewhere ", f.read())
        self.damaged_on_purpose.add("vm")
        for argv in (["create", "vm", "new"], ["revert", "vm", "root"],
                     ["delete", "vm", "root"], ["recover", "vm"],
                     ["detach", "vm"]):
            failure = self.q.fails("busy", "on host elsewhere", *argv)
            self.assertIn("no qstill runs on elsewhere", failure.hint)
        self.is_whole("root", "twig", "middle", "leaf")
        os.unlink(lock)
        self.damaged_on_purpose.clear()
        self.q("recover", "vm")
        self.is_whole("root", "twig", "middle", "leaf")
        # that host itself goes on without a question
        self.assertEqual(137, self.elsewhere("create", "vm", "new", at=30))
        self.assertEqual(0, self.elsewhere("recover", "vm", at=1 << 30))
        self.is_whole("root", "twig", "middle", "leaf")


class Clock(Tree):
    def test_a_snapshot_of_the_future_is_a_parent_like_any_other(self):
        """The clock went back: children are older than their parents."""
        path = self.q.manifest_path("vm", self.ids["middle"])
        with open(path) as f:
            manifest = json.load(f)
        manifest["createdNs"] += 10 ** 9 * 86400 * 365
        manifest["createdAt"] = "20%d%s" % (
            int(manifest["createdAt"][2:4]) + 1, manifest["createdAt"][4:])
        with open(path, "w") as f:
            json.dump(manifest, f)
        said = self.q.snapshots("vm")
        self.assertEqual("middle", said[-1]["name"])
        by = {s["name"]: s for s in said}
        self.assertEqual(self.ids["middle"], by["leaf"]["parentId"])
        shared = by["root"]["ownBytes"] + by["middle"]["ownBytes"]
        self.assertEqual(shared, by["leaf"]["sharedBytes"])
        self.assertIn("leaf", self.q.text("list", "vm", "--tree"))
        self.snapshot("new", 6)
        self.is_whole("root", "twig", "middle", "leaf", "new")
        self.q("revert", "vm", "middle")
        self.head = self.want["middle"]
        self.q("delete", "vm", "middle")
        self.is_whole("root", "twig", "leaf", "new")
        for name in ("leaf", "twig", "new"):
            self.q("revert", "vm", name)
            self.head = self.want[name]
            self.is_whole("root", "twig", "leaf", "new")
        self.q("delete", "vm", "root", "--children")
        self.is_whole()


del Tree


class AnotherName(Case):
    """QEMU's name of the first image is not its real one."""

    either = True

    def test_all_are_damaged_and_go(self):
        disk = self.disk("disk0", "qcow2", size=2 << 20, pattern=False)
        folder, name = os.path.split(disk.path)
        disk.path = os.path.join(folder, "..", os.path.basename(folder), name)
        vm = self.tiny_vm(disks=[disk])
        vm.write(disk, 0, 3)
        for snap in ("one", "two"):
            self.q("create", "vm", snap)
            vm.write(disk, 1, 4)
        ids = [self.q("info", "vm", snap)["id"] for snap in ("one", "two")]
        for each in ids:
            path = self.q.manifest_path("vm", each)
            with open(path) as f:
                text = f.read()
            with open(path, "w") as f:
                f.write(text[:text.index('"memory"')])
        self.q("delete", "vm", *ids)
        self.assertEqual([name], [n for n in os.listdir(folder)
                                  if n.endswith(".qcow2")])
        self.assertEqual([3, 4, 0], content(
            os.path.join(folder, name), "qcow2")[:3])
        self.assertTrue(self.q.check("vm")["ok"])


class SameNames(Case):
    """Disks of one base name whose layers are in one folder: the second one's
    have "-2" in their names."""

    cost = 10

    def setUp(self):
        super().setUp()
        self.folder = os.path.join(self.tmp, "layers")
        os.mkdir(self.folder)
        disks = []
        for n in (1, 2):
            disk = self.disk("root", size=2 << 20, pattern=False,
                             vm="vm/%d" % n)
            disk.id = "disk%d" % n
            disks.append(disk)
        self.vm = self.tiny_vm(disks=disks, style="blockdev")

    def snapshot(self, name, byte):
        for d in self.vm.disks:
            self.vm.write(d, 0, byte)
        return self.q("create", "vm", name, "--disk-dir", self.folder)["id"]

    def ends_well(self, *names, byte):
        self.assertNotIn("stays", self.q.stderr)
        self.vm.quit()
        self.q("delete", "vm", *names)
        self.assertNotIn("stays", self.q.stderr)
        self.assertEqual([], os.listdir(self.folder))
        for d in self.vm.disks:
            self.assertEqual(byte, content(d.path, "qcow2")[0])
        self.q("detach", "vm")
        self.vms.remove(self.vm)

    def test_a_leaf_goes(self):
        self.snapshot("one", 1)
        self.snapshot("two", 2)
        self.assertEqual(2, sum("root-2." in n
                                for n in os.listdir(self.folder)))
        self.q("revert", "vm", "one", "--keep-trash", "0")
        self.assertEqual(2, len(os.listdir(self.folder)))
        self.q("delete", "vm", "two")
        self.assertEqual([], os.listdir(self.folder))
        self.ends_well("one", byte=1)

    def test_a_leaf_that_was_merged_below_a_running_vm(self):
        """That file has a name of another kind."""
        for n, name in enumerate(("one", "two", "three")):
            self.snapshot(name, n + 1)
        self.q("delete", "vm", "two")
        self.q("revert", "vm", "one", "--keep-trash", "0")
        self.q("delete", "vm", "three")
        self.assertEqual([], os.listdir(self.folder))
        self.ends_well("one", byte=1)

    def test_of_a_damaged_one(self):
        self.snapshot("one", 1)
        lost = self.snapshot("two", 2)
        self.q("revert", "vm", "one", "--keep-trash", "0")
        path = self.q.manifest_path("vm", lost)
        with open(path) as f:
            text = f.read()
        with open(path, "w") as f:
            f.write(text[:text.index('"memory"')])
        self.q("delete", "vm", lost)
        self.assertEqual([], os.listdir(self.folder))
        self.ends_well("one", byte=1)
