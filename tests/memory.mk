# SPDX-License-Identifier: MIT
# Memory snapshots under real KVM (on a machine without it too), and measured.

.PHONY: check-kvm bench-memory bench-restore

check-kvm: all ## a live snapshot of a KVM guest with invtsc, in emulated SVM
	$(Q)python3 tests/integration/run.py --build $(BUILD) --qemu 7.2 -j 1 \
	    -k test_kvm --show

bench-memory: all ## memory snapshots against QEMU, libvirt, fio (SIZE=2G,8G ROW=cow,qemu)
	$(Q)fixtures/deps.sh bench
	$(Q)bench/memory.py --size $(or $(SIZE),2G$(comma)8G) \
	    --reps $(or $(REPS),5) $(if $(ROW),--row $(ROW)) \
	    --json $(or $(JSON),$(BUILD)/bench-memory.json)

bench-restore: all ## reverts against loadvm and fio (SIZE=1G,4G ROW=inplace,loadvm)
	$(Q)fixtures/deps.sh bench
	$(Q)bench/memory_restore.py --size $(or $(SIZE),1G$(comma)4G) \
	    --reps $(or $(REPS),5) $(if $(ROW),--row $(ROW)) \
	    --json $(or $(JSON),$(BUILD)/bench-restore.json)
