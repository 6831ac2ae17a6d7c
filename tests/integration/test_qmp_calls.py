# SPDX-License-Identifier: MIT
"""The library's typed QMP calls (src/qmp) against a real QEMU, through
qmp_calls.c. The VM sits in its firmware: no guest is needed."""

import os
import shutil
import socket
import subprocess
import time

from lib import image, qemuio
from lib.calls import Calls
from lib.case import QEMU, QEMU_VERSION, Case
from lib.qmp import QMP

MIB = 1 << 20
READY, CONCLUDED = 1, 3
NONE, ACTIVE, PRE_SWITCHOVER, COMPLETED, FAILED, CANCELLED = range(6)


class Firmware:
    """A QEMU without a guest, with one monitor for the product, and one for
    the test."""

    def __init__(self, case, *args, name="fw", machine="q35", memory=64,
                 stopped=True):
        self.folder = os.path.join(case.tmp, name)
        os.makedirs(self.folder, exist_ok=True)
        self.qmp = self.path("qmp.sock")
        self.log = self.path("log")
        argv = [QEMU, "-name", name, "-machine", machine, "-accel", "tcg",
                "-m", str(memory), "-nodefaults", "-display", "none",
                "-qmp", "unix:%s,server=on,wait=off" % self.qmp,
                "-qmp", "unix:%s,server=on,wait=off" % self.path("test.sock"),
                *(["-S"] if stopped else []), *args]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log,
                                            cwd=self.folder)
        case.addCleanup(self.end)
        self.monitor = QMP(self.path("test.sock"))
        self.cmd = self.monitor.cmd

    def path(self, name):
        return os.path.join(self.folder, name)

    def memory(self, address, size):
        with open("/proc/%d/mem" % self.process.pid, "rb") as f:
            f.seek(address)
            return f.read(size)

    def physical(self, address, size):
        self.cmd("pmemsave", val=address, size=size, filename="phys")
        with open(self.path("phys"), "rb") as f:
            return f.read()

    def end(self):
        self.monitor.close()
        self.process.kill()
        self.process.wait()


class Pipe:
    """A pipe that QEMU writes into, with someone who reads it into a file."""

    def __init__(self, case, name):
        self.path = os.path.join(case.tmp, name)
        out, self.fd = os.pipe()
        with open(self.path, "wb") as f:
            self.reader = subprocess.Popen(["cat"], stdin=out, stdout=f)
        os.close(out)
        case.addCleanup(self.reader.kill)

    def content(self):
        self.reader.wait(30)
        with open(self.path, "rb") as f:
            return f.read()


def fed_pipe(case, path):
    """The end of a pipe that brings the file's bytes: QEMU 11 reads no
    migration from a file's descriptor."""
    out, into = os.pipe()
    with open(path, "rb") as f:
        feeder = subprocess.Popen(["cat"], stdin=f, stdout=into)
    os.close(into)
    case.addCleanup(feeder.wait)
    case.addCleanup(feeder.kill)
    case.addCleanup(os.close, out)
    return out


class TypedCalls(Case):
    cost = 15

    def firmware(self, *args, **kw):
        return Firmware(self, *args, **kw)

    def calls(self, vm, fds=()):
        calls = Calls(self, fds)
        calls("open", vm.qmp, 10000)
        return calls

    def images(self, *what, name="fw"):
        folder = os.path.join(self.tmp, name)
        os.makedirs(folder, exist_ok=True)
        for args in what:
            image.run("qemu-img", "create", "-q", "-f", *[
                os.path.join(folder, w[1:]) if w[0] == "@" else w
                for w in args.split()])

    def make_overlay(self, vm, name, backing, fmt="qcow2"):
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
                  vm.path(backing), "-F", fmt, vm.path(name))
        return vm.path(name)

    # ----------------------------------------------------------------- reading

    def test_what_the_machine_is(self):
        vm = self.firmware("-cpu", "max", "-smp", "2", "-device",
                           "virtio-rng-pci,id=rng", "-device", "VGA")
        q = self.calls(vm)
        machine = q("machine")
        self.assertEqual(QEMU_VERSION, machine["version"].rsplit(".", 1)[0])
        self.assertEqual("pc-q35-" + QEMU_VERSION, machine["type"])
        self.assertEqual(("fw", False), (machine["name"], machine["kvm"]))
        cpus = q("cpus")
        self.assertEqual((2, "max-x86_64-cpu", False, True), (
            cpus["count"], cpus["type"], cpus["invtsc"], cpus["migratable"]))
        self.assertEqual([("rng", "virtio-rng-pci"), ("", "VGA")],
                         [(d["id"], d["type"]) for d in q("devices")])
        self.assertEqual(vm.process.pid, q("pid"))
        self.assertEqual("prelaunch", q("status")["state"])
        q("cont")
        q("stop", 5000)
        self.assertEqual("paused", q("status")["state"])
        self.assertEqual(
            ["RESUME", "STOP"],
            [q("event", 5000, "STOP", "RESUME")["name"] for _ in range(2)])
        self.assertIsNone(q("event", 0, "STOP", "RESUME"))
        self.assertFalse(q("qom_bool", "/machine", "usb"))
        q.fails("not-found", "qom-get", "qom_string", "/machine", "nosuch")
        q.fails("not-found", "qom-get", "qom_string", "/nosuch", "type")
        q.fails("failed", "/machine.usb is no string", "qom_string",
                "/machine", "usb")
        q("reset")
        q("quit")
        vm.process.wait(10)

    def test_disks_and_their_chains(self):
        self.images("qcow2 @base.qcow2 4M", "raw @r.img 1M", "raw @cd.img 1M",
                    "vdi @v.vdi 1M")
        folder = os.path.join(self.tmp, "fw")
        image.run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
                  "base.qcow2", "-F", "qcow2", folder + "/top.qcow2")
        vm = self.firmware(
            "-drive", "file=top.qcow2,if=none,id=d0,cache=none",
            "-device", "virtio-blk-pci,drive=d0,id=vd0",
            "-blockdev", "driver=raw,node-name=r0,file.driver=file,"
            "file.filename=%s/r.img" % folder,
            "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=r0,id=sd0",
            "-drive", "file=cd.img,format=raw,if=none,id=cd0,media=cdrom,"
            "read-only=on", "-device", "ide-cd,drive=cd0",
            "-drive", "file=v.vdi,format=vdi,if=none,id=v",
            "-drive", "file=base.qcow2,if=none,id=again,read-only=on,"
            "throttling.iops-total=100",
            "-device", "virtio-blk-pci,drive=again")
        q = self.calls(vm)
        disks = {d["device"] or d["node"]: d for d in q("disks")}
        self.assertEqual({"d0", "r0", "cd0", "v", "again"}, set(disks))
        said = {k: disks["d0"][k] for k in (
            "qdev", "qdev_type", "path", "driver", "protocol", "protocol_path",
            "node_auto", "read_only", "cdrom", "virtual_size")}
        self.assertEqual({
            "qdev": "/machine/peripheral/vd0", "qdev_type": "virtio-blk-pci",
            "path": "top.qcow2", "driver": "qcow2", "protocol": "file",
            "protocol_path": "top.qcow2", "node_auto": True,
            "read_only": False, "cdrom": False, "virtual_size": 4 * MIB}, said)
        self.assertEqual(("/machine/peripheral/sd0", "sd0", "scsi-hd", False),
                         tuple(disks["r0"][k] for k in (
                             "qdev", "qdev_id", "qdev_type", "node_auto")))
        self.assertTrue(disks["cd0"]["cdrom"] and disks["cd0"]["read_only"])
        self.assertEqual("", disks["v"]["qdev"])
        # the base is open twice: names alone could not tell the chain
        self.assertEqual(["top.qcow2", "base.qcow2"],
                         [n[1] for n in q("chain", disks["d0"]["node"])])
        self.assertEqual(1, len(q("chain", disks["again"]["node"])))
        graph = {n["name"]: n for n in q("graph")["nodes"]}
        head = graph[disks["d0"]["node"]]
        self.assertTrue(head["cache_direct"] and head["active"])
        self.assertEqual("file", graph[head["file"]]["driver"])

    def test_ram_is_found(self):
        """Before the firmware ran, and after: it puts RAM over pc.rom."""
        for name, kind, stopped, found in (
                ("one", "memory-backend-memfd,share=on", True, "pc.rom"),
                ("two", "memory-backend-ram", False, "vga.vram")):
            with self.subTest(name):
                vm = self.firmware(
                    "-object", kind + ",id=ram0,size=64M", "-object",
                    "memory-backend-ram,id=spare,size=1M", "-device",
                    "VGA", machine="q35,memory-backend=ram0", name=name,
                    stopped=stopped)
                q = self.calls(vm)
                if not stopped:
                    time.sleep(2)  # the firmware sets the machine up
                    q("stop", 5000)
                self.check_ram(vm, q, "memfd" in kind, found)

    def check_ram(self, vm, q, shared, wanted):
        blocks = {b["name"]: b for b in q("ram", True)}
        by_map = {b["name"]: b for b in q("ram_by_map")}
        self.assertEqual(64 * MIB, blocks["ram0"]["used"])
        self.assertEqual(0x40000, blocks["pc.bios"]["total"])
        found = [n for n, b in by_map.items() if b["hva"]]
        self.assertLessEqual({"ram0", "pc.bios", wanted},
                             {n.split("/")[-1] for n in found})
        for name in found:
            self.assertEqual(blocks[name]["hva"], by_map[name]["hva"])
        if QEMU_VERSION != "7.2":
            self.assertEqual([], [n for n, b in blocks.items()
                                  if not b["hva"] and b["total"]])
        for r in q("map"):
            name = [n for n in found if n.split("/")[-1] == r["region"]]
            if not name:
                continue
            size = min(r["size"], MIB)
            self.assertEqual(
                vm.physical(r["gpa"], size),
                vm.memory(blocks[name[0]]["hva"] + r["offset"], size),
                "%s at 0x%x" % (name[0], r["gpa"]))
        self.assertEqual(blocks["ram0"]["hva"], q("gpa2hva", 0))
        q.fails("not-found", "is not RAM|No memory", "gpa2hva", 0xfec00000)
        self.assertEqual(
            {"ram0": (True, True, shared), "spare": (False, False, False)},
            {m["id"]: (m["machine"], m["block"], m["share"])
             for m in q("memdevs")})
        roms = {r["name"]: r for r in q("roms")}
        self.assertEqual(0xfffc0000, roms["bios-256k.bin"]["addr"])
        self.assertEqual("/rom@etc/acpi/tables",
                         roms["etc/acpi/tables"]["region"])

    def test_features(self):
        self.check_features(self.calls(self.firmware()))

    def test_a_vm_that_refuses_what_is_deprecated(self):
        """And that leaves out of its answers what is."""
        vm = self.firmware("-compat",
                           "deprecated-input=reject,deprecated-output=hide")
        q = self.calls(vm)
        self.assertEqual(("fw", False), (q("machine")["name"],
                                         q("machine")["kvm"]))
        self.check_features(q)

    def check_features(self, q):
        modern = QEMU_VERSION != "7.2"
        for want, question in (
                (True, ("command", "xen-save-devices-state")),
                (False, ("command", "STOP")), (True, ("event", "STOP")),
                (True, ("argument", "blockdev-add", "backing")),
                (True, ("argument", "blockdev-add", "file.filename")),
                (True, ("argument", "transaction", "actions.data.snapshot-file")),
                (False, ("argument", "blockdev-add", "nosuch")),
                (modern, ("argument", "migrate-incoming", "exit-on-error")),
                (modern, ("value", "migrate-set-capabilities",
                          "capabilities.capability", "mapped-ram")),
                (True, ("value", "migrate-set-capabilities",
                        "capabilities.capability", "background-snapshot")),
                (True, ("member", "query-block", "inserted.image.filename")),
                (modern, ("member", "query-named-block-nodes", "active"))):
            self.assertEqual(want, q("has", *question), question)

    # ------------------------------------------------------------------- disks

    def two_disks(self):
        """d0: a -drive with an automatic node name; n1: a -blockdev."""
        self.images("qcow2 @a.qcow2 4M", "raw @b.img 4M")
        vm = self.firmware(
            "-drive", "file=a.qcow2,if=none,id=d0",
            "-device", "virtio-blk-pci,drive=d0,id=vd0",
            "-blockdev", "driver=raw,node-name=n1,file.driver=file,"
            "file.filename=b.img", "-device", "virtio-blk-pci,drive=n1,id=vd1")
        return vm, self.calls(vm)

    def head(self, q, qdev_id):
        return [d for d in q("disks") if d["qdev_id"] == qdev_id][0]["node"]

    def write(self, vm, device, offset):
        """As the guest would, through its device."""
        for line in ("write -P %d %d 64k" % ((offset >> 20) + 1, offset),
                     "flush"):
            qemuio.run(vm.monitor, "-d " + device, line)

    def test_overlays_come_all_or_none_and_are_committed(self):
        vm, q = self.two_disks()
        a1 = self.make_overlay(vm, "a1.qcow2", "a.qcow2")
        b1 = self.make_overlay(vm, "b1.qcow2", "b.img", "raw")
        one = {"device": "d0", "path": a1, "new_node": "qa1"}
        two = {"node": "n1", "path": b1, "new_node": "qb1"}
        before = [self.head(q, d) for d in ("vd0", "vd1")]
        q.fails("failed", "transaction", "snapshot", one,
                dict(two, path=vm.path("none.qcow2")))
        self.assertEqual(before, [self.head(q, d) for d in ("vd0", "vd1")])
        q("snapshot", one, two)
        self.assertEqual(["qa1", "qb1"],
                         [self.head(q, d) for d in ("vd0", "vd1")])
        self.assertEqual(["qb1", "n1"], [n[0] for n in q("chain", "qb1")])
        # fold the head of one disk back
        q("commit", {"job": "c", "device": "qb1"})
        self.assertEqual(READY, q("job_wait", "c", "ready", 10000)["state"])
        q("job_complete", "c")
        q("job_finish", "c", 10000)
        self.assertEqual("n1", self.head(q, "vd1"))
        # a cancelled commit leaves the chain; cancelling again is fine
        q("commit", {"job": "c", "device": "qa1"})
        q("job_wait", "c", "ready", 10000)
        q("job_cancel", "c")
        self.assertEqual(CONCLUDED,
                         q("job_wait", "c", "concluded", 10000)["state"])
        q("job_cancel", "c")
        q("job_dismiss", "c")
        q("job_dismiss", "c")
        q.fails("not-found", "no job 'c'", "job", "c")
        self.assertEqual("qa1", self.head(q, "vd0"))
        q.fails("failed", "refuses 'block-commit'", "commit",
                {"job": "c", "device": "nosuch"})

    def test_a_layer_is_merged_into_a_new_file_and_swapped_in(self):
        vm, q = self.two_disks()
        backing = "b.img"
        for i in (1, 2, 3):
            name = "o%d.qcow2" % i
            self.make_overlay(vm, name, backing,
                              "raw" if backing == "b.img" else "qcow2")
            q("snapshot", {"node": self.head(q, "vd1"), "path": vm.path(name),
                           "new_node": "o%d" % i})
            self.write(vm, "/machine/peripheral/vd1/virtio-backend", i << 20)
            backing = name
        merged = vm.path("merged.qcow2")
        shutil.copy(vm.path("o2.qcow2"), merged)
        image.run("qemu-img", "rebase", "-U", "-f", "qcow2", "-b",
                  vm.path("b.img"), "-F", "raw", merged)
        graph = {n["name"]: n for n in q("graph")["nodes"]}
        want = image.digest(vm.path("o3.qcow2"), "qcow2")
        q("add", {"node": "mg", "driver": "qcow2", "path": merged,
                  "file_node": "mgf", "backing": "n1", "read_only": True})
        node = {"node": "o3", "driver": "qcow2",
                "file_node": graph["o3"]["file"], "backing": "mg"}
        q("reopen", node)
        q("change_backing", "o3", "o3", merged)
        self.assertEqual(["o3", "mg", "n1"], [n[0] for n in q("chain", "o3")])
        self.assertNotIn("o2", [n["name"] for n in q("graph")["nodes"]])
        self.assertEqual([vm.path("o3.qcow2"), merged, vm.path("b.img")],
                         image.chain(vm.path("o3.qcow2")))
        self.assertEqual(want, image.digest(vm.path("o3.qcow2"), "qcow2"))
        q.fails("failed", "in use|used", "del", "mg", True)
        head = self.head(q, "vd0")
        q.fails("precondition", "automatic name", "reopen",
                dict(node, node=head))

    def test_a_node_whose_name_qemu_made_gets_another_backing_node(self):
        self.images("qcow2 @a.qcow2 4M")
        folder = os.path.join(self.tmp, "fw")
        for name, below in (("b", "a"), ("c", "b")):
            image.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
                      "-b", below + ".qcow2",
                      os.path.join(folder, name + ".qcow2"))
        vm = self.firmware(
            "-drive", "file=c.qcow2,if=none,id=d0,cache=none,aio=native,"
            "discard=unmap", "-device", "virtio-blk-pci,drive=d0,id=vd0")
        q = self.calls(vm)
        node = self.head(q, "vd0")
        below = q("chain", node)[2][0]
        q("add", {"node": "mg", "driver": "qcow2", "read_only": True,
                  "path": vm.path("b.qcow2"), "backing": below})

        def options():
            said, = [d["inserted"] for d in vm.cmd("query-block")
                     if d["device"] == "d0"]
            return {k: said[k] for k in ("cache", "ro", "detect_zeroes",
                                         "node-name")}
        was = options()
        self.assertTrue(was["cache"]["direct"])
        q("node_reopen", node, "mg", False)
        self.assertEqual([node, "mg", below], [n[0] for n in q("chain", node)])
        self.assertEqual(was, options())
        q.fails("failed", "reopening node '%s': .*nosuch" % node,
                "node_reopen", node, "nosuch", False)
        q.fails("failed", "reopening node 'nosuch'", "node_reopen", "nosuch",
                None, True)
        self.assertEqual([node, "mg", below], [n[0] for n in q("chain", node)])

    def test_nodes_are_added_put_under_a_device_and_removed(self):
        vm, q = self.two_disks()
        self.make_overlay(vm, "new.qcow2", "b.img", "raw")
        q("add", {"node": "new", "driver": "qcow2",
                  "path": vm.path("new.qcow2"), "file_node": "newf",
                  "backing": "n1", "discard": "unmap",
                  "detect_zeroes": "on", "cache_direct": True})
        node = [n for n in q("graph")["nodes"] if n["name"] == "new"][0]
        self.assertEqual((True, "on", "newf", "n1"), (
            node["cache_direct"], node["detect_zeroes"], node["file"],
            node["below"]))
        q("set_drive", "/machine/peripheral/vd1", "new")
        self.assertEqual("new", self.head(q, "vd1"))
        q("set_drive", "/machine/peripheral/vd1", "n1")
        q("del", "new")
        q.fails("not-found", "nosuch|find", "del", "new")
        q("del", "new", True)
        q.fails("failed", "nosuch", "set_drive", "/machine/peripheral/vd1",
                "nosuch")
        q.fails("not-found", "refuses 'qom-set'", "set_drive",
                "/machine/peripheral/nosuch", "n1")

    def test_streams_and_a_job_that_fails(self):
        vm, q = self.two_disks()
        path = self.make_overlay(vm, "o1.qcow2", "b.img", "raw")
        q("snapshot", {"node": "n1", "path": path, "new_node": "o1"})
        q("stream", {"job": "s", "device": "o1", "speed": 65536})
        q.fails("unreachable", "still '.*' after 50 ms", "job_wait", "s",
                "concluded", 50)
        q("job_speed", "s", 0)
        q("job_finish", "s", 20000)
        self.assertEqual(1, len(q("chain", "o1")))
        # a base with an error in it
        with open(vm.path("bad.conf"), "w") as f:
            f.write('[inject-error]\nevent = "read_aio"\nerrno = "5"\n')
        image.create(vm.path("c.img"), "raw", 4 * MIB, False)
        vm.cmd("blockdev-add", driver="raw", node_name="bad", read_only=True,
               file={"driver": "blkdebug", "config": vm.path("bad.conf"),
                     "image": {"driver": "file",
                               "filename": vm.path("c.img")}})
        path = self.make_overlay(vm, "c1.qcow2", "c.img", "raw")
        q("add", {"node": "c1", "driver": "qcow2", "path": path,
                  "backing": "bad"})
        q("stream", {"job": "s", "device": "c1"})
        q.fails("failed", "job 's' failed: Input/output error", "job_finish",
                "s", 20000)
        q.fails("not-found", "no job", "job", "s")

    # --------------------------------------------------------------- descriptors

    def memfd(self):
        """One fd for QEMU, for writing only, and one for us."""
        fd = os.memfd_create("state")
        out = os.open("/proc/self/fd/%d" % fd, os.O_WRONLY)
        self.addCleanup(os.close, fd)
        self.addCleanup(os.close, out)
        return fd, out

    def test_device_state_is_saved(self):
        mine, its = self.memfd()
        self.images("vdi @v.vdi 1M")
        vm = self.firmware("-device", "virtio-rng-pci", "-drive",
                           "file=v.vdi,format=vdi,if=none,id=v")
        q = self.calls(vm, (mine, its))
        self.assertRegex(q("migration")["blocked"][0], "vdi format")
        q("save_check")
        with self.subTest("a wrong access mode"):
            wrong = q("add_fd", mine)
            q.fails("failed", "refuses 'xen-save-devices-state'", "save", wrong)
            q("remove_fd", wrong)
        fdset = q("add_fd", its)
        q("save", fdset)
        q("remove_fd", fdset)
        q("remove_fd", fdset)
        state = os.pread(mine, 1 << 20, 0)
        self.assertEqual(b"QEVM\0\0\0\3", state[:8])
        self.assertGreater(len(state), 10000)
        self.assertEqual(0, state[-1])
        if QEMU_VERSION != "7.2":
            self.assertTrue(all(n["active"] for n in q("graph")["nodes"]))

    def test_device_state_that_would_crash_qemu_is_refused(self):
        mine, its = self.memfd()
        vm = self.firmware("-device", "qemu-xhci", "-device",
                           "usb-serial,chardev=c", "-chardev", "null,id=c")
        q = self.calls(vm, (its,))
        q.fails("precondition", "non-migratable device: .*usb-serial",
                "save_check")
        fdset = q("add_fd", its)
        q.fails("precondition", "usb-serial", "save", fdset)
        self.assertEqual(b"", os.pread(mine, 10, 0))
        self.assertEqual("prelaunch", q("status")["state"])

    # ----------------------------------------------------------------- migration

    def until(self, q, *wanted):
        """MIGRATION events up to one of these states; the last one."""
        while True:
            e = q("event", 20000, "MIGRATION")
            self.assertIsNotNone(e, "no event in time")
            if e["status"] in wanted:
                return e["status"]

    def test_a_stream_out_stops_at_switchover_and_comes_in(self):
        out = Pipe(self, "stream")
        vm = self.firmware()
        q = self.calls(vm, (out.fd,))
        q.fails("precondition", "no migration capability 'bogus'", "caps",
                ["events", True], ["bogus", True])
        q.fails("precondition", "no migration parameter 'bogus'", "params",
                ["max-bandwidth", 1], ["bogus", 1])
        self.assertEqual([], q("caps_on"))
        q("caps", ["events", True], ["pause-before-switchover", True])
        self.assertEqual(["events", "pause-before-switchover"],
                         sorted(q("caps_on")))
        q("params", ["max-bandwidth", 1 << 40], ["downtime-limit", 1000])
        self.assertEqual(1 << 40, q("param", "max-bandwidth"))
        q("cont")
        q.fails("failed", "refuses 'migrate'", "migrate", "nosuch")
        q("getfd", "out", out.fd)
        os.close(out.fd)
        q("migrate", "out")
        self.until(q, "pre-switchover")
        self.assertEqual(PRE_SWITCHOVER, q("migration")["state"])
        q.fails("busy", "migration is under way", "save_check")
        q("continue")
        self.until(q, "completed")
        done = q("migration")
        self.assertEqual((COMPLETED, ""), (done["state"], done["error"]))
        self.assertGreater(done["total"], 64 * MIB)
        # 10.0 says "completed" a little before it has left finish-migrate.
        deadline = time.monotonic() + 5
        while q("status")["state"] == "finish-migrate" and \
                time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual("postmigrate", q("status")["state"])
        q("closefd", "out")
        q("close")  # with its copy of the pipe's end
        q.end()
        stream = out.content()
        self.assertEqual(b"QEVM", stream[:4])
        self.load(vm, stream)

    def load(self, vm, stream):
        """Into another QEMU."""
        vm.cmd("quit")
        vm.process.wait(10)
        other = self.firmware("-incoming", "defer", name="other")
        with open(other.path("stream"), "wb") as f:
            f.write(stream)
        fd = fed_pipe(self, other.path("stream"))
        q = self.calls(other, (fd,))
        q("caps", ["events", True])
        q("getfd", "in", fd)
        q("incoming", "in")
        self.until(q, "completed")
        self.assertEqual("paused", q("status")["state"])

    def test_a_bad_stream_does_not_end_a_qemu_that_can_stay(self):
        if QEMU_VERSION == "7.2":
            self.skipTest("QEMU 7.2 always exits when a load fails")
        bad = os.path.join(self.tmp, "bad")
        with open(bad, "wb") as f:
            f.write(b"no stream at all")
        fd = fed_pipe(self, bad)
        vm = self.firmware("-incoming", "defer")
        q = self.calls(vm, (fd,))
        q("caps", ["events", True])
        q("getfd", "in", fd)
        q("incoming", "in")
        self.until(q, "failed")
        state = q("migration")
        self.assertEqual(FAILED, state["state"])
        self.assertNotEqual("", state["error"])

    def test_a_background_snapshot_and_the_states_it_would_abort_in(self):
        out = Pipe(self, "stream")
        vm = self.firmware()
        q = self.calls(vm, (out.fd,))
        q("caps", ["events", True], ["background-snapshot", True])
        q("getfd", "out", out.fd)
        q.fails("precondition", "a VM that is 'prelaunch' would make QEMU abort",
                "migrate", "out")
        q("cont")
        q("drop_events")
        q("migrate", "out")
        self.until(q, "completed")
        self.assertEqual("running", q("status")["state"])
        os.close(out.fd)
        q.end()
        self.assertEqual(b"QEVM", out.content()[:4])

    def test_a_migration_is_cancelled(self):
        out, fd = os.pipe()  # nobody reads
        vm = self.firmware()
        q = self.calls(vm, (fd,))
        q("cancel")
        q("caps", ["events", True])
        q("cont")
        q("getfd", "out", fd)
        q("migrate", "out")
        self.until(q, "active")
        q("cancel")
        os.close(out)
        os.close(fd)
        self.assertEqual("cancelled", self.until(q, "cancelled", "failed"))
        self.assertEqual(CANCELLED, q("migration")["state"])
        self.assertEqual("running", q("status")["state"])

    def test_vm_state_comes_back_inside_the_process(self):
        self.images("qcow2 @state.qcow2 64M")
        vm = self.firmware()
        q = self.calls(vm)
        q("add", {"node": "vmstate", "driver": "qcow2",
                  "path": vm.path("state.qcow2")})
        before = vm.physical(0, MIB)
        vm.cmd("snapshot-save", job_id="save", tag="one", vmstate="vmstate",
               devices=["vmstate"])
        q("job_finish", "save", 30000)
        q("cont")
        time.sleep(1)  # the firmware writes into the first MiB
        q("stop", 5000)
        self.assertNotEqual(before, vm.physical(0, MIB))
        q("snapshot_load", "load", "one", "vmstate")
        q("job_finish", "load", 30000)
        self.assertEqual(before, vm.physical(0, MIB))
        self.assertIn(q("status")["state"], ("paused", "prelaunch"))
        q("snapshot_load", "load", "nosuch", "vmstate")
        q.fails("failed", "job 'load' failed", "job_finish", "load", 30000)
        q("del", "vmstate")

    # ----------------------------------------------------------------- the socket

    def test_clients_that_wait_in_line_are_told(self):
        vm = self.firmware()
        q = self.calls(vm)
        others = [Calls(self) for _ in range(4)]
        for other in others:
            begun = time.monotonic()
            error = other.fails("busy", "another client holds the QMP socket",
                                "open", vm.qmp, 400)
            self.assertLess(time.monotonic() - begun, 5)
            self.assertNotEqual("", error["hint"])
        self.assertEqual("prelaunch", q("status")["state"])
        q("close")
        others[0]("open", vm.qmp, 10000)

    def test_the_process_is_found_behind_a_passed_socket(self):
        """SO_PEERCRED names who called listen(): here the test, as a
        management daemon would."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.join(self.tmp, "passed.sock"))
        listener.listen(1)
        self.addCleanup(listener.close)
        with open(os.path.join(self.tmp, "log"), "wb") as log:
            qemu = subprocess.Popen(
                [QEMU, "-S", "-machine", "none", "-nodefaults", "-display",
                 "none", "-name", self.tmp, "-chardev",
                 "socket,id=m,server=on,wait=off,fd=%d" % listener.fileno(),
                 "-mon", "chardev=m,mode=control"], stdout=log, stderr=log,
                pass_fds=(listener.fileno(),))
        self.addCleanup(qemu.wait)
        self.addCleanup(qemu.kill)
        q = Calls(self)
        q("open", os.path.join(self.tmp, "passed.sock"), 10000)
        self.assertEqual(qemu.pid, q("pid"))
