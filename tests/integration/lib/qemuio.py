# SPDX-License-Identifier: MIT
"""QEMU's own I/O command, which stands in for a guest. What it has to say,
that a write failed too, does not come as the monitor's answer: QEMU prints it
to its own standard output."""

import re

# Of what says how much it did, nothing less than all of it is good.
DID = {"read": "read", "write": "wrote", "discard": "discard"}
# From a second on it says "0:00:02.92", and no "sec".
FIGURES = re.compile(r"[\d.]+ \w+, \d+ ops; [\d:.]+( sec)? \(.*\)")


def run(monitor, device, command):
    """device: "-d QDEV" or a drive's name. Whatever went wrong raises, a
    pattern that is not there too."""
    words = [w for w in command.split() if w != "-q"]
    with open("/proc/%d/fd/1" % monitor.pid, errors="replace") as out:
        out.seek(0, 2)
        said = monitor.hmp('qemu-io %s "%s"' % (device, " ".join(words)))
        said += out.read()
    lines = [line for line in said.split("\n") if line.strip()]
    if words[0] in DID:
        done = re.compile(r"%s (\d+)/\1 bytes at offset \d+" % DID[words[0]])
        good = [line for line in lines if done.fullmatch(line.strip())]
        if len(good) != 1:
            raise AssertionError("qemu-io %s: %s" % (command, said or
                                                     "not a word"))
        lines = [line for line in lines if line not in good and
                 not FIGURES.fullmatch(line.strip())]
    if lines:
        raise AssertionError("qemu-io %s: %s" % (command, said))
