/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "memstate/worker.h"

#define MS ((uint64_t)1000000)

static void pace_without_rate_never_waits(void **state)
{
    struct pace p;

    (void)state;
    pace_init(&p, 0);
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(pace_take(&p, 1u << 30, 5), 0);
}

static void pace_keeps_the_rate_whoever_sleeps_as_told(void **state)
{
    uint64_t now = 1000 * MS, start = now;
    struct pace p;

    (void)state;
    pace_init(&p, 100 << 20);
    for (unsigned i = 0; i < 1000; i++)
        now += pace_take(&p, 1 << 20, now);
    /* 1000 MiB at 100 MiB/s: ten seconds, less what it may be ahead */
    assert_in_range((now - start) / MS, 9800, 10000);
}

static void pace_makes_up_for_late_wake_ups_only(void **state)
{
    uint64_t now = 1000 * MS, start;
    struct pace p;

    (void)state;
    pace_init(&p, 100 << 20);
    for (unsigned i = 0; i < 100; i++)
        now += pace_take(&p, 1 << 20, now) + 5 * MS; /* 5 ms too late */
    assert_in_range((now - 1000 * MS) / MS, 880, 1010);
    /* an hour without work is not saved up */
    now += 3600000 * MS;
    start = now;
    for (unsigned i = 0; i < 100; i++)
        now += pace_take(&p, 1 << 20, now);
    assert_in_range((now - start) / MS, 880, 1000);
}

static int fail_run(void *ctx, struct qstill_error *err)
{
    (void)ctx;
    return err_set(err, QSTILL_E_NO_SPACE, "no room");
}

static void worker_hands_the_error_of_its_thread_on(void **state)
{
    struct qstill_error err;
    struct worker w;
    uint64_t done, total;

    (void)state;
    assert_int_equal(worker_init(&w, &err), 0);
    assert_int_equal(worker_result(&w, &err), QSTILL_E_BUSY);
    assert_int_equal(worker_start(&w, fail_run, NULL, &err), 0);
    worker_join(&w);
    assert_true(worker_poll(&w, &done, &total));
    assert_int_equal(worker_result(&w, &err), QSTILL_E_NO_SPACE);
    assert_string_equal(err.message, "no room");
    worker_join(&w);
    worker_fini(&w);
}

static int sleep_run(void *ctx, struct qstill_error *err)
{
    struct worker *w = ctx;
    struct pace p;

    pace_init(&p, 1);
    pace_take(&p, 1, worker_now_ns());
    return worker_pace(w, &p, 1000, err); /* for a quarter of an hour */
}

static void worker_cancelled_wakes_from_its_pause(void **state)
{
    struct qstill_error err;
    struct worker w;

    (void)state;
    assert_int_equal(worker_init(&w, &err), 0);
    assert_int_equal(worker_start(&w, sleep_run, &w, &err), 0);
    worker_cancel(&w);
    worker_join(&w);
    assert_int_equal(worker_result(&w, &err), QSTILL_E_CANCELLED);
    worker_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pace_without_rate_never_waits),
        cmocka_unit_test(pace_keeps_the_rate_whoever_sleeps_as_told),
        cmocka_unit_test(pace_makes_up_for_late_wake_ups_only),
        cmocka_unit_test(worker_hands_the_error_of_its_thread_on),
        cmocka_unit_test(worker_cancelled_wakes_from_its_pause),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
