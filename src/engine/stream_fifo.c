/* SPDX-License-Identifier: MIT */
#include "stream_fifo.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "qmp/migrate.h"
#include "session.h"

#define STILL_MS        15000 /* no byte for so long: it hangs */
#define SETTLE_MS       2000
#define SETTLE_BLIND_MS 300 /* where /proc/PID/fd is not for us */

static int plain_pipe(int *reader, int *both, struct qstill_error *err)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_errno(err, errno, "no pipe");
    *reader = fds[0];
    *both = fds[1];
    return 0;
}

/* O_NONBLOCK: an open for reading alone would wait for a writer. */
static int open_reader(int vmfd)
{
    return openat(vmfd, STREAM_FIFO_NAME,
                  O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
}

int stream_fifo_make(int vmfd, int *reader, int *both, struct qstill_error *err)
{
    CLEANUP(closep) int r = -1;
    CLEANUP(closep) int w = -1;

    unlinkat(vmfd, STREAM_FIFO_NAME, 0);
    if (mkfifoat(vmfd, STREAM_FIFO_NAME, 0600) < 0) {
        if (errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS)
            return plain_pipe(reader, both, err);
        return err_errno(err, errno, "cannot make the memory's stream");
    }
    r = open_reader(vmfd);
    if (r >= 0)
        w = openat(vmfd, STREAM_FIFO_NAME, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (r < 0 || w < 0) {
        err_errno(err, errno, "cannot open the memory's stream");
        stream_fifo_remove(vmfd);
        return err->code;
    }
    *reader = take_fd(&r);
    *both = take_fd(&w);
    return 0;
}

void stream_fifo_remove(int vmfd)
{
    unlinkat(vmfd, STREAM_FIFO_NAME, 0);
}

bool stream_fifo_exists(int vmfd)
{
    return faccessat(vmfd, STREAM_FIFO_NAME, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* ----------------------------------------------------------------- run out */

/* Whether the process has a userfaultfd: yes, no, or not ours to know. */
enum answer { YES, NO, UNKNOWN };

static enum answer has_userfaultfd(int pid)
{
    char path[64], target[64];
    enum answer found = NO;
    struct dirent *e;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    dir = pid > 0 ? opendir(path) : NULL;
    if (!dir)
        return UNKNOWN;
    while (found == NO && (e = readdir(dir)) != NULL) {
        ssize_t n =
            readlinkat(dirfd(dir), e->d_name, target, sizeof(target) - 1);

        target[n < 0 ? 0 : n] = 0;
        if (strcmp(target, "anon_inode:[userfaultfd]") == 0)
            found = YES;
    }
    closedir(dir);
    return found;
}

void stream_settle(int pid)
{
    double deadline = clock_ms() + SETTLE_MS;
    enum answer has = has_userfaultfd(pid);

    if (has == UNKNOWN)
        clock_sleep_ms(SETTLE_BLIND_MS);
    while (has == YES && clock_ms() < deadline) {
        clock_sleep_ms(2);
        has = has_userfaultfd(pid);
    }
}

int stream_run_out(struct session *s, struct qstill_error *err)
{
    struct qmp_parameter fast = {"max-bandwidth", INT64_MAX / 4};
    double deadline = clock_ms() + STILL_MS;
    struct qstill_error ignored = {0};
    uint64_t before = 0;

    qmp_migrate_set_parameters(s->qmp, &fast, 1, &ignored);
    for (;;) {
        CLEANUP(qmp_migration_fini)
        struct qmp_migration m = QMP_MIGRATION_INIT;

        if (qmp_migration_read(s->qmp, &m, err) < 0)
            return err->code;
        if (m.state != QMP_MIGRATION_ACTIVE)
            break;
        if (m.ram_transferred != before)
            deadline = clock_ms() + STILL_MS;
        before = m.ram_transferred;
        if (clock_ms() > deadline)
            return err_set(err, QSTILL_E_BUSY,
                           "the background snapshot in VM %s's QEMU does not "
                           "end",
                           s->vm);
        clock_sleep_ms(10);
    }
    stream_settle(s->pid);
    return 0;
}

/* ------------------------------------------------------------------- drain */

/* A FIFO that no QEMU has open any more is at its end at once. */
static int drain(void *ctx, struct qstill_error *err)
{
    struct stream_drain *d = ctx;
    struct pollfd p[] = {{.fd = d->fd, .events = POLLIN},
                         {.fd = d->worker.cancel_fd, .events = POLLIN}};
    static const size_t piece = 64 << 10;
    CLEANUP(freep) char *data = malloc(piece);
    ssize_t n = 1;

    if (!data)
        return err_nomem(err);
    while (n != 0 && !worker_cancelled(&d->worker)) {
        n = read(d->fd, data, piece);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return err_errno(err, errno, "cannot read a stream to its end");
        if (n < 0 && poll(p, 2, -1) < 0 && errno != EINTR)
            return err_errno(err, errno, "cannot wait for a stream");
    }
    return 0;
}

int stream_drain_start(struct stream_drain *d, int vmfd,
                       struct qstill_error *err)
{
    struct stat st;

    *d = (struct stream_drain){.vmfd = vmfd};
    d->fd = open_reader(vmfd);
    if (d->fd < 0)
        return errno == ENOENT ? 0
                               : err_errno(err, errno,
                                           "cannot open the stream of an "
                                           "interrupted snapshot");
    if (fstat(d->fd, &st) < 0 || !S_ISFIFO(st.st_mode))
        err_set(err, QSTILL_E_CORRUPT, "%s is no FIFO", STREAM_FIFO_NAME);
    else if (worker_init(&d->worker, err) == 0 &&
             worker_start(&d->worker, drain, d, err) == 0)
        return 0;
    closep(&d->fd);
    d->fd = -1;
    return err->code;
}

void stream_drain_stop(struct stream_drain *d, bool done)
{
    if (d->fd >= 0) {
        worker_join(&d->worker);
        worker_fini(&d->worker);
        closep(&d->fd);
        d->fd = -1;
    }
    if (done)
        stream_fifo_remove(d->vmfd);
}
