/* SPDX-License-Identifier: MIT */
/* The words of limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "engine/limits.h"

static void test_words_come_back(void **state)
{
    CLEANUP(arena_fini) struct arena a = ARENA_INIT;
    struct qstill_error err = {0};
    struct limits own = {.n = 0}, again = {.n = 0};
    char *text;

    (void)state;
    limits_read(getpid(), &own);
    assert_int_equal(own.n, LIMITS_MAX);
    own.v[0].hard = RLIM_INFINITY;
    own.v[1].soft = 0;
    assert_int_equal(limits_format(&own, &a, &text, &err), 0);
    assert_int_equal(limits_parse(text, &again, &err), 0);
    assert_int_equal(again.n, own.n);
    for (size_t i = 0; i < own.n; i++) {
        assert_int_equal(again.v[i].resource, own.v[i].resource);
        assert_int_equal(again.v[i].soft, own.v[i].soft);
        assert_int_equal(again.v[i].hard, own.v[i].hard);
    }
}

static void test_bad_words(void **state)
{
    static const char *const bad[] = {
        " ",          "nofile",      "nofile=",      "nofile=1",
        "nofile=1:",  "nofile=:1",   "nofile=1:2:3", "nofile=-1:2",
        "nofile=1:x", "=unlimited:", "as=unlimited", "as=unlimitedX:1",
        "as=1: 2",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct qstill_error err = {0};
        struct limits l = {.n = 0};

        if (limits_parse(bad[i], &l, &err) != QSTILL_E_CORRUPT)
            fail_msg("\"%s\" is taken", bad[i]);
    }
}

static void test_what_is_not_known_is_left_out(void **state)
{
    struct qstill_error err = {0};
    struct limits l = {.n = 0};

    (void)state;
    assert_int_equal(limits_parse("later=1:2 as=1:unlimited", &l, &err), 0);
    assert_int_equal(l.n, LIMITS_MAX);
    assert_int_equal(l.v[0].resource, RLIMIT_AS);
    assert_true(l.v[1].soft == RLIM_INFINITY);
    assert_int_equal(l.v[0].soft, 1);
    assert_true(l.v[0].hard == RLIM_INFINITY);
    assert_int_equal(limits_parse(NULL, &l, &err), 0);
    assert_int_equal(l.n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words_come_back),
        cmocka_unit_test(test_bad_words),
        cmocka_unit_test(test_what_is_not_known_is_left_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
