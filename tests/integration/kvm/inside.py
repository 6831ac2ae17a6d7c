#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs in the machine of lib/nested.py, as root of a Linux with a real
/dev/kvm: the tests of this folder, and a report of what they saw."""

import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path[:0] = [HERE, os.path.dirname(HERE)]

from lib.case import adopt_orphans  # noqa: E402

adopt_orphans()
if not os.path.exists("/dev/kvm"):
    raise SystemExit("no /dev/kvm")
names = os.environ["KVM_TESTS"].split(",")
suite = unittest.defaultTestLoader.loadTestsFromNames(names)
result = unittest.TextTestRunner(sys.stdout, verbosity=2).run(suite)
print("KVM-RAN %d" % result.testsRun)
sys.exit(0 if result.wasSuccessful() and not result.skipped else 1)
