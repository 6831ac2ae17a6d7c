/* SPDX-License-Identifier: MIT */
/* The words of limits. */
#include <linux/capability.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
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

/* prlimit(2) wants a capability for these, which root may not have. */
static void test_of_another_user(void **state)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[_LINUX_CAPABILITY_U32S_3];
    const struct rlimit most = {12345, 23456};
    struct limits l = {.n = 0};
    int pipes[2], status;
    char byte;
    pid_t pid;

    (void)state;
    if (geteuid() != 0)
        skip();
    assert_int_equal(pipe(pipes), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (setrlimit(RLIMIT_MEMLOCK, &most) < 0 ||
            setresuid(65534, 65534, 65534) < 0 || write(pipes[1], "", 1) != 1)
            _exit(1);
        pause();
        _exit(0);
    }
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    assert_int_equal(syscall(SYS_capget, &h, d), 0);
    d[CAP_TO_INDEX(CAP_SYS_RESOURCE)].effective &=
        ~CAP_TO_MASK(CAP_SYS_RESOURCE);
    assert_int_equal(syscall(SYS_capset, &h, d), 0);
    limits_read(pid, &l);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    close(pipes[0]);
    close(pipes[1]);
    assert_int_equal(l.n, LIMITS_MAX);
    for (size_t i = 0; i < l.n; i++) {
        struct rlimit own;

        if (l.v[i].resource == RLIMIT_MEMLOCK)
            own = most;
        else
            getrlimit((enum __rlimit_resource)l.v[i].resource, &own);
        assert_true(l.v[i].soft == own.rlim_cur);
        assert_true(l.v[i].hard == own.rlim_max);
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
        cmocka_unit_test(test_of_another_user),
        cmocka_unit_test(test_bad_words),
        cmocka_unit_test(test_what_is_not_known_is_left_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
