# SPDX-License-Identifier: MIT
# Dying at every system call that changes something. `make check` runs a few of
# the points (tests/integration/test_kill.py), check-crash all of them.
$(BUILD)/crash/syskill: tests/crash/syskill.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE -O2 $(WARN) -o $@ $<

check-qemu: $(BUILD)/crash/syskill

# What was tried stands in POINTS, and is counted at the end. In parts:
#   SECONDS_EACH=250   no point is begun after that time
#   GO_ON=1            goes on where the run before it ended
#   EVERY=K/P-L        each K-th point, from the P-th to the L-th
#   TESTS=DiskFull.test_in_a_revert/   some operations (as -k of run.py)
.PHONY: check-crash
POINTS ?= $(BUILD)/crash/points
check-crash: all $(BUILD)/crash/syskill ## killed at every system call (QEMU= JOBS= TESTS= SECONDS_EACH= GO_ON=1)
	$(Q)$(if $(GO_ON),,rm -f $(POINTS))
	$(Q)QSTILL_TEST_EVERY=$(or $(EVERY),1) QSTILL_TEST_POINTS=$(abspath $(POINTS)) \
	    $(if $(SECONDS_EACH),QSTILL_TEST_UNTIL=$$(($$(date +%s) + $(SECONDS_EACH)))) \
	    python3 tests/integration/run.py --build $(BUILD) -j $(JOBS) \
	    -k '$(or $(TESTS),test_kill.)' --qemu $(QEMU); status=$$?; \
	    python3 tests/integration/lib/points.py $(POINTS) || status=1; \
	    exit $$status
