# SPDX-License-Identifier: MIT
"""The command under test."""

import json
import os
import re
import subprocess
import time

from .guest import SLOW

# The exit codes of qstill(1), by their public names.
CODES = {
    "failed": 1, "usage": 2, "corrupt": 3, "not-found": 4, "busy": 5,
    "precondition": 6, "no-space": 7, "permission": 8, "unreachable": 9,
    "cancelled": 10,
}
TIMEOUT = 90 * SLOW


class Failure:
    def __init__(self, status, code, message, hint, stderr):
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.stderr = stderr


class Qstill:
    """Runs build/qstill on one store. A success must print nothing that looks
    like an error; a failure must say the same on stderr and in JSON."""

    def __init__(self, case, binary, store):
        self.case = case
        self.binary = binary
        self.store = store
        self.stderr = ""

    def argv(self, args, json_output=True):
        return ([self.binary, "--store", self.store] +
                (["--json"] if json_output else []) + [str(a) for a in args])

    def start(self, *args):
        """Starts it and returns the Popen; see finish()."""
        p = subprocess.Popen(
            self.argv(args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        self.case.addCleanup(_end, p)
        return p

    def finish(self, p, timeout=TIMEOUT):
        """(status, stdout, stderr) of what start() started."""
        try:
            out, err = p.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            p.kill()
            out, err = p.communicate()
            self.case.fail("%s hung for %d s\n%s" % (p.args, timeout, err))
        self.stderr = err
        return p.returncode, out, err

    def _run(self, args, json_output=True):
        return self.finish(self.start_as(args, json_output))

    def start_as(self, args, json_output):
        p = subprocess.Popen(
            self.argv(args, json_output), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.case.addCleanup(_end, p)
        return p

    def __call__(self, *args):
        """Must succeed; returns the JSON that it printed, or None."""
        status, out, err = self._run(args)
        if status != 0:
            self.skip_in_place(err)
            self.case.fail("qstill %s: exit %d\n%s%s" % (
                " ".join(map(str, args)), status, err, out))
        return self.parse(out)

    def skip_in_place(self, err):
        """Of what is asked for in place, where TCG keeps its translations
        (test_translated.py)."""
        version = os.environ["QSTILL_TEST_QEMU_VERSION"].split(".")
        if [int(n) for n in version] >= [10, 2] and \
                "with TCG would keep its translations" in err:
            self.case.skipTest("no revert in place: TCG keeps its translations")

    def parse(self, out):
        if not out.strip():
            return None
        try:
            return json.loads(out)
        except ValueError:
            self.case.fail("not JSON: %s" % out[:400])

    def text(self, *args):
        """Must succeed; returns what it printed for people."""
        status, out, err = self._run(args, json_output=False)
        if status != 0:
            self.case.fail("qstill %s: exit %d\n%s" % (
                " ".join(map(str, args)), status, err))
        return out

    def fails(self, code, message, *args):
        """Must fail with that code (a name of CODES, or some with | between)
        and a message that matches, said on stderr and in JSON alike."""
        status, out, err = self._run(args)
        return self.failed(code, message, args, status, out, err)

    def failed(self, code, message, args, status, out, err):
        case = self.case
        what = "qstill %s" % " ".join(map(str, args))
        codes = code.split("|")
        if status not in [CODES[c] for c in codes]:
            self.skip_in_place(err)
            case.fail("%s: exit %d, not %s\n%s%s" % (
                what, status, code, err, out))
        said = self.parse(out)
        case.assertIsInstance(said, dict, "%s: no JSON error" % what)
        case.assertIn("error", said, what)
        said = said["error"]
        case.assertIn(said["code"], codes, what)
        case.assertEqual(status, CODES[said["code"]], what)
        case.assertRegex(said["message"], message or ".", what)
        if args[0] in VERBS:
            # A terminal must not be written to by a name.
            safe = re.sub(r"[\x00-\x1f\x7f]", lambda m: "\\x%02x" % ord(
                m.group(0)), said["message"])
            verb = " ".join(args[:2] if args[0] in GROUPS else args[:1])
            first = "qstill: %s: %s" % (verb, safe)
            case.assertIn(first, err.splitlines(),
                          "%s: stderr says something else: %s" % (what, err))
        if said.get("hint"):
            case.assertIn("hint: %s" % said["hint"], err.splitlines(), what)
        return Failure(status, said["code"], said["message"],
                       said.get("hint"), err)

    # What the tests need all the time.

    def check(self, *args):
        """What check says; its exit code must say the same."""
        status, out, err = self._run(("check", *args))
        said = self.parse(out)
        self.case.assertEqual(0 if said["ok"] else CODES["precondition"],
                              status, out + err)
        self.case.assertEqual(said["ok"], not said["problems"], out)
        return said

    def snapshots(self, vm):
        return self("list", vm)["snapshots"]

    def names(self, vm):
        return [s["name"] for s in self.snapshots(vm)]

    def info(self, vm, snap):
        return self("info", vm, snap)

    def memory_dir(self, vm, snapshot_id):
        return os.path.join(self.store, vm, "snapshots", snapshot_id, "memory")

    def manifest_path(self, vm, snapshot_id):
        return os.path.join(self.store, vm, "snapshots", snapshot_id,
                            "manifest.json")

    def journal_path(self, vm):
        return os.path.join(self.store, vm, "journal.json")

    def wait_journal(self, vm, process, timeout=20):
        """Waits until an operation has begun to change something."""
        deadline = time.monotonic() + timeout
        while not os.path.exists(self.journal_path(vm)):
            if process.poll() is not None:
                _, out, err = self.finish(process)
                self.case.fail("it ended before it had begun: %s%s" % (
                    out, err))
            if time.monotonic() > deadline:
                self.case.fail("no journal after %d s" % timeout)
            time.sleep(0.001)


VERBS = ("attach detach vms check create list info verify rename revert "
         "delete undo recover start path image bench").split()
GROUPS = ("image", "bench")  # whose verbs have two words


def _end(p):
    if p.poll() is None:
        p.kill()
    p.wait()
    for f in (p.stdout, p.stderr):
        if f:
            f.close()


def plain(text):
    """A regular expression that matches `text` itself."""
    return re.escape(text)
