# SPDX-License-Identifier: MIT
"""Two at once, cancelled, QEMU killed, ourselves killed: in the middle."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time

from lib import image
from lib.case import QUICK, Case, share

MODES = ("paused", "background", "precopy")

# A launcher whose first QEMU takes its time to come up.
LATE = """import json, os, subprocess, time
late = not os.path.exists("%s")
if late:
    with open("%s.new", "w") as f:
        f.write(str(os.getpid()))
    os.rename(f.name, f.name[:-4])
    time.sleep(4)
subprocess.Popen(json.loads(os.environ["QSTILL_ARGV_JSON"]),
                 stdin=subprocess.DEVNULL, start_new_session=True)
"""


class Middle(Case):
    """What the tests here share: a create that takes seconds."""

    def slow_vm(self):
        vm = self.shared(lambda: self.running_vm(
            append="JUNK=24 SYNC=vda,vdb SYNCMS=2",
            disks=[self.disk("disk0"), self.disk("disk1", "raw")]))
        vm.serial.wait("JUNK-READY")
        return vm

    def slow_create(self, name, mode, bwlimit="8M"):
        process = self.q.start("create", "vm", name, "--memory", "--mode",
                               mode, "--bwlimit", bwlimit)
        self.q.wait_journal("vm", process)
        return process

    def wait_memory(self, vm, least=1 << 20, timeout=20):
        """Waits until memory is being written."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            used = sum(os.stat(os.path.join(folder, f)).st_blocks * 512
                       for folder, _, files in os.walk(self.store)
                       for f in files if f.endswith(".ram"))
            if used >= least:
                return
            time.sleep(0.01)
        self.fail("no memory was written in %d s" % timeout)

    def as_before(self, vm, paths):
        self.assertEqual([], self.q.snapshots("vm"))
        self.assertEqual(sorted(paths), sorted(vm.heads().values()))
        self.assertEqual({d.path for d in vm.disks}, self.disk_files(vm))
        since = vm.serial.mark()
        self.goes_on(vm)
        vm.serial.wait(r"sync count=\d+ bad=0", since)


class AtOnce(Middle):
    dealt = True
    cost = 25

    def test_the_second_command_is_told_who_holds_the_lock(self):
        vm = self.slow_vm()
        self.q("create", "vm", "zero")
        first = self.slow_create("one", "background", "32M")
        # It holds the lock for as long as we like.
        first.send_signal(signal.SIGSTOP)
        for argv in (["create", "vm", "two"], ["revert", "vm", "zero"],
                     ["delete", "vm", "zero"], ["detach", "vm"],
                     ["rename", "vm", "zero", "two"], ["recover", "vm"]):
            with self.subTest(verb=argv[0]):
                failure = self.q.fails("busy", r"\b%d\b" % first.pid, *argv)
                self.assertTrue(failure.hint)
        self.assertIn("zero", self.q.names("vm"), "looking is allowed")
        first.send_signal(signal.SIGCONT)
        status, out, err = self.q.finish(first)
        self.assertEqual(0, status, err + out)
        self.assertEqual(["zero", "one"], self.q.names("vm"))
        self.q("create", "vm", "two")

    def test_a_cancelled_create_leaves_nothing(self):
        vm = self.slow_vm()
        for mode in MODES:
            for sig in (signal.SIGINT, signal.SIGTERM):
                with self.subTest(mode=mode, sig=sig.name), \
                        self.nothing_changes(vm):
                    process = self.slow_create("one", mode)
                    self.wait_memory(vm)
                    process.send_signal(sig)
                    status, out, err = self.q.finish(process, 20)
                    self.q.failed("cancelled", "cancel", ["create"], status,
                                  out, err)
                    self.as_before(vm, [d.path for d in vm.disks])


class Late(Case):
    """A cancel that comes when there is nothing left to be cancelled."""
    cost = 5

    def test_a_revert_that_is_committed_is_not_called_cancelled(self):
        vm = self.tiny_vm()
        one = self.q("create", "vm", "one", "--memory")
        path = self.q.journal_path("vm")
        for i in range(4):
            process = self.q.start("revert", "vm", "one")
            committed = False
            while process.poll() is None and not committed:
                with contextlib.suppress(FileNotFoundError), open(path) as f:
                    committed = '"committed"' in f.read()
            process.send_signal(signal.SIGINT)
            status, out, err = self.q.finish(process)
            self.assertEqual(0, status, err + out)
            self.assertEqual(one["id"], json.loads(out)["snapshot"])
            self.assertEqual("running", vm.state())


class QemuKilled(Middle):
    dealt = True
    cost = 45
    limit = 180

    def killed(self, mode):
        vm = self.slow_vm()
        process = self.slow_create("one", mode)
        self.wait_memory(vm)
        time.sleep(0.3)
        last = vm.serial.ticks()[-1].number
        vm.end()
        status, out, err = self.q.finish(process, 40)
        self.q.failed("unreachable", "", ["create"], status, out, err)
        self.assertEqual("off", vm.state())
        self.assertEqual([], self.q.snapshots("vm"))
        # Nothing that the guest had written is lost, and it starts.
        for path, fmt in zip(self.head_paths(vm), ("qcow2", "raw")):
            fmt = "qcow2" if path.endswith(".qcow2") else fmt
            self.assertGreaterEqual(image.tick(path, fmt), last)
        since = vm.serial.mark()
        self.q("start", "vm")
        vm.wait_up(since)
        self.assertGreaterEqual(int(vm.serial.wait(
            r"disk vda had=(\d+)", since).group(1)), last)
        self.q("create", "vm", "after")

    def test_in_a_create_cow(self):
        """The new heads hold what the guest wrote since they are heads."""
        self.killed("cow")

    def test_in_a_create_paused(self):
        self.killed("paused")

    def test_in_a_create_background(self):
        self.killed("background")

    def test_in_a_create_precopy(self):
        self.killed("precopy")

    def test_in_an_undo_that_had_kept_the_new_head(self):
        """The record says that the new head stays on its hidden layer, which
        the undo writes when QEMU refuses to fold it back; then QEMU ends."""
        vm = self.slow_vm()
        self.pause(vm)
        process = self.slow_create("one", "paused")
        self.wait_memory(vm)
        process.kill()
        process.wait()
        vm.end()
        path = os.path.join(self.store, "vm", "vm.json")
        with open(path) as f:
            record = json.load(f)
        with open(self.q.journal_path("vm")) as f:
            disks = json.load(f)["disks"]
        record["hidden"] = [
            {"disk": d["disk"], "path": d["oldPath"], "format": d["oldFormat"]}
            for d in disks]
        for known, d in zip(record["disks"], disks):
            known["headPath"] = d["newPath"]
            known["headFormat"] = d["newFormat"]
        with open(path, "w") as f:
            json.dump(record, f)
        self.q("recover", "vm")
        self.assertEqual([d.path for d in vm.disks], self.head_paths(vm))
        self.assertEqual({d.path for d in vm.disks}, self.disk_files(vm))
        since = vm.serial.mark()
        self.q("start", "vm")
        vm.wait_up(since)
        self.paused_on_purpose.clear()


class OurselvesKilled(Middle):
    """SIGKILL at many moments of a create; then `recover`, or just the next
    command: the VM runs, and the snapshot is whole or was never there."""
    cost = 100
    limit = 240
    delays = share((0, 0.05, 0.4) if QUICK else (0, 0.03, 0.1, 0.3, 0.8))

    def killed(self, mode):
        vm = self.slow_vm()
        nonce = vm.serial.ticks()[0].nonce
        anchor = self.q("create", "vm", "anchor", "--memory", "--mode",
                        "paused")["id"]
        tick = self.snapshot_ticks(vm, anchor)[0]
        for i, delay in enumerate(self.delays):
            with self.subTest(delay=delay):
                process = self.slow_create("s%d" % i, mode)
                time.sleep(delay)
                process.kill()
                process.wait()
                since = vm.serial.mark()
                if i % 2:
                    self.q("recover", "vm")
                else:
                    self.q("rename", "vm", anchor, "anchor-%d" % i)
                self.assertEqual("running", vm.state())
                self.goes_on(vm)
                vm.serial.wait(r"sync count=\d+ bad=0", since)
                self.assertEqual(nonce, vm.serial.ticks()[-1].nonce)
                self.assertEqual([], vm.serial.wrong())
                for name in self.q.names("vm"):
                    self.q("verify", "vm", name)
                self.check_nothing_left(vm)
        since = vm.serial.mark()
        self.q("revert", "vm", anchor)
        self.goes_on_from(vm, tick, nonce, since)

    def test_in_a_create_paused(self):
        self.killed("paused")

    def test_in_a_create_background(self):
        self.killed("background")

    def test_in_a_create_precopy(self):
        self.killed("precopy")

    def test_in_a_create_without_memory(self):
        vm = self.slow_vm()
        for i in range(4 if QUICK else 8):
            process = self.q.start("create", "vm", "s%d" % i)
            # It is over in some 100 ms: spread the kills over them.
            time.sleep(0.012 * i)
            process.kill()
            process.wait()
            self.q("recover", "vm")
            self.assertEqual("running", vm.state())
            self.check_nothing_left(vm)
        self.goes_on(vm)
        self.assertEqual([], vm.serial.wrong())

    def test_when_the_new_qemu_does_not_answer_yet(self):
        """What was started must not come up beside the VM that recovery
        starts: it would take the sockets of that one over."""
        vm = self.tiny_vm("vm", attach=False)
        script, told = (os.path.join(self.tmp, n) for n in ("run", "told"))
        with open(script, "w") as f:
            f.write(LATE % (told, told))
        self.attach(vm, "--launcher", "exec python3 " + script)
        self.q("create", "vm", "one", "--memory")
        process = self.q.start("revert", "vm", "one", "--restore", "eager")
        deadline = time.monotonic() + 30
        while not os.path.exists(told):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        process.kill()
        process.wait()
        self.q("recover", "vm")
        self.assertEqual("running", vm.state())
        with open(told) as f:
            stray = int(f.read())
        self.assertFalse(os.path.exists("/proc/%d" % stray))
        self.assertEqual(sorted(self.head_paths(vm)),
                         sorted(vm.heads().values()))
        self.check_nothing_left(vm)

    def test_in_a_revert(self):
        vm = self.slow_vm()
        nonce = vm.serial.ticks()[0].nonce
        self.q("create", "vm", "one", "--memory", "--mode", "paused")
        tick = self.snapshot_ticks(vm, "one")[0]
        for i, delay in enumerate(self.delays):
            with self.subTest(delay=delay):
                self.goes_on(vm)
                process = self.q.start("revert", "vm", "one", "--restore",
                                       "eager")
                self.q.wait_journal("vm", process)
                time.sleep(delay)
                process.kill()
                process.wait()
                self.q("recover", "vm")
                # Never dead for good: it runs, old or new, or can be
                # started.
                if vm.state() == "off":
                    since = vm.serial.mark()
                    self.q("start", "vm")
                    vm.wait_up(since)
                self.assertEqual("running", vm.state())
                self.goes_on(vm)
                self.check_nothing_left(vm)
                since = vm.serial.mark()
                self.q("revert", "vm", "one")
                self.goes_on_from(vm, tick, nonce, since)


class Settings(Case):
    """QEMU's migration settings are the user's: a later migration of his must
    not become a background snapshot, nor stop the guest for long."""
    cost = 10

    def settings(self, vm):
        params = vm.cmd("query-migrate-parameters")
        on = {c["capability"] for c in vm.cmd("query-migrate-capabilities")
              if c["state"]}
        return (on, params["max-bandwidth"], params["downtime-limit"],
                params["tls-creds"])

    def set_parameters(self, vm):
        """Credentials, too: nobody at our end of the pipe speaks TLS."""
        vm.cmd("migrate-set-parameters", **{
            "max-bandwidth": 5 << 20, "downtime-limit": 77,
            "tls-creds": "tls0"})

    def vm_with_settings(self):
        vm = self.tiny_vm(extra=["-object",
                                 "tls-creds-anon,id=tls0,endpoint=client"])
        self.set_parameters(vm)
        self.switch(vm, "auto-converge", True)
        return vm, self.settings(vm)

    def switch(self, vm, name, on):
        vm.cmd("migrate-set-capabilities", capabilities=[
            {"capability": name, "state": on}])

    def kept(self):
        return os.path.join(self.store, "vm", "settings.json")

    def test_they_are_as_before_after_a_capture_that_was_killed(self):
        vm, before = self.vm_with_settings()
        for mode in ("background", "precopy"):
            with self.subTest(mode):
                process = self.q.start("create", "vm", mode, "--memory",
                                       "--mode", mode, "--bwlimit", "64K")
                deadline = time.monotonic() + 20
                while self.settings(vm) == before:
                    self.assertIsNone(process.poll(), "it is over")
                    self.assertLess(time.monotonic(), deadline)
                process.kill()
                process.wait()
                self.q("recover", "vm")
                self.assertEqual(before, self.settings(vm))
                self.assertFalse(os.path.exists(self.kept()))
                vm.end()
                self.q("start", "vm")
                self.set_parameters(vm)
                self.switch(vm, "auto-converge", True)

    def test_they_are_as_before_after_a_probe_that_was_killed(self):
        """Whether QEMU takes a capability is known only when it has it."""
        vm, before = self.vm_with_settings()
        one = self.q("create", "vm", "one", "--memory", "--mode", "precopy")
        self.assertEqual(before, self.settings(vm))
        start = vm.pid_start()
        on, bandwidth, downtime, creds = before
        said = {"version": 1, "pid": vm.pid(), "pidStart": start,
                "capabilities": sorted(on), "maxBandwidth": bandwidth,
                "downtimeLimit": downtime, "tlsCreds": creds}
        for verb in (["rename", "vm", one["id"], "two"], ["vms"],
                     ["recover", "vm"]):
            with self.subTest(verb[0]):
                self.switch(vm, "auto-converge", False)
                self.switch(vm, "background-snapshot", True)
                vm.cmd("migrate-set-parameters", **{"tls-creds": ""})
                with open(self.kept(), "w") as f:
                    json.dump(said, f)
                self.q(*verb)
                self.assertEqual(before, self.settings(vm))
                self.assertFalse(os.path.exists(self.kept()))
        with self.subTest("another QEMU"):
            with open(self.kept(), "w") as f:
                json.dump(dict(said, pidStart=start + 1, maxBandwidth=1), f)
            self.q("recover", "vm")
            self.assertEqual(before, self.settings(vm))
            self.assertFalse(os.path.exists(self.kept()))

    def test_what_the_user_has_on_stays_on(self):
        vm, _ = self.vm_with_settings()
        self.switch(vm, "auto-converge", False)  # excludes what follows
        self.switch(vm, "background-snapshot", True)
        before = self.settings(vm)
        self.q("check", "vm", "--memory")
        self.assertEqual(before, self.settings(vm))
        self.q.fails("not-found|permission|failed", "", "create", "vm", "one",
                     "--disk-dir", "/proc")
        self.assertEqual(before, self.settings(vm))
        for mode in ("cow", "precopy", "background"):
            self.q("create", "vm", mode, "--memory", "--mode", mode)
            self.assertEqual(before, self.settings(vm))


def commands(calls):
    """What was sent to QEMU or the agent: (number of the call, command)."""
    return [(int(n), c) for n, c in re.findall(
        r'^(\d+) sendmsg [^"]*"execute": ?"([^"]+)"', "\n".join(calls), re.M)]


class Switchover(Case):
    """QEMU 7.2 inactivates the images at a migration's end, and aborts when a
    guest writes to one that is so. Cancelled just before, once in some ten
    times, it lets the guest run on such images: so it is not cancelled."""
    cost = 10

    def test_a_precopy_that_is_given_up_at_its_end_leaves_the_disks_alive(
            self):
        vm = self.tiny_vm()
        given_up = 0
        rounds = share(range(16))
        for i in rounds:
            p, calls = self.traced(["create", "vm", "s%d" % i, "--memory",
                                    "--mode", "precopy", "--max-pause-ms",
                                    "1"])
            self.assertIn(p.returncode, (0, 6), p.stdout)
            self.assertNotIn("undo of", p.stdout)
            given_up += p.returncode == 6
            sent = [c for _, c in commands(calls)]
            after = sent[sent.index("migrate-continue"):]
            if "migrate" in after:  # another one, which clears its error
                after = after[:after.index("migrate")]
            self.assertNotIn("migrate_cancel", after)
            vm.write(vm.disks[0], i % 8, i + 1)
        self.assertLess(0, given_up)
        self.assertEqual("running", vm.state())
        self.assertEqual(len(rounds) - given_up, len(self.q.names("vm")))


class Abandoned(Case):
    """A create whose process was killed, in a QEMU that migrates."""
    either = True
    cost = 20

    def setUp(self):
        super().setUp()
        self.tiny_vm_with_agent()

    def kill_while_frozen(self):
        process = None

        def kill_it(command):
            if command == "guest-fsfreeze-status" and self.agent.frozen:
                process.kill()
                process.wait()
        self.agent.behave = kill_it
        process = self.q.start("create", "vm", "one", "--quiesce")
        self.q.finish(process)
        self.agent.behave = lambda command: None
        self.assertTrue(self.agent.frozen)
        self.assertTrue(os.path.exists(self.q.journal_path("vm")))

    def migrate(self):
        """To somebody who reads nothing: it does not end before he does."""
        target = os.path.join(self.tmp, "target")
        self.vm.cmd("migrate", uri="exec:echo $$ >%s; exec sleep 60" % target)
        deadline = time.monotonic() + 10
        while not os.path.exists(target) or not open(target).read().strip():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        with open(target) as f:
            pid = int(f.read())

        def end():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.addCleanup(end)
        return end

    def test_the_users_own_migration_is_left_alone(self):
        self.kill_while_frozen()
        end = self.migrate()
        self.q("recover", "vm")
        self.assertEqual("active", self.vm.cmd("query-migrate")["status"])
        self.assertFalse(self.agent.frozen)
        self.assertEqual("running", self.vm.state())
        end()

    def test_the_guest_is_thawed_though_a_migration_does_not_end(self):
        self.kill_while_frozen()
        end = self.migrate()
        with open(os.path.join(self.store, "vm", "settings.json"), "w") as f:
            json.dump({"version": 1, "pid": self.vm.pid(),
                       "pidStart": self.vm.pid_start(), "capabilities": [],
                       "maxBandwidth": 1 << 20, "downtimeLimit": 300}, f)
        failure = self.q.fails("busy", "does not end", "recover", "vm")
        self.assertIn("qstill recover vm", failure.hint)
        self.assertFalse(self.agent.frozen)
        self.assertEqual("running", self.vm.state())
        end()
        self.q("recover", "vm")
        self.assertEqual([], self.q.names("vm"))


class ConnectionLost(Case):
    """The connection to QEMU ends before one of our commands. (That it does so
    at each of them is test_kill's; here it is what the user sees.)"""
    either = True
    cost = 10

    def lose(self, argv, before):
        """At the first command after which the list of commands, as an
        undisturbed run has it, is what `before` says; what was printed."""
        _, calls = self.traced(argv, "--errno", "EPIPE")
        at = before(commands(calls))
        self.q("revert", "vm", "base")
        self.prepare()
        p, _ = self.traced(argv, "--errno", "EPIPE", "--at", str(at))
        return p

    def prepare(self):
        pass

    def setUp(self):
        super().setUp()
        self.tiny_vm_with_agent()
        self.q("create", "vm", "base", "--memory", "--quiesce")

    def test_an_undo_connects_anew(self):
        def transaction(sent):
            return next(n for n, c in sent if c == "transaction")

        def prepare():
            self.q("delete", "vm", "new")
        self.prepare = prepare
        p = self.lose(["create", "vm", "new"], transaction)
        self.assertNotEqual(0, p.returncode)
        self.assertFalse(os.path.exists(self.q.journal_path("vm")))
        self.assertEqual(["base"], self.q.names("vm"))
        self.assertEqual("running", self.vm.state())

    def test_a_guest_that_wakes_up_frozen_is_thawed_all_the_same(self):
        def runs(sent):
            cont = max(i for i, (_, c) in enumerate(sent) if c == "cont")
            self.assertIn("guest-fsfreeze-thaw", [c for _, c in sent[cont:]])
            return sent[cont + 1][0]

        def prepare():
            self.agent.frozen = True
        prepare()
        self.prepare = prepare
        p = self.lose(["revert", "vm", "base", "--restore", "inplace"], runs)
        self.assertNotEqual(0, p.returncode)
        self.assertFalse(self.agent.frozen, p.stdout)
        self.assertEqual("running", self.vm.state())
        self.q("recover", "vm")
        self.assertEqual("base", self.q("list", "vm")["snapshots"][0]["name"])
