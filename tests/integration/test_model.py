# SPDX-License-Identifier: MIT
"""Random operations against a model; see model/tree.py. SEED and STEPS of the
environment bring a failure back, or make it long (make check-model)."""

import os
import time

from lib.case import QEMU, QUICK, QEMU_VERSION, Case
from model.machine import STYLES
from model.tree import Walk

SEED = int(os.environ.get("QSTILL_MODEL_SEED", "1"))
STEPS = int(os.environ.get("QSTILL_MODEL_STEPS", "0"))
SECONDS = float(os.environ.get("QSTILL_MODEL_SECONDS", "0"))


class Model(Case):
    cost = 30
    limit = 3600 if STEPS or SECONDS else 150

    def walk(self, seed, style, steps, until):
        folder = os.path.join(self.tmp, "vm")
        walk = Walk(self, QEMU, folder, seed, style)
        while walk.count < steps and time.monotonic() < until:
            walk.step()
        walk.finish()
        walk.vm.kill() if walk.vm.alive() else None
        print("model: qemu %s seed %d %s: %d steps" % (
            QEMU_VERSION, seed, walk.style, walk.count), flush=True)

    def run_style(self, style):
        self.walk(SEED + STYLES.index(style), style, STEPS or
                  (12 if QUICK else 30), time.monotonic() + (SECONDS or 20))

    def test_drives_whose_nodes_have_automatic_names(self):
        self.run_style("drive")

    def test_drives_whose_nodes_have_names(self):
        self.run_style("named")

    def test_blockdevs(self):
        self.run_style("blockdev")
