# SPDX-License-Identifier: MIT
"""What the test guest (fixtures/guest/guest.c) prints, and what it keeps in
RAM and on its disks."""

import os
import re
import struct
import time

# How many times slower than usual everything goes (see nested.py).
SLOW = float(os.environ.get("QSTILL_TEST_SLOW", "1"))

# As in fixtures/guest/guest.c.
RING_SLOTS = 64
RING_OFFSET = 1024 * 1024
SECTOR = 512
SYNC_MAGIC = 0x716E795321545351

TICK = re.compile(r"tick (\d+) nonce=([0-9a-f]{16}) up=([0-9.]+)\n")
# What the guest prints when something that it holds in RAM and something that
# it finds are not the same, or when it could not do its work.
WRONG = re.compile(r"(DISK-MISMATCH|DISK-ERROR|SYNC-MISMATCH|GUEST-ERROR|"
                   r"Kernel panic|junk pass=\d+ bad=[1-9]).*")


class Tick:
    def __init__(self, match):
        self.number = int(match.group(1))
        self.nonce = match.group(2)
        self.up = float(match.group(3))

    def __repr__(self):
        return "tick %d of %s" % (self.number, self.nonce)


class Serial:
    """The guest's serial line, a file that QEMU appends to. A position in it
    (`since`) is what mark() returned."""

    def __init__(self, path, alive=lambda: None):
        self.path = path
        self.alive = alive  # raises when the VM has died meanwhile

    def text(self, since=0):
        try:
            with open(self.path, "rb") as f:
                f.seek(since)
                return f.read().decode(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def mark(self):
        try:
            with open(self.path, "rb") as f:
                return f.seek(0, 2)
        except FileNotFoundError:
            return 0

    def wait(self, what, since=0, timeout=60):
        """Waits for `what` (a regular expression, or a function of the text
        that returns something true) and returns the match."""
        find = what if callable(what) else re.compile(what).search
        timeout *= SLOW
        deadline = time.monotonic() + timeout
        while True:
            text = self.text(since)
            found = find(text)
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(
                    "the guest never said %s in %d s; its last words:\n%s" % (
                        getattr(what, "__name__", what), timeout,
                        text[-600:]))
            self.alive()
            time.sleep(0.02)

    def ticks(self, since=0):
        return [Tick(m) for m in TICK.finditer(self.text(since))]

    def wait_ticks(self, count, since=None, timeout=60):
        """The first `count` ticks after `since` (default: now)."""
        since = self.mark() if since is None else since

        def enough(text):
            found = [Tick(m) for m in TICK.finditer(text)]
            return found if len(found) >= count else None
        return self.wait(enough, since, timeout)

    def wrong(self, since=0):
        """The lines that say that something is not as it was."""
        return [m.group(0) for m in WRONG.finditer(self.text(since))]


class SyncPage:
    """The page of RAM in which the SYNC thread counts."""

    def __init__(self, raw):
        self.magic, self.nonce, self.started, self.done = struct.unpack_from(
            "<4Q", raw)
        if self.magic != SYNC_MAGIC:
            raise AssertionError("no sync page at that address of the RAM")


def ring_count(raw, nonce):
    """The highest count in a ring read from a disk; checks that the ring holds
    exactly the counts up to it."""
    found = {}
    for slot in range(RING_SLOTS):
        words = struct.unpack_from("<64Q", raw, slot * SECTOR)
        if words[0] == 0 and words[1] == 0:
            continue
        if words[0] != SYNC_MAGIC or words[1] != nonce:
            raise AssertionError("slot %d of the ring is foreign" % slot)
        if len(set(words[2:])) != 1:
            raise AssertionError("slot %d of the ring is torn" % slot)
        if words[2] % RING_SLOTS != slot:
            raise AssertionError("slot %d holds count %d" % (slot, words[2]))
        found[slot] = words[2]
    newest = max(found.values(), default=0)
    want = set(range(max(1, newest - RING_SLOTS + 1), newest + 1))
    if set(found.values()) != want:
        raise AssertionError("the ring of %d has a gap: %s" % (
            newest, sorted(found.values())))
    return newest
