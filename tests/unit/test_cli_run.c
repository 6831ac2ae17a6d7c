/* SPDX-License-Identifier: MIT */
/* Jobs in the foreground: signals and progress, over a fake job that a test
 * drives by its ticks. Standard error is a pipe or a terminal of the test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cli/run.h"

static const struct verb verb = {.name = "create"};
static struct qstill_job *const fake_job =
    (struct qstill_job *)(uintptr_t)&verb;

static int cancels;
static int (*script)(void (*tick)(void *, const struct qstill_progress *),
                     void *user);

int __wrap_qstill_job_run(struct qstill_job *job,
                          void (*tick)(void *, const struct qstill_progress *),
                          void *user, struct qstill_error *err);
void __wrap_qstill_job_cancel(struct qstill_job *job);
const char *__wrap_qstill_job_text(const struct qstill_job *job);

int __wrap_qstill_job_run(struct qstill_job *job,
                          void (*tick)(void *, const struct qstill_progress *),
                          void *user, struct qstill_error *err)
{
    int r;

    assert_ptr_equal(job, fake_job);
    r = script(tick, user);
    if (r < 0)
        err->code = r;
    return r;
}

const char *__wrap_qstill_job_text(const struct qstill_job *job)
{
    assert_ptr_equal(job, fake_job);
    return "undo of disks: no\tluck\n";
}

void __wrap_qstill_job_cancel(struct qstill_job *job)
{
    assert_ptr_equal(job, fake_job);
    cancels++;
}

static void pause_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

    while (nanosleep(&ts, &ts) < 0)
        ;
}

/* Ticks of one phase for `ms` milliseconds, to its end. */
static void work(void (*tick)(void *, const struct qstill_progress *),
                 void *user, const char *phase, uint64_t total, int ms)
{
    struct qstill_progress p = {phase, 0, total};

    for (int at = 0; at <= ms; at += 20) {
        p.bytes_done = total * (uint64_t)at / (uint64_t)ms;
        tick(user, &p);
        pause_ms(20);
    }
}

/* Runs `fn` with standard error into `fd` and returns the job's result. */
static int run_into(int fd, struct cli *cli,
                    int (*fn)(void (*)(void *, const struct qstill_progress *),
                              void *))
{
    struct qstill_error err = {0};
    int saved = dup(STDERR_FILENO), r;

    cli->verb = &verb;
    script = fn;
    cancels = 0;
    fflush(stderr);
    assert_true(dup2(fd, STDERR_FILENO) >= 0);
    run_prepare(cli);
    r = run_job(cli, fake_job, &err);
    fflush(stderr);
    dup2(saved, STDERR_FILENO);
    close(saved);
    return r;
}

static void read_all(int fd, char *text, size_t size)
{
    ssize_t n;
    size_t len = 0;

    fcntl(fd, F_SETFL, O_NONBLOCK);
    while (len + 1 < size && (n = read(fd, text + len, size - 1 - len)) > 0)
        len += (size_t)n;
    text[len] = '\0';
}

static int signals_come(void (*tick)(void *, const struct qstill_progress *),
                        void *user)
{
    (void)tick;
    (void)user;
    raise(SIGINT);
    assert_int_equal(cancels, 1);
    raise(SIGINT);
    raise(SIGTERM);
    raise(SIGHUP);
    raise(SIGTSTP); /* the test would stop here */
    assert_int_equal(cancels, 4);
    return QSTILL_E_CANCELLED;
}

static void signals_cancel_and_do_not_kill(void **state)
{
    struct cli cli = {0};
    char text[1024];
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(run_into(fds[1], &cli, signals_come), QSTILL_E_CANCELLED);
    read_all(fds[0], text, sizeof(text));
    assert_string_equal(text, "qstill: cancelling, and undoing what was begun\n"
                              "qstill: create: undo of disks: no\\x09luck\n");
    close(fds[0]);
    close(fds[1]);
}

static int a_hangup_comes(void (*tick)(void *, const struct qstill_progress *),
                          void *user)
{
    (void)tick;
    (void)user;
    cancels = 0;
    raise(SIGHUP);
    assert_int_equal(cancels, 0);
    return 0;
}

static void a_hangup_that_nohup_ignores_stays_ignored(void **state)
{
    struct cli cli = {0};
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    signal(SIGHUP, SIG_IGN);
    assert_int_equal(run_into(fds[1], &cli, a_hangup_comes), 0);
    signal(SIGHUP, SIG_DFL);
    close(fds[0]);
    close(fds[1]);
}

static int never_asked(void (*tick)(void *, const struct qstill_progress *),
                       void *user)
{
    (void)tick;
    (void)user;
    assert_int_equal(cancels, 1); /* before the run began */
    return QSTILL_E_CANCELLED;
}

static void a_signal_before_the_job_cancels_it_at_once(void **state)
{
    struct cli cli = {0};
    int fds[2];

    (void)state; /* the signals of the test before count */
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(run_into(fds[1], &cli, never_asked), QSTILL_E_CANCELLED);
    close(fds[0]);
    close(fds[1]);
}

static int two_phases(void (*tick)(void *, const struct qstill_progress *),
                      void *user)
{
    work(tick, user, "memory", 64 << 20, 1200);
    work(tick, user, "publish", 0, 100);
    return 0;
}

static int two_short_phases(void (*tick)(void *,
                                         const struct qstill_progress *),
                            void *user)
{
    work(tick, user, "memory", 64 << 20, 500);
    work(tick, user, "publish", 0, 100);
    return 0;
}

static void a_file_gets_a_line_a_second(void **state)
{
    struct cli cli = {0};
    char text[1024];
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(run_into(fds[1], &cli, two_phases), 0);
    read_all(fds[0], text, sizeof(text));
    assert_int_equal(strncmp(text, "qstill: create: memory  ", 24), 0);
    assert_non_null(strstr(text, " MiB of 64 MiB  "));
    assert_non_null(strstr(text, "MiB/s"));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    close(fds[0]);
    close(fds[1]);
}

/* The phase's time in the text; a loaded machine may take longer than asked. */
static double told_ms(const char *text, const char *phase)
{
    char line[64];
    const char *at;

    snprintf(line, sizeof(line), "qstill: create: %s: ", phase);
    at = strstr(text, line);
    assert_non_null(at);
    return strtod(at + strlen(line), NULL);
}

static void quiet_is_silent_and_verbose_tells_times(void **state)
{
    struct cli cli = {.quiet = true};
    char text[1024];
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(run_into(fds[1], &cli, two_phases), 0);
    read_all(fds[0], text, sizeof(text));
    assert_string_equal(text, "");
    cli = (struct cli){.verbose = true};
    assert_int_equal(run_into(fds[1], &cli, two_short_phases), 0);
    read_all(fds[0], text, sizeof(text));
    assert_true(told_ms(text, "memory") >= 500);
    assert_true(told_ms(text, "publish") >= 100);
    assert_true(told_ms(text, "publish") < told_ms(text, "memory"));
    assert_non_null(strstr(text, " ms\n"));
    close(fds[0]);
    close(fds[1]);
}

static void a_terminal_gets_a_bar_and_is_left_clean(void **state)
{
    struct winsize ws = {.ws_row = 24, .ws_col = 70};
    struct cli cli = {0};
    char text[16384], *line;
    int master = posix_openpt(O_RDWR | O_NOCTTY), terminal;

    (void)state;
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0)
        skip();
    terminal = open(ptsname(master), O_RDWR | O_NOCTTY);
    assert_true(terminal >= 0);
    ioctl(terminal, TIOCSWINSZ, &ws);
    setenv("TERM", "xterm", 1);
    assert_int_equal(run_into(terminal, &cli, two_short_phases), 0);
    read_all(master, text, sizeof(text));
    assert_null(strchr(text, '\n'));
    assert_non_null(strstr(text, "memory [#"));
    assert_string_equal(text + strlen(text) - 4, "\r\033[K");
    for (line = strtok(text, "\r"); line; line = strtok(NULL, "\r"))
        assert_in_range(strlen(line), 0, 69 + 3); /* and the erase */
    setenv("TERM", "dumb", 1);
    assert_int_equal(run_into(terminal, &cli, two_short_phases), 0);
    read_all(master, text, sizeof(text));
    assert_null(strchr(text, '\033'));
    close(terminal);
    close(master);
}

int main(void)
{
    /* a signal is remembered: those that send some are the last */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_gets_a_line_a_second),
        cmocka_unit_test(quiet_is_silent_and_verbose_tells_times),
        cmocka_unit_test(a_terminal_gets_a_bar_and_is_left_clean),
        cmocka_unit_test(a_hangup_that_nohup_ignores_stays_ignored),
        cmocka_unit_test(signals_cancel_and_do_not_kill),
        cmocka_unit_test(a_signal_before_the_job_cancels_it_at_once),
    };

    signal(SIGHUP, SIG_DFL); /* whoever runs the tests may ignore it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
