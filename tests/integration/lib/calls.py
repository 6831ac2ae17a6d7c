# SPDX-License-Identifier: MIT
"""The library's typed calls of QMP, one by one: the program qmp_calls."""

import json
import os
import subprocess

BUILD = os.environ.get("QSTILL_TEST_BUILD", "build")


class Calls:
    """The program qmp_calls."""

    def __init__(self, case, fds=()):
        self.case = case
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "qmp_calls")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, pass_fds=fds)
        case.addCleanup(self.end)

    def ask(self, *call):
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __call__(self, *call):
        answer = self.ask(*call)
        self.case.assertIn("ok", answer, "%s: %s" % (call, answer))
        return answer["ok"]

    def fails(self, code, words, *call):
        error = self.ask(*call).get("error")
        self.case.assertIsNotNone(error, "%s did not fail" % (call,))
        self.case.assertEqual(code, error["code"], error["message"])
        self.case.assertRegex(error["message"], words)
        return error

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)
