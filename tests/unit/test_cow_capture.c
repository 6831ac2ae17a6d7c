/* SPDX-License-Identifier: MIT */
/* Mode `cow`: memory that is written without pause, captured as it was at one
 * instant; and everybody is let go whatever happens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../lib/cow_stress.h"
#include "../lib/fault_io.h"
#include "../lib/mem_set.h"
#include "../lib/mem_tmpdir.h"
#include "base/checked.h"
#include "memstate/cow.h"
#include "memstate/uffd.h"

#define MIB ((size_t)1 << 20)

struct fixture {
    char path[128];
    int dirfd;
    struct cow_stress stress;
    struct cow_stats stats;
    struct capture_options options;
    struct capture_cow_options cow;
    struct qstill_error err;
    uint8_t *rom; /* a small block of the same process */
};

/* Why no test of this file can be run here, or NULL. */
static const char *hindrance(void)
{
    static struct qstill_error err;
    struct uffd_options o = UFFD_OPTIONS_INIT;
    struct uffd u;

    if (uffd_open(&u, getpid(), &o, &err) < 0)
        return err.message;
    uffd_close(&u);
    return NULL;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->path);
    f->options = (struct capture_options){.dirfd = f->dirfd};
    f->cow = (struct capture_cow_options)CAPTURE_COW_OPTIONS_INIT;
    f->cow.stats = &f->stats;
    f->stress = (struct cow_stress){
        .size = 24 * MIB + 12288, .threads = 4, .pace_us = 300};
    f->rom = mmap(NULL, 65536, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mem_set_fill(f->rom, 65536, 10, 5);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    /* A test that failed leaves it running. */
    if (f->stress.pid > 0 && f->stress.pid != getpid())
        kill(f->stress.pid, SIGKILL);
    mem_tmpdir_remove(f->path, f->dirfd);
    munmap(f->rom, 65536);
    free(f);
    return 0;
}

static void start(struct fixture *f, enum cow_memory kind, bool other)
{
    if (hindrance()) {
        print_message("skipped: %s\n", hindrance());
        skip();
    }
    if (!cow_stress_start(&f->stress, kind, other)) {
        print_message("skipped: no memory of this kind here\n");
        skip();
    }
}

/* The stress memory as three blocks with a hole between, and a ROM. */
static size_t sources(struct fixture *f, struct capture_source *out)
{
    uint64_t at = (uintptr_t)f->stress.ram;
    bool huge = f->stress.fd >= 0 && f->stress.size % (2 * MIB) == 0;
    uint64_t first = 8 * MIB, gap = huge ? 0 : 8192;
    uint64_t second = f->stress.size - first - gap;

    out[0] = (struct capture_source){"pc.ram", at + first + gap, second, 0};
    out[1] = (struct capture_source){"dimm1", at, first, 0};
    out[2] = (struct capture_source){"pc.rom", (uintptr_t)f->rom, 65536, 0};
    return 3;
}

static struct capture *open_cow(struct fixture *f)
{
    struct capture_source s[3];
    struct capture *c = NULL;
    size_t n = sources(f, s);

    if (capture_cow_open(&c, f->stress.pid, s, n, &f->cow, &f->options,
                         &f->err) < 0)
        fail_msg("%s", f->err.message);
    return c;
}

static void take_instant(struct fixture *f, struct capture *c)
{
    CLEANUP(closep) int device = mem_set_device_fd();

    assert_int_equal(capture_device_state(c, device, &f->err), 0);
    assert_int_equal(capture_instant(c, &f->err), 0);
    mem_set_wait(c, MEM_SET_INSTANT);
}

static void expect_files(struct fixture *f, const uint8_t *copy)
{
    struct capture_source s[3];

    sources(f, s);
    for (int i = 0; i < 2; i++)
        mem_set_expect(f->dirfd, s[i].id,
                       copy + (s[i].hva - (uintptr_t)f->stress.ram), s[i].size);
    mem_set_expect(f->dirfd, "pc.rom", f->rom, 65536);
    if (mem_set_verify(f->dirfd, &f->err) < 0)
        fail_msg("%s", f->err.message);
}

/* Open, ready, pause, reference, instant, resume, complete, compare. */
static void one_round(struct fixture *f)
{
    CLEANUP(capture_closep) struct capture *c = open_cow(f);
    CLEANUP(freep) uint8_t *copy = NULL;
    struct capture_result r;

    mem_set_wait(c, MEM_SET_READY);
    cow_stress_goes_on(&f->stress);
    cow_stress_pause(&f->stress);
    copy = cow_stress_copy(&f->stress);
    take_instant(f, c);
    cow_stress_resume(&f->stress);
    mem_set_wait(c, MEM_SET_COMPLETE);
    if (capture_finish(c, &r, &f->err) < 0)
        fail_msg("%s", f->err.message);
    if (getenv("QSTILL_TEST_VERBOSE"))
        print_message("arm %.1f instant %.2f copy %.1f ms, marked %llu, "
                      "faults %llu (%llu waited), longest %.2f ms\n",
                      f->stats.arm_ms, f->stats.instant_ms, f->stats.copy_ms,
                      (unsigned long long)f->stats.marked,
                      (unsigned long long)f->stats.faults,
                      (unsigned long long)f->stats.waited,
                      (double)f->stats.longest_stall_ns / 1e6);
    expect_files(f, copy);
    assert_int_equal(r.faults, f->stats.faults);
    assert_true(r.written_bytes > 0 && r.zero_bytes > 0);
    cow_stress_goes_on(&f->stress);
}

static void empty_dir(struct fixture *f)
{
    mem_tmpdir_remove(f->path, f->dirfd);
    f->dirfd = mem_tmpdir_make(f->path);
    f->options.dirfd = f->dirfd;
}

static void rounds(struct fixture *f, enum cow_memory kind, bool other,
                   unsigned count)
{
    const char *more = getenv("QSTILL_TEST_ROUNDS");
    uint64_t faults = 0;

    if (more)
        count = (unsigned)atoi(more);
    /* Slow enough that there is time to write. */
    f->options.bwlimit = 60 * MIB;
    start(f, kind, other);
    for (unsigned i = 0; i < count; i++) {
        one_round(f);
        faults += f->stats.faults;
        empty_dir(f);
    }
    /* Else it proved nothing. */
    assert_true(faults > 0);
    cow_stress_stop(&f->stress);
}

static void private_memory_of_a_process_is_one_cut(void **state)
{
    rounds(*state, COW_PRIVATE, true, 2);
}

static void huge_pages_of_a_process_are_one_cut(void **state)
{
    rounds(*state, COW_THP, true, 2);
}

static void a_memfd_of_a_process_is_one_cut(void **state)
{
    rounds(*state, COW_MEMFD, true, 2);
}

static void a_memfd_read_as_private_is_one_cut(void **state)
{
    struct fixture *f = *state;

    f->cow.no_file = true;
    rounds(f, COW_MEMFD, true, 2);
}

static void hugetlbfs_is_one_cut(void **state)
{
    struct fixture *f = *state;

    f->stress.size = 24 * MIB;
    rounds(f, COW_HUGE, true, 2);
}

static void our_own_memory_is_one_cut(void **state)
{
    rounds(*state, COW_PRIVATE, false, 2);
}

static void our_own_memfd_is_one_cut(void **state)
{
    rounds(*state, COW_MEMFD, false, 2);
}

static void an_old_kernel_reads_all_pages_first(void **state)
{
    struct fixture *f = *state;

    f->cow.no_unpopulated = true;
    rounds(f, COW_PRIVATE, true, 2);
}

static void several_copiers_share_the_work(void **state)
{
    struct fixture *f = *state;

    f->cow.copiers = 4;
    rounds(f, COW_PRIVATE, true, 2);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(private_memory_of_a_process_is_one_cut),
        T(huge_pages_of_a_process_are_one_cut),
        T(a_memfd_of_a_process_is_one_cut),
        T(a_memfd_read_as_private_is_one_cut),
        T(hugetlbfs_is_one_cut),
        T(our_own_memory_is_one_cut),
        T(our_own_memfd_is_one_cut),
        T(an_old_kernel_reads_all_pages_first),
        T(several_copiers_share_the_work),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
