#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the test_*.py beside it, each class in a process of its own, two at a
time; prints what failed, and a last line with the counts.

    run.py [--seed N] [--count N] [--deep [--state FILE] [--seconds N] |
           --sample] [-j N] [WORD...]

--sample takes a part of each test, in half a minute or so; --deep all of them
in their long versions. WORD: only classes or files with it in their name. Each
process takes its share of the random chains, so that the seeds tested are
SEED .. SEED+COUNT-1.

The deep ones can be done bit by bit: --state keeps what has passed and how
much that was, for this very command, and is gone on from; --seconds begins
nothing new after that time. Seeds come first, each test a few of them in turn,
so that whoever stops early has seen something of everything.

SIGTERM and SIGINT end the tests at hand, too, which then clean up: no mount and
no loop device is left."""

import argparse
import collections
import hashlib
import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import qtools

HERE = os.path.dirname(os.path.abspath(__file__))
CHUNK = 100  # chains of one process, so that a hang is found and told
ENDING = (signal.SIGTERM, signal.SIGINT)
DEEP_CHUNK = {"test_crash": 1, "test_merge": 10}  # to be done in a minute


def classes():
    for f in sorted(os.listdir(HERE)):
        if not re.fullmatch(r"test_\w+\.py", f):
            continue
        module = importlib.import_module(f[:-3])
        for name, c in inspect.getmembers(module, inspect.isclass):
            if issubclass(c, unittest.TestCase) and c.__module__ == f[:-3] \
                    and unittest.defaultTestLoader.getTestCaseNames(c):
                yield module, name


class Job(collections.namedtuple("Job", "name seed count part")):
    def __str__(self):
        if self.part is not None:
            return "%s part %d" % (self.name, self.part)
        if self.count > 1:
            return "%s seeds %d..%d" % (self.name, self.seed,
                                        self.seed + self.count - 1)
        return "%s seed %d" % (self.name, self.seed)


def seeds(name, module, args):
    """The jobs of a test of random chains."""
    left, seed = args.count, args.seed
    share = min(CHUNK, (left + args.jobs - 1) // args.jobs)
    if args.deep:
        share = DEEP_CHUNK.get(module.__name__, 25)
    while left > 0:
        n = min(share, left)
        yield Job(name, seed, n, None)
        left, seed = left - n, seed + n


def jobs(args):
    """One of each test, then the next of each, and so on."""
    queues = []
    for module, name in classes():
        full = "%s.%s" % (module.__name__, name)
        if args.words and not any(w in full for w in args.words):
            continue
        if hasattr(module, "COUNT"):
            queues.append(list(seeds(full, module, args)))
        elif args.deep and hasattr(module, "PARTS"):
            queues.append([Job(full, args.seed, 1, i)
                           for i in range(module.PARTS)])
        else:
            queues.append([Job(full, args.seed, 1, None)])
    for i in range(max(map(len, queues), default=0)):
        yield from (q[i] for q in queues if i < len(q))


class State:
    """What has passed, in a file: a line for each job, with its figures. It is
    about one build of the command; another begins anew."""

    def __init__(self, path):
        self.path, self.passed, self.lock = path, {}, threading.Lock()
        if not path:
            return
        with open(qtools.QSTILL, "rb") as f:
            head = "of " + hashlib.sha256(f.read()).hexdigest()
        try:
            with open(path) as f:
                lines = f.read().splitlines()
        except FileNotFoundError:
            lines = []
        if lines[:1] == [head]:
            self.passed = dict(l.split("\t", 1) for l in lines[1:])
        else:
            with open(path, "w") as f:
                f.write(head + "\n")

    def add(self, job, figures):
        with self.lock:
            self.passed[str(job)] = figures
            if self.path:
                with open(self.path, "a") as f:
                    f.write("%s\t%s\n" % (job, figures))


def figures(text):
    """Lines that the tests print, perhaps behind unittest's dots."""
    return re.findall(r"^[.FEsx]*((?:merges|states|kills): .*)", text, re.M)


def one(name):
    """The process of a class. An exception that leaves a test lets it clean
    up; KeyboardInterrupt would not."""
    def result(*argv, **kw):
        r = unittest.TextTestResult(*argv, **kw)

        def end(number, _):
            for n in ENDING:
                signal.signal(n, signal.SIG_IGN)
            r.failfast = True  # of what is left of this test
            r.stop()
            sys.exit(128 + number)
        for n in ENDING:
            signal.signal(n, end)
        return r
    suite = unittest.defaultTestLoader.loadTestsFromName(name)
    r = unittest.TextTestRunner(resultclass=result).run(suite)
    return 0 if r.wasSuccessful() else 1


class Running:
    """Processes of tests."""

    def __init__(self):
        self.lock, self.all, self.ended = threading.Lock(), set(), 0
        for n in ENDING:
            signal.signal(n, self.end)

    def end(self, number, _):
        with self.lock:
            self.ended = self.ended or number
            for p in self.all:
                p.terminate()

    def run(self, argv, timeout, **kw):
        """Exit code and output; None when it was ended."""
        with self.lock:
            if self.ended:
                return None
            p = subprocess.Popen(argv, **kw)
            self.all.add(p)
        try:
            out, _ = p.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            p.terminate()
            out, _ = p.communicate()
        with self.lock:
            self.all.remove(p)
        return None if self.ended else (p.returncode, out)


def run(job, args, state, until, running):
    """(passed, failed, skipped), or None when there was no time for it."""
    if time.monotonic() >= until:
        return None
    env = dict(os.environ, SEED=str(job.seed), COUNT=str(job.count),
               DEEP="1" if args.deep else "", PART=str(job.part or 0),
               SAMPLE="1" if args.sample else "", PYTHONDONTWRITEBYTECODE="1")
    start = time.monotonic()
    ended = running.run([sys.executable, __file__, "--one", job.name], 4 * 3600,
                        cwd=HERE, env=env, stdin=subprocess.DEVNULL, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                        errors="replace")
    if not ended:
        return None
    code, out = ended
    took = time.monotonic() - start
    ran = re.search(r"^Ran (\d+) test", out, re.M)
    skipped = re.search(r"skipped=(\d+)", out)
    ran, skipped = (int(m.group(1)) if m else 0 for m in (ran, skipped))
    failed = set(re.findall(r"^(?:FAIL|ERROR): (\w+)", out, re.M))
    if code and not failed:
        failed = {job.name}
    word = "failed" if failed else "skipped" if skipped == ran else "passed"
    print("%-7s %s (%.1f s)" % (word, job, took), flush=True)
    if failed or skipped and not job.part:
        print(out.rstrip(), flush=True)
    else:
        for line in figures(out):
            print("        " + line, flush=True)
    if not failed:
        state.add(job, "%.0f s, %d skipped; %s" % (
            took, skipped, "; ".join(figures(out))))
    return ran - len(failed) - skipped, len(failed), skipped


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--count", type=int, default=8)
    ap.add_argument("--deep", action="store_true")
    ap.add_argument("--state")
    ap.add_argument("--seconds", type=float, default=float("inf"))
    ap.add_argument("--sample", action="store_true")
    ap.add_argument("-j", dest="jobs", type=int, default=2)
    ap.add_argument("--one", help=argparse.SUPPRESS)
    ap.add_argument("words", nargs="*")
    args = ap.parse_args()
    if args.one:
        return one(args.one)
    if args.deep:
        os.environ["DEEP"] = "1"  # the modules look at it
    until = time.monotonic() + args.seconds
    state = State(args.state)
    todo = [j for j in jobs(args) if str(j) not in state.passed]
    before, running = len(state.passed), Running()
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda j: run(j, args, state, until, running),
                                todo))
    done = [r for r in results if r]
    passed, failed, skipped = (sum(r[i] for r in done) for i in range(3))
    print("qcow2: %d passed, %d failed, %d skipped" %
          (passed, failed, skipped))
    if args.state:
        print("of all jobs %d had passed before, %d did now, %d are left" %
              (before, len(state.passed) - before,
               before + len(todo) - len(state.passed)))
    if running.ended:
        return 128 + running.ended
    return 1 if failed or not (passed + skipped or before) else 0


if __name__ == "__main__":
    sys.exit(main())
