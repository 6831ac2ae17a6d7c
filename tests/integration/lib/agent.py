# SPDX-License-Identifier: MIT
"""A guest agent that the tests own: it freezes nothing but a flag, and behaves
as badly as a test wants."""

import contextlib
import json
import os
import socket
import threading
import time


class Refusal(dict):
    """An error's members."""


class FakeAgent:
    """`behave` is a function of the command's name, called before it is
    answered: it may sleep, return a JSON value to answer with instead, SILENT
    for no answer, or DIE to close the connection."""

    SILENT = object()
    DIE = object()

    def __init__(self, path, filesystems=2):
        self.path = path
        self.filesystems = filesystems
        self.frozen = False
        self.seen = []
        self.behave = lambda command: None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def _serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            # One client at a time, as QEMU's chardev has it.
            with client, contextlib.suppress(OSError):
                self._talk(client)

    def _talk(self, client):
        data = b""
        while True:
            got = client.recv(4096)
            if not got:
                return
            data += got
            while b"\n" in data:
                line, data = data.split(b"\n", 1)
                with contextlib.suppress(ValueError):
                    if not self._answer(client, json.loads(
                            line.lstrip(b"\xff"))):
                        return

    def _answer(self, client, message):
        name = message["execute"]
        self.seen.append(name)
        if name == "guest-sync-delimited":
            instead = self.behave(name)
            if instead is None:
                client.sendall(b"\xff" + json.dumps(
                    {"return": message["arguments"]["id"]}).encode() + b"\n")
            return instead is not self.DIE
        instead = self.behave(name)
        if instead is self.DIE:
            return False
        value = self._do(name) if instead is None else instead
        if isinstance(value, Refusal):
            client.sendall(json.dumps({"error": value}).encode() + b"\n")
        elif value is not self.SILENT:
            client.sendall(json.dumps({"return": value}).encode() + b"\n")
        return True

    @staticmethod
    def refusal(text, kind="CommandNotFound"):
        return Refusal({"class": kind, "desc": text})

    def _do(self, name):
        if name == "guest-fsfreeze-freeze":
            if self.frozen:  # as qemu-ga says it
                return self.refusal("Command %s has been disabled: the agent "
                                    "is in frozen state" % name)
            self.frozen = True
            return self.filesystems
        if name == "guest-fsfreeze-thaw":
            was, self.frozen = self.frozen, False
            return self.filesystems if was else 0
        if name == "guest-fsfreeze-status":
            return "frozen" if self.frozen else "thawed"
        if name == "guest-get-fsinfo":
            return [{"name": "vd%s" % "abcdefgh"[i], "mountpoint": "/%d" % i,
                     "type": "ext4", "disk": []}
                    for i in range(self.filesystems)]
        return {}

    def wait_thawed(self, timeout=10):
        deadline = time.monotonic() + timeout
        while self.frozen:
            if time.monotonic() > deadline:
                raise AssertionError("the guest is still frozen")
            time.sleep(0.01)
