# SPDX-License-Identifier: MIT
"""What is below a disk's first image is nobody's here: that it is another file
than when a snapshot was made is told, whether the VM runs or not."""

import json
import os
import shutil

from lib import image
from lib.golden import GOLDEN, OTHER, OnGolden
from lib.tiny import content

REPLACED = "below disk v: .*/golden.qcow2 is another file than when"
WRITTEN = "below disk v: .*/golden.qcow2 was written to after the snapshot"


class Made(OnGolden):
    cost = 15

    def setUp(self):
        super().setUp()
        self.golden = self.path("golden.qcow2")

    def make(self, *snaps):
        self.run_vm(self.drive("cache=writeback"), "t")
        for n, name in enumerate(snaps):
            self.q("create", "vm", name)
            self.io("write -q -P %d 64k 64k" % (n + 1))

    def replace(self):
        os.rename(self.golden, self.golden + ".old")
        shutil.copy(self.path("other.qcow2"), self.golden)

    def bring_back(self):
        os.rename(self.golden + ".old", self.golden)

    def write(self, byte, at="1M"):
        image.run("qemu-io", "-f", "qcow2", "-c",
                  "write -q -P %d %s 64k" % (byte, at), self.golden)


class Bases(Made):
    def is_told(self, says, code="corrupt"):
        """Of a VM that is off, before anything is changed."""
        problem, = [p for p in self.q.check("vm")["problems"]
                    if p["code"] == "wrong-base"]
        self.assertRegex(problem["message"], "snapshot one: " + says)
        for command in (["revert", "vm", "one"], ["revert", "vm", "two"],
                        ["delete", "vm", "one"], ["delete", "vm", "two"],
                        ["delete", "vm", "one", "two", "--dry-run"]):
            with self.nothing_changes(self.vm):
                failure = self.q.fails(code, says, *command)
                self.assertIn("--force", failure.hint)
        self.q.fails("corrupt", says, "verify", "vm", "two")

    def is_fine(self):
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("verify", "vm", "one")
        self.q("revert", "vm", "one")
        self.q("start", "vm")
        self.reads(GOLDEN, GOLDEN)
        self.vm.quit()
        self.q("revert", "vm", "two")
        self.q("delete", "vm", "one")
        self.q("delete", "vm", "two")
        self.assertEqual([GOLDEN, 1], content(self.top, "qcow2")[:2])

    def test_replaced_while_the_vm_was_off(self):
        self.make("one", "two")
        self.vm.quit()
        self.replace()
        self.is_told(REPLACED)
        self.bring_back()
        self.is_fine()

    def test_written_to(self):
        self.make("one", "two")
        self.vm.quit()
        shutil.copy2(self.golden, self.golden + ".old")
        self.write(OTHER, "0")
        self.is_told(WRITTEN)
        self.bring_back()
        self.is_fine()

    def test_of_a_base_of_the_base(self):
        below = self.path("below.qcow2")
        image.run("qemu-img", "create", "-q", "-f", "qcow2", below, "2M")
        image.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", below,
                  "-F", "qcow2", self.golden)
        self.make("one", "two")
        self.vm.quit()
        shutil.copy2(below, below + ".old")
        image.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 3 1M 64k",
                  below)
        self.is_told("below disk v: .*/below.qcow2 was written to after")
        os.rename(below + ".old", below)
        self.is_fine()

    def test_a_link_that_is_moved_on(self):
        link, lead_to = image.behind_a_link(self.path(""), "golden", "other")
        lead_to("golden")
        named = os.path.join(link, "golden.qcow2")
        image.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", named, "-F",
                  "qcow2", self.top)
        self.make("one", "two")
        self.vm.quit()
        lead_to("other")
        self.is_told("below disk v: %s is another file than when .*it was %s" %
                     (named, self.path("golden/golden.qcow2")))
        lead_to("golden")
        self.is_fine()

    def test_gone(self):
        self.make("one", "two")
        self.vm.quit()
        os.rename(self.golden, self.golden + ".old")
        problems = {p["code"]: p for p in self.q.check("vm")["problems"]}
        self.assertRegex(problems["wrong-base"]["message"],
                         "snapshot one: .*golden.qcow2 is gone")
        # no merge could be done
        for command in (["delete", "vm", "one"], ["revert", "vm", "one", "--force"]):
            with self.nothing_changes(self.vm):
                self.q.fails("not-found", "golden.qcow2 is gone", *command)
        self.q.fails("corrupt", "golden.qcow2 is gone", "verify", "vm", "two")
        self.bring_back()
        self.is_fine()

    def test_gone_while_the_vm_runs(self):
        self.make("one", "two", "three")
        os.rename(self.golden, self.golden + ".old")
        for name in ("one", "two", "three"):
            with self.nothing_changes(self.vm):
                self.q.fails("not-found", "golden.qcow2 is gone", "delete",
                             "vm", name)
        self.bring_back()
        self.q("delete", "vm", "one")
        self.q("delete", "vm", "three", "two")
        self.reads(GOLDEN, 3)

    def test_moved_as_it_is(self):
        """With its folder, a link left behind; or out of a backup."""
        self.make("one", "two")
        self.vm.quit()
        os.rename(self.bases, self.bases + ".new")
        os.symlink(self.bases + ".new", self.bases)
        self.assertEqual([], self.q.check("vm")["problems"])
        shutil.copy2(self.golden, self.golden + ".copy")
        os.rename(self.golden + ".copy", self.golden)
        self.is_fine()

    def test_named_from_the_images_folder(self):
        folder = os.path.join(self.dir, "base")
        shutil.move(self.bases, folder)
        os.symlink(folder, self.bases)
        image.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b",
                  "../vm/base/golden.qcow2", "-F", "qcow2", self.top)
        self.make("one", "two")
        self.vm.quit()
        self.replace()
        self.is_told(REPLACED)
        self.bring_back()
        self.is_fine()

    def test_force_takes_it_as_it_is(self):
        self.make("one", "two")
        self.vm.quit()
        self.replace()
        self.q("revert", "vm", "one", "--force")
        self.assertRegex(self.q.stderr, REPLACED)
        # that is known now, and all goes on from there
        self.q("start", "vm")
        self.assertRegex(self.q.stderr, REPLACED)
        self.reads(OTHER, OTHER)
        self.q("create", "vm", "three")
        self.assertRegex(self.q.stderr, REPLACED)
        self.q("verify", "vm", "three")
        self.q.fails("corrupt", REPLACED, "delete", "vm", "one")
        self.q("delete", "vm", "one", "two", "--force")
        self.assertRegex(self.q.stderr, REPLACED)
        self.assertEqual([], self.q.check("vm")["problems"])
        self.reads(OTHER, OTHER)
        self.q("revert", "vm", "three")
        self.q("delete", "vm", "three")

    def test_undo_says_it(self):
        """It is the only way back to the heads that a revert left."""
        self.make("one", "two")
        self.vm.quit()
        self.q("revert", "vm", "one")
        self.replace()
        self.q("undo", "vm", "--dry-run")
        self.assertRegex(self.q.stderr, "snapshot two: " + REPLACED)
        self.q("undo", "vm")
        self.assertRegex(self.q.stderr, "snapshot two: " + REPLACED)
        self.bring_back()
        self.q("undo", "vm")
        self.assertNotIn("another file", self.q.stderr)
        self.is_fine()

    def test_layers_of_deleted_ones_are_no_bases(self):
        self.make("one", "two")
        self.q("create", "vm", "three")
        self.q("revert", "vm", "one")
        self.q("create", "vm", "four")
        self.q("delete", "vm", "one", "--keep-hidden")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("create", "vm", "five")
        self.q("delete", "vm", "two", "--keep-trash", "2")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("undo", "vm")
        for name in ("five", "four", "three", "two"):
            self.q("verify", "vm", name)
            self.q("delete", "vm", name)
            self.assertEqual([], self.q.check("vm")["problems"])
        self.reads(GOLDEN, GOLDEN)

    def given_up(self, name, how):
        """A snapshot that nobody can read any more; its layers stay."""
        gone = self.q.info("vm", name)["id"]
        path = self.q.manifest_path("vm", gone)
        self.damaged_on_purpose.add("vm")
        if how == "lost":
            shutil.rmtree(os.path.dirname(path))
            self.assertEqual(["lost-parent"], [
                p["code"] for p in self.q.check("vm")["problems"]])
            self.q("recover", "vm")
            return
        with open(path) as f:
            text = f.read()
        with open(path, "w") as f:
            f.write(text[:text.index('"memory"')] if how == "cut" else "{")
        self.assertEqual(["damaged-snapshot"], [
            p["code"] for p in self.q.check("vm")["problems"]])
        self.q("delete", "vm", gone)

    def test_below_a_root_that_was_given_up(self):
        self.is_fine_without("one", "damaged")

    def test_below_a_root_whose_layers_were_known(self):
        self.is_fine_without("one", "cut")

    def test_below_a_root_that_was_lost(self):
        self.is_fine_without("one", "lost")

    def test_below_an_inner_one_that_was_given_up(self):
        self.is_fine_without("two", "damaged")

    def test_below_an_inner_one_that_was_lost(self):
        self.is_fine_without("two", "lost")

    def is_fine_without(self, name, how):
        self.make("one", "two", "three")
        self.given_up(name, how)
        self.vm.quit()
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("start", "vm")
        self.q("create", "vm", "four")
        self.assertNotIn("another file", self.q.stderr)
        for each in self.q.names("vm"):
            self.q("verify", "vm", each)
        self.q("revert", "vm", "three")
        self.reads(GOLDEN, 2)
        self.vm.quit()
        self.replace()
        self.assertEqual(["wrong-base"], [
            p["code"] for p in self.q.check("vm")["problems"]])
        self.q.fails("corrupt", REPLACED, "verify", "vm", "three")
        self.q.fails("corrupt", REPLACED, "revert", "vm", "four")
        self.bring_back()
        self.q("delete", "vm", *self.q.names("vm"))
        head, = self.head_paths(self.vm)
        self.assertEqual([GOLDEN, 2], content(head, "qcow2")[:2])

    def test_attach_looks_at_what_qemu_has_open(self):
        self.run_vm(self.drive("cache=writeback"), "t", attach=False)
        self.replace()
        self.q.fails("precondition", "disk v: .*/golden.qcow2 .* another file "
                     "now", "attach", "vm", "--qmp", self.vm.qmp)
        self.bring_back()
        self.attach(self.vm)
        self.q("create", "vm", "one")

    def test_snapshots_that_do_not_tell(self):
        """As earlier versions made them."""
        self.make("one", "two")
        self.vm.quit()
        for snapshot in self.q.snapshots("vm"):
            path = self.q.manifest_path("vm", snapshot["id"])
            with open(path) as f:
                manifest = json.load(f)
            base, = manifest["disks"][0].pop("bases")
            self.assertEqual(self.golden, base["path"])
            del manifest["sum"]
            with open(path, "w") as f:
                json.dump(manifest, f)
        self.replace()
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("verify", "vm", "one")
        self.q("revert", "vm", "one")
        self.q("delete", "vm", "two")
        self.q("delete", "vm", "one")


class ForGood(Made):
    """A base that nobody will bring back: what can be had without it is had,
    and nothing keeps the user from getting rid of the rest."""

    def setUp(self):
        """one - two, one - twig - head."""
        super().setUp()
        self.make("one", "two")
        self.q("revert", "vm", "one", "--keep-trash", "0")
        self.io("write -q -P 3 128k 64k")
        self.q("create", "vm", "twig")
        self.io("write -q -P 4 192k 64k")
        self.io("flush")
        self.want = image.digest(self.head_paths(self.vm)[0], "qcow2")

    def lose(self):
        os.rename(self.golden, self.golden + ".old")

    def layer(self, name):
        (path, _), = self.frozen(self.vm, name).values()
        return path

    def hidden(self):
        with open(os.path.join(self.store, "vm", "vm.json")) as f:
            return [h["path"] for h in json.load(f)["hidden"]]

    def is_whole(self):
        head, = self.head_paths(self.vm)
        self.assertEqual(self.want, image.digest(head, "qcow2"))

    def leaf_goes(self):
        two = self.layer("two")
        self.q("delete", "vm", "two")
        self.assertFalse(os.path.exists(two))
        self.assertEqual(["one", "twig"], self.q.names("vm"))
        self.assertEqual([], self.hidden())
        for name in ("one", "twig"):
            with self.nothing_changes(self.vm):
                failure = self.q.fails("not-found", "golden.qcow2 is gone",
                                       "delete", "vm", name)
                self.assertIn("--force" if self.vm.state() == "off" else
                              "/proc/%d/fd" % self.vm.pid(), failure.hint)

    def test_a_leaf_goes(self):
        self.vm.quit()
        self.lose()
        self.leaf_goes()
        self.bring_back()
        self.is_whole()

    def test_a_leaf_that_alone_tells_of_another_base(self):
        """Nothing is merged; but nobody would know any more."""
        self.q("revert", "vm", "one", "--keep-trash", "0")
        self.q("delete", "vm", "twig", "one")
        self.vm.quit()
        two = self.layer("two")
        self.replace()
        with self.nothing_changes(self.vm):
            self.q.fails("corrupt", REPLACED, "delete", "vm", "two")
        os.unlink(self.golden)
        self.q("delete", "vm", "two")
        self.assertFalse(os.path.exists(two))
        self.bring_back()
        head, = self.head_paths(self.vm)
        self.assertEqual([GOLDEN, GOLDEN], content(head, "qcow2")[:2])

    def test_all_go_and_the_vm_is_forgotten(self):
        self.vm.quit()
        self.lose()
        head, = self.head_paths(self.vm)
        twig = self.layer("twig")
        self.q("delete", "vm", "one", "two", "twig", "--force")
        self.assertIn("golden.qcow2 is gone", self.q.stderr)
        self.assertIn(twig + " stays", self.q.stderr)
        self.assertEqual([], self.q.names("vm"))
        self.assertEqual({head, twig, self.top}, self.disk_files(self.vm))
        self.assertEqual({twig, self.top}, set(self.hidden()))
        self.q("recover", "vm")
        self.assertEqual({head, twig, self.top}, self.disk_files(self.vm))
        self.q("detach", "vm")
        for path in (twig, self.top):
            self.assertIn(path + " stays", self.q.stderr)
        self.assertFalse(os.path.exists(os.path.join(self.store, "vm")))
        self.bring_back()
        self.assertEqual(self.want, image.digest(head, "qcow2"))
        for path in (head, twig, self.top):
            os.unlink(path)  # none is immutable any more
        self.vms.remove(self.vm)

    def test_what_undo_kept_goes_too(self):
        self.q("revert", "vm", "twig")
        head, = self.head_paths(self.vm)
        twig = self.layer("twig")
        self.vm.quit()
        self.lose()
        self.q("delete", "vm", "one", "two", "twig", "--force")
        self.assertEqual({head, twig, self.top}, self.disk_files(self.vm))
        self.q("detach", "vm")
        self.bring_back()
        self.assertEqual([GOLDEN, GOLDEN, 3, GOLDEN],
                         content(head, "qcow2")[:4])
        self.vms.remove(self.vm)

    def test_an_inner_one_by_force(self):
        self.vm.quit()
        self.lose()
        self.q("delete", "vm", "one", "--force")
        self.assertEqual(["two", "twig"], self.q.names("vm"))
        self.q.fails("precondition", "2 snapshots", "detach", "vm")
        self.bring_back()
        self.q("verify", "vm", "two")
        self.q("verify", "vm", "twig")
        self.is_whole()
        self.assertEqual([GOLDEN, 1], content(self.layer("two"), "qcow2")[:2])

    def test_it_comes_back_all_the_same(self):
        self.vm.quit()
        self.lose()
        self.q("delete", "vm", "one", "two", "twig", "--force")
        self.bring_back()
        self.q.fails("precondition", "layers to be merged", "detach", "vm")
        self.q("recover", "vm")
        self.assertEqual([], self.hidden())
        self.is_whole()
        self.q("detach", "vm")
        self.vms.remove(self.vm)

    def test_while_the_vm_runs(self):
        """QEMU has it open still."""
        self.lose()
        self.leaf_goes()
        self.q("delete", "vm", "twig", "--force")
        self.reads(GOLDEN, GOLDEN, 3, 4)
        self.q("delete", "vm", "one", "--force")
        self.reads(GOLDEN, GOLDEN, 3, 4)
        self.io("write -q -P 4 192k 64k")
        self.io("flush")
        self.bring_back()
        self.q("recover", "vm")
        self.assertEqual([], self.hidden())
        self.is_whole()

    def chain_of_a_running_vm(self, *node):
        """Each of a chain goes by force; nothing is lost of those that stay."""
        self.q("delete", "vm", *self.q.names("vm"))
        self.vm.quit()
        self.q("detach", "vm")
        self.vms.remove(self.vm)
        os.unlink(self.vm.dir + "/disk.qcow2")
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", self.golden,
                  "-F", "qcow2", self.top)
        self.run_vm(*node)
        names = "a", "b", "c", "d"
        for n, name in enumerate(names):
            self.q("create", "vm", name)
            self.io("write -q -P %d %d 64k" % (n + 1, (n + 1) << 16))
        self.lose()
        self.reads(GOLDEN, 1, 2, 3, 4)
        for gone in (("b",), ("d",), ("c", "a")):
            with self.subTest(gone):
                self.q("delete", "vm", *gone, "--force")
                self.reads(GOLDEN, 1, 2, 3, 4)
                if gone == ("d",):
                    layer = self.layer("c")
                    self.assertEqual(["a", "c"], self.q.names("vm"))
        self.assertEqual([], self.vm.block_jobs())
        self.bring_back()
        if os.path.exists(layer):
            self.assertEqual([GOLDEN, 1, 2], content(layer, "qcow2")[:3])
        self.q("recover", "vm")
        self.assertEqual([], self.hidden())
        self.reads(GOLDEN, 1, 2, 3, 4)
        self.io("flush")
        head, = self.head_paths(self.vm)
        self.assertEqual([GOLDEN, 1, 2, 3, 4], content(head, "qcow2")[:5])

    def test_a_chain_of_a_running_vm(self):
        self.chain_of_a_running_vm(self.drive("cache=writeback"), "t")

    def test_a_chain_of_named_nodes(self):
        self.chain_of_a_running_vm(self.libvirt())

    def test_what_qemu_has_open_still_is_saved(self):
        os.unlink(self.golden)
        problem, = [p for p in self.q.check("vm")["problems"]
                    if p["code"] == "wrong-base"]
        folder = "/proc/%d/fd" % self.vm.pid()
        self.assertIn(folder, problem["hint"])
        open_, = [p for p in (os.path.join(folder, n)
                              for n in os.listdir(folder))
                  if os.path.realpath(p) == self.golden + " (deleted)"]
        image.run("cp", "-p", open_, self.golden)
        self.vm.quit()
        self.assertEqual([], self.q.check("vm")["problems"])
        self.is_whole()
        self.q("start", "vm")
        self.reads(GOLDEN, GOLDEN, 3, 4)
        self.q("delete", "vm", "one", "two", "twig")
        self.reads(GOLDEN, GOLDEN, 3, 4)

    def test_the_other_disk_is_merged(self):
        self.vm.quit()
        self.q("delete", "vm", "one", "two", "twig")
        self.q("detach", "vm")
        self.vms.remove(self.vm)
        disk = self.disk("other", size=2 << 20, pattern=False)
        self.vm = self.tiny_vm(disks=[disk], extra=self.drive(
            "cache=writeback") + ["-device", "virtio-blk-pci,drive=t,id=v"])
        for n, name in enumerate(("one", "two")):
            self.vm.write(disk, n, n + 1)
            self.io("write -q -P %d 1M 64k" % (n + 1))
            self.q("create", "vm", name)
        self.vm.quit()
        self.lose()
        self.q("delete", "vm", "one", "two", "--force")
        self.assertEqual([1, 2], content(disk.path, "qcow2")[:2])
        self.assertEqual(2, len(self.hidden()))
        self.assertEqual(4, len(self.disk_files(self.vm)))
        self.bring_back()
        self.q("recover", "vm")
        self.assertEqual({self.top, disk.path}, self.disk_files(self.vm))


class OtherFormats(Made):
    """Bases whose content is in other files, and raw ones, which have no header
    that would tell one from another."""

    def on(self, fmt, *options):
        """The VM's disk stands on that; 7 everywhere, and two snapshots."""
        self.golden = self.path("golden." + fmt)
        image.run("qemu-img", "create", "-q", "-f", fmt, *options, self.golden,
                  "2M")
        image.run("qemu-io", "-f", fmt, "-c", "write -q -P %d 0 2M" % GOLDEN,
                  self.golden)
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", self.golden,
                  "-F", fmt, self.top)
        self.make("one", "two")
        self.vm.quit()
        self.assertEqual([], self.q.check("vm")["problems"])

    def change(self, path, at=1 << 20, times=None):
        """A byte, as somebody would who sees the file alone."""
        st = os.stat(path)
        with open(path, "r+b") as f:
            f.seek(at)
            f.write(b"x")
        if times:
            os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))

    def is_told(self, path):
        # an inode that was freed may be given out again
        says = path + (" (is another file than when|has another content than "
                       "when|was written to after) the snapshot was made")
        self.assertEqual(["wrong-base"], [
            p["code"] for p in self.q.check("vm")["problems"]])
        self.q.fails("corrupt", "below disk v: " + says, "verify", "vm", "two")
        self.q.fails("corrupt", "below disk v: " + says, "revert", "vm", "one")

    def is_fine(self):
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("verify", "vm", "one")
        self.q("revert", "vm", "one")
        self.q("start", "vm")
        self.reads(GOLDEN, GOLDEN)

    def of_data(self, data):
        data = self.path(data)
        shutil.copy2(data, data + ".old")
        self.change(data)
        self.is_told(data)
        os.rename(data + ".old", data)  # as a backup brings it back
        self.assertEqual([], self.q.check("vm")["problems"])
        os.rename(data, data + ".old")
        failure = self.q.fails("corrupt", "is gone", "verify", "vm", "one")
        self.assertIn(data, failure.message)
        shutil.copy(data + ".old", data)
        self.is_told(data)
        os.rename(data + ".old", data)
        self.is_fine()

    def test_a_data_file(self):
        self.on("qcow2", "-o", "data_file=" + self.path("golden.data"))
        self.of_data("golden.data")

    def test_the_extents_of_a_vmdk(self):
        self.on("vmdk", "-o", "subformat=monolithicFlat")
        self.of_data("golden-flat.vmdk")

    def test_what_was_not_kept_is_not_compared(self):
        """As earlier versions made them."""
        self.on("vmdk", "-o", "subformat=monolithicFlat")
        for snapshot in self.q.snapshots("vm"):
            path = self.q.manifest_path("vm", snapshot["id"])
            with open(path) as f:
                manifest = json.load(f)
            bases = manifest["disks"][0]["bases"]
            self.assertEqual(["vmdk", "data"], [b["format"] for b in bases])
            bases.pop()
            bases[0]["headerHash"] = None
            del manifest["sum"]
            with open(path, "w") as f:
                json.dump(manifest, f)
        self.change(self.path("golden-flat.vmdk"))
        self.assertEqual([], self.q.check("vm")["problems"])
        shutil.copy2(self.golden, self.golden + ".copy")
        os.rename(self.golden + ".copy", self.golden)
        self.assertEqual([], self.q.check("vm")["problems"])

    def test_a_raw_copy_with_another_content(self):
        """Of the same size and time, as of a builder that sets all times."""
        self.on("raw")
        shutil.copy2(self.golden, self.golden + ".old")
        for at in (512, 1 << 20, (1 << 20) + 1024, (2 << 20) - 1):
            with self.subTest(at=at):
                shutil.copy2(self.golden + ".old", self.golden + ".new")
                self.change(self.golden + ".new", at, times=True)
                os.rename(self.golden + ".new", self.golden)
                self.is_told(self.golden)
        shutil.copy2(self.golden + ".old", self.golden)
        self.change(self.golden, 4096, times=True)
        self.is_told(self.golden)
        os.rename(self.golden + ".old", self.golden)
        self.is_fine()

    def test_an_exact_raw_copy(self):
        self.on("raw")
        shutil.copy2(self.golden, self.golden + ".old")
        os.rename(self.golden + ".old", self.golden)
        self.is_fine()
