/* SPDX-License-Identifier: MIT */
/*
 * Starts QEMU, or the launcher command of `attach`, detached from us: its own
 * session, no terminal, no descriptor of ours, the user it ran as before.
 *
 *   we ──fork── middle ──fork── QEMU
 *
 * The middle process makes QEMU an orphan, so that no zombie is left to be
 * mistaken for a running VM. It ends at once, except when the exit status of
 * what was started is an answer (-daemonize, a launcher): then it stays to
 * report it. Everything is reported through one close-on-exec pipe; the pipe's
 * end without a report means that exec succeeded.
 *
 * Refuses to start as a user that we are not, unless we are root. Never runs a
 * shell but for the launcher command.
 */
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "confine.h"
#include "launch_plan.h"

#define LOG_TAIL_MAX    4096 /* read back to quote the last line */
#define CHILD_STATUS_FD 3
#define SLICE_MS        10
/* How long QEMU may take to detach or to fail, and a launcher to have the VM's
 * socket made. */
#define DAEMON_WAIT_MS   2000
#define LAUNCHER_WAIT_MS 10000

enum report_kind {
    REPORT_PID,   /* value: pid of what was started */
    REPORT_EXIT,  /* value: its wait status */
    REPORT_ERRNO, /* value: errno; step says of what */
};
enum step { STEP_FORK, STEP_CONFINE, STEP_CHDIR, STEP_USER, STEP_EXEC };

static const char *const step_words[] = {
    [STEP_FORK] = "forking",
    [STEP_CONFINE] = "giving it no more rights than before",
    [STEP_CHDIR] = "entering the VM's directory",
    [STEP_USER] = "becoming the VM's user",
    [STEP_EXEC] = "running it",
};

struct report {
    enum report_kind kind;
    enum step step;
    int value;
};

/* ------------------------------------------------------------ the children */

static void send_report(int fd, enum report_kind kind, enum step step,
                        int value)
{
    struct report r = {kind, step, value};

    /* smaller than PIPE_BUF, so whole or not at all; nobody else to tell */
    if (write(fd, &r, sizeof(r)) < 0)
        return;
}

static void default_signals(void)
{
    struct sigaction dfl = {.sa_handler = SIG_DFL};
    sigset_t none;

    for (int s = 1; s < NSIG; s++)
        sigaction(s, &dfl, NULL); /* SIGKILL and SIGSTOP refuse: fine */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static int become_user(const struct launch_plan *p)
{
    const struct qstill_launch *l = p->launch;

    if (p->change_groups && (setgroups((size_t)p->group_count, p->groups) < 0 ||
                             setresgid(l->gid, l->gid, l->gid) < 0))
        return -1;
    return p->change_user ? setresuid(l->uid, l->uid, l->uid) : 0;
}

/* As far as we may: the engine has seen to it that QEMU can live with that. */
static void set_limits(const struct launch_plan *p)
{
    for (size_t i = 0; i < p->launch->limit_count; i++) {
        const struct qstill_limit *l = &p->launch->limits[i];
        struct rlimit r = {l->soft, l->hard}, now;

        if (setrlimit((enum __rlimit_resource)l->resource, &r) == 0 ||
            getrlimit((enum __rlimit_resource)l->resource, &now) < 0)
            continue;
        r.rlim_max = r.rlim_max < now.rlim_max ? r.rlim_max : now.rlim_max;
        r.rlim_cur = r.rlim_cur < r.rlim_max ? r.rlim_cur : r.rlim_max;
        setrlimit((enum __rlimit_resource)l->resource, &r);
    }
}

/* Leaves descriptors 0 to 3 and no other: what stays behind must not hold our
 * locks, sockets or the caller's pipes. */
static void close_others(void)
{
    if (close_range(CHILD_STATUS_FD + 1, ~0u, 0) < 0)
        for (long fd = sysconf(_SC_OPEN_MAX); fd > CHILD_STATUS_FD; fd--)
            close((int)fd);
}

/* What is to become QEMU holds them until it is that: the VM's lock stays
 * taken while nobody could tell the process from one of ours. */
static void close_others_at_exec(void)
{
    if (close_range(CHILD_STATUS_FD + 1, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
        close_others();
}

/* The step that failed; errno says why. */
static enum step become_qemu(const struct launch_plan *p)
{
    const struct qstill_launch *l = p->launch;

    if (confine_before_user(l, p->change_user) < 0)
        return STEP_CONFINE;
    if (become_user(p) < 0)
        return STEP_USER;
    if (confine_after_user(l, p->change_user) < 0)
        return STEP_CONFINE;
    if (l->cwd && chdir(l->cwd) < 0)
        return STEP_CHDIR;
    /* exec takes them unqualified and changes nothing */
    execvpe(p->argv[0], (char *const *)(uintptr_t)p->argv, p->env);
    return STEP_EXEC;
}

static _Noreturn void child_exec(const struct launch_plan *p)
{
    enum step step;

    close_others_at_exec();
    set_limits(p);
    step = become_qemu(p);
    send_report(CHILD_STATUS_FD, REPORT_ERRNO, step, errno);
    _exit(127);
}

static void child_descriptors(const struct launch_plan *p)
{
    dup2(p->null_fd, STDIN_FILENO);
    dup2(p->log_fd, STDOUT_FILENO);
    dup2(p->log_fd, STDERR_FILENO);
    dup2(p->status_fd, CHILD_STATUS_FD);
    fcntl(CHILD_STATUS_FD, F_SETFD, FD_CLOEXEC);
}

static _Noreturn void middle(const struct launch_plan *p)
{
    int status;
    pid_t pid;

    child_descriptors(p);
    default_signals();
    setsid();
    pid = fork();
    if (pid == 0)
        child_exec(p);
    close_others();
    if (pid < 0) {
        send_report(CHILD_STATUS_FD, REPORT_ERRNO, STEP_FORK, errno);
        _exit(1);
    }
    send_report(CHILD_STATUS_FD, REPORT_PID, STEP_EXEC, pid);
    if (p->wait_status) {
        dup2(STDIN_FILENO, STDOUT_FILENO);
        dup2(STDIN_FILENO, STDERR_FILENO);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        send_report(CHILD_STATUS_FD, REPORT_EXIT, STEP_EXEC, status);
    }
    _exit(0);
}

/* ----------------------------------------------------------------- answers */

/* The last line that was written to the log since the start, or "". */
static void log_line(const struct launch_plan *p, char *line, size_t size)
{
    char tail[LOG_TAIL_MAX];
    off_t end = lseek(p->log_fd, 0, SEEK_END);
    off_t from = end - (off_t)sizeof(tail);
    ssize_t n;
    char *last;

    line[0] = '\0';
    if (end <= p->log_start)
        return;
    if (from < p->log_start)
        from = p->log_start;
    n = pread(p->log_fd, tail, (size_t)(end - from), from);
    while (n > 0 && (tail[n - 1] == '\n' || tail[n - 1] == '\0'))
        n--;
    if (n <= 0)
        return;
    last = memrchr(tail, '\n', (size_t)n);
    last = last ? last + 1 : tail;
    snprintf(line, size, ": %.*s", (int)(tail + n - last), last);
}

static int failed_exit(const struct launch_plan *p, int status,
                       struct qstill_error *err)
{
    const char *what = p->launch->launcher ? "the launcher" : p->argv[0];
    char line[300];

    log_line(p, line, sizeof(line));
    if (WIFSIGNALED(status))
        cli_fail(err, QSTILL_E_FAILED, "%.120s was killed by signal %d%s", what,
                 WTERMSIG(status), line);
    else
        cli_fail(err, QSTILL_E_FAILED, "%.120s exited with status %d%s", what,
                 WEXITSTATUS(status), line);
    if (p->launch->log)
        snprintf(err->hint, sizeof(err->hint), "its output is in %.200s",
                 p->launch->log);
    return err->code;
}

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* 1: a report; 0: the pipe's end; -1: the time is up. */
static int next_report(int fd, struct report *r, int timeout_ms)
{
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    ssize_t n;

    do
        n = poll(&pfd, 1, timeout_ms);
    while (n < 0 && errno == EINTR);
    if (n == 0)
        return -1;
    do
        n = read(fd, r, sizeof(*r));
    while (n < 0 && errno == EINTR);
    return n == sizeof(*r);
}

/* A QEMU that is up has made its socket anew. (To connect would take the only
 * place that there is for a client.) */
static bool socket_is_new(const struct launch_plan *p)
{
    struct timespec now = launch_socket_time(p->socket);

    return now.tv_sec != 0 && (now.tv_sec != p->socket_made.tv_sec ||
                               now.tv_nsec != p->socket_made.tv_nsec);
}

/* The next report, or 0 when there is nothing more to wait for. */
static int wait_report(const struct launch_plan *p, int fd, struct report *r,
                       int64_t deadline)
{
    int n;

    if (!p->wait_status)
        return next_report(fd, r, -1);
    do
        n = next_report(fd, r, SLICE_MS);
    while (n < 0 && !socket_is_new(p) && now_ms() < deadline);
    return n > 0;
}

static int read_answer(const struct launch_plan *p, int fd, int *pid,
                       struct qstill_error *err)
{
    int64_t deadline =
        now_ms() + (p->launch->launcher ? LAUNCHER_WAIT_MS : DAEMON_WAIT_MS);
    struct report r;
    int started = 0;

    while (wait_report(p, fd, &r, deadline)) {
        if (r.kind == REPORT_PID)
            started = r.value;
        else if (r.kind == REPORT_ERRNO)
            return cli_fail(err, QSTILL_E_FAILED, "cannot start %.200s: %s: %s",
                            p->argv[0], step_words[r.step], strerror(r.value));
        else if (r.value != 0)
            return failed_exit(p, r.value, err);
        else
            break; /* exited with 0: detached */
    }
    if (!started)
        return cli_fail(err, QSTILL_E_FAILED,
                        "cannot start %.200s: no answer from the new process",
                        p->argv[0]);
    /* a launcher or a parent that detaches is not the VM's process */
    *pid = p->wait_status ? 0 : started;
    return 0;
}

static int start(struct launch_plan *p, int *pid, struct qstill_error *err)
{
    int fds[2];
    pid_t child;
    int r;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return cli_fail(err, QSTILL_E_FAILED, "making a pipe: %s",
                        strerror(errno));
    p->status_fd = fds[1];
    child = fork();
    if (child == 0)
        middle(p);
    close(p->status_fd);
    p->status_fd = -1;
    if (child < 0) {
        close(fds[0]);
        return cli_fail(err, QSTILL_E_FAILED, "forking: %s", strerror(errno));
    }
    r = read_answer(p, fds[0], pid, err);
    close(fds[0]);
    if (!p->wait_status)
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
            ;
    return r;
}

int cli_launch(void *user, const struct qstill_launch *launch, int *pid,
               struct qstill_error *err)
{
    struct launch_plan plan;
    int r;

    (void)user;
    r = launch_plan_make(&plan, launch, err);
    if (r == 0)
        r = start(&plan, pid, err);
    launch_plan_fini(&plan);
    return r;
}
