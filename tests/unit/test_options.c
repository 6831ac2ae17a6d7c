/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/options.h"

struct known {
    size_t size;
    uint32_t limit;
    uint32_t flags;
    const char *word;
};

struct older {
    size_t size;
    uint32_t limit;
    uint32_t flags;
};

struct newer {
    struct known known;
    uint64_t more;
};

static struct qstill_error err;

static void none_are_all_defaults(void **state)
{
    struct known o;

    (void)state;
    memset(&o, 0xff, sizeof(o));
    assert_int_equal(options_take(&o, sizeof(o), NULL, "x", &err), 0);
    assert_int_equal(o.size, sizeof(o));
    assert_int_equal(o.limit, 0);
    assert_null(o.word);
}

static void an_older_caller_gets_defaults_for_what_it_has_not(void **state)
{
    struct older from = {sizeof(from), 7, 9};
    struct known o;

    (void)state;
    memset(&o, 0xff, sizeof(o));
    assert_int_equal(options_take(&o, sizeof(o), &from, "x", &err), 0);
    assert_int_equal(o.limit, 7);
    assert_int_equal(o.flags, 9);
    assert_null(o.word);
    assert_int_equal(o.size, sizeof(o));
}

static void a_newer_caller_is_served_while_it_asks_nothing_new(void **state)
{
    struct newer from = {{sizeof(from), 7, 9, "w"}, 0};
    struct known o;

    (void)state;
    assert_int_equal(options_take(&o, sizeof(o), &from, "create", &err), 0);
    assert_int_equal(o.limit, 7);
    assert_string_equal(o.word, "w");

    from.more = 1;
    assert_int_equal(options_take(&o, sizeof(o), &from, "create", &err),
                     QSTILL_E_USAGE);
    assert_non_null(
        strstr(err.message, "create options ask for what this library does"));
}

static void a_struct_without_its_size_is_refused(void **state)
{
    struct known from = {0}, o;

    (void)state;
    assert_int_equal(options_take(&o, sizeof(o), &from, "create", &err),
                     QSTILL_E_USAGE);
    assert_string_equal(err.message, "create options have no valid size (0)");
    from.size = (size_t)-1;
    assert_int_equal(options_take(&o, sizeof(o), &from, "create", &err),
                     QSTILL_E_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(none_are_all_defaults),
        cmocka_unit_test(an_older_caller_gets_defaults_for_what_it_has_not),
        cmocka_unit_test(a_newer_caller_is_served_while_it_asks_nothing_new),
        cmocka_unit_test(a_struct_without_its_size_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
