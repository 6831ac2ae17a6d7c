/* SPDX-License-Identifier: MIT */
/* Reading the launch record of a live process from /proc/PID. */
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/file.h"
#include "launch_args.h"

/* The kernel lets argv and environment together have a quarter of the stack's
 * limit: 2 MiB of the usual 8 MiB. */
enum { PROC_TEXT_MAX = 2 << 20, PROC_STATUS_MAX = 64 << 10 };

/* 2 MiB of words of 32 bytes, an option of QEMU. */
enum { PROC_WORDS_MAX = 64 * 1024 };

/* What a later QEMU finds its programs, files, display and sound by. A '*' at
 * the end stands for anything. All else stays behind: an environment may hold
 * secrets, and nobody would look for them in a store. */
static const char *const kept_env[] = {
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_*",
    "DBUS_SESSION_BUS_ADDRESS",
    "PULSE_*",
    "PIPEWIRE_*",
    "SDL_*",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "QEMU_*",
};

void launch_record_fini(struct launch_record *rec)
{
    launch_argv_free(rec->argv);
    launch_argv_free(rec->env);
    free(rec->cwd);
    free(rec->exe);
    memset(rec, 0, sizeof(*rec));
}

static int gone(pid_t pid, struct qstill_error *err)
{
    return err_set(err, QSTILL_E_UNREACHABLE, "process %d is not running",
                   (int)pid);
}

/* An errno of /proc: a process that ended shows as ENOENT or ESRCH. */
static int proc_errno(pid_t pid, int errno_value, const char *what,
                      struct qstill_error *err)
{
    if (errno_value == ENOENT || errno_value == ESRCH)
        return gone(pid, err);
    err_errno(err, errno_value, "cannot read %s of process %d", what, (int)pid);
    if (errno_value == EACCES || errno_value == EPERM)
        err_hint(err, "run qstill as the user of that process, or as root");
    return err->code;
}

static int proc_slurp(int dirfd, pid_t pid, const char *name, size_t limit,
                      struct buf *b, struct qstill_error *err)
{
    CLEANUP(closep) int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return proc_errno(pid, errno, name, err);
    while (b->len <= limit) {
        ssize_t n;

        if (buf_reserve(b, 64 << 10) < 0)
            return err_nomem(err);
        n = read(fd, b->data + b->len, 64 << 10);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return proc_errno(pid, errno, name, err);
        if (n == 0) {
            b->data[b->len] = '\0';
            return 0;
        }
        b->len += (size_t)n;
    }
    return err_set(err, QSTILL_E_PRECONDITION,
                   "%s of process %d is larger than %zu bytes", name, (int)pid,
                   limit);
}

static int proc_link(int dirfd, pid_t pid, const char *name, char **out,
                     struct qstill_error *err)
{
    char path[PATH_MAX];
    ssize_t n = readlinkat(dirfd, name, path, sizeof(path) - 1);

    if (n < 0)
        return proc_errno(pid, errno, name, err);
    path[n] = '\0';
    if (path[0] != '/')
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s of process %d is %s, which cannot be reached from "
                       "here",
                       name, (int)pid, path);
    *out = strdup(path);
    return *out ? 0 : err_nomem(err);
}

/* The kernel says " (deleted)" behind the name of a binary that a package
 * upgrade replaced: the name is the new one's now. */
static void trim_deleted(char *path)
{
    static const char mark[] = " (deleted)";
    size_t n = strlen(path), m = sizeof(mark) - 1;

    if (n > m && strcmp(path + n - m, mark) == 0 && access(path, F_OK) < 0)
        path[n - m] = '\0';
}

static bool env_is_kept(const char *pair)
{
    size_t i, n = strcspn(pair, "=");

    if (pair[n] != '=')
        return false;
    for (i = 0; i < ARRAY_LEN(kept_env); i++) {
        size_t m = strlen(kept_env[i]);

        if (kept_env[i][m - 1] == '*'
                ? n >= m - 1 && strncmp(pair, kept_env[i], m - 1) == 0
                : n == m && strncmp(pair, kept_env[i], m) == 0)
            return true;
    }
    return false;
}

static bool any(const char *word)
{
    (void)word;
    return true;
}

/* The NUL-terminated words of `b` that `keep` keeps, as a malloc'ed list. */
static int split(const struct buf *b, bool (*keep)(const char *word),
                 char ***out, struct qstill_error *err)
{
    const char *s = (const char *)b->data, *end = s + b->len, *w;
    size_t n = 0;
    char **list;

    for (w = s; w < end; w += strlen(w) + 1)
        n++;
    if (n > PROC_WORDS_MAX)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "a command line or environment has more than %d words",
                       PROC_WORDS_MAX);
    list = calloc(n + 1, sizeof(*list));
    if (!list)
        return err_nomem(err);
    n = 0;
    for (w = s; w < end; w += strlen(w) + 1) {
        if (!keep(w))
            continue;
        list[n] = strdup(w);
        if (!list[n++]) {
            launch_argv_free(list);
            return err_nomem(err);
        }
    }
    *out = list;
    return 0;
}

static int read_argv(int dirfd, pid_t pid, struct launch_record *rec,
                     struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (proc_slurp(dirfd, pid, "cmdline", PROC_TEXT_MAX, &b, err) < 0)
        return err->code;
    if (b.len == 0)
        return gone(pid, err); /* a zombie, or a thread of the kernel */
    return split(&b, any, &rec->argv, err);
}

static bool is_daemon(const struct launch_record *rec)
{
    size_t i;

    for (i = 1; rec->argv[i]; i++)
        if (strcmp(rec->argv[i], "-daemonize") == 0 ||
            strcmp(rec->argv[i], "--daemonize") == 0)
            return true;
    return false;
}

/*
 * -daemonize ends in "/", while relative names on the command line meant the
 * directory before. A shell leaves that in PWD: the best there is to know.
 */
static int recover_cwd(struct launch_record *rec, const struct buf *env,
                       struct qstill_error *err)
{
    const char *w = (const char *)env->data, *end = w + env->len;
    struct stat st;
    char *cwd;

    if (strcmp(rec->cwd, "/") != 0 || !is_daemon(rec))
        return 0;
    for (; w < end; w += strlen(w) + 1) {
        if (strncmp(w, "PWD=/", 5) != 0 || stat(w + 4, &st) < 0 ||
            !S_ISDIR(st.st_mode))
            continue;
        cwd = strdup(w + 4);
        if (!cwd)
            return err_nomem(err);
        free(rec->cwd);
        rec->cwd = cwd;
        break;
    }
    return 0;
}

static int read_env(int dirfd, pid_t pid, struct launch_record *rec,
                    struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (proc_slurp(dirfd, pid, "environ", PROC_TEXT_MAX, &b, err) < 0 ||
        split(&b, env_is_kept, &rec->env, err) < 0)
        return err->code;
    return recover_cwd(rec, &b, err);
}

/* "Uid:\tREAL\tEFFECTIVE\tSAVED\tFILESYSTEM" */
static int effective_id(const struct buf *b, const char *label, uint32_t *out)
{
    const char *line = strstr((const char *)b->data, label);
    unsigned long effective;
    char *end;

    if (!line)
        return -1;
    strtoul(line + strlen(label), &end, 10);
    line = end;
    effective = strtoul(line, &end, 10);
    if (end == line || effective > UINT32_MAX)
        return -1;
    *out = (uint32_t)effective;
    return 0;
}

static int read_ids(int dirfd, pid_t pid, struct launch_record *rec,
                    struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (proc_slurp(dirfd, pid, "status", PROC_STATUS_MAX, &b, err) < 0)
        return err->code;
    if (effective_id(&b, "\nUid:", &rec->uid) < 0 ||
        effective_id(&b, "\nGid:", &rec->gid) < 0)
        return err_set(err, QSTILL_E_FAILED,
                       "/proc/%d/status names no user or group", (int)pid);
    confine_read(dirfd, (const char *)b.data, &rec->confine);
    groups_read((const char *)b.data, &rec->groups);
    return 0;
}

int launch_read(pid_t pid, struct launch_record *out, struct qstill_error *err)
{
    CLEANUP(launch_record_fini) struct launch_record rec = {0};
    CLEANUP(closep) int dirfd = -1;
    char path[32];

    /* Through one directory fd all files are of one process: when it ends
     * they fail, whoever gets its pid. */
    snprintf(path, sizeof(path), "/proc/%d", (int)pid);
    dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0)
        return proc_errno(pid, errno, path, err);
    if (read_argv(dirfd, pid, &rec, err) < 0 ||
        proc_link(dirfd, pid, "cwd", &rec.cwd, err) < 0 ||
        proc_link(dirfd, pid, "exe", &rec.exe, err) < 0 ||
        read_env(dirfd, pid, &rec, err) < 0 ||
        read_ids(dirfd, pid, &rec, err) < 0)
        return err->code;
    trim_deleted(rec.exe);
    limits_read(pid, &rec.limits);
    *out = rec;
    memset(&rec, 0, sizeof(rec));
    return 0;
}
