# SPDX-License-Identifier: MIT
"""The tests' own QMP and guest-agent clients, which share nothing with the
product's: what the product says is checked through these."""

import json
import os
import socket
import struct
import time

from .guest import SLOW


class QMPError(Exception):
    pass


def peer_pid(sock):
    creds = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return struct.unpack("3i", creds)[0]


class LineSocket:
    """Lines of JSON over a unix socket, with one deadline per call."""

    def __init__(self, path, timeout=20):
        self.path = path
        self.timeout = timeout = timeout * SLOW
        self.buffer = b""
        self.sock = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.sock.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    self.sock.close()
                    raise
                time.sleep(0.02)
        self.pid = peer_pid(self.sock)

    def send(self, obj):
        self.sock.sendall(json.dumps(obj).encode() + b"\n")

    def line(self, timeout=None):
        deadline = time.monotonic() + (timeout or self.timeout)
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise QMPError("%s: no answer in time" % self.path)
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except socket.timeout:
                continue
            if not data:
                raise QMPError("%s: closed by the peer" % self.path)
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class QMP(LineSocket):
    def __init__(self, path, timeout=20):
        super().__init__(path, timeout)
        self.events = []
        self.greeting = json.loads(self.line())
        while "QMP" not in self.greeting:  # QEMU 7.2 may tell an event first
            self.events.append(self.greeting)
            self.greeting = json.loads(self.line())
        self.cmd("qmp_capabilities")

    def cmd(self, name, timeout=None, **args):
        args = {k.replace("_", "-"): v for k, v in args.items()}
        self.send({"execute": name, "arguments": args})
        while True:
            reply = json.loads(self.line(timeout))
            if "event" in reply:
                self.events.append(reply)
            elif "error" in reply:
                raise QMPError("%s: %s" % (name, reply["error"]["desc"]))
            else:
                return reply["return"]

    def hmp(self, line):
        return self.cmd("human-monitor-command", command_line=line)


class Agent(LineSocket):
    """The guest agent: synchronised first, so stale replies do no harm."""

    def __init__(self, path, timeout=20):
        super().__init__(path, timeout)
        token = int.from_bytes(os.urandom(3), "big")
        self.sock.sendall(b"\xff")
        self.send({"execute": "guest-sync-delimited",
                   "arguments": {"id": token}})
        while True:
            line = self.line()
            if b"\xff" not in line:
                continue
            try:
                reply = json.loads(line[line.rindex(b"\xff") + 1:])
            except ValueError:
                continue
            if reply.get("return") == token:
                return

    def cmd(self, name, timeout=None, **args):
        args = {k.replace("_", "-"): v for k, v in args.items()}
        self.send({"execute": name, "arguments": args})
        reply = json.loads(self.line(timeout))
        if "error" in reply:
            raise QMPError("%s: %s" % (name, reply["error"]["desc"]))
        return reply["return"]
