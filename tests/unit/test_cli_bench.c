/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cli/bench.h"
#include "cli/bench_vm.h"

static void the_median_is_the_middle_of_the_sorted_samples(void **state)
{
    struct bench_samples s = {0};

    (void)state;
    assert_true(bench_median(&s) == 0);
    bench_add(&s, 9);
    assert_true(bench_median(&s) == 9);
    bench_add(&s, 1);
    assert_true(bench_median(&s) == 5);
    bench_add(&s, 2);
    assert_true(bench_median(&s) == 2);
    assert_true(bench_max(&s) == 9);
    assert_true(s.v[0] == 9); /* in the order in which they came */
}

static void more_samples_than_there_is_room_for_are_left_out(void **state)
{
    struct bench_samples s = {0};

    (void)state;
    for (int i = 0; i < BENCH_REPS_MAX + 5; i++)
        bench_add(&s, i);
    assert_int_equal(s.n, BENCH_REPS_MAX);
}

/* With a clock of 1 MHz a tick is a microsecond. */
static struct guest_took took(uint32_t bucket_a, uint32_t n_a,
                              uint32_t bucket_b, uint32_t n_b)
{
    struct guest_page before = {0}, after = {0};
    struct guest_took t = {.hz = 1e6};

    before.took[bucket_a] = UINT32_MAX; /* the counts wrap around */
    after.took[bucket_a] = n_a - 1;
    after.took[bucket_b] += n_b;
    guest_took_add(&t, &before, &after);
    return t;
}

static void stalls_are_those_of_the_slowest_writes(void **state)
{
    /* 1000 writes of 1.024 ms and 10 of 16.384 ms */
    struct guest_took t = took(10 * GUEST_SUB, 1000, 14 * GUEST_SUB, 10);

    (void)state;
    assert_float_equal(guest_slowest_ms(&t, 1, 1), 17.408, 0.001);
    assert_float_equal(guest_slowest_ms(&t, 10, 0.5), 17.408, 0.001);
    assert_float_equal(guest_slowest_ms(&t, 100, 0.5), 1.088, 0.001);
    assert_float_equal(guest_slowest_ms(&t, 100, 0.99), 17.408, 0.001);
    /* more than there are: the fastest that there is */
    assert_float_equal(guest_slowest_ms(&t, 5000, 0), 1.088, 0.001);
}

static void the_histogram_counts_each_write_once(void **state)
{
    struct guest_took t = took(10 * GUEST_SUB, 1000, 14 * GUEST_SUB, 10);
    uint64_t sum = 0;

    (void)state;
    assert_int_equal(guest_count(&t, 1, 2), 1000);
    assert_int_equal(guest_count(&t, 16, 32), 10);
    for (double ms = 1.0 / 64; ms < 4096; ms *= 2)
        sum += guest_count(&t, ms, 2 * ms);
    assert_int_equal(sum, 1010);
}

static void a_pause_is_the_standstill_between_stop_and_cont(void **state)
{
    static struct guest_watch w;

    (void)state;
    w.count = 2;
    w.gaps[0].from = 10.0;
    w.gaps[0].to = 10.5;
    w.gaps[1].from = 20.0;
    w.gaps[1].to = 20.03;
    assert_float_equal(guest_watch_pause_ms(&w, 19.999, 20.01), 30, 0.01);
    assert_float_equal(guest_watch_pause_ms(&w, 15, 15.002), 2, 0.01);
}

static void the_boot_sector_is_one(void **state)
{
    const uint8_t *boot = guest_boot_sector();

    (void)state;
#if !defined(__x86_64__)
    assert_null(boot);
    skip();
#endif
    assert_int_equal(boot[0], 0xfa); /* cli */
    assert_int_equal(boot[510], 0x55);
    assert_int_equal(boot[511], 0xaa);
}

static void random_pieces_differ_and_have_no_zero_page(void **state)
{
    static uint64_t a[8192], b[8192];
    uint64_t seed = 1;

    (void)state;
    bench_fill(a, sizeof(a), &seed);
    bench_fill(b, sizeof(b), &seed);
    assert_memory_not_equal(a, b, sizeof(a));
    for (size_t i = 0; i < 8192; i++)
        assert_true(a[i] != 0);
}

static void a_way_that_was_not_gone_keeps_its_reason(void **state)
{
    struct bench_report r = {0};
    struct bench_row *row = bench_row(&r, "x", true);
    struct qstill_error err = {0};

    (void)state;
    cli_fail(&err, QSTILL_E_PRECONDITION, "no such thing");
    assert_int_equal(bench_skip(row, &err), 0);
    assert_string_equal(row->skipped, "no such thing");
    assert_int_equal(err.code, 0);
    cli_fail(&err, QSTILL_E_CANCELLED, "cancelled");
    assert_int_equal(bench_skip(row, &err), QSTILL_E_CANCELLED);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_median_is_the_middle_of_the_sorted_samples),
        cmocka_unit_test(more_samples_than_there_is_room_for_are_left_out),
        cmocka_unit_test(stalls_are_those_of_the_slowest_writes),
        cmocka_unit_test(the_histogram_counts_each_write_once),
        cmocka_unit_test(a_pause_is_the_standstill_between_stop_and_cont),
        cmocka_unit_test(the_boot_sector_is_one),
        cmocka_unit_test(random_pieces_differ_and_have_no_zero_page),
        cmocka_unit_test(a_way_that_was_not_gone_keeps_its_reason),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
