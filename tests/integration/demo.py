# SPDX-License-Identifier: MIT
"""make demo: the main job on a real guest, step by step. Each step says what it
proves and stops the demo when it does not hold. Needs fixtures/deps.sh."""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TICK = re.compile(r"^tick (\d+) nonce=(\w+) up=[\d.]+$", re.M)


class Demo:
    def __init__(self, build):
        self.q = os.path.join(TOP, build, "qstill")
        self.dir = tempfile.mkdtemp(prefix="qstill-demo-")
        self.env = dict(os.environ, QSTILL_STORE=self.path("store"))
        self.began = time.time()
        self.steps = 0

    def path(self, name):
        return os.path.join(self.dir, name)

    def say(self, what):
        self.steps += 1
        print("\n== %d. %s" % (self.steps, what), flush=True)

    def proved(self, what, truth):
        if not truth:
            raise SystemExit("FAILED: " + what)
        print("   proved: " + what, flush=True)

    def run(self, *args):
        print("   $ qstill " + " ".join(args), flush=True)
        r = subprocess.run([self.q, *args], env=self.env, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for line in r.stdout.splitlines():
            print("   " + line)
        if r.returncode:
            raise SystemExit("FAILED: exit %d: %s" % (r.returncode, r.stderr))

    def ask(self, *args):
        out = subprocess.run([self.q, "--json", *args], env=self.env, text=True,
                             check=True, stdout=subprocess.PIPE)
        return json.loads(out.stdout)

    # ------------------------------------------------------------- the guest

    def start(self, guest):
        for name, fmt in (("root.qcow2", "qcow2"), ("data.raw", "raw")):
            subprocess.run(["qemu-img", "create", "-q", "-f", fmt,
                            self.path(name), "64M"], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "vdi",
                        self.path("blocker.vdi"), "1M"], check=True)
        argv = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg",
                "-cpu", "max", "-m", "256", "-nodefaults", "-display", "none",
                "-kernel", guest + "/vmlinuz", "-initrd", guest + "/initrd",
                "-append", "console=ttyS0 quiet loglevel=1 DISKS=2 JUNK=32 DIRTY=1",
                "-chardev", "file,id=ser,append=on,path=" + self.path("serial"),
                "-serial", "chardev:ser",
                "-qmp", "unix:%s,server=on,wait=off" % self.path("qmp"),
                "-drive", "file=%s,format=qcow2,if=none,id=root" % self.path("root.qcow2"),
                "-device", "virtio-blk-pci,drive=root,id=vda",
                "-blockdev", "driver=raw,node-name=data,file.driver=file,"
                "file.filename=" + self.path("data.raw"),
                "-device", "virtio-blk-pci,drive=data,id=vdb",
                # attached to nothing: QEMU then refuses to migrate this VM
                "-drive", "file=%s,format=vdi,if=none,id=blocker,readonly=on" %
                self.path("blocker.vdi")]
        with open(self.path("qemu.log"), "wb") as log:
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log,
                             stderr=log, cwd=self.dir)
        self.wait_ticks(0, 8)

    def serial(self, since=0):
        if not os.path.exists(self.path("serial")):
            return ""
        with open(self.path("serial"), "rb") as f:
            f.seek(since)
            return f.read().decode(errors="replace").replace("\r", "")

    def mark(self):
        return os.path.getsize(self.path("serial"))

    def wait_ticks(self, since, count, seconds=90):
        end = time.time() + seconds
        while time.time() < end:
            ticks = [(int(n), x) for n, x in TICK.findall(self.serial(since))]
            if len(ticks) >= count:
                return ticks
            time.sleep(0.05)
        raise SystemExit("FAILED: the guest prints no ticks")

    def after_revert(self, since, before):
        """The ticks behind the jump back; those in front are the old guest's."""
        end = time.time() + 60
        while time.time() < end:
            ticks = [(int(n), x) for n, x in TICK.findall(self.serial(since))]
            for i, (n, _) in enumerate(ticks):
                if n < before - 5 and len(ticks) > i + 3:
                    return ticks[i:]
            time.sleep(0.05)
        raise SystemExit("FAILED: the guest did not go back")

    def qemus(self):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/cmdline" % pid, "rb") as f:
                    words = f.read()
            except OSError:
                continue
            if b"qemu-system" in words and self.dir.encode() in words:
                yield int(pid)

    def end(self):
        for pid in self.qemus():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # frozen layers are immutable
        subprocess.run("chattr -R -f -i " + self.dir, shell=True, check=False,
                       stderr=subprocess.DEVNULL)
        shutil.rmtree(self.dir, ignore_errors=True)

    # -------------------------------------------------------------- the steps

    def show(self, guest):
        self.say("A Linux guest with two disks, one qcow2 and one raw, in QEMU under TCG")
        self.start(guest)
        nonce = self.wait_ticks(0, 8)[-1][1]
        print("   it ticks; its nonce %s is in its RAM alone" % nonce)

        self.say("attach: one socket is all that is needed")
        self.run("attach", "web1", "--qmp", self.path("qmp"))
        self.run("check", "web1", "--memory")
        modes = self.ask("check", "web1", "--memory")["captureModes"]
        self.proved("QEMU itself refuses to migrate this VM",
                    "migrat" in (modes["precopy"] or ""))

        self.say("create: disks and live memory at one instant")
        since = self.mark()
        self.run("create", "web1", "clean", "--memory", "--description", "before the damage")
        clean = self.ask("info", "web1", "clean")
        going = self.wait_ticks(since, 5)
        self.proved("captured all the same, in mode %s; the guest was paused for %.0f ms "
                    "and runs on" % (clean["mode"], clean["pauseMs"]),
                    clean["memoryIncluded"] and going[-1][0] > going[0][0])

        self.say("the guest goes on: its RAM and its disks change")
        late = self.wait_ticks(self.mark(), 25)[-1][0]
        print("   it is at tick %d" % late)

        self.say("revert: the guest is back, not booted")
        since = self.mark()
        self.run("revert", "web1", "clean")
        back = self.after_revert(since, late)
        words = self.serial(since)
        self.proved("its ticks go on at %d, with the same nonce: no boot can do that" % back[0][0],
                    back[0][0] < late and {x for _, x in back} == {nonce})
        self.proved("its disks hold what its memory expects, and no page of RAM is wrong",
                    "DISK-MISMATCH" not in words and not re.search(r"bad=[1-9]", words))

        self.say("branches: another snapshot on top, back to the first, a third")
        self.run("create", "web1", "left", "--memory")
        self.run("revert", "web1", "clean", "--restore", "eager")
        self.run("create", "web1", "right")
        self.run("list", "web1", "--tree")
        kids = self.ask("info", "web1", "clean")["children"]
        self.proved("two children of one snapshot", len(kids) == 2)

        self.say("delete: the root of the tree, while the VM runs; then all the rest")
        since = self.mark()
        self.run("delete", "web1", "clean")
        self.run("list", "web1", "--tree")
        self.run("verify", "web1", "left")
        self.run("delete", "web1", "left", "right")
        left = self.ask("list", "web1")["snapshots"]
        ticks = self.wait_ticks(since, 5)
        self.proved("nothing is listed, the guest still ticks with its nonce",
                    not left and {x for _, x in ticks} == {nonce})
        heads = [subprocess.run([self.q, "path", "web1", d], env=self.env, text=True,
                                check=True, stdout=subprocess.PIPE).stdout.strip()
                 for d in ("vda", "vdb")]
        self.proved("the disks are single images again, at their first paths",
                    heads == [self.path("root.qcow2"), self.path("data.raw")])
        self.proved("no file is left over",
                    not [f for f in os.listdir(self.dir) if f.count(".") > 1])
        self.run("detach", "web1")
        print("\nAll %d steps hold, in %.0f s." % (self.steps, time.time() - self.began))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--build", default="build")
    args = p.parse_args()
    guest = subprocess.run(["sh", os.path.join(TOP, "fixtures/guest.sh"),
                            os.path.join(TOP, args.build, "guest")],
                           check=True, text=True, stdout=subprocess.PIPE).stdout.split()[-1]
    demo = Demo(args.build)
    try:
        demo.show(guest)
    finally:
        demo.end()


if __name__ == "__main__":
    sys.exit(main())
