/* SPDX-License-Identifier: MIT */
#include "cow_inject.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memstate/inject_tracee.h"

struct inject_call cow_eventfd_call(unsigned value)
{
    return (struct inject_call){.name = "eventfd2",
                                .nr = SYS_eventfd2,
                                .args = {value, O_CLOEXEC | O_NONBLOCK}};
}

void cow_inject_once(const struct cow_target *t, unsigned value)
{
    struct inject_call call = cow_eventfd_call(value);
    unsigned before = cow_target_fds(t);
    struct inject_result result;
    struct qstill_error err;
    uint64_t got = 0;

    if (inject_fd(t->pid, &call, NULL, &result, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(result.remote_errno, 0);
    assert_true(result.fd >= 0);
    assert_int_equal(fcntl(result.fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(read(result.fd, &got, 8), 8);
    assert_int_equal(got, value);
    close(result.fd);
    assert_int_equal(cow_target_fds(t), before);
}

void cow_inject_refused(const struct cow_target *t, int code, const char *text)
{
    const struct inject_options options = {.timeout_ms = 150};
    struct inject_call call = cow_eventfd_call(1);
    struct inject_result result;
    struct qstill_error err;
    uint64_t begun = tracee_now_ns();

    assert_int_equal(inject_fd(t->pid, &call, &options, &result, &err), code);
    if (!strstr(err.message, text))
        fail_msg("'%s' is not in '%s'", text, err.message);
    assert_true(tracee_now_ns() - begun < 3000000000u);
}
