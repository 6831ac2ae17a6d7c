# SPDX-License-Identifier: MIT
"""Real KVM, on any machine: the tests of kvm/ run in a machine whose processor
TCG emulates, SVM and all (lib/nested.py). About a minute."""

import json
import os
import re
import time

from lib import case, nested

# An emulated machine is slow, and a loaded host makes it slower: it is given
# up when its console has been silent for so long, not at a fixed time.
SILENCE = 240


class Kvm(case.Case):
    limit = 900
    cost = 100
    versions = ("7.2",)

    def run_inside(self, *tests):
        """Runs these tests of kvm/ in the machine; what it printed."""
        machine, why = nested.build(os.path.join(case.BUILD, "kvm"))
        if not machine:
            self.skipTest("no machine for KVM: " + why)
        log = os.path.join(self.tmp, "console")
        p = nested.start(
            log, case.QEMU, machine,
            os.path.join(nested.TOP, "tests/integration/kvm/inside.py"),
            {"KVM_TESTS": ",".join(tests),
             "QSTILL_TEST_QEMU": case.QEMU,
             "QSTILL_TEST_GUEST": case.GUEST,
             "QSTILL_TEST_BUILD": os.path.abspath(case.BUILD)})
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        size, since = 0, time.monotonic()
        while p.poll() is None:
            now = os.path.getsize(log) if os.path.exists(log) else 0
            if now != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > SILENCE:
                break
            time.sleep(0.2)
        with open(log, errors="replace") as f:
            return f.read().replace("\r", "")

    def test_a_guest_that_qemu_refuses_to_migrate_for_its_clock(self):
        said = self.run_inside("invtsc")
        print("\n".join(re.findall(r"KVM-REPORT .*", said)))
        self.assertIn("KVM-RAN 2\n", said)
        self.assertIn("KVM-DONE 0\n", said)
        seen = [json.loads(r) for r in
                re.findall(r"KVM-REPORT (\{.*\})", said)]
        self.assertEqual(["check", "create", "eager", "inplace", "mapped", "ram"],
                         sorted(r["what"] for r in seen))
