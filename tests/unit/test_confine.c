/* SPDX-License-Identifier: MIT */
/* The words of what confines a process, and what a new one is refused for. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "engine/confine.h"

static struct confine own(void)
{
    CLEANUP(closep) int dir = open("/proc/self", O_PATH | O_CLOEXEC);
    CLEANUP(closep) int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    struct confine c = {0};
    char text[8192];
    ssize_t n = read(fd, text, sizeof(text) - 1);

    assert_true(n > 0);
    text[n] = '\0';
    confine_read(dir, text, &c);
    assert_true(c.known);
    return c;
}

static void words_come_back(void **state)
{
    CLEANUP(arena_fini) struct arena a = ARENA_INIT;
    struct confine c = own(), again;
    struct qstill_error err = {0};
    char *text;

    (void)state;
    assert_int_equal(c.apart, 0);
    c.apart = 1u << CONFINE_MNT | 1u << CONFINE_ROOT;
    c.no_new_privs = true;
    c.ambient = 1u << 12;
    c.filters = 3;
    assert_int_equal(confine_format(&c, &a, &text, &err), 0);
    assert_non_null(strstr(text, "apart=mnt,root"));
    assert_int_equal(confine_parse(text, &again, &err), 0);
    assert_true(confine_is_same(&c, &again));
    again.space[CONFINE_NET]++;
    assert_false(confine_is_same(&c, &again));

    assert_int_equal(confine_parse(NULL, &again, &err), 0);
    assert_false(again.known);
    assert_int_equal(confine_format(&again, &a, &text, &err), 0);
    assert_null(text);
}

static void words_that_are_none_are_damage(void **state)
{
    static const char *const bad[] = {
        "nnp", "nnp=x", "what=1", "bnd=", "apart=time", "user=1x", "caps=65"};
    struct confine c;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct qstill_error err = {0};

        if (confine_parse(bad[i], &c, &err) != QSTILL_E_CORRUPT)
            fail_msg("%s", bad[i]);
    }
}

static void refused(const struct confine *c, const char *words)
{
    struct qstill_error err = {0};

    if (!words) {
        assert_int_equal(confine_check(c, 65534, false, &err), 0);
        return;
    }
    assert_int_equal(confine_check(c, 65534, false, &err),
                     QSTILL_E_PRECONDITION);
    if (!strstr(err.message, words))
        fail_msg("%s", err.message);
}

static void what_a_new_process_would_not_have(void **state)
{
    struct confine c = own();
    struct qstill_error err = {0};

    (void)state;
    refused(&c, NULL);
    c.apart = 1u << CONFINE_NET; /* it was so for another; not for us */
    refused(&c, NULL);
    strcpy(c.boot, "another");
    refused(&c, "(net)");
    c = own();
    c.space[CONFINE_USER]++;
    c.space[CONFINE_UTS]++;
    refused(&c, "(user, uts)");
    strcpy(c.boot, "another"); /* where numbers mean others */
    refused(&c, NULL);
    c.apart = 1u << CONFINE_ROOT;
    refused(&c, "root directory");
    c = own();
    c.filters++;
    refused(&c, "seccomp");
    assert_int_equal(confine_check(&c, 65534, true, &err), 0);
    c.filters++; /* one is QEMU's own, the other not */
    assert_int_equal(confine_check(&c, 65534, true, &err),
                     QSTILL_E_PRECONDITION);
    c = (struct confine){.known = false, .apart = 1};
    refused(&c, NULL);
}

static void what_is_given(void **state)
{
    struct confine c = {.known = true,
                        .no_new_privs = true,
                        .caps = 41,
                        .bounding = 0xff,
                        .permitted = 0x0f,
                        .inheritable = 0x1f};
    struct qstill_launch l = {.size = sizeof(l)};
    uint64_t later = ~(uint64_t)0 << 41; /* of a newer kernel: as they are */

    (void)state;
    confine_give(&c, 0, &l);
    assert_true(l.confined && l.no_new_privs);
    assert_int_equal(l.caps_bounding, later | 0x0f);
    assert_int_equal(l.caps_inheritable, 0x0f);
    confine_give(&c, 1000, &l);
    assert_true(l.no_new_privs);
    assert_int_equal(l.caps_bounding, later | 0xff);
    assert_int_equal(l.caps_inheritable, 0x1f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_come_back),
        cmocka_unit_test(words_that_are_none_are_damage),
        cmocka_unit_test(what_a_new_process_would_not_have),
        cmocka_unit_test(what_is_given),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
