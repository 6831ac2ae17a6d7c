# SPDX-License-Identifier: MIT
"""attach, vms, check, list, info, rename, path, start, detach."""

import datetime
import json
import os
import shutil
import subprocess
import unittest.mock

from lib import image, tiny
from lib.case import Case

MODES = {"cow", "background", "precopy", "paused"}


class Verbs(Case):
    cost = 30

    def test_a_vm_is_attached_listed_and_forgotten(self):
        vm = self.running_vm(attach=False)
        self.assertEqual([], self.q("vms")["vms"])
        self.attach(vm)
        known, = self.q("vms")["vms"]
        self.assertEqual("vm", known["name"])
        self.assertEqual(vm.qmp, known["qmp"])
        self.assertEqual("running", known["state"])
        self.assertEqual(0, known["snapshots"])
        self.assertEqual(1, known["disks"])
        self.q.fails("busy", "vm.* is attached already", "attach", "vm",
                     "--qmp", vm.qmp)
        self.pause(vm)
        self.assertEqual("paused", self.q("vms")["vms"][0]["state"])
        self.cont(vm)
        self.assertRegex(self.q.text("vms"), r"vm +running")
        self.q("create", "vm", "one")
        self.q.fails("precondition", "snapshot", "detach", "vm")
        self.q("delete", "vm", "one")
        self.q("detach", "vm")
        self.assertEqual([], self.q("vms")["vms"])
        self.assertFalse(os.path.exists(os.path.join(self.store, "vm")))
        vm.quit()

    def test_the_tree_is_told_by_list_info_and_rename(self):
        vm = self.shared(self.running_vm)
        a = self.q("create", "vm", "alpha", "--description", "the first",
                   "--label", "owner=me", "--label", "why=test")
        b = self.q("create", "vm", "beta")
        self.assertIsNone(a["parentId"])
        self.assertEqual(a["id"], b["parentId"])
        self.assertEqual("the first", a["description"])
        self.assertFalse(a["memoryIncluded"])
        self.assertFalse(a["quiesced"])
        self.assertTrue(a["current"])
        self.assertRegex(a["createdAt"],
                         r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
        made = datetime.datetime.fromisoformat(
            a["createdAt"].split(".")[0].rstrip("Z") + "+00:00")
        age = datetime.datetime.now(datetime.timezone.utc) - made
        self.assertLess(abs(age.total_seconds()), 120)

        listed = self.q("list", "vm")
        self.assertEqual(["alpha", "beta"],
                         [s["name"] for s in listed["snapshots"]])
        self.assertEqual(b["id"], listed["current"])
        self.assertEqual([False, True],
                         [s["current"] for s in listed["snapshots"]])
        self.assertEqual([b["id"]], listed["snapshots"][0]["children"])
        self.assertEqual([], listed["snapshots"][1]["children"])
        tree = self.q.text("list", "vm", "--tree").splitlines()
        row = {n: next(r for r in tree if n in r) for n in ("alpha", "beta")}
        self.assertLess(tree.index(row["alpha"]), tree.index(row["beta"]))
        self.assertLess(row["alpha"].index("alpha"), row["beta"].index("beta"),
                        "a child stands further in")

        info = self.q.info("vm", "alpha")
        self.assertEqual(a["id"], info["id"])
        self.assertEqual([vm.disks[0].path],
                         [d["path"] for d in info["disks"]])
        self.assertEqual(info, self.q.info("vm", a["id"]),
                         "a name and an id say the same")
        text = self.q.text("info", "vm", "alpha")
        for word in ("alpha", "the first", "owner=me", vm.disks[0].path):
            self.assertIn(word, text)

        self.q("rename", "vm", "alpha", "gamma")
        self.assertEqual(["gamma", "beta"], self.q.names("vm"))
        self.assertEqual(a["id"], self.q.info("vm", "gamma")["id"])
        self.q.fails("busy", "beta", "rename", "vm", "gamma", "beta")
        self.q.fails("usage", "name", "rename", "vm", "gamma", "a/b")
        self.q.fails("not-found", "alpha", "rename", "vm", "alpha", "delta")
        self.assertEqual(["gamma", "beta"], self.q.names("vm"))

    def test_check_says_what_would_hinder(self):
        vm = self.shared(self.running_vm)
        with self.nothing_changes(vm):
            said = self.q.check("vm", "--memory")
            self.assertTrue(said["ok"], said)
            self.assertEqual(MODES, set(said["captureModes"]))
            self.assertIsNone(said["captureModes"]["paused"])
            said = self.q.check("vm", "--quiesce")
            self.assertFalse(said["ok"])
            self.assertTrue(any("agent" in p["message"] and p["hint"]
                                for p in said["problems"]), said)

    def test_path_and_start_serve_hosts_that_start_their_vms_themselves(self):
        vm = self.running_vm(disks=[self.disk("disk0"),
                                    self.disk("disk1", "raw")])
        self.assertEqual([d.path for d in vm.disks], self.head_paths(vm))
        self.q("create", "vm", "one")
        heads = self.head_paths(vm)
        self.assertEqual(sorted(vm.heads().values()), sorted(heads))
        self.assertEqual(set(), set(heads) & {d.path for d in vm.disks})
        name = self.disk_names(vm)[0]
        self.assertEqual(heads[0], self.q.text("path", "vm", name).strip())
        self.q.fails("not-found", "nosuch", "path", "vm", "nosuch")
        self.q.fails("busy", "", "start", "vm")
        self.goes_on(vm)
        vm.quit()
        self.assertEqual("stopped", self.q("vms")["vms"][0]["state"])
        self.assertEqual(heads, self.head_paths(vm))
        ticks = [image.tick(p, "qcow2") for p in heads]
        since = vm.serial.mark()
        self.q("start", "vm")
        vm.wait_up(since)
        self.assertEqual(sorted(heads), sorted(vm.heads().values()))
        for disk, tick in zip(("vda", "vdb"), ticks):
            vm.serial.wait(r"disk %s had=%d\n" % (disk, tick), since)
        self.goes_on(vm)

    def test_a_vm_that_is_off_may_have_a_socket_of_a_long_path(self):
        """Longer than a socket's address; QEMU was told it by a short one."""
        folder = "d" * 100
        os.makedirs(os.path.join(self.tmp, "vm", folder))
        vm = self.tiny_vm(attach=False, extra=[
            "-qmp", "unix:%s/s,server=on,wait=off" % folder])
        self.q("attach", "vm", "--qmp", os.path.join(vm.dir, folder, "s"))
        self.q("create", "vm", "on", "--memory")
        vm.end()
        self.assertEqual("stopped", self.q("vms")["vms"][0]["state"])
        self.q("create", "vm", "off")
        self.q("start", "vm")
        self.assertEqual("running", vm.state())
        self.q("revert", "vm", "on", "--restore", "eager")
        self.q("delete", "vm", "off")

    def test_a_dry_run_changes_nothing(self):
        vm = self.shared(self.running_vm)
        self.q("create", "vm", "one")
        with self.nothing_changes(vm):
            for argv in (["create", "vm", "two", "--memory", "--dry-run"],
                         ["revert", "vm", "one", "--dry-run"],
                         ["delete", "vm", "one", "--dry-run"]):
                self.q(*argv)
                self.assertTrue(self.q.text(*argv).strip(),
                                "%s says nothing" % argv)

    def test_what_could_not_be_printed_is_a_failure(self):
        vm = self.tiny_vm()
        for n, (where, status, words) in enumerate((
                (">&-", 1, "Bad file descriptor"),
                (">/dev/full", 7, "No space"))):
            for argv in (["vms"], ["create", vm.name, "s%d" % n], ["help"]):
                with self.subTest(where, argv=argv):
                    p = subprocess.run(
                        ["sh", "-c", '"$@" ' + where, "sh",
                         *self.q.argv(argv)], stderr=subprocess.PIPE,
                        stdin=subprocess.DEVNULL, text=True, timeout=30)
                    self.assertEqual(status, p.returncode, p.stderr)
                    self.assertIn(words, p.stderr)
                    self.assertIn("the command itself was done", p.stderr)
        self.assertEqual(["s0", "s1"], self.q.names(vm.name))


class Names(Case):
    """Image names that QEMU knows and can use no more."""

    cost = 5

    def daemon(self, fmt):
        """A VM whose QEMU opened its image by a relative name and then, being
        a daemon, went to /. Returns it and the image's folder."""
        disk = self.disk("data", fmt, size=2 << 20, pattern=False)
        folder, disk.path = os.path.split(disk.path)
        with unittest.mock.patch.dict(os.environ, PWD=folder):
            return self.tiny_vm(disks=[disk], extra=["-daemonize"]), folder

    def end(self, vm, folder):
        vm.quit()  # what looks for files left over takes absolute names
        vm.disks[0].path = os.path.join(folder, vm.disks[0].path)

    def test_a_raw_image_that_qemu_cannot_open_again_is_refused(self):
        vm, folder = self.daemon("raw")
        words = "QEMU cannot open %s again, the raw image of disk" % \
            vm.disks[0].path
        files = os.listdir(folder)
        told = self.q.check("vm")
        self.assertEqual(["image-name"], [p["code"] for p in told["problems"]])
        self.assertRegex(told["problems"][0]["message"], words)
        self.assertIn("absolute", told["problems"][0]["hint"])
        self.q.fails("precondition", words, "create", "vm", "one")
        self.q.fails("precondition", words, "create", "vm", "one", "--memory")
        self.assertEqual([], self.q("list", "vm")["snapshots"])
        self.assertEqual("running", vm.state())
        self.assertEqual(files, os.listdir(folder))
        self.end(vm, folder)

    def test_an_image_that_only_qemu_can_see_is_explained(self):
        vm = self.tiny_vm(attach=False, style="if", extra=["-snapshot"])
        failure = self.q.fails("precondition", "cannot be found from here",
                               "attach", "vm", "--qmp", vm.qmp)
        self.assertIn("-snapshot", failure.hint)

    def test_another_image_than_the_head_is_one_problem(self):
        vm = self.tiny_vm(disks=[self.disk(fmt="raw", size=2 << 20,
                                           pattern=False)], style="if")
        vm.quit()
        own, vm.disks = vm.disks, [self.disk("other", "raw", size=2 << 20,
                                             pattern=False)]
        vm.start()
        told = self.q.check("vm")
        self.assertEqual(["wrong-head"], [p["code"] for p in told["problems"]])
        vm.quit()
        os.unlink(vm.disks[0].path)
        vm.disks = own

    def test_a_qcow2_image_of_a_relative_name_is_taken(self):
        vm, folder = self.daemon("qcow2")
        self.assertTrue(self.q.check("vm")["ok"])
        self.q("create", "vm", "one")
        self.q("revert", "vm", "one")
        self.q("delete", "vm", "one")
        self.assertEqual("running", vm.state())
        self.end(vm, folder)

    def through(self, style, *parts, link=None):
        """A VM whose disk's folder is named in a roundabout way."""
        folder = os.path.join(self.tmp, "images")
        os.makedirs(folder)
        os.makedirs(os.path.join(self.tmp, "way"))
        disk = self.disk("data", "qcow2", size=2 << 20, pattern=False)
        name = os.path.basename(disk.path)
        os.rename(disk.path, os.path.join(folder, name))
        if link:
            os.symlink("images", os.path.join(self.tmp, link))
        disk.path = os.path.join(self.tmp, *parts, name)
        return self.tiny_vm(disks=[disk], style=style), folder

    def is_whole_round(self, vm, folder):
        """Whatever the name was, the new layers have real ones."""
        self.q("create", "vm", "one", "--memory")
        vm.write(vm.disks[0], 0, 7)
        self.q("create", "vm", "two")
        for verb in ("list", "info"):
            self.q(verb, "vm", *(["two"] if verb == "info" else []))
        for head in vm.heads().values():
            self.assertEqual(folder, os.path.dirname(head))
        self.assertTrue(self.q.check("vm")["ok"])
        self.q("revert", "vm", "one")
        self.assertEqual([0] * tiny.PARTS, self.head_content(vm))
        self.q("revert", "vm", "two")
        self.assertEqual([7] + [0] * (tiny.PARTS - 1), self.head_content(vm))
        self.q("delete", "vm", "one", "two")
        self.assertEqual([7] + [0] * (tiny.PARTS - 1), self.head_content(vm))

    def head_content(self, vm):
        head, = vm.heads().values()
        return tiny.content(head, "qcow2")

    def test_a_drive_with_dots_in_its_name(self):
        self.is_whole_round(*self.through("drive", "way", "..", "images"))

    def test_a_blockdev_with_dots_in_its_name(self):
        self.is_whole_round(*self.through("blockdev", "way", "..", "images"))

    def test_a_folder_behind_a_link_that_moves(self):
        vm, folder = self.through("blockdev", "link", link="link")
        self.is_whole_round(vm, folder)
        self.q("create", "vm", "three")
        os.unlink(os.path.join(self.tmp, "link"))
        os.symlink("way", os.path.join(self.tmp, "link"))
        self.assertEqual([], [p for p in self.q.check("vm")["problems"]
                              if p["code"] != "not-startable"])
        self.q("create", "vm", "four")

    def test_a_head_replaced_behind_the_back_of_qemu(self):
        """By a file of the same name: QEMU still has the old one, and would
        open the new one at the next chance."""
        vm = self.tiny_vm()
        disk = vm.disks[0]
        self.q("create", "vm", "one")
        head, = vm.heads().values()
        shutil.copy(head, head + ".copy")
        vm.write(disk, 0, 7)
        os.rename(head, head + ".aside")
        os.rename(head + ".copy", head)
        words = "is not the file that QEMU has open"
        # the one aside stands on the layer, too
        shared, problem = self.q.check("vm")["problems"]
        self.assertEqual("layer-shared", shared["code"])
        self.assertEqual("wrong-head", problem["code"])
        self.assertRegex(problem["message"], words)
        files = os.listdir(os.path.dirname(head))
        for argv in (["create", "vm", "two"],
                     ["create", "vm", "two", "--memory"],
                     ["revert", "vm", "one"], ["delete", "vm", "one"]):
            self.q.fails("corrupt", words, *argv)
        self.assertEqual("running", vm.state())
        self.assertEqual(files, os.listdir(os.path.dirname(head)))
        vm.io(disk, "read -P 7 0 64k")
        os.rename(head + ".aside", head)
        self.q("create", "vm", "two")
        vm.io(disk, "read -P 7 0 64k")

    def test_no_snapshot_stands_on_a_layer_that_was_replaced(self):
        vm = self.tiny_vm()
        self.q("create", "vm", "one")
        self.q("create", "vm", "two")
        for name in ("one", "two"):
            path = self.q("info", "vm", name)["disks"][0]["path"]
            self.unprotect(path)
            shutil.copy(path, path + ".copy")
            os.rename(path, path + ".aside")
            os.rename(path + ".copy", path)
            with self.subTest(name):
                failure = self.q.fails("corrupt", "another file", "create",
                                       "vm", "three")
                self.assertIn("qstill recover --force", failure.hint)
                self.assertEqual(["one", "two"], self.q.names("vm"))
            os.rename(path + ".aside", path)
        self.q("create", "vm", "three")

    def test_a_device_may_get_another_number(self):
        """As loop and NVMe devices do at the next boot: that is no change of a
        file that has the same inode, length, time and header."""
        vm = self.tiny_vm(disks=[self.disk(size=2 << 20, pattern=False),
                                 self.disk("disk1", "raw", size=2 << 20,
                                           pattern=False)])
        self.q("create", "vm", "one")
        path = self.q.manifest_path("vm", self.q("info", "vm", "one")["id"])
        with open(path) as f:
            manifest = json.load(f)
        for disk in manifest["disks"]:
            disk["dev"] += 1
        manifest["sum"] = None
        with open(path, "w") as f:
            json.dump(manifest, f)
        self.assertTrue(self.q.check("vm")["ok"])
        self.q("create", "vm", "two")
        self.q("revert", "vm", "one")
        self.q("delete", "vm", "one", "two")

    def test_a_store_behind_a_link(self):
        vm = self.tiny_vm(attach=False)
        os.makedirs(os.path.join(self.tmp, "big"))
        link = os.path.join(self.tmp, "link")
        os.symlink("big", link)
        self.q("--store", link, "attach", "vm", "--qmp", vm.qmp)
        self.q("--store", link, "create", "vm", "one", "--memory")
        self.q("--store", link, "revert", "vm", "one")
        self.q("--store", link, "delete", "vm", "one")
        os.unlink(link)
        os.symlink("nowhere", link)
        self.q.fails("not-found", "link", "--store", link, "vms")
