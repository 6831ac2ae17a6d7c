# SPDX-License-Identifier: MIT
"""Nobody reads standard error: a full pipe, a terminal after Ctrl-S. The guest
does not wait for whoever it is."""

import fcntl
import os
import subprocess
import time

from lib.case import Case


class Unread(Case):
    limit = 100
    cost = 5

    def full_pipe(self):
        r, w = os.pipe()
        self.addCleanup(os.close, r)
        fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(w, False)
        try:
            while True:
                os.write(w, b"x")
        except BlockingIOError:
            os.set_blocking(w, True)
        return r, w

    def start(self, *args):
        """The process behind a full pipe, and the pipe's reading end."""
        r, w = self.full_pipe()
        p = subprocess.Popen(self.q.argv(args), stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=w)
        os.close(w)
        return p, r

    def wait_published(self, name):
        """The work is done, though the command has yet to say so."""
        deadline = time.monotonic() + 60
        while self.q.names("vm") != [name]:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def said(self, p, r):
        with os.fdopen(os.dup(r)) as f:
            text = f.read().lstrip("x")
        self.assertEqual(0, p.wait(20), text)
        return text

    def test_a_note_between_freeze_and_thaw(self):
        self.tiny_vm_with_agent()

        def half(name):
            return [{}] * 4 if name == "guest-get-fsinfo" else None
        self.agent.behave = half
        p, r = self.start("create", "vm", "one", "--quiesce")
        self.agent.wait_thawed()
        self.wait_published("one")
        self.assertIn("froze 2 of 4", self.said(p, r))

    def test_progress_while_the_guest_is_stopped(self):
        vm = self.tiny_vm()
        p, r = self.start("-v", "create", "vm", "one", "--memory", "--mode",
                          "paused", "--bwlimit", "4M")
        self.wait_published("one")
        self.assertEqual("running", vm.state())
        self.assertIn("memory: ", self.said(p, r))
