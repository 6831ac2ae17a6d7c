#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the integration tests: every class of test_*.py, once per QEMU version,
each in a process of its own, some at a time.

    run.py [--qemu 7.2,10.0] [--build DIR] [--cache DIR] [-j N]
           [-k WORD,...] [--not WORD] [--quick] [--show] [--either] [--again]

Prints a line per test, the text of what failed, what was skipped and why, and
as its last line "N passed, N failed, N skipped". Exits 1 when a test failed or
when none ran."""

import argparse
import collections
import importlib
import inspect
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
import unittest
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
FIXTURES = os.path.join(TOP, "fixtures")
AGAIN_MAX = 4  # more is no accident
GRACE = 60  # seconds that a worker has to clean up after its test's limit


def modules():
    return sorted(f[:-3] for f in os.listdir(HERE)
                  if f.startswith("test_") and f.endswith(".py"))


def classes(module):
    loaded = importlib.import_module(module)
    for _, c in sorted(inspect.getmembers(loaded, inspect.isclass)):
        if issubclass(c, unittest.TestCase) and c.__module__ == module:
            names = unittest.defaultTestLoader.getTestCaseNames(c)
            if names:
                yield c, names


# ---------------------------------------------------------------- one class

class Result(unittest.TestResult):
    """Tells the parent, a line of JSON each."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def tell(self, kind, test, text=""):
        now = time.monotonic()
        self.out.write(json.dumps({
            "kind": kind, "test": test._testMethodName
            if hasattr(test, "_testMethodName") else str(test), "text": text,
            "seconds": now - self.begun}) + "\n")
        self.out.flush()

    begun = 0.0

    def startTest(self, test):
        super().startTest(test)
        self.begun = time.monotonic()
        self.bad = []
        self.good = False
        self.parts_skipped = []
        self.tell("start", test, str(getattr(test, "limit", 120)))

    def stopTest(self, test):
        super().stopTest(test)
        if self.bad:
            self.tell("failed", test, "\n".join(self.bad))
        elif self.good:
            self.tell("passed", test)
        elif self.parts_skipped:
            self.tell("skipped", test, self.parts_skipped[0])

    good = False
    bad = []
    parts_skipped = []

    def addSuccess(self, test):
        self.good = True

    def addError(self, test, err):
        super().addError(test, err)
        self.note(test, err)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.note(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.note(test, err, str(subtest))

    def note(self, test, err, what=""):
        text = what + self._exc_info_to_string(err, test)
        if hasattr(test, "_testMethodName"):
            self.good = False
            self.bad.append(text)
        else:  # setUpClass or its module
            self.tell("failed", test, text)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        if hasattr(test, "test_case"):  # a subTest, whose test goes on
            self.parts_skipped.append(reason)
        else:
            self.tell("skipped", test, reason)


def worker(args):
    sys.path.insert(0, HERE)
    from lib.case import adopt_orphans
    adopt_orphans()
    out = os.fdopen(args.fd, "w")
    module, name = args.worker.split(".")
    loaded = getattr(importlib.import_module(module), name)
    suite = unittest.TestSuite(loaded(n) for n in args.tests.split(","))
    suite.run(Result(out))
    return 0


# ------------------------------------------------------------------ the run

class Run:
    def __init__(self, args):
        self.args = args
        self.lock = threading.Lock()
        self.counts = collections.Counter()
        self.skips = collections.defaultdict(list)
        self.times = []
        self.failures = []
        self.again = []
        self.cpu = []

    def say(self, text):
        with self.lock:
            print(text, flush=True)

    def count(self, kind, name, text="", seconds=0.0):
        self.counts[kind] += 1
        line = "%-7s %s (%.1f s)" % (kind, name, seconds)
        if kind == "skipped":
            self.skips[text].append(name)
            line = "skipped %s: %s" % (name, text)
        elif kind == "failed":
            self.failures.append(name)
            line += "\n" + text
        else:
            self.times.append((seconds, name))
        self.say(line)

    def run_class(self, job):
        version, env, cls, tests = job
        label = "qemu-%s %s.%s" % (version, cls.__module__, cls.__name__)
        r, w = os.pipe()
        argv = [sys.executable, os.path.abspath(__file__), "--worker",
                "%s.%s" % (cls.__module__, cls.__name__), "--fd", str(w),
                "--tests", ",".join(tests)]
        log = os.path.join(self.args.build, "integration")
        os.makedirs(log, exist_ok=True)
        log = os.path.join(log, "%s.log" % label.replace(" ", "-"))
        open(log, "wb").close()
        with open(log, "ab") as words:  # output() empties it meanwhile
            p = subprocess.Popen(argv, env=env, pass_fds=[w], stdout=words,
                                 stderr=words, stdin=subprocess.DEVNULL,
                                 start_new_session=True)
        os.close(w)
        left = list(tests)
        timer = None
        current = None
        with os.fdopen(r) as lines:
            for line in lines:
                said = json.loads(line)
                name, kind = said["test"], said["kind"]
                if timer:
                    timer.cancel()
                    timer = None
                if kind == "start":
                    current = name
                    timer = threading.Timer(
                        float(said["text"]) + GRACE, p.kill)
                    timer.start()
                    continue
                current = None
                if name in left:
                    left.remove(name)
                text = said["text"]
                if kind == "failed":
                    text += self.output(log)
                elif self.args.show:
                    self.say(self.output(log).rstrip())
                self.count(kind, "%s.%s" % (label, name), text,
                           said["seconds"])
        if timer:
            timer.cancel()
        status = self.reap(p, label)
        for name in left:
            why = "its process ended with %d" % status
            if name == current:
                why += " in this test"
            self.count("failed", "%s.%s" % (label, name),
                       why + self.output(log))

    def reap(self, p, label):
        """Its exit status; notes the CPU time of it and of every QEMU in it,
        for which it is the reaper."""
        _, status, used = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        self.cpu.append((used.ru_utime + used.ru_stime, label))
        return p.returncode

    @staticmethod
    def output(log):
        with open(log, errors="replace") as f:
            text = f.read()[-6000:]
        open(log, "w").close()
        return text and "--- printed meanwhile:\n" + text

    def work(self, jobs):
        while True:
            try:
                job = jobs.get_nowait()
            except queue.Empty:
                return
            try:
                self.run_class(job)
            except Exception as e:  # a bug of the runner must not pass
                self.count("failed", str(job[2]), "runner: %r" % e)


def fixture(*argv):
    p = subprocess.run([os.path.join(FIXTURES, argv[0]), *argv[1:]],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       text=True)
    return p.returncode, p.stdout.strip(), p.stderr.strip()


def environment(args, version, qemu, guest, share):
    env = dict(os.environ)
    env.update(QSTILL_TEST_QEMU=qemu, QSTILL_TEST_QEMU_VERSION=version,
               QSTILL_TEST_GUEST=guest, QSTILL_TEST_BUILD=args.build,
               QSTILL_TEST_QUICK="1" if args.quick else "0",
               QSTILL_TEST_SHARE="%d/%d" % share,
               PYTHONDONTWRITEBYTECODE="1")
    for name in ("QSTILL_STORE", "XDG_STATE_HOME"):
        env.pop(name, None)
    return env


def versions_of(cls, args, there):
    """A class runs with the versions that it names, or, when none of those is
    there (Debian 13 has no 7.2), with one that is. With --either, a class that
    says so runs with one of the versions that are there: each class always
    with the same one, and about as many with each."""
    versions = args.qemu.split(",")
    asked = [v for v in versions if v in cls.versions]
    choice = [v for v in asked if v in there]
    if not choice and there:
        return list(there)[-1:]
    if not args.either or not cls.either or len(choice) < 2:
        return asked
    name = "%s.%s" % (cls.__module__, cls.__name__)
    return [choice[zlib.crc32(name.encode()) % len(choice)]]


def once_more(run, jobs):
    """What failed, alone on the machine. One that passes now is told and
    counted as passed: it depends on what else the machine does."""
    failures, run.failures = run.failures, []
    for version, env, cls, names in jobs:
        label = "qemu-%s %s.%s." % (version, cls.__module__, cls.__name__)
        names = [n for n in names if label + n in failures]
        if not names:
            continue
        run.counts["failed"] -= len(names)
        run.again += [label + n for n in names]
        failures = [f for f in failures if f not in run.again]
        run.run_class((version, env, cls, names))
    run.failures += failures


def is_asked(name, words):
    """-k: one of the words is in the name, or is its end: WORD/."""
    return any(name.endswith(w[:-1]) if w.endswith("/") else w in name
               for w in words.split(","))


def collect(run, args):
    """The jobs, the long ones first."""
    status, guest, why = fixture("guest.sh", os.path.join(args.cache, "guest"))
    if status != 0:
        raise SystemExit("no guest: " + why)
    jobs = []
    there, missing = {}, {}
    for version in args.qemu.split(","):
        status, qemu, why = fixture(
            "qemu.sh", version, os.path.join(args.cache, "qemu-" + version))
        if status not in (0, 3):
            raise SystemExit("no QEMU %s: %s" % (version, why))
        if status == 0:
            there[version] = qemu
        else:
            missing[version] = why
    for version in args.qemu.split(","):
        for m in modules():
            for cls, names in classes(m):
                names = [n for n in names if is_asked(
                    "%s.%s.%s" % (m, cls.__name__, n), args.k)]
                if args.skip and args.skip in m:
                    continue
                if args.either and cls.dealt and version in there:
                    names = names[list(there).index(version)::len(there)]
                if not names or version not in versions_of(cls, args, there):
                    continue
                if version in missing:
                    for n in names:
                        run.count("skipped", "qemu-%s %s.%s.%s" % (
                            version, m, cls.__name__, n), missing[version])
                    continue
                share = (list(there).index(version), len(there))
                jobs.append((version, environment(
                    args, version, there[version], guest,
                    share if args.either else (0, 1)), cls, names))
    jobs.sort(key=lambda j: -getattr(j[2], "cost", 10))
    return jobs


def main():
    parser = argparse.ArgumentParser(
        description="integration tests with real QEMU")
    parser.add_argument("--qemu", default="7.2,10.0")
    parser.add_argument("--build", default=os.path.join(TOP, "build"))
    parser.add_argument("--cache", help="of the guest and the QEMUs: --build")
    parser.add_argument("-j", type=int, default=2)
    parser.add_argument("-k", default="", metavar="WORD,...",
                        help="only tests with one of these in their name; "
                        "WORD/: that end so")
    parser.add_argument("--not", dest="skip", default="",
                        help="no file with this in its name")
    parser.add_argument("--quick", action="store_true",
                        help="fewer rounds where a test goes in rounds")
    parser.add_argument("--either", action="store_true",
                        help="tests that depend little on the version of QEMU "
                        "with one of them only; of rounds, moments and "
                        "variants a share with each")
    parser.add_argument("--again", action="store_true",
                        help="up to %d tests that failed get a second try, "
                        "alone" % AGAIN_MAX)
    parser.add_argument("--show", action="store_true",
                        help="what tests print, also of those that pass")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tests", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    sys.dont_write_bytecode = True
    sys.path.insert(0, HERE)
    args.build = os.path.abspath(args.build)
    args.cache = os.path.abspath(args.cache or args.build)
    if not os.access(os.path.join(args.build, "qstill"), os.X_OK):
        raise SystemExit("%s/qstill is missing: make all" % args.build)

    begun = time.monotonic()
    run = Run(args)
    jobs, idle = queue.Queue(), queue.Queue()
    all_jobs = collect(run, args)
    for job in all_jobs:
        (idle if job[2].idle else jobs).put(job)
    # one more beside the others for those that only wait
    threads = [threading.Thread(target=run.work, args=(q,))
               for q in [idle] + [jobs] * max(1, args.j)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if args.again and 0 < len(run.failures) <= AGAIN_MAX:
        once_more(run, all_jobs)

    for seconds, name in sorted(run.times, reverse=True)[:8]:
        print("slow: %.1f s %s" % (seconds, name))
    for seconds, label in sorted(run.cpu, reverse=True)[:12]:
        print("CPU: %.0f s %s" % (seconds, label))
    for name in sorted(run.again):
        if name not in run.failures:
            print("passed at the second try only: " + name)
    for name in sorted(run.failures):
        print("failed: " + name)
    for why, names in sorted(run.skips.items()):
        print("skipped: %d tests: %s" % (len(names), why))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("integration: %.0f s; %.0f s of CPU" % (
        time.monotonic() - begun, used.ru_utime + used.ru_stime))
    c = run.counts
    print("%d passed, %d failed, %d skipped" % (
        c["passed"], c["failed"], c["skipped"]))
    return 1 if c["failed"] or not c["passed"] else 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
