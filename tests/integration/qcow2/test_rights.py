#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Folders with rights of their own, and those of several users."""

import os
import re
import unittest

import qtools
from test_flatten import ACL

MIB = 1 << 20


@unittest.skipIf(qtools.missing("qemu-img", "qemu-io", "strace"),
                 "tool not installed")
class ADefaultAcl(qtools.Scratch, unittest.TestCase):
    def test_a_new_file_is_not_open_meanwhile(self):
        """Its mode comes when the ACL that it was made with is gone."""
        names = ("base", "top")
        for name, below in zip(names, ((), ("-b", "base", "-F", "qcow2"))):
            qtools.must("qemu-img", "create", "-q", "-f", "qcow2", *below,
                        self.path(name), "1M")
            os.chmod(self.path(name), 0o640)
        qtools.must("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 1M",
                    self.path("base"))
        os.setxattr(self.dir, "system.posix_acl_default", ACL)
        qtools.must("strace", "-f", "-o", self.log, "-e",
                    "trace=fchmod,fremovexattr", qtools.QSTILL, "image",
                    "merge", self.path("top"), "--drop", self.path("base"),
                    "--direction", "new")
        with open(self.log) as f:
            calls = re.findall(r"fchmod\(\d+, 0640|fremovexattr", f.read())
        self.assertEqual(["fremovexattr", "fchmod"],
                         [c.split("(")[0] for c in calls])
        self.assertNotIn("system.posix_acl_access",
                         os.listxattr(self.path("top")))
        self.assertEqual(os.stat(self.path("top")).st_mode & 0o777, 0o640)


if __name__ == "__main__":
    unittest.main(verbosity=1)
