/* SPDX-License-Identifier: MIT */
/*
 * Bulk I/O over io_uring. Refusals of the kernel at set-up (ENOSYS, EPERM of
 * a seccomp filter or sysctl, ENOMEM of a small memlock limit) are no errors:
 * the caller then takes the sync twin. No links and no drain flags: short
 * transfers would break them, and counting completions is simpler.
 */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#include "aio_impl.h"

struct uring_aio {
    struct aio base;
    struct io_uring ring;
    uint8_t *fixed; /* the registered region, or NULL */
    size_t fixed_len;
};

static struct uring_aio *uring_of(struct aio *a)
{
    return (struct uring_aio *)a;
}

static void uring_close(struct aio *a)
{
    struct uring_aio *u = uring_of(a);

    io_uring_queue_exit(&u->ring);
    free(u);
}

static bool is_fixed(const struct uring_aio *u, const uint8_t *p, size_t len)
{
    return u->fixed && p >= u->fixed && len <= u->fixed_len &&
           (size_t)(p - u->fixed) <= u->fixed_len - len;
}

static void prepare_flat(const struct uring_aio *u, struct io_uring_sqe *sqe,
                         const struct aio_op *op)
{
    uint8_t *data = (uint8_t *)op->data + op->moved;
    unsigned len = (unsigned)aio_left(op);
    uint64_t off = op->off + op->moved;

    if (is_fixed(u, data, len)) {
        if (op->type == AIO_READ)
            io_uring_prep_read_fixed(sqe, op->fd, data, len, off, 0);
        else
            io_uring_prep_write_fixed(sqe, op->fd, data, len, off, 0);
    } else if (op->type == AIO_READ) {
        io_uring_prep_read(sqe, op->fd, data, len, off);
    } else {
        io_uring_prep_write(sqe, op->fd, data, len, off);
    }
}

static void prepare(const struct uring_aio *u, struct io_uring_sqe *sqe,
                    const struct aio_op *op)
{
    uint64_t off = op->off + op->moved;

    if (op->type == AIO_DATASYNC)
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
    else if (op->iov_count == 0)
        prepare_flat(u, sqe, op);
    else if (op->type == AIO_READ)
        io_uring_prep_readv(sqe, op->fd, op->iov, op->iov_count, off);
    else
        io_uring_prep_writev(sqe, op->fd, op->iov, op->iov_count, off);
}

static int ring_failed(int r, struct qstill_error *err)
{
    return err_errno(err, -r, "io_uring");
}

static int uring_start(struct aio *a, struct aio_op *op,
                       struct qstill_error *err)
{
    struct uring_aio *u = uring_of(a);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (!sqe) {
        int r = io_uring_submit(&u->ring);

        if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
            return ring_failed(r, err);
        sqe = io_uring_get_sqe(&u->ring);
        if (!sqe)
            return ring_failed(r < 0 ? r : -EBUSY, err);
    }
    prepare(u, sqe, op);
    io_uring_sqe_set_data(sqe, op);
    return 0;
}

/* All completions of the queue; `done` callbacks may queue more. */
static void finish_ready(struct uring_aio *u)
{
    struct io_uring_cqe *cqes[64];
    unsigned n;

    while ((n = io_uring_peek_batch_cqe(&u->ring, cqes, ARRAY_LEN(cqes))) > 0) {
        struct {
            struct aio_op *op;
            int res;
        } done[ARRAY_LEN(cqes)];

        for (unsigned i = 0; i < n; i++) {
            done[i].op = io_uring_cqe_get_data(cqes[i]);
            done[i].res = cqes[i]->res;
        }
        io_uring_cq_advance(&u->ring, n);
        for (unsigned i = 0; i < n; i++)
            aio_moved(&u->base, done[i].op, done[i].res);
    }
}

static int uring_reap(struct aio *a, bool sleep, int timeout_ms,
                      struct qstill_error *err)
{
    struct uring_aio *u = uring_of(a);
    struct __kernel_timespec ts = {
        .tv_sec = timeout_ms / 1000,
        .tv_nsec = (timeout_ms % 1000) * 1000000LL,
    };
    struct io_uring_cqe *cqe;
    int r;

    if (!sleep || a->flying == 0)
        /* get_events also when nothing is to be submitted: with DEFER_TASKRUN
         * completions are posted only then */
        r = io_uring_submit_and_get_events(&u->ring);
    else if (timeout_ms < 0)
        r = io_uring_submit_and_wait(&u->ring, 1);
    else
        r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
    if (r < 0 && r != -ETIME && r != -EINTR && r != -EAGAIN && r != -EBUSY)
        return ring_failed(r, err);
    finish_ready(u);
    return 0;
}

static int uring_use_eventfd(struct aio *a, int fd, struct qstill_error *err)
{
    int r = io_uring_register_eventfd(&uring_of(a)->ring, fd);

    return r < 0 ? ring_failed(r, err) : 0;
}

static void uring_register_region(struct aio *a, void *data, size_t len)
{
    struct uring_aio *u = uring_of(a);
    struct iovec iov = {data, len};

    /* refused beyond the memlock limit or 1 GiB: plain reads and writes then */
    if (u->fixed || io_uring_register_buffers(&u->ring, &iov, 1) < 0)
        return;
    u->fixed = data;
    u->fixed_len = len;
}

const struct aio_backend_ops aio_uring_ops = {
    .name = "io_uring",
    .close = uring_close,
    .start = uring_start,
    .reap = uring_reap,
    .use_eventfd = uring_use_eventfd,
    .register_region = uring_register_region,
};

/* From the most wanted set of flags down to what old kernels know. */
static int queue_init(struct io_uring *ring, unsigned depth, bool one_thread)
{
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
        IORING_SETUP_COOP_TASKRUN,
        0,
    };
    int r = -EINVAL;

    for (size_t i = one_thread ? 0 : 1; i < ARRAY_LEN(flags); i++) {
        r = io_uring_queue_init(depth, ring, flags[i]);
        if (r != -EINVAL)
            break;
    }
    return r;
}

int aio_uring_new(struct aio **out, unsigned depth, bool one_thread,
                  struct qstill_error *err)
{
    struct uring_aio *u = calloc(1, sizeof(*u));
    int r;

    if (!u)
        return err_nomem(err);
    u->base.backend = &aio_uring_ops;
    r = queue_init(&u->ring, depth, one_thread);
    if (r < 0) {
        free(u);
        if (r == -ENOSYS || r == -EPERM || r == -EACCES || r == -ENOMEM ||
            r == -EINVAL)
            return 0;
        return ring_failed(r, err);
    }
    io_uring_ring_dontfork(&u->ring);
    *out = &u->base;
    return 0;
}
