# SPDX-License-Identifier: MIT
# Dying at every system call that changes something. `make check` runs a few of
# the points (tests/integration/test_kill.py), check-crash all of them.
$(BUILD)/crash/syskill: tests/crash/syskill.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE -O2 $(WARN) -o $@ $<

check-qemu: $(BUILD)/crash/syskill

#   EVERY=K/P-L        each K-th point, from the P-th to the L-th
#   TESTS=DiskFull.test_in_a_revert/   some operations (as -k of run.py)
.PHONY: check-crash
check-crash: TESTS := $(or $(TESTS),test_kill)
check-crash: all $(BUILD)/crash/syskill ## killed at every system call (QEMU= JOBS= TESTS= SECONDS_EACH= GO_ON=1)
	$(call in_parts,$(BUILD)/crash/points,QSTILL_TEST_EVERY=$(or $(EVERY),1))
