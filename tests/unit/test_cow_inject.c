/* SPDX-License-Identifier: MIT */
/* One system call in another process: what comes back, and that the other
 * process does not notice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../lib/cow_inject.h"
#include "../lib/cow_spin.h"
#include "../lib/cow_target.h"
#include "memstate/inject.h"
#include "memstate/inject_tracee.h"

static struct qstill_error err;

static void a_descriptor_comes_over_and_none_stays_behind(void **state)
{
    struct cow_target t;

    (void)state;
    cow_target_start(&t, COW_MANY);
    for (unsigned i = 1; i <= 100; i++)
        cow_inject_once(&t, i);
    cow_target_goes_on(&t);
    cow_target_stop(&t);
}

static void a_call_that_fails_there_tells_its_errno(void **state)
{
    struct inject_call call = cow_eventfd_call(0);
    struct inject_result result;
    struct cow_target t;

    (void)state;
    cow_target_start(&t, COW_SPIN);
    call.args[1] = 0x7fffffff; /* flags that do not exist */
    assert_int_equal(inject_fd(t.pid, &call, NULL, &result, &err), 0);
    assert_int_equal(result.remote_errno, EINVAL);
    assert_int_equal(result.fd, -1);
    cow_target_goes_on(&t);
    cow_target_stop(&t);
}

static void a_number_is_no_descriptor_to_be_closed(void **state)
{
    struct inject_call call = {
        .name = "dup3",
        .nr = SYS_dup3,
        .args = {0, 200, O_CLOEXEC},
        .number = true,
    };
    struct inject_result result;
    struct cow_target t;
    unsigned before;

    (void)state;
    cow_target_start(&t, COW_SPIN);
    before = cow_target_fds(&t);
    assert_int_equal(inject_fd(t.pid, &call, NULL, &result, &err), 0);
    assert_int_equal(result.remote_errno, 0);
    assert_int_equal(result.fd, -1);
    assert_int_equal(cow_target_fds(&t), before + 1);
    cow_target_goes_on(&t);
    cow_target_stop(&t);
}

static void all_registers_of_a_busy_thread_stay(void **state)
{
    struct cow_target t;

    (void)state;
    assert_int_equal(cow_spin(1000), 0);
    cow_target_start(&t, COW_SPIN);
    for (unsigned i = 1; i <= 60; i++)
        cow_inject_once(&t, i);
    cow_target_goes_on(&t);
    cow_target_goes_on(&t);
    cow_target_stop(&t);
}

static void no_signal_is_lost(void **state)
{
    enum { SIGNALS = 1000 };
    union sigval v = {.sival_int = 0};
    struct cow_target t;
    pid_t sender;
    int status;

    (void)state;
    cow_target_start(&t, COW_COUNT);
    sender = fork();
    assert_true(sender >= 0);
    if (sender == 0) {
        for (int i = 0; i < SIGNALS;) {
            if (sigqueue(t.pid, SIGRTMIN, v) == 0)
                i++;
            usleep(50);
        }
        _exit(0);
    }
    for (unsigned i = 1; waitpid(sender, &status, WNOHANG) == 0; i++)
        cow_inject_once(&t, i);
    for (int i = 0; i < 2000 && t.report->signals < SIGNALS; i++)
        usleep(1000);
    assert_int_equal(t.report->signals, SIGNALS);
    cow_target_stop(&t);
}

static void a_stopped_process_is_refused_and_stays_stopped(void **state)
{
    struct cow_target t;
    uint64_t before;
    int status;

    (void)state;
    cow_target_start(&t, COW_MANY);
    kill(t.pid, SIGSTOP);
    assert_int_equal(waitpid(t.pid, &status, WUNTRACED), t.pid);
    assert_true(WIFSTOPPED(status));
    before = t.report->loops;
    cow_inject_refused(&t, QSTILL_E_PRECONDITION, "is stopped by a signal");
    usleep(20000);
    assert_int_equal(t.report->loops, before);
    kill(t.pid, SIGCONT);
    cow_target_goes_on(&t);
    cow_inject_once(&t, 5);
    cow_target_stop(&t);
}

/* SIGSTOP and SIGCONT all the time: it works, or is refused with a reason. */
static void stops_and_continues_in_between_do_no_harm(void **state)
{
    struct inject_call call = cow_eventfd_call(9);
    struct inject_result result;
    struct cow_target t;
    pid_t other;

    (void)state;
    cow_target_start(&t, COW_MANY);
    other = fork();
    assert_true(other >= 0);
    if (other == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (unsigned i = 0;; i++) {
            kill(t.pid, i % 2 ? SIGCONT : SIGSTOP);
            usleep(100 + i % 7 * 50);
        }
    }
    for (int i = 0; i < 80; i++) {
        if (inject_fd(t.pid, &call, NULL, &result, &err) == 0)
            close(result.fd);
        else
            assert_int_equal(err.code, QSTILL_E_PRECONDITION);
    }
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
    kill(t.pid, SIGCONT);
    cow_target_goes_on(&t);
    cow_inject_once(&t, 6);
    cow_target_stop(&t);
}

static void a_process_that_is_gone_is_unreachable(void **state)
{
    struct cow_target t;
    pid_t pid = fork();
    siginfo_t ended;

    (void)state;
    if (pid == 0)
        _exit(0);
    t.pid = pid;
    assert_int_equal(waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOWAIT), 0);
    cow_inject_refused(&t, QSTILL_E_UNREACHABLE, "has ended"); /* a zombie */
    waitpid(pid, NULL, 0);
    cow_inject_refused(&t, QSTILL_E_UNREACHABLE, "there is no process");
}

static void a_process_that_dies_meanwhile_is_an_error(void **state)
{
    struct inject_call call = cow_eventfd_call(1);
    struct inject_result result;
    struct cow_target t;

    (void)state;
    for (unsigned i = 0; i < 12; i++) {
        pid_t killer;

        cow_target_start(&t, COW_MANY);
        killer = fork();
        if (killer == 0) {
            usleep(i * 100);
            kill(t.pid, SIGKILL);
            _exit(0);
        }
        if (inject_fd(t.pid, &call, NULL, &result, &err) == 0)
            close(result.fd);
        else if (err.code != QSTILL_E_UNREACHABLE)
            fail_msg("%d %s", err.code, err.message);
        waitpid(killer, NULL, 0);
        waitpid(t.pid, NULL, 0);
        close(t.write_fd);
    }
}

static void one_that_is_traced_already_is_refused(void **state)
{
    struct cow_target t;
    int ready[2];
    pid_t tracer;
    char c;

    (void)state;
    cow_target_start(&t, COW_SPIN);
    assert_int_equal(pipe(ready), 0);
    tracer = fork();
    if (tracer == 0) {
        tracee_request(0x4206 /* PTRACE_SEIZE */, t.pid, 0, NULL);
        if (write(ready[1], "x", 1) != 1)
            _exit(1);
        pause();
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    cow_inject_refused(&t, QSTILL_E_PRECONDITION, "is traced by process");
    kill(tracer, SIGKILL);
    waitpid(tracer, NULL, 0);
    close(ready[0]);
    close(ready[1]);
    cow_inject_once(&t, 3);
    cow_target_stop(&t);
}

/* A thread that waits for its vfork() stops only after that, and by then it is
 * we who trace it: no reason to look for a debugger. */
static void one_that_stops_late_is_not_taken_for_traced(void **state)
{
    const struct inject_options options = {.timeout_ms = 1200};
    struct inject_call call = cow_eventfd_call(1);
    pid_t pid = fork();
    bool traced = false;
    int r = 0;

    (void)state;
    assert_true(pid >= 0);
    while (pid == 0)
        if (vfork() == 0) {
            usleep(700000);
            _exit(0);
        }
    usleep(100000);
    for (int i = 0; i < 4 && !traced; i++) {
        struct inject_result result = {.fd = -1};

        r = inject_fd(pid, &call, &options, &result, &err);
        traced = r < 0 && strstr(err.message, "is traced by");
        if (r == 0 && result.fd >= 0)
            close(result.fd);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    if (traced)
        fail_msg("%s", err.message);
    if (r < 0)
        assert_non_null(strstr(err.message, "no thread can be used now"));
}

/* ------------------------------------------------------------- seccomp */

static void install(const struct sock_filter *f, unsigned short n)
{
    struct sock_fprog prog = {n, (struct sock_filter *)(uintptr_t)f};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog, 0, 0) < 0)
        _exit(5);
}

/* A filter that kills for eventfd2, and nothing else. */
static void deny_eventfd(void)
{
    static const struct sock_filter f[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_eventfd2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };

    install(f, 4);
}

static void deny_mount(void)
{
    static const struct sock_filter f[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mount, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };

    install(f, 4);
    install(f, 4);
}

/* Reading another process' filters takes CAP_SYS_ADMIN. */
static bool may_read_filters(void)
{
    return geteuid() == 0;
}

static void a_filter_that_would_kill_is_respected(void **state)
{
    struct cow_target t;

    (void)state;
    cow_target_start_with(&t, COW_SPIN, deny_eventfd);
    cow_inject_refused(&t, QSTILL_E_PRECONDITION,
                       may_read_filters() ? "does not allow eventfd2"
                                          : "seccomp filter");
    cow_target_goes_on(&t);
    cow_target_stop(&t);
}

static void filters_that_allow_it_are_no_hindrance(void **state)
{
    struct cow_target t;

    (void)state;
    cow_target_start_with(&t, COW_PPOLL, deny_mount);
    if (may_read_filters())
        cow_inject_once(&t, 12);
    else
        cow_inject_refused(&t, QSTILL_E_PRECONDITION, "seccomp filter");
    cow_target_goes_on(&t);
    cow_target_stop(&t);
}

/* --------------------------------------------------------------- 32 bits */

/* An ELF32 program of one loop: pause() by int 0x80, then a jump to itself. */
static const unsigned char program32[] = {
    0x7f, 'E', 'L', 'F',  1,  1, 1, 0,    0,    0,    0,    0,    0,
    0,    0,   0,                                                 /* ident */
    2,    0,   3,   0,    1,  0, 0, 0,    0x54, 0x80, 0x04, 0x08, /* type..entry
                                                                   */
    52,   0,   0,   0,    0,  0, 0, 0,    0,    0,    0,    0,    52,
    0,    32,  0,   1,    0,  0, 0, 0,    0,    0,    0,    1,    0,
    0,    0,   0,   0,    0,  0, 0, 0x80, 0x04, 0x08, 0,    0x80, 0x04,
    0x08, /* load */
    93,   0,   0,   0,    93, 0, 0, 0,    5,    0,    0,    0,    0,
    0x10, 0,   0,   0xb8, 29, 0, 0, 0,    0xcd, 0x80, 0xeb, 0xf7, /* pause;
                                                                     again */
};

static void a_32_bit_process_is_refused(void **state)
{
    int fd = (int)syscall(SYS_memfd_create, "p32", 0);
    static char *argv[] = {(char *)(uintptr_t) "p32", NULL};
    const struct inject_options options = {.timeout_ms = 150};
    struct inject_call call = cow_eventfd_call(1);
    struct inject_result result;
    struct cow_target t;
    int status;

    (void)state;
    assert_int_equal(write(fd, program32, sizeof(program32)),
                     sizeof(program32));
    t.pid = fork();
    if (t.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        fexecve(fd, argv, argv + 1);
        _exit(6);
    }
    close(fd);
    usleep(50000);
    if (waitpid(t.pid, &status, WNOHANG) == t.pid) {
        print_message("skipped: this kernel runs no 32-bit programs\n");
        skip();
    }
    assert_int_equal(inject_fd(t.pid, &call, &options, &result, &err),
                     QSTILL_E_PRECONDITION);
    assert_true(strstr(err.message, "32-bit") || strstr(err.message, "code"));
    assert_int_equal(waitpid(t.pid, &status, WNOHANG), 0);
    kill(t.pid, SIGKILL);
    waitpid(t.pid, &status, 0);
}

/* A program that reaps whatever comes, on another thread. */
static volatile int reaping;
static void *reap_all(void *arg)
{
    (void)arg;
    while (reaping)
        waitpid(-1, NULL, WNOHANG | __WALL);
    return NULL;
}

static void notices_taken_by_another_thread_do_not_matter(void **state)
{
    struct cow_target t;
    pthread_t thread;

    (void)state;
    cow_target_start(&t, COW_MANY);
    reaping = 1;
    assert_int_equal(pthread_create(&thread, NULL, reap_all, NULL), 0);
    for (unsigned i = 1; i <= 50; i++)
        cow_inject_once(&t, i);
    reaping = 0;
    pthread_join(thread, NULL);
    cow_target_goes_on(&t);
    cow_target_stop(&t);
}

/* ------------------------------------------------------- our own death */

struct death {
    unsigned at;
    unsigned steps;
};

static void die_at_step(void *user, const char *name)
{
    struct death *d = user;

    (void)name;
    if (d->steps++ == d->at)
        raise(SIGKILL);
}

/* A process of its own injects and dies. True when it died before the end. */
static bool inject_and_die(const struct cow_target *t, unsigned step,
                           unsigned kill_after_us)
{
    struct inject_call call = cow_eventfd_call(2);
    struct inject_result result;
    struct death death = {step, 0};
    struct inject_options options = {0, die_at_step, &death};
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        for (int i = 0; i < (kill_after_us ? 1000 : 1); i++) {
            if (inject_fd(t->pid, &call, &options, &result, &err) < 0) {
                print_error("%s\n", err.message);
                _exit(1);
            }
            close(result.fd);
        }
        _exit(0);
    }
    if (kill_after_us) {
        usleep(kill_after_us);
        kill(pid, SIGKILL);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

static void the_target_survives_our_death_at_each_step(void **state)
{
    static const enum cow_kind kinds[] = {COW_SPIN, COW_PPOLL, COW_ALTSTACK,
                                          COW_MANY};
    struct cow_target t;
    unsigned step;

    (void)state;
    for (size_t k = 0; k < 4; k++) {
        cow_target_start(&t, kinds[k]);
        for (step = 0; inject_and_die(&t, step, 0); step++) {
            cow_target_goes_on(&t);
            assert_int_equal(t.report->faults, 0);
        }
        assert_true(step >= 15);
        /* At most the one descriptor for each death before its close. */
        assert_true(cow_target_fds(&t) < 3 + 3 + step);
        cow_inject_once(&t, 8);
        cow_target_stop(&t);
    }
}

/* The call that was under way when we died is finished by the target, when the
 * scheduler lets that thread run: until then its descriptors may change. */
static void wait_for_the_last_detour(const struct cow_target *t)
{
    unsigned seen = cow_target_fds(t), same = 0;

    for (unsigned i = 0; i < 500 && same < 20; i++) {
        unsigned now;

        usleep(10000);
        now = cow_target_fds(t);
        same = now == seen ? same + 1 : 0;
        seen = now;
    }
    assert_true(same == 20);
}

static void the_target_survives_our_death_at_any_time(void **state)
{
    const char *more = getenv("QSTILL_TEST_ROUNDS");
    unsigned rounds = more ? (unsigned)atoi(more) : 40;
    unsigned died = 0;
    struct cow_target t;

    (void)state;
    cow_target_start(&t, COW_MANY);
    for (unsigned i = 0; i < rounds; i++) {
        died += inject_and_die(&t, ~0u, 300 + i * 37 % 1500);
        assert_int_equal(write(t.write_fd, "x", 1), 1);
        assert_int_equal(t.report->faults, 0);
    }
    assert_int_equal(died, rounds);
    cow_target_goes_on(&t);
    wait_for_the_last_detour(&t);
    cow_inject_once(&t, 8);
    cow_target_stop(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_descriptor_comes_over_and_none_stays_behind),
        cmocka_unit_test(a_call_that_fails_there_tells_its_errno),
        cmocka_unit_test(a_number_is_no_descriptor_to_be_closed),
        cmocka_unit_test(all_registers_of_a_busy_thread_stay),
        cmocka_unit_test(no_signal_is_lost),
        cmocka_unit_test(a_stopped_process_is_refused_and_stays_stopped),
        cmocka_unit_test(stops_and_continues_in_between_do_no_harm),
        cmocka_unit_test(a_process_that_is_gone_is_unreachable),
        cmocka_unit_test(a_process_that_dies_meanwhile_is_an_error),
        cmocka_unit_test(one_that_is_traced_already_is_refused),
        cmocka_unit_test(one_that_stops_late_is_not_taken_for_traced),
        cmocka_unit_test(a_filter_that_would_kill_is_respected),
        cmocka_unit_test(filters_that_allow_it_are_no_hindrance),
        cmocka_unit_test(a_32_bit_process_is_refused),
        cmocka_unit_test(notices_taken_by_another_thread_do_not_matter),
        cmocka_unit_test(the_target_survives_our_death_at_each_step),
        cmocka_unit_test(the_target_survives_our_death_at_any_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
