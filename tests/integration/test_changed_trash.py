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


class Merged(Changed):
    """Layers of snapshots that stay, which a merge would write to."""

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
