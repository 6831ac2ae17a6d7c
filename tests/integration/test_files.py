# SPDX-License-Identifier: MIT
"""What a QEMU that is started again reads: a file that is not there is found
while there is still a VM to lose."""

import glob
import os
import pwd
import shlex
import shutil
import socket
import subprocess

from lib.case import QEMU, QEMU_VERSION, Case


class Files(Case):
    either = True
    cost = 20

    def file(self, name, size=4096):
        path = os.path.join(self.tmp, name)
        with open(path, "wb") as f:
            f.write(b"\x55\xaa" + b"\0" * (size - 2))
        return path

    def qcow2(self, name, below, fmt):
        path = os.path.join(self.tmp, name)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", fmt,
                        "-b", below, path], check=True)
        return path

    def bios(self):
        """A copy of the BIOS that this QEMU takes by itself."""
        root = os.path.join(os.path.dirname(os.path.realpath(QEMU)), "root")
        for place in (root, "/"):
            for path in glob.glob(place + "/usr/share/*/bios-256k.bin"):
                return shutil.copy(path, os.path.join(self.tmp, "my.bin"))
        self.skipTest("the BIOS of %s is not found" % QEMU)

    def missing(self, vm, *paths):
        """Each of them, moved away: said before anything is ended."""
        pid = vm.pid()
        for path in paths:
            with self.subTest(path=os.path.basename(path)):
                os.rename(path, path + ".away")
                try:
                    self.told(vm, pid, os.path.basename(path) + " is gone")
                    os.mkdir(path)
                    self.told(vm, pid, os.path.basename(path) +
                              " is a directory")
                    os.rmdir(path)
                finally:
                    os.rename(path + ".away", path)
                self.assertEqual([], self.q.check("vm")["problems"])

    def told(self, vm, pid, says):
        self.assertIn(says, str(self.q.check("vm")["problems"]))
        for force in ([], ["--force"]):
            self.q.fails("precondition|not-found|corrupt", says, "revert",
                         "vm", "one", "--restore", "eager", *force)
            self.assertEqual((pid, "running"), (vm.pid(), vm.state()))

    def test_what_stands_below_an_image(self):
        base = self.file("base.img", 2 << 20)
        golden = self.qcow2("golden.qcow2", base, "raw")
        top = self.disk(size=2 << 20, pattern=False)
        rest = self.file("cd.img", 1 << 20)
        link = 'json:{"driver":"qcow2","file":{"driver":"file",' \
            '"filename":"%s"}}' % self.qcow2("cd.qcow2", rest, "raw")
        cd = self.qcow2("cd.top.qcow2", link, "qcow2")
        ro = self.file("ro.img", 1 << 20)
        subprocess.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", golden,
                        top.path], check=True)
        vm = self.tiny_vm(disks=[top], extra=[
            "-drive", "if=none,readonly=on,id=cd,format=qcow2,file=" + cd,
            "-device", "ide-cd,drive=cd",
            "-drive", 'if=none,readonly=on,id=ro,file=json:{"driver":"raw",,'
            '"file":{"driver":"file",,"filename":"%s"}}' % ro,
            "-device", "virtio-blk,drive=ro"])
        self.q("create", "vm", "one", "--memory")
        self.missing(vm, golden, base, cd, rest,
                     os.path.join(self.tmp, "cd.qcow2"), ro)
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertEqual("running", vm.state())

    def test_data_in_other_files(self):
        """Of a base, of a read-only image, of what a qed stands on; named from
        where QEMU is, too."""
        top = self.disk(size=1 << 20, pattern=False)
        folder = os.path.dirname(top.path)

        def create(name, *args):
            path = os.path.join(self.tmp, name)
            subprocess.run(["qemu-img", "create", "-q", *args, path, "1M"],
                           check=True, cwd=folder)
            return path

        data = [os.path.join(self.tmp, name) for name in (
            "base.data", "cd.data", "vmdk-f001.vmdk", "node-f001.vmdk")]
        base = create("base.qcow2", "-f", "qcow2", "-o",
                      "data_file=" + data[0])
        near = create("near.qcow2", "-f", "qcow2", "-o", "data_file=near.data")
        ro = [("qcow2", create("cd.qcow2", "-f", "qcow2", "-o",
                               "data_file=" + data[1])),
              ("qcow2", near),
              ("qed", create("old.qed", "-f", "qed", "-F", "qcow2", "-b",
                             base)),
              ("vmdk", create("vmdk.vmdk", "-f", "vmdk", "-o",
                              "subformat=twoGbMaxExtentFlat"))]
        node = create("node.vmdk", "-f", "vmdk", "-o",
                      "subformat=twoGbMaxExtentFlat")
        subprocess.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", base,
                        top.path], check=True)
        words = ["-blockdev", "file,node-name=f,read-only=on,filename=" + node,
                 "-blockdev", "vmdk,node-name=v,read-only=on,file=f",
                 "-device", "virtio-blk,drive=v"]
        for i, (form, path) in enumerate(ro):
            words += ["-drive", "if=none,readonly=on,id=ro%d,format=%s,file=%s"
                      % (i, form, path), "-device", "virtio-blk,drive=ro%d" % i]
        vm = self.tiny_vm(disks=[top], extra=words)
        self.q("create", "vm", "one", "--memory")
        self.missing(vm, *data, os.path.join(folder, "near.data"))
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertEqual("running", vm.state())

    def test_what_qemu_opens_and_our_reader_does_not(self):
        """A base by a symbolic link, with its own base from there; one on a
        block device."""
        os.mkdir(os.path.join(self.tmp, "v3"))
        self.file("base.img", 2 << 20)
        os.rename(self.qcow2("golden-v3.qcow2", "base.img", "raw"),
                  os.path.join(self.tmp, "v3", "golden.qcow2"))
        link = os.path.join(self.tmp, "golden.qcow2")
        os.symlink("v3/golden.qcow2", link)
        device = None
        made = subprocess.run(["losetup", "--find", "--show", self.file(
            "lv", 4 << 20)], stdout=subprocess.PIPE, text=True)
        bases = [("link", link)]
        if made.returncode == 0:
            device = made.stdout.strip()
            self.addCleanup(subprocess.run, ["losetup", "-d", device])
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", device,
                            "2M"], check=True)
            bases.append(("device", device))
        for name, base in bases:
            with self.subTest(name):
                disk = self.disk(vm=name, size=2 << 20, pattern=False)
                subprocess.run(["qemu-img", "rebase", "-u", "-F", "qcow2",
                                "-b", base, disk.path], check=True)
                vm = self.tiny_vm(name, disks=[disk], extra=[
                    "-drive", "if=none,readonly=on,id=ro,format=qcow2,file=" +
                    base, "-device", "virtio-blk,drive=ro"])
                self.q("create", name, "one", "--memory")
                self.assertEqual([], self.q.check(name)["problems"])
                for way in ("inplace", "eager"):
                    self.q("revert", name, "one", "--restore", way)
                vm.quit()
                self.q("start", name)
                vm.quit()

    def as_nobody(self, name, mount=""):
        """Words that start a QEMU as nobody, with a group that no passwd tells
        of, and what a launcher needs for that."""
        if os.geteuid() != 0 or not shutil.which("setpriv"):
            self.skipTest("needs root, and setpriv")
        words = ["sh", "-c", mount + 'exec setpriv --reuid=65534 '
                 '--regid=65534 --groups=4711 "$@"', "-"]
        if mount:
            words = ["unshare", "-m"] + words
        wrapper = os.path.join(self.tmp, name + ".sh")
        with open(wrapper, "w") as f:
            f.write('#!/bin/sh\nexec %s %s "$@"\n' % (
                shlex.join(words), shlex.quote(QEMU)))
        os.chmod(wrapper, 0o755)
        os.chmod(self.tmp, 0o755)
        return wrapper, words

    def on_a_base(self, name, mount=""):
        """A VM whose base is for that group alone; with a launcher."""
        base = self.file(name + ".img", 2 << 20)
        os.chown(base, 0, 4711)
        os.chmod(base, 0o640)
        disk = self.disk(vm=name, size=2 << 20, pattern=False)
        subprocess.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", base,
                        disk.path], check=True)
        os.chmod(disk.path, 0o666)
        os.chmod(os.path.dirname(disk.path), 0o777)
        wrapper, words = self.as_nobody(name, mount.replace("BASE", base))
        vm = self.tiny_vm(name, attach=False, disks=[disk], qemu=wrapper)
        self.attach(vm, *self.launcher(before=words))
        self.q("create", name, "one", "--memory")
        return vm, base

    def test_rights_that_only_the_process_has(self):
        vm, base = self.on_a_base("vm")
        for way in ("inplace", "eager", "auto"):
            self.q("revert", "vm", "one", "--restore", way)
            self.assertEqual("running", vm.state())
        os.chmod(base, 0o600)
        self.q.fails("permission", "cannot be opened by the user of QEMU",
                     "revert", "vm", "one", "--restore", "eager")
        self.assertEqual("running", vm.state())

    def test_a_process_that_sees_other_files(self):
        """Nobody here can tell what it could open."""
        shown = self.file("shown.img", 2 << 20)
        os.chmod(shown, 0o644)
        vm, base = self.on_a_base("vm", "mount --bind %s BASE && " % shown)
        os.chmod(base, 0o600)
        for way in ("inplace", "eager"):
            self.q("revert", "vm", "one", "--restore", way)
            self.assertEqual("running", vm.state())

    def test_firmware_and_what_is_loaded(self):
        bios, rom = self.bios(), self.file("net.rom", 512)
        blob, conf = self.file("blob"), self.file("conf")
        secret, table = self.file("secret", 16), self.file("table")
        with open(table, "wb") as f:
            f.write(b"OEM1" + bytes([36, 0, 0, 0]) + b"\0" * 28)
        vm = self.tiny_vm(extra=[
            "-bios", bios, "-fw_cfg", "name=opt/conf,file=" + conf,
            "-device", "loader,addr=0x100000,force-raw=on,file=" + blob,
            "-device", "virtio-rng-pci,romfile=" + rom,
            "-acpitable", "file=" + table,
            "-object", '{"qom-type":"secret","id":"s","file":"%s"}' % secret])
        self.q("create", "vm", "one", "--memory")
        self.missing(vm, bios, rom, blob, conf, secret, table)
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertEqual("running", vm.state())

    def test_what_it_makes(self):
        """Its sockets, its logs, its pid file: in /run, say, which somebody
        has emptied."""
        for n, (words, name) in enumerate((
                (["-pidfile", "%s/pid"], "pid"), (["-D", "%s/log"], "log"),
                (["-chardev", "file,id=c,path=%s/c"], "c"),
                (["-chardev", "socket,id=c,server=on,wait=off,path=%s/s"], "s"),
                (["-chardev", "null,id=c,logfile=%s/l"], "l"),
                (["-serial", "unix:%s/t,server,nowait"], "t"),
                (["-monitor", "unix:%s/m,server=on,wait=off"], "m"),
                (["-vnc", "unix:%s/vnc"], "vnc"),
                (["-netdev", "stream,id=n,server=on,addr.type=unix,"
                  "addr.path=%s/n"], "n"),
                (["-netdev", "dgram,id=n,local.type=unix,local.path=%s/g,"
                  "remote.type=unix,remote.path=%s/r"], "g"),
                (["-serial", "file:%s/out"], "out"))):
            with self.subTest(words[0], name=name):
                self.made("vm%d" % n, words, name)

    def test_spice_by_a_socket(self):
        helped = subprocess.run([QEMU, "-spice", "help"], text=True,
                                stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
        if "addr" not in helped.stdout:
            self.skipTest("this QEMU has no spice")
        self.made("vm", ["-spice", "unix=on,addr=%s/spice,"
                         "disable-ticketing=on"], "spice")

    def made(self, vm, words, name):
        """`name` is what QEMU makes in %s."""
        run = os.path.join(self.tmp, "run")
        os.makedirs(run, exist_ok=True)
        vm = self.tiny_vm(vm, extra=[w.replace("%s", run) for w in words])
        self.q("create", vm.name, "one", "--memory")
        self.assertEqual([], self.q.check(vm.name)["problems"])
        os.rename(run, run + ".away")
        pid = vm.pid()
        says = name + " cannot be made: its directory is gone"
        self.assertIn(says, str(self.q.check(vm.name)["problems"]))
        self.q.fails("precondition", says, "revert", vm.name, "one",
                     "--restore", "eager")
        self.assertEqual((pid, "running"), (vm.pid(), vm.state()))
        os.rename(run + ".away", run)
        self.q("revert", vm.name, "one", "--restore", "eager")
        vm.quit()

    def test_what_it_talks_to(self):
        """Pipes and sockets of others; and what it may do without."""
        run = os.path.join(self.tmp, "run")
        # in milliseconds since 9.2, and only so from 11.0 on
        again = "reconnect=1" if QEMU_VERSION.startswith("7.") \
            else "reconnect-ms=1000"
        for n, (words, gone) in enumerate((
                (["-chardev", "pipe,id=c,path=%s/p"], "p"),
                (["-serial", "pipe:%s/q"], "q"),
                (["-chardev", "socket,id=c,path=%s/s"], "s"),
                (["-serial", "unix:%s/s"], "s"),
                (["-chardev", "socket,id=c,path=%s/s," + again], None),
                (["-serial", "unix:%s/s," + again], None),
                (["-netdev", "stream,id=n,addr.type=unix,addr.path=%s/s"],
                 None))):
            with self.subTest(words=words):
                os.makedirs(run, exist_ok=True)
                for pipe in ("p.in", "p.out", "q"):
                    if not os.path.exists(os.path.join(run, pipe)):
                        os.mkfifo(os.path.join(run, pipe))
                with socket.socket(socket.AF_UNIX) as peer:
                    peer.bind(os.path.join(run, "s"))
                    peer.listen(4)
                    vm = self.tiny_vm("vm%d" % n, extra=[
                        w.replace("%s", run) for w in words])
                    self.q("create", vm.name, "one", "--memory")
                    self.assertEqual([], self.q.check(vm.name)["problems"])
                    os.rename(run, run + ".away")
                    pid = vm.pid()
                    if gone:
                        says = "run/%s is gone" % gone
                        self.assertIn(says, str(
                            self.q.check(vm.name)["problems"]))
                        self.q.fails("precondition", says, "revert", vm.name,
                                     "one", "--restore", "eager")
                        self.assertEqual((pid, "running"),
                                         (vm.pid(), vm.state()))
                        os.rename(run + ".away", run)
                    self.assertEqual([], self.q.check(vm.name)["problems"])
                    self.q("revert", vm.name, "one", "--restore", "eager")
                    self.assertEqual("running", vm.state())
                vm.quit()
                if not gone:
                    os.rename(run + ".away", run)
                os.unlink(os.path.join(run, "s"))

    def test_a_log_by_a_link(self):
        logs, link = (os.path.join(self.tmp, n) for n in ("logs", "link"))
        os.mkdir(logs)
        os.symlink(os.path.join(logs, "log"), link)
        vm = self.tiny_vm(extra=["-chardev", "file,id=c,path=" + link])
        self.q("create", "vm", "one", "--memory")
        os.unlink(os.path.join(logs, "log"))
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertTrue(os.path.exists(os.path.join(logs, "log")))
        os.rename(logs, logs + ".away")
        self.told(vm, vm.pid(), "link is a link: %s/log cannot be made: its "
                  "directory is gone" % logs)

    def test_a_log_that_root_made(self):
        """Before QEMU became another user, who has the folder; the pid file
        goes with the process."""
        if os.geteuid() != 0:
            self.skipTest("needs root")
        nobody = pwd.getpwnam("nobody").pw_uid
        disk = self.disk(size=2 << 20, pattern=False)
        folder = os.path.dirname(disk.path)
        for path in (folder, disk.path):
            os.chown(path, nobody, -1)
        os.chmod(self.tmp, 0o755)
        pidfile = os.path.join(folder, "pid")
        vm = self.tiny_vm(disks=[disk], extra=[
            "-pidfile", pidfile] + (
                ["-runas", "nobody"] if QEMU_VERSION.startswith("7.")
                else ["-run-with", "user=nobody"]))
        self.assertEqual(0, os.stat(pidfile).st_uid)
        log = vm.serial.path
        self.assertEqual(0, os.stat(log).st_uid)
        self.q("create", "vm", "one", "--memory")
        self.told(vm, vm.pid(), os.path.basename(log) +
                  " cannot be written by the user of QEMU")
        os.chown(log, nobody, -1)
        self.assertEqual([], [p for p in self.q.check("vm")["problems"]
                              if p["code"] == "not-startable"])
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertEqual("running", vm.state())
        # one that died left its pid file, which was made by root
        vm.quit()
        with open(pidfile, "w"):
            pass
        os.chown(pidfile, 0, -1)
        self.q.fails("precondition", "pid cannot be written by the user of "
                     "QEMU", "start", "vm")
        os.unlink(pidfile)
        self.q("start", "vm")

    def test_a_tap_without_its_downscript(self):
        """QEMU runs it when it ends, and says that it could not."""
        if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
            self.skipTest("needs root, and /dev/net/tun")
        vm = self.tiny_vm(extra=[
            "-netdev", "tap,id=t,ifname=qst%d,script=no,downscript=/no/such" %
            (os.getpid() % 100000)])
        self.q("create", "vm", "one", "--memory")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertEqual("running", vm.state())

    def test_firmware_that_qemu_finds_itself(self):
        """By its name alone; and in a directory of -L."""
        own = os.path.join(self.tmp, "own")
        os.mkdir(own)
        shutil.copy(self.bios(), os.path.join(own, "mine.bin"))
        # from the VM's folder, where QEMU is, and qstill is not
        vm = self.tiny_vm(extra=["-L", "../own", "-bios", "mine.bin", "-device",
                                 "VGA,romfile=vgabios-stdvga.bin"])
        self.q("create", "vm", "one", "--memory")
        self.assertEqual([], self.q.check("vm")["problems"])
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertEqual("running", vm.state())
