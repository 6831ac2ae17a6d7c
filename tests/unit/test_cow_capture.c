/* SPDX-License-Identifier: MIT */
/* Mode `cow`: memory that is written without pause, captured as it was at one
 * instant; and everybody is let go whatever happens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

#include "../lib/cow_fixture.h"

#define OVERCOMMIT "/proc/sys/vm/nr_overcommit_hugepages"

static uint64_t forked_by(const struct cow_fixture *f)
{
    return __atomic_load_n(&f->stress.control->forked, __ATOMIC_SEQ_CST);
}

static void rounds(struct cow_fixture *f, enum cow_memory kind, bool other,
                   unsigned count)
{
    const char *more = getenv("QSTILL_TEST_ROUNDS");
    uint64_t faults = 0;

    if (more)
        count = (unsigned)atoi(more);
    /* Slow enough that there is time to write: a third of a second. */
    f->options.bwlimit = 50 * MIB;
    if (f->stress.size > 64 * MIB)
        f->options.bwlimit = f->stress.size;
    cow_start(f, kind, other);
    for (unsigned i = 0; i < count; i++) {
        uint64_t forked = forked_by(f);

        cow_round(f);
        faults += f->stats.faults;
        assert_true(!f->stress.forks || forked_by(f) > forked + 3);
        cow_empty_dir(f);
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
    struct cow_fixture *f = *state;

    f->cow.no_file = true;
    rounds(f, COW_MEMFD, true, 2);
}

static long read_overcommit(void)
{
    FILE *f = fopen(OVERCOMMIT, "re");
    long n = -1;

    if (f && fscanf(f, "%ld", &n) != 1)
        n = -1;
    if (f)
        fclose(f);
    return n;
}

/* Without the rights: what is reserved has to do. */
static void write_overcommit(long n)
{
    FILE *f = fopen(OVERCOMMIT, "we");

    if (!f)
        return;
    fprintf(f, "%ld\n", n);
    fclose(f);
}

static long overcommit;

/* Huge pages for the time of the test: the kernel makes and frees them. */
static int huge_setup(void **state)
{
    struct cow_fixture *f;

    cow_setup(state);
    f = *state;
    overcommit = read_overcommit();
    if (overcommit >= 0)
        write_overcommit(overcommit + (long)(f->stress.size / (2 * MIB)) + 1);
    return 0;
}

static int huge_teardown(void **state)
{
    if (overcommit >= 0)
        write_overcommit(overcommit);
    return cow_teardown(state);
}

static void hugetlbfs_is_one_cut(void **state)
{
    struct cow_fixture *f = *state;

    f->stress.size -= f->stress.size % (2 * MIB);
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
    struct cow_fixture *f = *state;

    f->cow.no_unpopulated = true;
    rounds(f, COW_PRIVATE, true, 2);
}

static void several_copiers_share_the_work(void **state)
{
    struct cow_fixture *f = *state;

    f->cow.copiers = 4;
    rounds(f, COW_PRIVATE, true, 2);
}

/* The child has its memory without the userfaultfd (no UFFD_FEATURE_EVENT_FORK)
 * and without its protection: it never waits, and what it writes is its own.
 * The parent's pages are shared with it then, and still protected. */
static void forks(struct cow_fixture *f, enum cow_memory kind, bool other)
{
    f->stress.forks = true;
    rounds(f, kind, other, 2);
}

static void a_process_that_forks_is_one_cut(void **state)
{
    forks(*state, COW_PRIVATE, true);
}

static void huge_pages_of_a_process_that_forks_are_one_cut(void **state)
{
    forks(*state, COW_THP, true);
}

static void a_memfd_of_a_process_that_forks_is_one_cut(void **state)
{
    forks(*state, COW_MEMFD, true);
}

static void our_own_memory_is_one_cut_when_we_fork(void **state)
{
    forks(*state, COW_PRIVATE, false);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, cow_setup, cow_teardown)
        T(private_memory_of_a_process_is_one_cut),
        T(huge_pages_of_a_process_are_one_cut),
        T(a_memfd_of_a_process_is_one_cut),
        T(a_memfd_read_as_private_is_one_cut),
        cmocka_unit_test_setup_teardown(hugetlbfs_is_one_cut, huge_setup,
                                        huge_teardown),
        T(our_own_memory_is_one_cut),
        T(our_own_memfd_is_one_cut),
        T(an_old_kernel_reads_all_pages_first),
        T(several_copiers_share_the_work),
        T(a_process_that_forks_is_one_cut),
        T(huge_pages_of_a_process_that_forks_are_one_cut),
        T(a_memfd_of_a_process_that_forks_is_one_cut),
        T(our_own_memory_is_one_cut_when_we_fork),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
