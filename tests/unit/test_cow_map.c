/* SPDX-License-Identifier: MIT */
/* The books of a cow capture: marks, order, and what was copied before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdlib.h>

#include "memstate/cow_map.h"

#define MIB ((size_t)1 << 20)

static void runs_of_marks_are_taken_with_their_gaps(void **state)
{
    struct qstill_error err;
    struct cow_block *b = calloc(2, sizeof(*b));
    struct cow_place at = {0, 0};
    struct cow_run run;
    struct cow_map m;

    (void)state;
    b[0] = (struct cow_block){.hva = 1u << 30, .size = 3 * MIB, .page = 4096};
    b[1] = (struct cow_block){.hva = 1u << 20, .size = 5 * MIB, .page = 4096};
    b[0].fd = b[1].fd = -1;
    assert_int_equal(cow_map_init(&m, b, 2, &err), 0);
    assert_int_equal(m.units, 5);
    assert_int_equal(cow_map_mark(&m, 0, 510, 2), 2);
    assert_int_equal(cow_map_mark(&m, 1, 5, 1), 1);
    assert_int_equal(cow_map_mark(&m, 1, 5, 2), 1);
    assert_int_equal(cow_map_mark(&m, 1, 100, 1), 1);
    assert_int_equal(cow_map_mark(&m, 2, 255, 1), 1); /* the block's last */
    assert_int_equal(cow_map_mark(&m, 3, 0, 1), 1);   /* another block */
    assert_true(cow_map_take_run(&m, &at, 16, &run));
    assert_true(run.hva == MIB + 510 * 4096 && run.len == 9 * 4096);
    assert_int_equal(run.marked, 4);
    assert_true(cow_map_take_run(&m, &at, 16, &run));
    assert_true(run.hva == 3 * MIB + 100 * 4096 && run.len == 4096);
    assert_true(cow_map_take_run(&m, &at, 16, &run));
    assert_true(run.hva == 5 * MIB + 255 * 4096 && run.len == 4096);
    assert_true(cow_map_take_run(&m, &at, 16, &run));
    assert_true(run.hva == 1u << 30 && run.len == 4096);
    assert_false(cow_map_take_run(&m, &at, 16, &run));
    at = (struct cow_place){0, 0};
    assert_false(cow_map_take_run(&m, &at, 16, &run));
    cow_map_fini(&m);
}

static void wishes_come_first_and_each_unit_once(void **state)
{
    struct qstill_error err;
    struct cow_block *b = calloc(1, sizeof(*b));
    static const uint32_t want[] = {7, 3, 5, 0, 1, 2, 4, 6, 8, 9};
    struct cow_map m;
    uint32_t page;

    (void)state;
    b[0] = (struct cow_block){
        .hva = 4096, .size = 20 * MIB - 4096, .page = 4096, .fd = -1};
    assert_int_equal(cow_map_init(&m, b, 1, &err), 0);
    assert_int_equal(cow_map_find(&m, 4095, &page), COW_NONE);
    assert_int_equal(cow_map_find(&m, 4096 + 3 * MIB, &page), 1);
    assert_int_equal(page, 256);
    assert_int_equal(cow_map_find(&m, 20 * MIB, &page), COW_NONE);
    assert_int_equal(cow_map_unit(&m, 9).len, 2 * MIB - 4096);
    cow_map_hurry(&m, 3, COW_SOON);
    cow_map_hurry(&m, 5, COW_SOON);
    cow_map_hurry(&m, 3, COW_SOON);
    for (int i = 0; i < 600; i++)
        cow_map_hurry(&m, 7, COW_AT_ONCE);
    for (size_t i = 0; i < 10; i++)
        assert_int_equal(cow_map_next(&m), want[i]);
    assert_int_equal(cow_map_next(&m), COW_NONE);
    assert_int_equal(cow_map_state(&m, 7), COW_COPYING);
    cow_map_fini(&m);
}

static void copied_means_before_the_last_look_at_events(void **state)
{
    struct cow_block *b = calloc(1, sizeof(*b));
    struct qstill_error err;
    struct cow_map m;

    (void)state;
    *b = (struct cow_block){
        .hva = 4 * MIB, .size = 4 * MIB, .page = 4096, .fd = -1};
    assert_int_equal(cow_map_init(&m, b, 1, &err), 0);
    cow_map_next_epoch(&m);
    cow_map_set_copied(&m, 0);
    /* The bytes may have gone after that look. */
    assert_false(cow_map_was_copied(&m, 0));
    cow_map_next_epoch(&m);
    assert_true(cow_map_was_copied(&m, 0));
    cow_map_set_copied(&m, 1);
    assert_false(cow_map_was_copied(&m, 1));
    m.epoch = UINT32_MAX;
    cow_map_set_copied(&m, 1);
    cow_map_next_epoch(&m);
    assert_int_equal(m.epoch, 0);
    assert_true(cow_map_was_copied(&m, 1));
    cow_map_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_of_marks_are_taken_with_their_gaps),
        cmocka_unit_test(wishes_come_first_and_each_unit_once),
        cmocka_unit_test(copied_means_before_the_last_look_at_events),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
