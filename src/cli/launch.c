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
#include <pwd.h>
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

#define GROUPS_MAX      1024
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
enum step { STEP_FORK, STEP_CHDIR, STEP_USER, STEP_EXEC };

static const char *const step_words[] = {
    [STEP_FORK] = "forking",
    [STEP_CHDIR] = "entering the VM's directory",
    [STEP_USER] = "becoming the VM's user",
    [STEP_EXEC] = "running it",
};

struct report {
    enum report_kind kind;
    enum step step;
    int value;
};

/* All that the children need, made before the first fork: they may only call
 * what is safe between fork and exec. */
struct plan {
    const struct qstill_launch *launch;
    const char *const *argv;
    const char *shell_argv[4];
    char **env;
    bool change_user;
    gid_t groups[GROUPS_MAX];
    int group_count;
    bool wait_status;
    const char *socket; /* the VM's QMP socket, when a launcher is told */
    struct timespec socket_made; /* before the start; zero when missing */
    int null_fd;
    int log_fd;
    off_t log_start;
    int status_fd; /* write end */
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

static int become_user(const struct plan *p)
{
    if (!p->change_user)
        return 0;
    if (setgroups((size_t)p->group_count, p->groups) < 0 ||
        setresgid(p->launch->gid, p->launch->gid, p->launch->gid) < 0 ||
        setresuid(p->launch->uid, p->launch->uid, p->launch->uid) < 0)
        return -1;
    return 0;
}

/* As far as we may: the engine has seen to it that QEMU can live with that. */
static void set_limits(const struct plan *p)
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

static _Noreturn void child_exec(const struct plan *p)
{
    enum step step = STEP_USER;

    close_others_at_exec();
    set_limits(p);
    if (become_user(p) == 0) {
        step = STEP_CHDIR;
        if (!p->launch->cwd || chdir(p->launch->cwd) == 0) {
            step = STEP_EXEC;
            /* exec takes them unqualified and changes nothing */
            execvpe(p->argv[0], (char *const *)(uintptr_t)p->argv, p->env);
        }
    }
    send_report(CHILD_STATUS_FD, REPORT_ERRNO, step, errno);
    _exit(127);
}

static void child_descriptors(const struct plan *p)
{
    dup2(p->null_fd, STDIN_FILENO);
    dup2(p->log_fd, STDOUT_FILENO);
    dup2(p->log_fd, STDERR_FILENO);
    dup2(p->status_fd, CHILD_STATUS_FD);
    fcntl(CHILD_STATUS_FD, F_SETFD, FD_CLOEXEC);
}

static _Noreturn void middle(const struct plan *p)
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

/* ------------------------------------------------------------- preparation */

static bool has_daemonize(const char *const *argv)
{
    for (; *argv; argv++)
        if (strcmp(*argv, "-daemonize") == 0 ||
            strcmp(*argv, "--daemonize") == 0)
            return true;
    return false;
}

static int plan_user(struct plan *p, struct qstill_error *err)
{
    const struct qstill_launch *l = p->launch;
    struct passwd *pw;

    if (l->launcher || (l->uid == geteuid() && l->gid == getegid()))
        return 0;
    if (geteuid() != 0) {
        if (l->uid == geteuid())
            return 0; /* another primary group: ours will do */
        cli_fail(err, QSTILL_E_PERMISSION,
                 "the VM ran as user %u and cannot be started as user %u",
                 l->uid, (unsigned)geteuid());
        snprintf(err->hint, sizeof(err->hint),
                 "run the command as that user or as root");
        return err->code;
    }
    p->change_user = true;
    p->group_count = 1;
    p->groups[0] = l->gid;
    pw = getpwuid(l->uid);
    if (!pw)
        return 0;
    p->group_count = GROUPS_MAX;
    if (getgrouplist(pw->pw_name, l->gid, p->groups, &p->group_count) < 0)
        return cli_fail(err, QSTILL_E_FAILED,
                        "user %s is in more than %d groups", pw->pw_name,
                        GROUPS_MAX);
    return 0;
}

static bool same_name(const char *a, const char *b)
{
    size_t n = strcspn(a, "=");

    return strncmp(a, b, n) == 0 && b[n] == '=';
}

/* Of our own environment: everything for our own user; for another only what
 * says where programs are and which language they speak. */
static bool keep_own(const struct plan *p, const char *entry)
{
    static const char *const common[] = {"PATH=", "LANG=", "LC_ALL=", "TZ="};

    for (const char *const *e = p->launch->env; e && *e; e++)
        if (same_name(*e, entry))
            return false;
    if (!p->change_user)
        return true;
    for (size_t i = 0; i < ARRAY_LEN(common); i++)
        if (strncmp(entry, common[i], strlen(common[i])) == 0)
            return true;
    return false;
}

/* The array is ours, its strings belong to the environment and to `launch`. */
static int plan_env(struct plan *p, struct qstill_error *err)
{
    size_t room = 1, n = 0;

    for (char **e = environ; *e; e++)
        room++;
    for (const char *const *e = p->launch->env; e && *e; e++)
        room++;
    p->env = calloc(room, sizeof(*p->env));
    if (!p->env)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    for (char **e = environ; *e; e++)
        if (keep_own(p, *e))
            p->env[n++] = *e;
    for (const char *const *e = p->launch->env; e && *e; e++)
        p->env[n++] = (char *)(uintptr_t)*e;
    return 0;
}

static int plan_files(struct plan *p, struct qstill_error *err)
{
    const char *log = p->launch->log;
    struct stat st;

    p->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (p->null_fd < 0)
        return cli_fail(err, QSTILL_E_FAILED, "opening /dev/null: %s",
                        strerror(errno));
    p->log_fd =
        log ? open(log, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC,
                   0600)
            : fcntl(p->null_fd, F_DUPFD_CLOEXEC, 3);
    if (p->log_fd < 0)
        return cli_fail(err,
                        errno == EACCES || errno == EROFS ? QSTILL_E_PERMISSION
                                                          : QSTILL_E_FAILED,
                        "opening the VM's log %s: %s", log, strerror(errno));
    if (log && fstat(p->log_fd, &st) == 0)
        p->log_start = st.st_size;
    return 0;
}

/* When the socket of this name was made; zero when there is none. */
static struct timespec socket_time(const char *path)
{
    struct stat st;

    return path && stat(path, &st) == 0 ? st.st_ctim : (struct timespec){0, 0};
}

static const char *env_value(const char *const *env, const char *name)
{
    for (; env && *env; env++)
        if (same_name(name, *env))
            return strchr(*env, '=') + 1;
    return NULL;
}

static int plan_make(struct plan *p, const struct qstill_launch *launch,
                     struct qstill_error *err)
{
    *p = (struct plan){.launch = launch, .null_fd = -1, .log_fd = -1};
    p->status_fd = -1;
    p->argv = launch->argv;
    if (launch->launcher) {
        p->shell_argv[0] = "/bin/sh";
        p->shell_argv[1] = "-c";
        p->shell_argv[2] = launch->launcher;
        p->argv = p->shell_argv;
        p->socket = env_value(launch->env, "QSTILL_QMP");
        p->socket_made = socket_time(p->socket);
    }
    p->wait_status = launch->launcher || has_daemonize(launch->argv);
    if (plan_user(p, err) < 0 || plan_env(p, err) < 0)
        return err->code;
    return plan_files(p, err);
}

static void plan_fini(struct plan *p)
{
    free(p->env);
    if (p->null_fd >= 0)
        close(p->null_fd);
    if (p->log_fd >= 0)
        close(p->log_fd);
    if (p->status_fd >= 0)
        close(p->status_fd);
}

/* ----------------------------------------------------------------- answers */

/* The last line that was written to the log since the start, or "". */
static void log_line(const struct plan *p, char *line, size_t size)
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

static int failed_exit(const struct plan *p, int status,
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
static bool socket_is_new(const struct plan *p)
{
    struct timespec now = socket_time(p->socket);

    return now.tv_sec != 0 && (now.tv_sec != p->socket_made.tv_sec ||
                               now.tv_nsec != p->socket_made.tv_nsec);
}

/* The next report, or 0 when there is nothing more to wait for. */
static int wait_report(const struct plan *p, int fd, struct report *r,
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

static int read_answer(const struct plan *p, int fd, int *pid,
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

static int start(struct plan *p, int *pid, struct qstill_error *err)
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
    struct plan plan;
    int r;

    (void)user;
    r = plan_make(&plan, launch, err);
    if (r == 0)
        r = start(&plan, pid, err);
    plan_fini(&plan);
    return r;
}
