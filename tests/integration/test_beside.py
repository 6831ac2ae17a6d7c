# SPDX-License-Identifier: MIT
"""verify and check beside another qstill: what that one is at work on is not
taken for damage."""

import fcntl
import os
import threading

from lib.case import Case
from lib.tiny import content


class Beside(Case):
    either = True
    cost = 15

    def setUp(self):
        super().setUp()
        self.vm = self.tiny_vm(disks=[self.disk("disk0", size=2 << 20,
                                                pattern=False)])
        for n, name in enumerate(("keep", "x0", "leaf")):
            self.vm.write(self.vm.disks[0], n, n + 1)
            self.q("create", "vm", name)

    def layer(self, name):
        (path, _), = self.frozen(self.vm, name).values()
        return path

    def test_what_looks_changed_while_one_is_at_work(self):
        """Only what is found while nobody is, is damage."""
        path = self.layer("leaf")
        st = os.stat(path)
        self.unprotect(path)
        os.utime(path, (1, 1))
        with open(os.path.join(self.store, "vm", "lock"), "r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            lock.write("%d 0 %s boot delete\n" % (os.getpid(),
                                                  os.uname().nodename))
            lock.flush()
            for verb in (("verify", "vm", "leaf"), ("check", "vm")):
                failure = self.q.fails("busy", "qstill delete", *verb)
                self.assertEqual("try again when it is done", failure.hint)
            self.q("verify", "vm", "keep")
            lock.truncate(0)
        self.q.fails("corrupt", "written to after", "verify", "vm", "leaf")
        self.assertEqual({"layer-changed"}, {
            p["code"] for p in self.q.check("vm")["problems"]})
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        self.q("verify", "vm", "leaf")
        self.assertEqual([], self.q.check("vm")["problems"])

    def test_in_a_loop(self):
        self.vm.quit()
        done, said, looks = threading.Event(), [], [0]

        def watch():
            while not done.is_set():
                for verb in (["verify", "vm", "leaf"], ["verify", "vm", "keep"],
                             ["check", "vm"]):
                    p = self.q.start(*verb)
                    out, err = p.communicate(timeout=60)
                    looks[0] += 1
                    if p.returncode not in (0, 5):
                        said.append((p.returncode, out, err))

        def do(*argv):
            for _ in range(200):  # a look may have the lock for a moment
                status, _, err = self.q._run(argv)
                if status != 5:
                    break
            self.assertEqual(0, status, err)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(12):
                do("delete", "vm", "x0", "--keep-trash", "1")
                do("undo", "vm")
                do("delete", "vm", "x0")
                do("revert", "vm", "leaf", "--keep-trash", "0")
                do("create", "vm", "x0")
        finally:
            done.set()
            watcher.join()
        self.assertEqual([], said)
        self.assertGreater(looks[0], 10)
        for name, want in (("keep", [1, 0, 0]), ("leaf", [1, 2, 3])):
            self.assertEqual(want, content(self.layer(name), "qcow2")[:3])
