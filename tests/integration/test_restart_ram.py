# SPDX-License-Identifier: MIT
"""Memory that comes back into RAM of another kind than it was taken from."""

import os

from lib.case import Case

MIB = 1 << 20
SIZE = 80 * MIB  # of smaller blocks zero pages are always loaded


class OtherBackend(Case):
    """The VM's owner started it again with another memory backend."""
    cost = 5

    def argv(self, kind):
        return ["-m", "80M", "-object", "%s,id=ram0,size=80M" % kind]

    def started_again(self, vm, kind):
        heads = vm.heads()
        vm.quit()
        for d in vm.disks:
            d.path = heads.get(d.id + "-dev") or heads[d.id]
            d.fmt = "qcow2"
        vm.extra = self.argv(kind)
        vm.start()

    def ram_of(self, name):
        made = self.q.info("vm", name)["id"]
        with open(os.path.join(self.q.memory_dir("vm", made),
                               "ram0.ram"), "rb") as f:
            return f.read()

    def check(self, *way):
        """Every page that is zero in the snapshot is full in the file."""
        path = os.path.join(self.tmp, "guest.ram")
        with open(path, "wb") as f:
            f.write(b"\xa5" * SIZE)
        vm = self.tiny_vm(machine="pc,memory-backend=ram0",
                          extra=self.argv("memory-backend-ram"))
        self.q("create", "vm", "one", "--memory")
        self.started_again(
            vm, "memory-backend-file,share=on,mem-path=%s" % path)
        self.q("revert", "vm", "one", "--paused", *way)
        self.q("create", "vm", "two", "--memory", "--mode", "paused")
        one, two = self.ram_of("one"), self.ram_of("two")
        wrong = [at for at in range(0, SIZE, 4096)
                 if one[at:at + 4096] != two[at:at + 4096]]
        self.assertEqual([], [hex(at) for at in wrong[:4]],
                         "%d pages are not the snapshot's" % len(wrong))
        self.cont(vm)

    def test_a_file_where_there_was_anonymous_memory(self):
        self.check("--restore", "eager")

    def test_the_same_with_auto(self):
        self.check()
