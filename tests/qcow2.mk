# SPDX-License-Identifier: MIT
# The proofs of the qcow2 engine. SEED and COUNT choose the random chains: a
# failure prints its seed, and SEED=n COUNT=1 brings it back.
QCOW2_TESTS := tests/integration/qcow2
QCOW2_RUN    = QSTILL=$(abspath $(BUILD)/qstill) python3 $(QCOW2_TESTS)/run.py

.PHONY: check-qcow2 check-qcow2-sample check-deep
QCOW2_PROOFS := $(BUILD)/crash/failalloc.so $(BUILD)/crash/crash_merge
check-qcow2 check-qcow2-sample check-deep: $(QCOW2_PROOFS)

check-qcow2-sample: all ## a part of check-qcow2, in less than a minute
	$(Q)$(QCOW2_RUN) --sample -j $(JOBS) --seed $(or $(SEED),1) \
	    --count $(or $(COUNT),8)

check-qcow2: all ## the qcow2 engine against qemu-img, few images (SEED COUNT)
	$(Q)$(QCOW2_RUN) -j $(JOBS) --seed $(or $(SEED),1) --count $(or $(COUNT),8)

# Bit by bit: what has passed stands in $(BUILD)/deep.state, with its figures.
check-deep: all ## the same with many, hours (SEED=1 COUNT=1500; SECONDS_EACH=300: so long, and then on from there)
	$(Q)$(QCOW2_RUN) -j $(JOBS) --seed $(or $(SEED),1) \
	    --count $(or $(COUNT),1500) --deep --state $(abspath $(BUILD))/deep.state \
	    $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH)) $(TESTS)

.PHONY: bench-merge
bench-merge: all ## merges against qemu-img and fio (SCALE=8 for a quick look)
	$(Q)bench/merge.py --scale $(or $(SCALE),1) --reps $(or $(REPS),3) \
	    --row '$(ROW)'

# The n-th allocation of a process fails: preloaded by the fault tests.
$(BUILD)/crash/failalloc.so: tests/crash/failalloc.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 -O2 $(WARN) -shared -fPIC -o $@ $<

# Replays what a crash leaves of a merge (tests/crash/crash_merge.c).
$(BUILD)/crash/crash_merge: $(BUILD)/obj/tests/crash/crash_merge.o \
    $(TLIB_OBJS) $(BUILD)/libqstill.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS) -lcmocka
