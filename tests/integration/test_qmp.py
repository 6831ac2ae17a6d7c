# SPDX-License-Identifier: MIT
"""The QMP and agent clients of include/qstill-qmp.h against a real QEMU and a
real guest agent, through qmp_probe.c."""

import os
import subprocess

from lib.case import BUILD, QEMU_VERSION, Case
from lib.qmp import QMP


class Client(Case):
    cost = 20

    def probe(self, scenario, path, *more):
        """What the probe prints, {key: [values]}."""
        p = subprocess.run([os.path.join(BUILD, "qmp_probe"), scenario, path,
                            *more], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, timeout=60)
        self.assertEqual(0, p.returncode, p.stdout)
        said = {}
        for line in p.stdout.splitlines():
            key, value = line.split("=", 1)
            said.setdefault(key, []).append(value)
        return said

    def test_every_part_of_the_client(self):
        vm = self.running_vm(attach=False, wait=False)
        modern = QEMU_VERSION != "7.2"
        with self.subTest("greeting, capabilities, the process behind it"):
            said = self.probe("hello", vm.qmp)
            self.assertEqual([QEMU_VERSION], said["version"])
            self.assertEqual([str(vm.pid())], said["pid"])
        with self.subTest("descriptors"):
            said = self.probe("fds", vm.qmp)
            self.assertEqual(["ok"], said["closefd"])
            self.assertGreater(int(said["written"][0]), 4096)
            self.assertEqual(["failed"], said["mode"])
        with self.subTest("features by the schema"):
            self.assertEqual(
                {"xen": ["1"], "nosuch": ["0"], "stop": ["1"],
                 "background": ["1"], "mapped": [str(int(modern))],
                 "exit_on_error": [str(int(modern))],
                 "active": [str(int(modern))]},
                self.probe("schema", vm.qmp))
        with self.subTest("events between commands and replies"):
            said = self.probe("events", vm.qmp)
            self.assertEqual(["paused"], said["status1"])
            self.assertEqual(["running"], said["status3"])
            self.assertEqual(["STOP", "RESUME"],
                             [e for e in said["event"]
                              if e in ("STOP", "RESUME")])
        with self.subTest("errors with class and text"):
            said = self.probe("errors", vm.qmp)
            self.assertEqual(["failed"], said["device"])
            self.assertEqual(["DeviceNotFound"], said["device_class"])
            self.assertIn("no-such-device", said["device_text"][0])
            self.assertIn("no-such-device", said["device_message"][0])
            self.assertEqual(["precondition"], said["command"])
            self.assertEqual(["CommandNotFound"], said["command_class"])
            self.assertEqual(["failed"], said["argument"])
            self.assertIn("surplus", said["argument_message"][0])
            self.assertEqual([""], said["class_afterwards"])
        with self.subTest("a late reply is nobody's"):
            said = self.probe("timeout", vm.qmp,
                              os.path.join(self.tmp, "pmem"))
            self.assertEqual(["unreachable"], said["slow"])
            self.assertEqual(["running"] * 3, said["status"])
        with self.subTest("the second client"):
            with QMP(vm.qmp):
                said = self.probe("second", vm.qmp)
            self.assertEqual(["busy"], said["second"])
            self.assertTrue(said["second_hint"][0])
            self.assertIn(int(said["second_ms"][0]), range(650, 2000))
        with self.subTest("the peer goes"):
            said = self.probe("gone", vm.qmp)
            self.assertEqual(["unreachable"] * 2, said["gone"])
            vm.wait_off()

    def test_the_guest_agent(self):
        vm = self.running_vm(attach=False, agent=True,
                             disks=[self.disk(fmt="raw", fs=True)])
        for again in range(2):
            with self.subTest(again=again):
                said = self.probe("agent", vm.agent)
                self.assertEqual(["1"], said["frozen"])
                self.assertEqual(["1"], said["is_frozen"])
                self.assertEqual(["failed"], said["while_frozen"])
                self.assertEqual(["1"], said["thawed"])
                self.assertEqual(["0"], said["is_frozen_after"])
                self.assertEqual(["failed"], said["unknown"])
        self.goes_on(vm)
        self.pause(vm)
        said = self.probe("silent-agent", vm.agent)
        self.assertEqual(["unreachable"], said["silent"])
        self.cont(vm)
        said = self.probe("agent", vm.agent)
        self.assertEqual(["1"], said["frozen"])
