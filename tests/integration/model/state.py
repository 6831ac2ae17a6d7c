# SPDX-License-Identifier: MIT
"""What the operations on snapshots mean: a tree of names, each with the
content of every disk, and what undo could bring back."""

import copy


class Node:
    def __init__(self, line, contents):
        self.line = line  # all that it was made on, deleted ones too
        self.contents = contents


class Trash:
    """What undo can take back, until `keep` more operations have been."""

    def __init__(self, kind, keep, nodes=None, line=None, contents=None):
        self.kind = kind  # delete; revert: `line` and `contents` are the
        self.keep = keep  # heads'; undo: the same, of what --redo goes to
        self.nodes = nodes or {}
        self.line = line
        self.contents = contents


class State:
    """What a step changes: copied before one that may be cut."""

    def __init__(self, contents):
        self.nodes = {}
        self.line = []
        self.contents = contents
        self.trash = []

    def copy(self):
        s = State(list(self.contents))
        s.nodes = dict(self.nodes)
        s.line = self.line
        s.trash = [copy.copy(t) for t in self.trash]
        return s

    def kept(self):
        return [(t.kind, t.keep) for t in self.trash]

    def living(self, line):
        return next((n for n in reversed(line) if n in self.nodes), None)

    def parent(self, name):
        return self.living(self.nodes[name].line)

    @property
    def current(self):
        return self.living(self.line)

    def age(self, undo=False):
        for t in self.trash:
            if not (undo and t.kind == "undo"):
                t.keep -= 1

    def end(self, *more):
        self.trash = [t for t in [*self.trash, *more] if t.keep > 0]

    def create(self, name):
        self.age()
        self.end()
        self.nodes[name] = Node(self.line, list(self.contents))
        self.line = self.line + [name]

    def go(self, line, contents):
        self.line, self.contents = line, list(contents)

    def revert(self, name, keep):
        self.age()
        self.end(Trash("revert", keep, None, self.line, self.contents))
        node = self.nodes[name]
        self.go(node.line + [name], node.contents)

    def delete(self, names, keep=0):
        self.age()
        self.end(Trash("delete", keep, {n: self.nodes.pop(n) for n in names}))

    def undo(self):
        """The last one but an undo; else that one."""
        at = next((t for t in reversed(self.trash) if t.kind != "undo"),
                  None) or self.trash[-1]
        self.trash.remove(at)
        self.age(undo=True)
        if at.kind == "delete":
            self.nodes.update(at.nodes)
            self.end()
            return
        self.end(Trash("undo" if at.kind == "revert" else "revert", at.keep,
                       None, self.line, self.contents))
        self.go(at.line, at.contents)

    def below(self, name):
        return {name} | {n for n, v in self.nodes.items() if name in v.line}
