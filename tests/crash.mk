# SPDX-License-Identifier: MIT
# Dying at every system call that changes something. `make check` runs a few of
# the points (tests/integration/test_kill.py), check-crash all of them.
$(BUILD)/crash/syskill: tests/crash/syskill.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE -O2 $(WARN) -o $@ $<

check-qemu: $(BUILD)/crash/syskill

.PHONY: check-crash
check-crash: all $(BUILD)/crash/syskill ## killed at every system call (QEMU= JOBS= TESTS=)
	$(Q)QSTILL_TEST_EVERY=1 python3 tests/integration/run.py --build $(BUILD) \
	    -j $(JOBS) -k test_kill.$(TESTS) --qemu $(firstword $(subst $(comma), ,$(QEMU)))
