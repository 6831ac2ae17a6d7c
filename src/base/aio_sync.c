/* SPDX-License-Identifier: MIT */
/*
 * Bulk I/O where io_uring is refused, and under tests: each op is one system
 * call of the I/O table, made when the caller polls or waits, in the order of
 * submission.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "aio_impl.h"

struct sync_aio {
    struct aio base;
    struct aio_op *head; /* started, not done: at most `depth` */
    struct aio_op **tail;
};

static struct sync_aio *sync_of(struct aio *a)
{
    return (struct sync_aio *)a;
}

static void sync_close(struct aio *a)
{
    free(sync_of(a));
}

static int sync_start(struct aio *a, struct aio_op *op,
                      struct qstill_error *err)
{
    struct sync_aio *s = sync_of(a);

    (void)err;
    op->next = NULL;
    *s->tail = op;
    s->tail = &op->next;
    return 0;
}

static int64_t move_one(const struct io *io, const struct aio_op *op,
                        uint8_t *data, size_t len, uint64_t off)
{
    if (op->type == AIO_READ)
        return io->ops->pread(io, op->fd, data, len, off);
    return io->ops->pwrite(io, op->fd, data, len, off);
}

/* One piece: a vector goes entry by entry, as short transfers. */
static int64_t run(const struct io *io, const struct aio_op *op)
{
    if (op->type == AIO_DATASYNC)
        return io->ops->fdatasync(io, op->fd);
    if (aio_left(op) == 0)
        return 0;
    if (op->iov_count > 0)
        return move_one(io, op, op->iov->iov_base, op->iov->iov_len,
                        op->off + op->moved);
    return move_one(io, op, (uint8_t *)op->data + op->moved, aio_left(op),
                    op->off + op->moved);
}

/* One op each time, so that a caller that polls gets its turn in between. */
static int sync_reap(struct aio *a, bool sleep, int timeout_ms,
                     struct qstill_error *err)
{
    struct sync_aio *s = sync_of(a);
    struct aio_op *op = s->head;

    (void)sleep;
    (void)timeout_ms;
    (void)err;
    if (!op)
        return 0;
    s->head = op->next;
    if (!s->head)
        s->tail = &s->head;
    aio_moved(a, op, run(a->io, op));
    if (a->eventfd >= 0 && aio_pending(a) > 0)
        eventfd_write(a->eventfd, 1);
    return 0;
}

static int sync_use_eventfd(struct aio *a, int fd, struct qstill_error *err)
{
    (void)a; /* aio_submit() and sync_reap() write it */
    (void)fd;
    (void)err;
    return 0;
}

const struct aio_backend_ops aio_sync_ops = {
    .name = "sync",
    .close = sync_close,
    .start = sync_start,
    .reap = sync_reap,
    .use_eventfd = sync_use_eventfd,
};

int aio_sync_new(struct aio **out, struct qstill_error *err)
{
    struct sync_aio *s = calloc(1, sizeof(*s));

    if (!s)
        return err_nomem(err);
    s->base.backend = &aio_sync_ops;
    s->tail = &s->head;
    *out = &s->base;
    return 0;
}
