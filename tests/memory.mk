# SPDX-License-Identifier: MIT
# Memory snapshots under real KVM (on a machine without it too), and measured.

.PHONY: check-kvm

check-kvm: all ## a live snapshot of a KVM guest with invtsc, in emulated SVM
	$(Q)python3 tests/integration/run.py --build $(BUILD) --qemu 7.2 -j 1 \
	    -k test_kvm --show
