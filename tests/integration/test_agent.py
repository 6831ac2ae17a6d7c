# SPDX-License-Identifier: MIT
"""create --quiesce with agents that do not behave: whatever they do, the guest
is not left frozen, and the VM runs."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time

from lib.agent import FakeAgent
from lib.case import Case
from lib.qmp import QMP
from lib.vm import Disk

FREEZE, THAW = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"
STATUS = "guest-fsfreeze-status"


class BadAgent(Case):
    either = True
    cost = 30

    def setUp(self):
        super().setUp()
        self.tiny_vm_with_agent()

    def once(self, command, what, times=1):
        """`what` for the first calls of `command`, good behaviour then."""
        left = [times]

        def behave(name):
            if name != command or left[0] == 0:
                return None
            left[0] -= 1
            return what() if callable(what) else what
        self.agent.behave = behave

    def fails(self, code, message, *more):
        with self.nothing_changes(self.vm):
            begun = time.monotonic()
            failure = self.q.fails(code, message, "create", "vm", "one",
                                   "--quiesce", "--freeze-timeout-ms", "500",
                                   *more)
            self.assertLess(time.monotonic() - begun, 30)
        self.agent.wait_thawed()
        self.assertEqual("running", self.vm.state())
        return failure

    def manifest(self, name):
        with open(self.q.manifest_path("vm", self.q.info("vm", name)["id"])) \
                as f:
            return json.load(f)

    def test_one_that_behaves(self):
        for name, more in (("disk", []), ("memory", ["--memory"])):
            self.assertTrue(self.q("create", "vm", name, "--quiesce",
                                   *more)["quiesced"])
            m = self.manifest(name)
            self.assertEqual((2, 2), (m["frozenFilesystems"],
                                      m["mountedFilesystems"]))
            self.assertGreater(m["frozenMs"], 0)
            self.assertFalse(self.agent.frozen)

    def test_precopy_says_how_long_it_is_frozen(self):
        for mode in ("precopy", "background"):
            self.q("create", "vm", mode, "--quiesce", "--memory", "--mode",
                   mode)
            (self.assertIn if mode == "precopy" else self.assertNotIn)(
                "frozen for as long as its memory is copied", self.q.stderr)

    def test_one_that_froze_and_never_says_so(self):
        def silent():
            self.agent.frozen = True
            return FakeAgent.SILENT
        for more in ([], ["--memory"]):
            self.once(FREEZE, silent)
            self.fails("unreachable", "not answered", *more)

    def test_one_that_answers_too_late(self):
        def late():
            time.sleep(1.5)
        self.once(FREEZE, late)
        self.fails("unreachable", "not answered")

    def test_one_that_dies_in_the_freeze(self):
        def dies():
            self.agent.frozen = True
            return FakeAgent.DIE
        self.once(FREEZE, dies)
        self.fails("unreachable|failed", "freezing the guest")

    def test_one_that_says_frozen_and_is_not(self):
        self.once(FREEZE, 2)
        self.fails("failed", "froze 2 filesystems, but its status is thawed")

    def test_one_that_dies_or_lies_in_the_thaw_is_asked_again(self):
        for what in (FakeAgent.DIE, 2):
            self.once(THAW, what)
            self.assertTrue(self.q("create", "vm", "one",
                                   "--quiesce")["quiesced"])
            self.assertFalse(self.agent.frozen)
            self.q("delete", "vm", "one")

    def test_one_that_does_not_thaw_is_not_given_up(self):
        self.once(THAW, 2, times=1000)
        self.q.fails("failed", "still frozen", "create", "vm", "one",
                     "--quiesce")
        self.assertTrue(self.agent.frozen)
        self.assertEqual("running", self.vm.state())
        self.assertFalse(os.path.exists(self.q.journal_path("vm")))
        self.assertEqual([], self.q.names("vm"))
        self.assertIn("may still be frozen", self.q.stderr)
        self.agent.behave = lambda name: None
        self.q("recover", "vm")
        self.assertFalse(self.agent.frozen)

    def test_the_thaw_that_failed_is_in_the_hint_of_any_failure(self):
        self.once(THAW, 2, times=1000)
        failure = self.q.fails("precondition", "the pause would have been",
                               "create", "vm", "one", "--quiesce", "--memory",
                               "--mode", "paused", "--max-pause-ms", "1")
        self.assertIn("--max-pause-ms", failure.hint)
        self.assertIn("frozen", failure.hint)
        self.assertIn("qstill recover vm", failure.hint)
        self.agent.behave = lambda name: None
        self.q("recover", "vm")
        self.assertFalse(self.agent.frozen)

    def test_one_that_freezes_only_some(self):
        self.once("guest-get-fsinfo", [{}, {}, {}])
        self.q("create", "vm", "one", "--quiesce")
        self.assertIn("the guest agent froze 2 of 3 filesystems",
                      self.q.stderr)
        self.assertEqual(3, self.manifest("one")["mountedFilesystems"])

    def test_a_paused_vm_is_not_asked(self):
        self.pause(self.vm)
        self.assertFalse(self.q("create", "vm", "one",
                                "--quiesce")["quiesced"])
        self.assertIn("paused: it is not quiesced", self.q.stderr)
        self.assertTrue(self.q.check("vm", "--quiesce")["ok"])
        self.assertNotIn(FREEZE, self.agent.seen)
        self.cont(self.vm)


class SomebodyElse(Case):
    """A backup has frozen the guest: that is not ours to end."""
    either = True
    cost = 20

    def setUp(self):
        super().setUp()
        self.tiny_vm_with_agent()

    def refused(self, *more):
        with self.nothing_changes(self.vm):
            failure = self.q.fails("busy", "somebody else has frozen the guest",
                                   "create", "vm", "one", "--quiesce", *more)
        self.assertIn("backup", failure.hint)
        self.assertTrue(self.agent.frozen)
        self.assertNotIn(THAW, self.agent.seen)

    def test_a_guest_that_is_frozen_is_left_so(self):
        self.agent.frozen = True
        for more in ([], ["--memory"]):
            self.refused(*more)
        self.assertNotIn(FREEZE, self.agent.seen)
        self.assertIn("somebody else has frozen the guest",
                      str(self.q.check("vm", "--quiesce")["problems"]))
        self.assertFalse(self.q("create", "vm", "one")["quiesced"])

    def test_its_memory_is_thawed_after_a_revert(self):
        self.agent.frozen = True
        self.assertFalse(self.q("create", "vm", "one", "--memory")["quiesced"])
        self.assertIn("frozen already: a revert to the snapshot", self.q.stderr)
        self.assertNotIn(THAW, self.agent.seen)
        self.q("revert", "vm", "one")
        self.assertFalse(self.agent.frozen)

    def test_an_agent_that_hangs_does_not_hold_up_a_create(self):
        self.agent.behave = lambda name: FakeAgent.SILENT
        begun = time.monotonic()
        self.q("create", "vm", "one", "--memory")
        self.assertLess(time.monotonic() - begun, 4)
        self.agent.seen.clear()
        self.agent.behave = lambda name: None
        self.q("revert", "vm", "one")
        self.assertEqual([], self.agent.seen)

    def test_one_who_is_faster_than_we(self):
        def behave(name):
            self.agent.frozen = self.agent.frozen or name == FREEZE
        for more in ([], ["--memory"]):
            self.agent.frozen = False
            self.agent.behave = behave
            self.refused(*more)

    def test_a_freeze_that_is_refused_freezes_nothing(self):
        self.agent.behave = lambda name: self.agent.refusal(
            "The command %s has been disabled" % name) \
            if name == FREEZE else None
        with self.nothing_changes(self.vm):
            self.q.fails("precondition", "has been disabled", "create", "vm",
                         "one", "--quiesce")
        self.assertNotIn(THAW, self.agent.seen)

    def test_recovery_leaves_it_when_we_had_thawed(self):
        def thawed():
            with contextlib.suppress(FileNotFoundError), \
                    open(self.q.journal_path("vm")) as f:
                return THAW in self.agent.seen and \
                    not json.load(f)["freezing"]
        p = self.q.start("create", "vm", "one", "--quiesce")
        deadline = time.monotonic() + 20
        while not thawed():
            self.assertIsNone(p.poll())
            self.assertLess(time.monotonic(), deadline, self.agent.seen)
        p.kill()
        self.assertEqual(-signal.SIGKILL, p.wait())
        self.agent.frozen = True
        self.q("recover", "vm")
        self.assertTrue(self.agent.frozen)


class Owed(Case):
    """A guest that could not be thawed hinders nobody, and is not forgotten.
    """
    either = True
    cost = 30

    def setUp(self):
        super().setUp()
        self.tiny_vm_with_agent()
        self.q("create", "vm", "one", "--quiesce", "--memory")
        # The fake one keeps its flag outside the guest's memory.
        self.agent.frozen = True
        self.agent.seen.clear()

    def lie(self):
        self.agent.behave = lambda name: 2 if name == THAW else None

    def owed(self):
        self.assertFalse(os.path.exists(self.q.journal_path("vm")))
        with open(os.path.join(self.store, "vm", "vm.json")) as f:
            return json.load(f)["thawOwed"]

    def revert_unthawed(self):
        self.lie()
        failure = self.q.fails("failed", "is reverted, but its guest is still "
                               "frozen", "revert", "vm", "one")
        self.assertIn("qstill recover vm", failure.hint)
        self.assertEqual("running", self.vm.state())
        self.assertEqual({"pid": self.vm.pid(),
                          "pidStart": self.vm.pid_start()}, self.owed())

    def test_all_verbs_work_and_say_so(self):
        self.revert_unthawed()
        for argv in (["list", "vm"], ["create", "vm", "two"],
                     ["info", "vm", "two"], ["rename", "vm", "two", "three"],
                     ["delete", "vm", "three"], ["verify", "vm", "one"]):
            with self.subTest(verb=argv[0]):
                begun = time.monotonic()
                self.q(*argv)
                self.assertIn("may still be frozen", self.q.stderr)
                self.assertLess(time.monotonic() - begun, 5)
        self.assertEqual(["frozen"], [p["code"] for p in
                                      self.q.check("vm")["problems"]])
        failure = self.q.fails("unreachable", "may still be frozen",
                               "recover", "vm")
        self.assertIn("fsfreeze -u", failure.hint)
        self.q.fails("failed", "still frozen", "revert", "vm", "one")
        self.assertTrue(self.agent.frozen)
        self.agent.behave = lambda name: None
        self.q.snapshots("vm")
        self.assertIn("is thawed now", self.q.stderr)
        self.assertFalse(self.agent.frozen)
        self.assertIsNone(self.owed())
        self.q("recover", "vm")

    def test_one_whose_agent_hangs_costs_a_verb_two_seconds(self):
        self.revert_unthawed()
        self.agent.behave = lambda name: FakeAgent.SILENT
        begun = time.monotonic()
        self.q.snapshots("vm")
        self.assertLess(time.monotonic() - begun, 4)
        self.assertIsNotNone(self.owed())

    def test_memory_taken_meanwhile_is_thawed_after_a_revert(self):
        self.revert_unthawed()
        self.q("create", "vm", "two", "--memory")
        self.agent.behave = lambda name: None
        self.q.snapshots("vm")
        self.assertFalse(self.agent.frozen)
        self.agent.frozen = True
        self.q("revert", "vm", "two")
        self.assertFalse(self.agent.frozen)

    def test_without_an_agent_nobody_is_dunned(self):
        path = os.path.join(self.store, "vm", "vm.json")
        with open(path) as f:
            record = json.load(f)
        record["agent"] = None
        with open(path, "w") as f:
            json.dump(record, f)
        with self.nothing_changes(self.vm):
            self.q.fails("precondition", "no guest agent socket", "revert",
                         "vm", "one")
        self.q("revert", "vm", "one", "--force")
        self.assertIn("thaw it by hand", self.q.stderr)
        self.assertIsNone(self.owed())

    def test_a_new_qemu_is_not_frozen(self):
        self.revert_unthawed()
        self.vm.quit()
        self.q("start", "vm")
        self.assertIsNone(self.owed())
        self.agent.seen.clear()
        self.q("create", "vm", "two")
        self.assertEqual([], self.agent.seen)

    def test_a_revert_that_boots_owes_nothing(self):
        self.q("create", "vm", "two")
        self.revert_unthawed()
        self.q("revert", "vm", "two")
        self.assertIsNone(self.owed())

    def test_one_that_is_left_paused_is_thawed_when_it_runs(self):
        self.q("revert", "vm", "one", "--paused")
        self.assertIn("captured frozen", self.q.stderr)
        self.paused_on_purpose.add("vm")
        self.assertNotIn(THAW, self.agent.seen)
        self.assertIsNotNone(self.owed())
        self.cont(self.vm)
        self.q.snapshots("vm")
        self.assertIsNone(self.owed())
        self.assertFalse(self.agent.frozen)

    def test_no_socket_to_thaw_through_is_told_before_anything(self):
        self.agent.close()
        self.assertEqual(["agent"], [p["code"] for p in
                                     self.q.check("vm")["problems"]])
        with self.nothing_changes(self.vm):
            failure = self.q.fails("unreachable", "captured frozen, and there "
                                   "is no guest agent socket", "revert", "vm",
                                   "one")
            self.assertIn("--force", failure.hint)
        self.q.fails("unreachable", "is reverted, but its guest is still "
                     "frozen", "revert", "vm", "one", "--force")
        self.assertIsNotNone(self.owed())
        self.q("delete", "vm", "one")

    def test_one_that_does_not_answer_today_is_reverted(self):
        """It may be what the revert is for."""
        def behave(name):
            return FakeAgent.SILENT if self.vm.pid() == pid and \
                THAW not in self.agent.seen and silent else None
        silent, pid = True, self.vm.pid()
        self.agent.behave = behave
        self.q("revert", "vm", "one", "--restore", "eager")
        self.assertIn("has not answered", self.q.stderr)
        self.assertFalse(self.agent.frozen)
        self.assertIsNone(self.owed())


class Early(Case):
    """Somebody thaws what we have frozen."""
    either = True
    cost = 10

    def test_the_snapshot_is_not_called_quiesced(self):
        self.tiny_vm_with_agent()

        def behave(name):
            if name != STATUS or not self.agent.frozen:
                return None
            self.agent.frozen = False
            return "frozen"
        for name, more in (("disk", []), ("memory", ["--memory"])):
            self.agent.behave = behave
            self.assertFalse(self.q("create", "vm", name, "--quiesce",
                                    *more)["quiesced"])
            self.assertIn("thawed by somebody else, before", self.q.stderr)
        # its memory may be of a frozen guest all the same
        self.agent.behave = lambda name: None
        self.agent.frozen = True
        self.q("revert", "vm", "memory")
        self.assertFalse(self.agent.frozen)


class SlowStorage(Case):
    """It hangs with a write of the guest's under way, and QEMU in its `stop`."""
    either = True
    idle = True
    limit = 300

    def test_a_stop_that_comes_late_is_followed_by_cont(self):
        slow = os.path.join(self.tmp, "slow")
        self.mount_ext4(slow, "200M")
        disk = Disk("disk0", os.path.join(slow, "disk0.img"), "raw",
                    pattern=False, make=False)
        with open(disk.path, "wb") as f:  # each first write needs a block
            f.truncate(64 << 20)
        vm = self.running_vm(append="SYNC=vda SYNCMS=2", disks=[disk],
                             attach=False)
        agent = FakeAgent(os.path.join(vm.dir, "ga.sock"))
        self.addCleanup(agent.close)
        self.attach(vm, "--agent", agent.path)

        def behave(name):
            if name == STATUS and agent.frozen and not stuck.is_set():
                stuck.set()
                subprocess.run(["fsfreeze", "-f", slow], check=True)
                time.sleep(0.5)  # the guest goes on to write
            if name == THAW and not later:
                later.append(threading.Timer(120, thaw))
                later[0].start()

        def thaw():
            subprocess.run(["fsfreeze", "-u", slow], stderr=subprocess.DEVNULL)
        stuck, later = threading.Event(), []
        self.addCleanup(thaw)
        agent.behave = behave
        with self.nothing_changes(vm):
            p = self.q.start("create", "vm", "one", "--quiesce", "--memory")
            status, _, err = self.q.finish(p, 250)
        later[0].join()
        self.assertEqual(9, status, err)
        self.assertIn("has not answered 'stop'", err)
        self.assertFalse(agent.frozen)
        self.assertEqual("running", vm.state())


class DeafQemu(Case):
    """QEMU answers nobody for a while, its agent's socket does."""
    either = True
    idle = True
    limit = 300

    def setUp(self):
        super().setUp()
        self.tiny_vm_with_agent()

    def test_the_guest_is_thawed_all_the_same(self):
        pid = self.vm.pid()

        def behave(name):
            if name == STATUS and self.agent.frozen:
                os.kill(pid, signal.SIGSTOP)
            if name == THAW:
                os.kill(pid, signal.SIGCONT)
        self.addCleanup(os.kill, pid, signal.SIGCONT)
        self.agent.behave = behave
        with self.nothing_changes(self.vm):
            p = self.q.start("create", "vm", "one", "--quiesce")
            status, _, err = self.q.finish(p, 100)
        self.assertEqual(9, status, err)
        self.assertIn("has not answered 'transaction'", err)
        self.assertFalse(self.agent.frozen)
        self.assertEqual("running", self.vm.state())

    def test_what_a_kill_left_frozen_is_thawed_once(self):
        """Another client has QMP, and freezes the guest itself later."""
        frozen = threading.Event()

        def behave(name):
            if name == STATUS and self.agent.frozen and not frozen.is_set():
                frozen.set()
                time.sleep(1)
        self.agent.behave = behave
        with self.nothing_changes(self.vm):
            p = self.q.start("create", "vm", "one", "--quiesce")
            self.assertTrue(frozen.wait(20))
            p.kill()
            p.wait()
            other = QMP(self.vm.qmp)
            self.addCleanup(other.close)
            self.q.fails("busy", "another client", "recover", "vm")
            self.assertFalse(self.agent.frozen)
            self.agent.frozen = True
            self.q.fails("busy", "another client", "recover", "vm")
            other.close()
            self.q("recover", "vm")
        self.assertTrue(self.agent.frozen, "somebody else's freeze")
