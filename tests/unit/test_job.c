/* SPDX-License-Identifier: MIT */
/* The phase machine: order, undo in reverse, cancel, the pollable fd. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/job.h"

struct ctx {
    char *log; /* what ran, in order */
    int steps;
    const char *fail_in;
    int pipe_fd;
    struct qstill_job *job;
};

static int ran(struct ctx *c, const char *what, struct qstill_error *err)
{
    strcat(c->log, what);
    strcat(c->log, " ");
    if (c->fail_in && strcmp(c->fail_in, what) == 0)
        return err_set(err, QSTILL_E_NO_SPACE, "%s failed", what);
    return 0;
}

static int a_enter(void *ctx, struct qstill_error *err)
{
    return ran(ctx, "a", err);
}

static void a_undo(void *ctx, struct qstill_error *err)
{
    ran(ctx, "undo-a", err);
    err_set(err, QSTILL_E_FAILED, "something stays");
    err_hint(err, "take it away");
}

static int b_enter(void *ctx, struct qstill_error *err)
{
    struct ctx *c = ctx;

    if (c->pipe_fd >= 0 && job_wait_on(c->job, c->pipe_fd, err) < 0)
        return err->code;
    return ran(c, "b", err);
}

static int b_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct ctx *c = ctx;

    *done = --c->steps <= 0;
    return ran(c, "b-step", err);
}

static void b_undo(void *ctx, struct qstill_error *err)
{
    ran(ctx, "undo-b", err);
}

static int c_enter(void *ctx, struct qstill_error *err)
{
    return ran(ctx, "c", err);
}

static void ctx_free(void *ctx)
{
    struct ctx *c = ctx;
    struct qstill_error ignored = {0};

    ran(c, "free", &ignored);
}

static const struct job_phase phases[] = {
    {"a", a_enter, NULL, a_undo},
    {"b", b_enter, b_step, b_undo},
    {"c", c_enter, NULL, NULL},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops ops = {phases, ctx_free};

static char log_text[512];

static struct ctx fresh(void)
{
    log_text[0] = '\0';
    return (struct ctx){.log = log_text, .steps = 2, .pipe_fd = -1};
}

static void phases_run_in_order_and_no_undo_follows_success(void **state)
{
    struct ctx c = fresh();
    struct qstill_error err = {0};

    (void)state;
    assert_int_equal(job_new(&c.job, &ops, &c, &err), 0);
    assert_ptr_equal(job_ctx(c.job, &ops), &c);
    assert_int_equal(qstill_job_run(c.job, NULL, NULL, &err), 0);
    qstill_job_free(c.job);
    assert_string_equal(log_text, "a b b-step b-step c free ");
}

static void a_failure_undoes_in_reverse_and_keeps_the_first_error(void **state)
{
    struct ctx c = fresh();
    struct qstill_error err = {0};
    bool done = false;

    (void)state;
    c.fail_in = "c";
    assert_int_equal(job_new(&c.job, &ops, &c, &err), 0);
    assert_int_equal(qstill_job_run(c.job, NULL, NULL, &err),
                     QSTILL_E_NO_SPACE);
    assert_string_equal(err.message, "c failed");
    assert_non_null(strstr(qstill_job_text(c.job), "something stays"));
    assert_string_equal(err.hint, "take it away");
    /* another step says the same and undoes nothing again */
    assert_int_equal(qstill_job_step(c.job, &done, &err), QSTILL_E_NO_SPACE);
    assert_true(done);
    qstill_job_free(c.job);
    assert_string_equal(log_text, "a b b-step b-step c undo-b undo-a free ");
}

static void a_phase_that_was_not_entered_is_not_undone(void **state)
{
    struct ctx c = fresh();
    struct qstill_error err = {0};

    (void)state;
    c.fail_in = "a";
    assert_int_equal(job_new(&c.job, &ops, &c, &err), 0);
    assert_int_equal(qstill_job_run(c.job, NULL, NULL, &err),
                     QSTILL_E_NO_SPACE);
    qstill_job_free(c.job);
    assert_string_equal(log_text, "a undo-a free ");
}

static void cancel_wakes_a_waiting_job_and_undoes(void **state)
{
    struct ctx c = fresh();
    struct qstill_error err = {0};
    struct pollfd p;
    int fds[2];
    bool done = false;

    (void)state;
    assert_int_equal(pipe(fds), 0);
    c.pipe_fd = fds[0];
    assert_int_equal(job_new(&c.job, &ops, &c, &err), 0);
    p = (struct pollfd){.fd = qstill_job_fd(c.job), .events = POLLIN};
    assert_int_equal(qstill_job_step(c.job, &done, &err), 0);
    assert_int_equal(qstill_job_step(c.job, &done, &err), 0);
    assert_int_equal(poll(&p, 1, 0), 0); /* only the pipe counts now */
    qstill_job_cancel(c.job);
    assert_int_equal(poll(&p, 1, 0), 1);
    assert_int_equal(qstill_job_step(c.job, &done, &err), QSTILL_E_CANCELLED);
    assert_string_equal(err.message, "cancelled");
    qstill_job_free(c.job);
    assert_string_equal(log_text, "a b undo-b undo-a free ");
    close(fds[0]);
    close(fds[1]);
}

static void a_waiting_job_wakes_when_its_fd_is_readable(void **state)
{
    struct ctx c = fresh();
    struct qstill_error err = {0};
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(write(fds[1], "x", 1), 1);
    c.pipe_fd = fds[0];
    assert_int_equal(job_new(&c.job, &ops, &c, &err), 0);
    assert_int_equal(qstill_job_run(c.job, NULL, NULL, &err), 0);
    qstill_job_free(c.job);
    assert_string_equal(log_text, "a b b-step b-step c free ");
    close(fds[0]);
    close(fds[1]);
}

static void freeing_an_unfinished_job_undoes_it(void **state)
{
    struct ctx c = fresh();
    struct qstill_error err = {0};
    bool done = false;

    (void)state;
    assert_int_equal(job_new(&c.job, &ops, &c, &err), 0);
    assert_int_equal(qstill_job_step(c.job, &done, &err), 0);
    assert_int_equal(qstill_job_step(c.job, &done, &err), 0);
    qstill_job_free(c.job);
    assert_string_equal(log_text, "a b undo-b undo-a free ");
}

static void count_tick(void *user, const struct qstill_progress *p)
{
    (void)p;
    ++*(unsigned *)user;
}

static void a_tick_is_called_inside_a_run_and_never_after_it(void **state)
{
    struct ctx c = fresh();
    struct qstill_error err = {0};
    unsigned ticks = 0, then;

    (void)state;
    assert_int_equal(job_new(&c.job, &ops, &c, &err), 0);
    assert_int_equal(qstill_job_run(c.job, count_tick, &ticks, &err), 0);
    then = ticks;
    assert_true(then > 0);
    usleep(150 * 1000); /* longer than a pulse waits between two */
    assert_int_equal(job_pulse(c.job, 1, 2, &err), 0);
    assert_int_equal(ticks, then);
    qstill_job_free(c.job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(phases_run_in_order_and_no_undo_follows_success),
        cmocka_unit_test(a_failure_undoes_in_reverse_and_keeps_the_first_error),
        cmocka_unit_test(a_phase_that_was_not_entered_is_not_undone),
        cmocka_unit_test(cancel_wakes_a_waiting_job_and_undoes),
        cmocka_unit_test(a_waiting_job_wakes_when_its_fd_is_readable),
        cmocka_unit_test(freeing_an_unfinished_job_undoes_it),
        cmocka_unit_test(a_tick_is_called_inside_a_run_and_never_after_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
