/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "memstate/zero.h"

static uint8_t page[4096 + 64];

static void zero_finds_one_byte_wherever_it_stands(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4096; i++) {
        page[i] = (uint8_t)(1u << (i % 8));
        assert_false(zero_is(page, 4096));
        assert_false(zero_is_plain(page, 4096));
        if (zero_has_avx2())
            assert_false(zero_is_avx2(page, 4096));
        page[i] = 0;
    }
    assert_true(zero_is(page, 4096));
    assert_true(zero_is_plain(page, 4096));
    if (zero_has_avx2())
        assert_true(zero_is_avx2(page, 4096));
}

static void zero_looks_at_nothing_outside(void **state)
{
    (void)state;
    memset(page, 0xff, sizeof(page));
    for (size_t shift = 1; shift <= 32; shift++) {
        memset(page + shift, 0, 1024);
        assert_true(zero_is(page + shift, 1024));
        assert_true(zero_is_plain(page + shift, 1024));
        memset(page + shift, 0xff, 1024);
    }
    memset(page, 0, sizeof(page));
}

static void zero_of_nothing_is_true(void **state)
{
    (void)state;
    assert_true(zero_is("x", 0));
    assert_true(zero_is_plain("x", 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zero_finds_one_byte_wherever_it_stands),
        cmocka_unit_test(zero_looks_at_nothing_outside),
        cmocka_unit_test(zero_of_nothing_is_true),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
