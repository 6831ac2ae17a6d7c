/* SPDX-License-Identifier: MIT */
/* Processes that a start made: whether they live, are ours, and their end. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "qmp/machine.h"
#include "session.h"
#include "start.h"

#define QUIT_WAIT_MS  30000
#define QUIT_AGAIN_MS 1000
#define ENV_MAX       (4u << 20)

/* /proc/PID/stat behind the name, which may hold anything: " S 1 ..."; NULL
 * when there is no such process. */
static const char *read_stat(int pid, char *text, size_t size)
{
    CLEANUP(closep) int fd = -1;
    char path[64];
    const char *paren;
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, text, size - 1);
    if (n <= 0)
        return NULL;
    text[n] = '\0';
    paren = strrchr(text, ')');
    return paren ? paren + 1 : NULL;
}

static bool process_is_gone(int pid)
{
    char text[512];
    const char *rest = read_stat(pid, text, sizeof(text));

    return !rest || rest[1] == 'Z' || rest[1] == 'X';
}

uint64_t start_time_of(int pid)
{
    char text[1024];
    const char *at = pid > 0 ? read_stat(pid, text, sizeof(text)) : NULL;

    if (at && (at[1] == 'Z' || at[1] == 'X'))
        return 0;
    /* the 22nd field; what follows the name is the third */
    for (int field = 3; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

bool start_has_ended(int pid, unsigned wait_ms)
{
    double deadline = clock_ms() + wait_ms;

    while (!process_is_gone(pid)) {
        if (clock_ms() >= deadline)
            return false;
        clock_sleep_ms(5);
    }
    return true;
}

static int pidfd_of(int pid)
{
    return pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
}

static bool wait_gone(int pidfd, int pid, int timeout_ms)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    double deadline = clock_ms() + timeout_ms;

    if (pidfd >= 0)
        return poll(&p, 1, timeout_ms) > 0;
    while (pid > 0 && !process_is_gone(pid) && clock_ms() < deadline)
        clock_sleep_ms(5);
    return pid <= 0 || process_is_gone(pid);
}

/* The connection may end before QEMU has read `quit`, and it ends with QEMU,
 * too: who is there still, and answers, is asked again. */
int start_quit(struct session *s, struct qstill_error *err)
{
    double deadline = clock_ms() + QUIT_WAIT_MS;
    int pid = s->pid;
    CLEANUP(closep) int pidfd = pidfd_of(pid);

    for (;;) {
        struct qstill_error deaf = {0};

        if (s->qmp && qmp_quit(s->qmp, err) < 0)
            return err_wrap(err, "ending QEMU");
        session_disconnect(s);
        if (wait_gone(pidfd, pid, QUIT_AGAIN_MS))
            return 0;
        if (clock_ms() >= deadline)
            return err_set(err, QSTILL_E_FAILED,
                           "QEMU (process %d) does not end", pid);
        if (session_try(s, &deaf) == 0 && s->qmp && s->pid != pid)
            return err_set(err, QSTILL_E_BUSY,
                           "VM %s was started again by somebody else", s->vm);
    }
}

void start_kill(struct session *s, int pid)
{
    CLEANUP(closep) int pidfd = -1;
    struct qstill_error ignored = {0};

    if (s->qmp && start_quit(s, &ignored) == 0)
        return;
    session_disconnect(s);
    pidfd = pidfd_of(pid);
    if (pidfd < 0)
        return;
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    wait_gone(pidfd, pid, QUIT_WAIT_MS);
}

/* Whether the process was started with an entry in its environment that begins
 * so, or `whole`, that is it. */
static bool has_env(int pid, const char *entry, bool whole)
{
    size_t n = strlen(entry) + (whole ? 1 : 0);
    CLEANUP(closep) int fd = -1;
    CLEANUP(freep) char *env = malloc(ENV_MAX + 1);
    struct qstill_error ignored = {0};
    char path[64];
    size_t len = 0;

    snprintf(path, sizeof(path), "/proc/%d/environ", pid);
    fd = env ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0 || file_read_upto(fd, env, ENV_MAX, 0, &len, &ignored) < 0)
        return false;
    env[len] = '\0';
    for (const char *e = env; e < env + len; e += strlen(e) + 1)
        if (strncmp(e, entry, n) == 0)
            return true;
    return false;
}

bool start_was_ours(int pid)
{
    return has_env(pid, START_TAG_KEY "=", false);
}

static int end_stray(struct session *s, int pid, struct qstill_error *err)
{
    CLEANUP(closep) int pidfd = pidfd_of(pid);

    if (pidfd < 0)
        return 0;
    store_note(s->store,
               "VM %s: process %d, which a command that died had "
               "started, is ended",
               s->vm, pid);
    if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) < 0 &&
        errno != ESRCH)
        return err_errno(err, errno, "cannot end process %d", pid);
    if (!wait_gone(pidfd, pid, QUIT_WAIT_MS))
        return err_set(err, QSTILL_E_FAILED, "process %d does not end", pid);
    return 0;
}

/* *some: one was found. A launcher's child may come while we look. */
static int end_strays_once(struct session *s, const char *entry, bool *some,
                           struct qstill_error *err)
{
    DIR *proc = opendir("/proc");
    const struct dirent *e;

    *some = false;
    if (!proc)
        return err_errno(err, errno, "cannot read /proc");
    while (err->code == 0 && (e = readdir(proc))) {
        int pid = atoi(e->d_name);

        if (pid <= 0 || pid == getpid() || !has_env(pid, entry, true))
            continue;
        *some = true;
        end_stray(s, pid, err);
    }
    closedir(proc);
    return err->code;
}

int start_end_strays(struct session *s, const char *tag,
                     struct qstill_error *err)
{
    char *entry = arena_printf(&s->rec.arena, START_TAG_KEY "=%s", tag);
    bool some = true;

    if (!entry)
        return err_nomem(err);
    while (some)
        if (end_strays_once(s, entry, &some, err) < 0)
            return err->code;
    return 0;
}
