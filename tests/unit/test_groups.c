/* SPDX-License-Identifier: MIT */
/* The groups of a process as text, and which of them a new one can have. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "engine/groups.h"

static void words_come_back(void **state)
{
    static const struct {
        const char *status, *text;
    } cases[] = {
        {"Name:\tq\nGroups:\t4 20 4294967294 \nNStgid:\t1\n",
         "4 20 4294967294"},
        {"Name:\tq\nGroups:\t \nNStgid:\t1\n", ""},
        {"Name:\tGroups: 1\nNStgid:\t1\n", NULL},
    };
    CLEANUP(arena_fini) struct arena a = ARENA_INIT;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct groups g, again;
        struct qstill_error err = {0};
        char *text;

        groups_read(cases[i].status, &g);
        assert_int_equal(g.known, cases[i].text != NULL);
        assert_int_equal(groups_format(&g, &a, &text, &err), 0);
        if (cases[i].text)
            assert_string_equal(text, cases[i].text);
        else
            assert_null(text);
        assert_int_equal(groups_parse(text, &again, &err), 0);
        assert_true(groups_are_same(&g, &again));
        again.known = !again.known;
        assert_false(groups_are_same(&g, &again));
    }
}

static void words_that_are_none_are_damage(void **state)
{
    static const char *const bad[] = {"x", "4 x", "-1", "4294967296", "4,5"};
    struct groups g;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct qstill_error err = {0};

        if (groups_parse(bad[i], &g, &err) != QSTILL_E_CORRUPT)
            fail_msg("%s", bad[i]);
    }
}

static void more_than_are_kept_hinder(void **state)
{
    CLEANUP(arena_fini) struct arena a = ARENA_INIT;
    char status[16 << 10] = "\nGroups:\t", *text;
    size_t n = strlen(status);
    struct qstill_error err = {0};
    struct groups g, again;

    (void)state;
    for (unsigned i = 0; i <= GROUPS_MAX; i++)
        n += (size_t)snprintf(status + n, sizeof(status) - n, "%u ", i);
    groups_read(status, &g);
    assert_int_equal(groups_format(&g, &a, &text, &err), 0);
    assert_int_equal(groups_parse(text, &again, &err), 0);
    assert_true(groups_are_same(&g, &again));
    assert_int_equal(groups_check(&again, geteuid(), getegid(), &err),
                     QSTILL_E_PRECONDITION);
}

static void our_own_need_no_change(void **state)
{
    struct groups g = {.known = true};
    gid_t list[GROUPS_MAX];
    int n = getgroups(GROUPS_MAX, list);
    struct qstill_error err = {0};

    (void)state;
    for (int i = 0; i < n; i++)
        g.v[g.n++] = list[i];
    assert_int_equal(groups_check(&g, geteuid(), getegid(), &err), 0);
    g.v[g.n++] = 4242;
    assert_int_equal(groups_check(&g, geteuid(), getegid(), &err),
                     geteuid() == 0 ? 0 : QSTILL_E_PRECONDITION);
    g.known = false;
    assert_int_equal(groups_check(&g, geteuid(), getegid(), &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_come_back),
        cmocka_unit_test(words_that_are_none_are_damage),
        cmocka_unit_test(more_than_are_kept_hinder),
        cmocka_unit_test(our_own_need_no_change),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
