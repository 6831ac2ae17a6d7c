/* SPDX-License-Identifier: MIT */
#include "inject_status.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/file.h"
#include "memstate/inject_wait.h"

/* The longest line, Groups, has up to 65536 numbers, but it comes late:
 * all that is looked at stands in far less in practice, and a status that is
 * cut off only means that the thread is refused. */
#define STATUS_MAX  32768u
#define SYSCALL_MAX 256u

/* One read, terminated. */
static int read_text(const char *path, char *text, size_t size,
                     struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    size_t got;

    if (file_openat(AT_FDCWD, path, O_RDONLY, 0, &fd, err) < 0 ||
        file_read_upto(fd, text, size - 1, 0, &got, err) < 0)
        return err->code;
    text[got] = '\0';
    return 0;
}

/* What stands behind "NAME:\t", or NULL. */
static const char *field(const char *text, const char *name)
{
    size_t len = strlen(name);

    for (const char *p = text; p; p = strchr(p, '\n')) {
        if (*p == '\n')
            p++;
        if (strncmp(p, name, len) != 0 || p[len] != ':')
            continue;
        p += len + 1;
        return p + strspn(p, " \t");
    }
    return NULL;
}

void inject_status_parse(const char *text, struct inject_status *out)
{
    const char *p;

    *out = (struct inject_status){.state = '?', .seccomp = 2};
    p = field(text, "State");
    if (p && *p)
        out->state = *p;
    p = field(text, "TracerPid");
    if (p)
        out->tracer = (pid_t)strtol(p, NULL, 10);
    /* No such line: a kernel without seccomp. */
    p = field(text, "Seccomp");
    out->seccomp = p ? (int)strtol(p, NULL, 10) : 0;
    p = field(text, "x86_Thread_features");
    if (p) {
        const char *end = strchr(p, '\n');
        size_t len = end ? (size_t)(end - p) : strlen(p);

        out->shadow_stack = memmem(p, len, "shstk", 5) != NULL;
    }
}

int inject_status_read(pid_t pid, pid_t tid, struct inject_status *out,
                       struct qstill_error *err)
{
    CLEANUP(freep) char *text = malloc(STATUS_MAX);
    char path[64];

    if (!text)
        return err_nomem(err);
    snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
    if (read_text(path, text, STATUS_MAX, err) < 0) {
        if (err->code == QSTILL_E_NOT_FOUND)
            return err_set(err, QSTILL_E_UNREACHABLE, "process %d has ended",
                           pid);
        return err->code;
    }
    inject_status_parse(text, out);
    return 0;
}

int inject_status_untraced(pid_t pid, struct qstill_error *err)
{
    struct inject_status st;

    if (inject_status_read(pid, pid, &st, err) < 0)
        return err->code;
    if (st.tracer == 0)
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "process %d is traced by process %d", pid, st.tracer);
}

/* Calls that a stop in the middle of them does not change: the kernel starts
 * them again as they were. (But for read() of a socket with a time limit.) */
static const long restarted[] = {
    SYS_ppoll, SYS_pselect6, SYS_select, SYS_read,
    SYS_readv, SYS_wait4,    SYS_waitid,
};
/* Calls whose remaining time is kept in the kernel, for one restart only. */
static const long counted[] = {
    SYS_poll,
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_restart_syscall,
};

static bool is_in(long nr, const long *table, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (table[i] == nr)
            return true;
    return false;
}

enum inject_rank inject_rank_parse(const char *text)
{
    struct inject_wait w = {0};
    enum inject_eintr eintr;
    unsigned long long *args = w.args;
    long nr;

    if (strncmp(text, "running", 7) == 0)
        return INJECT_RANK_RUNS;
    if (sscanf(text, "%ld %llx %llx %llx %llx %llx %llx", &nr, &args[0],
               &args[1], &args[2], &args[3], &args[4], &args[5]) < 7 ||
        nr < 0)
        return INJECT_RANK_RUNS;
    w.nr = nr;
    eintr = inject_wait_eintr(&w);
    if (eintr == INJECT_EINTR_LIMITED &&
        (inject_wait_masked(&w) || nr == SYS_rt_sigtimedwait))
        return INJECT_RANK_NEVER;
    if (inject_wait_masked(&w))
        return INJECT_RANK_BAD;
    if (eintr == INJECT_EINTR_ENDLESS)
        return INJECT_RANK_WAITS;
    if (is_in(nr, restarted, ARRAY_LEN(restarted)))
        return INJECT_RANK_WAITS;
    /* Without a time limit a futex wait is restarted whole. */
    if (nr == SYS_futex)
        return args[3] == 0 ? INJECT_RANK_WAITS : INJECT_RANK_BAD;
    if (is_in(nr, counted, ARRAY_LEN(counted)))
        return INJECT_RANK_BAD;
    return INJECT_RANK_OTHER;
}

enum inject_rank inject_rank(pid_t pid, pid_t tid)
{
    struct qstill_error scratch;
    char text[SYSCALL_MAX], path[64];

    snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", pid, tid);
    if (read_text(path, text, sizeof(text), &scratch) < 0)
        return INJECT_RANK_OTHER;
    return inject_rank_parse(text);
}

struct ranked {
    enum inject_rank rank;
    pid_t tid;
};

static int compare_ranked(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    /* The main thread has the lowest number and the largest stack. */
    return (x->tid > y->tid) - (x->tid < y->tid);
}

static int rank_all(pid_t pid, struct ranked *all, size_t *count,
                    struct qstill_error *err)
{
    CLEANUP(closedirp) DIR *dir = NULL;
    const struct dirent *entry;
    char path[32];

    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    dir = opendir(path);
    if (!dir && errno == ENOENT)
        return err_set(err, QSTILL_E_UNREACHABLE, "there is no process %d",
                       pid);
    if (!dir)
        return err_errno(err, errno, "cannot open %s", path);
    *count = 0;
    while (*count < INJECT_THREADS_MAX && (entry = readdir(dir))) {
        pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);

        if (tid > 0)
            all[(*count)++] = (struct ranked){inject_rank(pid, tid), tid};
    }
    return 0;
}

int inject_threads(pid_t pid, pid_t **out, size_t *count,
                   struct qstill_error *err)
{
    CLEANUP(freep) struct ranked *all = NULL;
    size_t kept = 0;
    pid_t *tids;

    all = calloc(INJECT_THREADS_MAX, sizeof(*all));
    if (!all)
        return err_nomem(err);
    if (rank_all(pid, all, count, err) < 0)
        return err->code;
    if (*count == 0)
        return err_set(err, QSTILL_E_UNREACHABLE, "there is no process %d",
                       pid);
    qsort(all, *count, sizeof(*all), compare_ranked);
    tids = calloc(*count, sizeof(*tids));
    if (!tids)
        return err_nomem(err);
    while (kept < *count && all[kept].rank != INJECT_RANK_NEVER) {
        tids[kept] = all[kept].tid;
        kept++;
    }
    *count = kept;
    *out = tids;
    return 0;
}
