/* SPDX-License-Identifier: MIT */
/* Threads that wait in a system call while another one is run in them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <signal.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../lib/cow_inject.h"
#include "base/clock.h"

static struct qstill_error err;

static void a_wait_is_restarted_and_sees_no_eintr(void **state)
{
    static const enum cow_kind kinds[] = {COW_PPOLL, COW_READ, COW_FUTEX,
                                          COW_ALTSTACK};
    struct cow_target t;

    (void)state;
    for (size_t k = 0; k < 4; k++) {
        cow_target_start(&t, kinds[k]);
        for (unsigned i = 1; i <= 50; i++) {
            cow_inject_once(&t, i);
            if (i % 2)
                assert_int_equal(write(t.write_fd, "x", 1), 1);
        }
        usleep(20000);
        assert_int_equal(t.report->loops, kinds[k] == COW_FUTEX ? 0 : 25);
        cow_target_stop(&t);
    }
}

/* Waits that the kernel ends for each stop, and never starts again. */
static void a_wait_that_the_kernel_never_restarts_goes_on(void **state)
{
    struct cow_target t;
    int id;

    (void)state;
    cow_target_start(&t, COW_EPOLL);
    for (unsigned i = 1; i <= 50; i++)
        cow_inject_once(&t, i);
    cow_target_goes_on(&t);
    assert_int_equal(t.report->loops, 1);
    cow_target_stop(&t);

    cow_target_start(&t, COW_SIGWAIT);
    for (unsigned i = 1; i <= 50; i++)
        cow_inject_once(&t, i);
    kill(t.pid, SIGUSR1);
    for (int ms = 0; ms < 3000 && t.report->loops < 1; ms++)
        usleep(1000);
    assert_int_equal(t.report->loops, 1);
    cow_target_stop(&t);

    cow_target_start(&t, COW_SEMOP);
    id = (int)t.report->value;
    for (unsigned i = 1; i <= 50; i++)
        cow_inject_once(&t, i);
    assert_int_equal(semop(id, &(struct sembuf){0, 1, 0}, 1), 0);
    for (int ms = 0; ms < 3000 && t.report->loops < 1; ms++)
        usleep(1000);
    assert_int_equal(t.report->loops, 1);
    cow_target_stop(&t);
    semctl(id, 0, IPC_RMID);
}

/* They are of no use, and are tried again until the time is over: without a
 * word of it to the program. */
static void such_a_wait_that_cannot_be_used_goes_on_too(void **state)
{
    static const char eintr[] = "in a wait that would end with EINTR";
    struct cow_target t;

    (void)state;
    cow_target_start(&t, COW_EPOLL_MASK);
    cow_inject_refused(&t, QSTILL_E_PRECONDITION,
                       "waits with a signal mask of its own");
    cow_target_goes_on(&t);
    cow_target_stop(&t);
    cow_target_start(&t, COW_EPOLL_MASK_TIME);
    cow_inject_refused(&t, QSTILL_E_PRECONDITION, eintr);
    cow_target_goes_on(&t);
    cow_target_stop(&t);
    cow_target_start(&t, COW_SIGWAIT_TIME);
    cow_inject_refused(&t, QSTILL_E_PRECONDITION, eintr);
    cow_target_stop(&t);
}

/* A signal that is handled while its thread is used ends the wait as ever. But
 * one that comes while the thread is stopped right before it waits again ends
 * nothing, as it would without anybody: on a busy machine that is one in some
 * thousands. */
static void a_signal_ends_the_wait_of_a_thread_in_use(void **state)
{
    struct cow_target t;
    uint64_t early = 0;
    pid_t other;

    (void)state;
    cow_target_start(&t, COW_EPOLL_SIGNAL);
    other = fork();
    assert_true(other >= 0);
    if (other == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (other == 0) {
        struct inject_call call = cow_eventfd_call(9);
        struct inject_result result;

        if (inject_fd(t.pid, &call, NULL, &result, &err) == 0)
            close(result.fd);
    }
    for (uint64_t i = 1; i <= 3000; i++) {
        kill(t.pid, SIGUSR1);
        for (int n = 0; n < 40000 && t.report->loops + early < i; n++)
            usleep(50);
        if (t.report->loops + early != i)
            early++;
        if (t.report->signals != i || early > 3)
            fail_msg("%d signals, %d handled, %d waits ended", (int)i,
                     (int)t.report->signals, (int)t.report->loops);
        usleep(60 + (unsigned)i * 13 % 200);
    }
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
    cow_target_stop(&t);
}

static void a_wait_with_a_time_limit_keeps_its_time(void **state)
{
    double begun = clock_ms();
    uint64_t last = 0;
    struct cow_target t;

    (void)state;
    cow_target_start(&t, COW_PPOLL_TIME);
    for (unsigned i = 1; i <= 20 && !t.report->done; i++) {
        cow_inject_once(&t, i);
        last = (uint64_t)(clock_ms() - begun);
        usleep(15000);
    }
    for (int i = 0; i < 3000 && !t.report->done; i++)
        usleep(1000);
    /* It waits for 500 ms. Begun anew by each call it would have ended 500 ms
     * after the last one. */
    assert_in_range(t.report->value, 400, last + 400);
    cow_target_stop(&t);
}

static void a_sleep_counted_by_the_kernel_is_left_alone(void **state)
{
    struct cow_target t;

    (void)state;
    cow_target_start(&t, COW_SLEEP);
    cow_inject_refused(&t, QSTILL_E_PRECONDITION,
                       "waits for a time that the kernel counts");
    for (int i = 0; i < 3000 && !t.report->done; i++)
        usleep(1000);
    assert_true(t.report->value >= 600 && t.report->value < 900);
    cow_target_stop(&t);
}

static void a_wait_with_its_own_signal_mask_is_left_alone(void **state)
{
    struct cow_target t;

    (void)state;
    cow_target_start(&t, COW_SUSPEND);
    cow_inject_refused(&t, QSTILL_E_PRECONDITION,
                       "waits with a signal mask of its own");
    for (uint64_t i = 1; i <= 20; i++) {
        kill(t.pid, SIGUSR1);
        for (int ms = 0; ms < 3000 && t.report->signals < i; ms++)
            usleep(1000);
        assert_int_equal(t.report->signals, i);
    }
    cow_target_stop(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wait_is_restarted_and_sees_no_eintr),
        cmocka_unit_test(a_wait_that_the_kernel_never_restarts_goes_on),
        cmocka_unit_test(such_a_wait_that_cannot_be_used_goes_on_too),
        cmocka_unit_test(a_signal_ends_the_wait_of_a_thread_in_use),
        cmocka_unit_test(a_wait_with_a_time_limit_keeps_its_time),
        cmocka_unit_test(a_sleep_counted_by_the_kernel_is_left_alone),
        cmocka_unit_test(a_wait_with_its_own_signal_mask_is_left_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
