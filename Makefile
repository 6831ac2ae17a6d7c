# SPDX-License-Identifier: MIT
# qstill: `make help` lists the targets. One Makefile, no configure step.

PREFIX   ?= /usr/local
DESTDIR  ?=
CC       ?= cc
CLANG    ?= clang
OBJCOPY  ?= objcopy
BUILD    ?= build
V        ?= 0
WERROR   ?= $(if $(CI),1,0)
SANITIZE ?=

VERSION := $(shell sed -n 's/^\#define QSTILL_VERSION "\(.*\)"/\1/p' include/qstill.h)
SOMAJOR := 0
PKGS    := jansson liburing zlib libzstd libxxhash

# `make deps`, `make check` and `make demo` install what is missing first; the
# other targets only look.
MISSING_OK := help clean deps format-check
ifneq ($(filter-out $(MISSING_OK),$(or $(MAKECMDGOALS),all)),)
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
endif

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
        -Wpointer-arith -Wvla -Wwrite-strings -Wformat=2 -Wundef
ifeq ($(WERROR),1)
WARN += -Werror
endif
OPT    ?= -O2 -g
CFLAGS ?=
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Iinclude -Isrc \
             -fPIC -fvisibility=hidden -pthread $(OPT) $(WARN) $(PKG_CFLAGS) \
             $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer) \
             $(CFLAGS)
ALL_LDFLAGS = -pthread $(if $(SANITIZE),-fsanitize=$(SANITIZE)) $(LDFLAGS)

LIB_SRCS  := $(wildcard src/base/*.c src/qmp/*.c src/qcow2/*.c \
               src/memstate/*.c src/engine/*.c)
CLI_SRCS  := $(wildcard src/cli/*.c)
TLIB_SRCS := $(wildcard tests/lib/*.c)
UNIT_SRCS := $(wildcard tests/unit/test_*.c)
OBJ       = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
LIB_OBJS  := $(call OBJ,$(LIB_SRCS))
CLI_OBJS  := $(call OBJ,$(CLI_SRCS))
TLIB_OBJS := $(call OBJ,$(TLIB_SRCS))
UNIT_BINS := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(UNIT_SRCS))

Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),,@printf '  %-7s %s\n' $(1) $(2))

.DEFAULT_GOAL := all
.PHONY: all check check-unit check-qemu check-asan format-check tidy install \
        uninstall demo deps clean help

all: $(BUILD)/libqstill.a $(BUILD)/libqstill.so $(BUILD)/qstill ## build library and command

$(BUILD)/obj/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/libqstill.a: $(LIB_OBJS)
	$(call say,AR,$@)
	@rm -f $@
	$(Q)ar rcs $@ $(LIB_OBJS)

$(BUILD)/libqstill.so: $(LIB_OBJS) src/libqstill.map
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -shared -Wl,-soname,libqstill.so.$(SOMAJOR) \
	    -Wl,--version-script=src/libqstill.map -Wl,--no-undefined \
	    -o $@ $(LIB_OBJS) $(PKG_LIBS)

# The library for others to link statically: only qstill_* can be seen in it.
# (build/libqstill.a has the inner names too, for the unit tests.)
$(BUILD)/public/libqstill.a: $(LIB_OBJS)
	$(call say,AR,$@)
	@mkdir -p $(@D)
	@rm -f $@
	$(Q)$(LD) -r -o $(@D)/libqstill.o $(LIB_OBJS)
	$(Q)$(OBJCOPY) --localize-hidden $(@D)/libqstill.o
	$(Q)ar rcs $@ $(@D)/libqstill.o

# The command links the library statically, so one file can be copied to a
# host; like any other program it gets the public names only.
$(BUILD)/qstill: $(CLI_OBJS) $(BUILD)/public/libqstill.a
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS)

.SECONDARY: # make would remove the tests' objects, and build them again

$(BUILD)/unit/%: $(BUILD)/obj/tests/unit/%.o $(TLIB_OBJS) $(BUILD)/libqstill.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) $(UNIT_LDFLAGS_$*) -o $@ $< $(TLIB_OBJS) \
	    $(BUILD)/libqstill.a $(PKG_LIBS) -lcmocka

# A fake library behind the verbs that list.
UNIT_LDFLAGS_test_cli_list = $(addprefix -Wl$(comma)--wrap=, \
    qstill_store_open qstill_store_set_note qstill_store_set_launch \
    qstill_snapshot_list qstill_snapshot_list_free)

UNIT_LDFLAGS_test_cli_run = $(addprefix -Wl$(comma)--wrap=, \
    qstill_job_run qstill_job_cancel qstill_job_text)

# The tests of the command's own files link them too, all but main.
$(BUILD)/obj/cli.a: $(filter-out %/main.o,$(CLI_OBJS))
	@rm -f $@
	$(Q)ar rcs $@ $^

$(BUILD)/unit/test_cli_%: $(BUILD)/obj/tests/unit/test_cli_%.o $(TLIB_OBJS) \
    $(BUILD)/obj/cli.a $(BUILD)/libqstill.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) $(UNIT_LDFLAGS_test_cli_$*) -o $@ $^ \
	    $(PKG_LIBS) -lcmocka

check-unit: all $(UNIT_BINS) ## unit and structure tests: no QEMU, no root
	$(Q)tests/run-unit.sh $(UNIT_BINS)

# ---------------------------------------------------- tests with a real QEMU
# QEMU   the versions to test with     JOBS  how many tests at a time (they wait a lot)
# TESTS  a word: only tests with it in their name
comma := ,
QEMU  ?= 7.2,10.0
JOBS  ?= $(shell expr $$(nproc) + 1)
TESTS ?=
INTEGRATION = python3 tests/integration/run.py --build $(BUILD) -j $(JOBS) \
              $(if $(TESTS),-k $(TESTS))

FUZZ_SRCS := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_BINS := $(patsubst tests/fuzz/fuzz_%.c,$(BUILD)/fuzz/%,$(FUZZ_SRCS))

.PHONY: check-fuzz fuzz

deps: ## install with apt what is missing (as root; else names it)
	$(Q)fixtures/deps.sh test

# Make reads pkg-config's answers before any recipe runs: what deps installs
# is seen by a make of its own.
# What depends little on QEMU's version runs with one of the two here, with
# both in check-qemu. check-kvm is for itself: it emulates a whole machine.
check: deps ## all tests, with both QEMUs; installs what is missing
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) all $(UNIT_BINS) $(FUZZ_BINS) \
	    $(PROBES)
	$(Q)$(MAKE) --no-print-directory check-unit check-fuzz
	$(Q)$(MAKE) --no-print-directory check-qcow2-sample
	$(Q)$(MAKE) --no-print-directory check-qemu \
	    RUN_FLAGS='--either --not kvm $(RUN_FLAGS)'

# Programs that the integration tests drive: qmp_probe sees include/ only,
# qmp_calls has the library's own typed calls, memory_probe has src/memstate.
PROBES := $(BUILD)/qmp_probe $(BUILD)/qmp_calls $(BUILD)/memory_probe
$(PROBES): $(BUILD)/%: $(BUILD)/obj/tests/integration/%.o $(BUILD)/libqstill.a
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS)

check-qemu: all $(PROBES) ## integration tests (QEMU=7.2,10.0 JOBS=n TESTS=word)
	$(Q)$(INTEGRATION) --qemu $(QEMU) $(RUN_FLAGS)

# A long series that can be done in parts: what was tried stands in POINTS (or
# in the file $(1)), and is counted at the end. $(2): more of the environment.
#   SECONDS_EACH=250   nothing is begun after that time
#   GO_ON=1            goes on where the run before it ended
define in_parts
$(Q)$(if $(GO_ON),,rm -f $(or $(POINTS),$(1)))
$(Q)QSTILL_TEST_POINTS=$(abspath $(or $(POINTS),$(1))) $(2) \
    $(if $(SECONDS_EACH),QSTILL_TEST_UNTIL=$$(($$(date +%s) + $(SECONDS_EACH)))) \
    $(INTEGRATION) --qemu $(QEMU); status=$$?; \
    python3 tests/integration/lib/points.py $(or $(POINTS),$(1)) || status=1; \
    exit $$status
endef

# Random operations against a model: SEED=n SECONDS_EACH=n bring a failure back
# or make it long; the seeds are printed.
.PHONY: check-model
check-model: all ## random operations against a model, long (SEED SECONDS_EACH)
	$(Q)QSTILL_MODEL_SEED=$(or $(SEED),1) QSTILL_MODEL_STEPS=100000 \
	    QSTILL_MODEL_SECONDS=$(or $(SECONDS_EACH),600) python3 \
	    tests/integration/run.py --build $(BUILD) -j $(JOBS) --qemu $(QEMU) \
	    -k test_model

.PHONY: bench-tree
bench-tree: all ## every verb on a chain of 200 and a tree of 500 snapshots
	$(Q)bench/tree.py --build $(BUILD)

ASAN := BUILD=$(BUILD)/asan SANITIZE=address,undefined \
        CFLAGS='$(CFLAGS) -fno-sanitize-recover=all'
check-asan: deps ## unit and fuzz tests and a smoke test under the sanitizers
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) $(ASAN) all
	$(Q)ASAN_OPTIONS=allocator_may_return_null=1 \
	    $(MAKE) --no-print-directory $(ASAN) check-unit check-fuzz
	$(Q)python3 tests/integration/run.py --build $(BUILD)/asan \
	    --cache $(BUILD) --qemu $(firstword $(subst $(comma), ,$(QEMU))) \
	    -j $(JOBS) -k test_smoke

# The fuzzers over their corpora, once: what they found stays found.
$(BUILD)/fuzz/%: $(BUILD)/obj/tests/fuzz/fuzz_%.o \
    $(BUILD)/obj/tests/fuzz/replay.o $(TLIB_OBJS) $(BUILD)/libqstill.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS) -lcmocka

check-fuzz: $(FUZZ_BINS)
	$(Q)tests/fuzz/replay.sh $(FUZZ_BINS)

# make fuzz FUZZ=name [FUZZ_SECONDS=60]: goes on from the corpus, with clang's
# libFuzzer; new inputs land in $(BUILD)/libfuzzer/corpus/name.
FUZZ_SECONDS ?= 60
LIBFUZZER := $(BUILD)/libfuzzer
fuzz: ## fuzz one parser with libFuzzer (FUZZ=name FUZZ_SECONDS=60)
	$(Q)test -f tests/fuzz/fuzz_$(FUZZ).c || \
	    { echo "FUZZ= one of: $(patsubst $(BUILD)/fuzz/%,%,$(FUZZ_BINS))"; exit 2; }
	$(Q)$(MAKE) --no-print-directory BUILD=$(LIBFUZZER) CC=$(CLANG) \
	    SANITIZE=address,undefined,fuzzer-no-link $(LIBFUZZER)/run/$(FUZZ)
	@mkdir -p $(LIBFUZZER)/corpus/$(FUZZ)
	$(Q)$(LIBFUZZER)/run/$(FUZZ) -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 \
	    $(LIBFUZZER)/corpus/$(FUZZ) $(wildcard tests/fuzz/corpus/$(FUZZ))

$(BUILD)/run/%: $(BUILD)/obj/tests/fuzz/fuzz_%.o $(TLIB_OBJS) $(BUILD)/libqstill.a
	@mkdir -p $(@D)
	$(Q)$(CC) -pthread -fsanitize=address,undefined,fuzzer -o $@ $^ $(PKG_LIBS) -lcmocka

demo: deps ## the main job on a real guest, step by step, in 2 minutes
	$(Q)$(MAKE) --no-print-directory -j$(JOBS) all
	$(Q)python3 tests/integration/demo.py --build $(BUILD)

# ------------------------------------------------- install, format and tidy
MANDIR  ?= $(PREFIX)/share/man
COMPDIR ?= $(PREFIX)/share/bash-completion/completions
HEADERS := $(wildcard include/*.h)
MANUALS := $(patsubst docs/man/%.pod,$(BUILD)/man/%,$(wildcard docs/man/*.pod))
POD2MAN := $(shell command -v pod2man)
at      = $(DESTDIR)$(1)

# "=for example FILE" stands for the file itself.
$(BUILD)/man/%: docs/man/%.pod $(wildcard examples/*)
	@mkdir -p $(@D)
	$(Q)awk '/^=for example /{while((getline l<$$3)>0)print l==""?l:"    " l; \
	    next}{print}' $< | $(POD2MAN) --section=$(subst .,,$(suffix $*)) \
	    --name=$(basename $*) --release='qstill $(VERSION)' \
	    --center='qstill' --errors=die - $@

install: all $(if $(POD2MAN),$(MANUALS)) ## command, library, manuals (PREFIX, DESTDIR)
	install -d $(call at,$(PREFIX)/bin) $(call at,$(PREFIX)/include) \
	    $(call at,$(PREFIX)/lib/pkgconfig) $(call at,$(COMPDIR))
	install -m 755 $(BUILD)/qstill $(call at,$(PREFIX)/bin/qstill)
	install -m 644 $(HEADERS) $(call at,$(PREFIX)/include)
	install -m 644 $(BUILD)/public/libqstill.a $(call at,$(PREFIX)/lib)
	install -m 755 $(BUILD)/libqstill.so \
	    $(call at,$(PREFIX)/lib/libqstill.so.$(VERSION))
	ln -sf libqstill.so.$(VERSION) $(call at,$(PREFIX)/lib/libqstill.so.$(SOMAJOR))
	ln -sf libqstill.so.$(SOMAJOR) $(call at,$(PREFIX)/lib/libqstill.so)
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' \
	    -e 's|@PKGS@|$(PKGS)|' src/qstill.pc.in \
	    >$(call at,$(PREFIX)/lib/pkgconfig/qstill.pc)
	$(BUILD)/qstill completion bash >$(call at,$(COMPDIR)/qstill)
ifneq ($(POD2MAN),)
	for m in $(notdir $(MANUALS)); do s=$${m##*.}; \
	    install -D -m 644 $(BUILD)/man/$$m \
	        $(call at,$(MANDIR)/man$$s/$$m) || exit 1; done
else
	@echo "no pod2man (package perl): the manuals are not installed"
endif

uninstall: ## take away what install brought
	rm -f $(call at,$(PREFIX)/bin/qstill) $(call at,$(COMPDIR)/qstill) \
	    $(call at,$(PREFIX)/lib/pkgconfig/qstill.pc) \
	    $(foreach h,$(notdir $(HEADERS)),$(call at,$(PREFIX)/include/$(h))) \
	    $(foreach s,a so so.$(SOMAJOR) so.$(VERSION),$(call \
	        at,$(PREFIX)/lib/libqstill.$(s))) \
	    $(foreach m,$(notdir $(MANUALS)),$(call \
	        at,$(MANDIR)/man$(subst .,,$(suffix $(m)))/$(m)))

C_FILES = $(shell find src include tests examples bench -name '*.[ch]' \
              2>/dev/null | sort)
format-check: ## do all C files have the house's format?
	@command -v clang-format >/dev/null || { echo "install clang-format"; exit 1; }
	$(Q)clang-format --dry-run --Werror $(C_FILES)

tidy: ## clang-tidy over the library and the command
	@command -v clang-tidy >/dev/null || { echo "install clang-tidy"; exit 1; }
	$(Q)printf '%s\n' $(LIB_SRCS) $(CLI_SRCS) | xargs -P 2 -n 1 sh -c \
	    'clang-tidy --quiet --warnings-as-errors="*" "$$@" -- -std=c11 \
	    -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Iinclude -Isrc' tidy

clean: ## remove everything that was built
	rm -rf $(BUILD)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | \
	    expand -t 20

-include tests/*.mk
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
