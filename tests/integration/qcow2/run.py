#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the test_*.py beside it, each class in a process of its own, two at a
time; prints what failed, and a last line with the counts.

    run.py [--seed N] [--count N] [--deep | --sample] [-j N] [WORD...]

--sample takes a part of each test, in half a minute or so; --deep all of them
in their long versions. WORD: only classes or files with it in their name. Each process takes its share
of the random chains, so that the seeds tested are SEED .. SEED+COUNT-1."""

import argparse
import importlib
import inspect
import os
import re
import subprocess
import sys
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
CHUNK = 100  # chains of one process, so that a hang is found and told


def classes():
    for f in sorted(os.listdir(HERE)):
        if not re.fullmatch(r"test_\w+\.py", f):
            continue
        module = importlib.import_module(f[:-3])
        for name, c in inspect.getmembers(module, inspect.isclass):
            if issubclass(c, unittest.TestCase) and c.__module__ == f[:-3] \
                    and unittest.defaultTestLoader.getTestCaseNames(c):
                yield module, name


def jobs(args):
    for module, name in classes():
        full = "%s.%s" % (module.__name__, name)
        if args.words and not any(w in full for w in args.words):
            continue
        if not hasattr(module, "COUNT"):
            yield full, args.seed, 1
            continue
        left, seed = args.count, args.seed
        share = min(CHUNK, (left + args.jobs - 1) // args.jobs)
        while left > 0:
            n = min(share, left)
            yield full, seed, n
            left, seed = left - n, seed + n


def run(job, args):
    full, seed, count = job
    env = dict(os.environ, SEED=str(seed), COUNT=str(count),
               DEEP="1" if args.deep else "",
               SAMPLE="1" if args.sample else "", PYTHONDONTWRITEBYTECODE="1")
    start = time.monotonic()
    p = subprocess.run([sys.executable, "-m", "unittest", full], cwd=HERE,
                       env=env, stdin=subprocess.DEVNULL, text=True,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       errors="replace", timeout=4 * 3600)
    took = time.monotonic() - start
    ran = re.search(r"^Ran (\d+) test", p.stdout, re.M)
    skipped = re.search(r"skipped=(\d+)", p.stdout)
    ran, skipped = (int(m.group(1)) if m else 0 for m in (ran, skipped))
    failed = {m for m in re.findall(r"^(?:FAIL|ERROR): (\w+)", p.stdout,
                                    re.M)}
    if p.returncode and not failed:
        failed = {full}
    word = "failed" if failed else "skipped" if skipped == ran else "passed"
    seeds = " seeds %d..%d" % (seed, seed + count - 1) if count > 1 else ""
    print("%-7s %s%s (%.1f s)" % (word, full, seeds, took), flush=True)
    if failed or skipped:
        print(p.stdout.rstrip(), flush=True)
    else:
        for line in p.stdout.splitlines():
            if line.startswith(("merges:", "states:", "kills:")):
                print("        " + line, flush=True)
    return ran - len(failed) - skipped, len(failed), skipped


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--count", type=int, default=8)
    ap.add_argument("--deep", action="store_true")
    ap.add_argument("--sample", action="store_true")
    ap.add_argument("-j", dest="jobs", type=int, default=2)
    ap.add_argument("words", nargs="*")
    args = ap.parse_args()
    sys.path.insert(0, HERE)
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda j: run(j, args), jobs(args)))
    passed, failed, skipped = (sum(r[i] for r in results) for i in range(3))
    print("qcow2: %d passed, %d failed, %d skipped" %
          (passed, failed, skipped))
    return 1 if failed or not passed + skipped else 0


if __name__ == "__main__":
    sys.exit(main())
