# SPDX-License-Identifier: MIT
# The proofs of the cow capture. COW_ROUNDS: how often each kind of RAM of a
# real guest is compared with a copy read at the pause.

.PHONY: check-cow-deep check-cow-stress check-tsan

check-cow-deep: TESTS := $(or $(TESTS),test_cow.Reference,test_cow.Shapes,test_cow.Killed)
check-cow-deep: all $(PROBES) $(if $(GO_ON),,check-cow-stress) ## cow against real guests of all shapes, 200 rounds each (QEMU= SECONDS_EACH= GO_ON=1)
	$(call in_parts,$(BUILD)/cow.points,QSTILL_TEST_DEEP=1 COW_ROUNDS=$(or $(COW_ROUNDS),200))

# 8 threads that write the next number of one sequence anywhere in 1 GiB.
COW_STRESS = QSTILL_TEST_MIB=$(or $(MIB),1024) QSTILL_TEST_ROUNDS=$(or $(ROUNDS),10)
check-cow-stress: $(BUILD)/unit/test_cow_capture ## cow of a process that writes to 1 GiB with 8 threads
	$(Q)$(COW_STRESS) $(BUILD)/unit/test_cow_capture

# ThreadSanitizer wants the old layout of the address space: setarch -R.
TSAN_TESTS := test_cow_capture test_cow_failures test_memory test_worker \
              test_capture_copy
TSAN := BUILD=$(BUILD)/tsan SANITIZE=thread
check-tsan: ## the threads of capture and restore under ThreadSanitizer
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) $(TSAN) \
	    $(TSAN_TESTS:%=$(BUILD)/tsan/unit/%)
	$(Q)for t in $(TSAN_TESTS); do \
	    TSAN_OPTIONS='halt_on_error=1' \
	        setarch -R $(BUILD)/tsan/unit/$$t || exit 1; done
